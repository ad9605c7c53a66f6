"""The page of a run, and of several beside each other: one HTML file that needs nothing else."""
