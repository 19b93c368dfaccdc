"""What a data set says before training: faults, measures, recommended settings."""
