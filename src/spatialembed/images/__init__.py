"""Image files to arrays and back: formats, checks, windows of huge files, resampling."""
