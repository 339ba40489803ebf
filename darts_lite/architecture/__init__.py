"""Search spaces, genotypes, operations, networks and their costs. No data, no training."""
