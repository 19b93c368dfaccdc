"""Ids of the Cityscapes labels: a class alone, or class * 1000 + number for an instance."""

from __future__ import annotations

IDS = {
    "person": 24, "rider": 25, "car": 26, "truck": 27, "bus": 28, "train": 31, "motorcycle": 32,
    "bicycle": 33,
}  # fmt: skip
"""Cityscapes id of each class that has instances, in the order of the benchmark."""
VOID = (0, 1, 2, 3, 4, 5, 6, 9, 10, 14, 15, 16, 18, 29, 30)
"""Ids of the regions that are not evaluated."""
NUMBERED = 1000
"""An id from here on is class * 1000 + number."""
