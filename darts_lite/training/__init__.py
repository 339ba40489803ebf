"""What any training needs: budget, loop, checkpoints, losses, metrics."""
