"""Image folders to batches: images (one file), scan (a folder), decode (a domain), sampler."""
