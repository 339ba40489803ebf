"""Neural architecture search: from a search space and data to one genotype."""
