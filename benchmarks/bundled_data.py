"""The data of the bundled models, made ready: ``python benchmarks/bundled_data.py DATA OUT``.

DATA has nuclei/, stained/, phase/ and worms/, each with images/ and masks/. In OUT come the two
that are not trained on as they are:

    stained   with benchmarks/groups/stained.csv as its index.csv: images that look alike (size,
              mean colour, contrast, grain; average linkage, cut at 33 groups) are held out together
    phase     parts of an id that are below 30 px are taken out of the masks: slivers apart from the
              cell
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
from skimage.io import imread, imsave
from skimage.measure import label, regionprops

SLIVER_PX = 30
GROUPS = Path(__file__).parent / "groups"


def without_slivers(labels: np.ndarray) -> np.ndarray:
    """(H, W) labels without the parts of an id (of 8 neighbours) that are below ``SLIVER_PX``."""
    kept = labels.copy()
    # Touching ids are different parts: ``label`` joins equal values alone.
    for part in regionprops(label(labels, connectivity=2)):
        if part.area < SLIVER_PX:
            kept[tuple(part.coords.T)] = 0
    return kept


def main(data: Path, out: Path) -> None:
    shutil.copytree(data / "stained", out / "stained", dirs_exist_ok=True)
    shutil.copy(GROUPS / "stained.csv", out / "stained" / "index.csv")
    shutil.copytree(data / "phase" / "images", out / "phase" / "images", dirs_exist_ok=True)
    (out / "phase" / "masks").mkdir(exist_ok=True)
    for path in sorted((data / "phase" / "masks").iterdir()):
        cleaned = without_slivers(imread(path))
        target = out / "phase" / "masks" / f"{path.stem}.png"
        imsave(target, cleaned.astype(np.uint16), check_contrast=False)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
