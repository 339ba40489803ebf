"""The commands: from options to files on disk."""
