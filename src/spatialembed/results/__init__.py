"""Results out: one file per format, functions that take ``Instances``."""
