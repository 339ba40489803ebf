"""Parts of every training: budget, loop, checkpoints, losses, metrics."""
