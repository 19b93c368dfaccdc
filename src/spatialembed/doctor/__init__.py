"""A data set before training: faults, measures, recommended settings."""
