"""Data sets to samples: folders, COCO, Cityscapes, and their splits."""
