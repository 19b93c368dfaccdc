"""Clustering kernels, without torch."""
