"""Hypergradient estimators, one file each."""
