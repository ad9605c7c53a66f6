"""What a run leaves behind and shows: folder, metrics, previews, progress, checkpoints."""
