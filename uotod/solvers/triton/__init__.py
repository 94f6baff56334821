"""Sinkhorn's iterations as Triton kernels, an extra."""
