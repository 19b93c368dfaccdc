"""Make the picture of the README: what the bundled models say of a generated field and of coins.

python examples/readme_picture.py docs/images/overview.png [NUCLEI_MODEL SHAPES_MODEL]
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
from skimage import data

import spatialembed
from spatialembed.generated.nuclei_and_shapes import nuclei_field
from spatialembed.images.write import write_png
from spatialembed.pictures.maps import maps_panel


def row(model: str, image: np.ndarray) -> np.ndarray:
    """Image, instances, offsets, bandwidth and seeds side by side, (h, w, 3) uint8."""
    predictor = spatialembed.load(model, device="cpu")
    offset, log_precision, seed = (maps[0].numpy() for maps in predictor.embeddings(image))
    found = predictor(image)
    return maps_panel(image, offset, log_precision, seed, found.labels, columns=5)


def main(out: str, nuclei: str = "nuclei", shapes: str = "shapes") -> None:
    """Write the picture to ``out``."""
    field = nuclei_field(192, 192, seed=3).image
    coins = data.coins()[14:206, 10:202]
    rows = row(nuclei, field), row(shapes, coins)
    print(write_png(Path(out), np.concatenate(rows)))


if __name__ == "__main__":
    main(*sys.argv[1:])
