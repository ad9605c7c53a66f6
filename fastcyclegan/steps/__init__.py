"""The training step as plain functions on tensors, and what it needs: losses, pools, schedule."""
