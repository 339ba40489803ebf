"""Neural architecture search: how one network is chosen."""
