"""The commands: what a user may say, and runs on disk."""
