"""Metrics of an evaluation, one file each: ``add`` every image, then ask for the ``report``."""
