"""Compiled loops of the loss, the clustering and the readers, for CPU and GPU."""
