"""What a network can be: spaces, genotypes, operations, networks, costs. No data, no training."""
