"""Sample data: pictures that come with spatialembed; nothing is downloaded."""

from __future__ import annotations

from importlib import resources
from typing import Any

import numpy as np

LayerData = tuple[np.ndarray, dict[str, Any], str]


def nuclei() -> list[LayerData]:
    """Generated nuclei, bright on dark, for the model ``nuclei``."""
    return [_picture("1.png", "nuclei")]


def shapes() -> list[LayerData]:
    """Generated discs and polygons on uneven ground, for the model ``shapes``."""
    return [_picture("3.png", "shapes")]


def _picture(file: str, name: str) -> LayerData:
    from PIL import Image

    source = resources.files("spatialembed") / "serve" / "examples" / file
    with source.open("rb") as opened:
        pixels = np.asarray(Image.open(opened))
    return pixels, {"name": name}, "image"
