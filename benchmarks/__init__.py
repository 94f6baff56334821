"""Benchmarks of the criterion against its peers, on the same tensors and side by side: `make bench`."""
