"""A mask file for each object: ID/images/ID.png and ID/masks/*.png, as Data Science Bowl 2018."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from spatialembed.data.layouts.scene import Outline, Scene, Source, box_runs, split_and_name
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.listing import image_files
from spatialembed.images.read import read_labels


def samples_below(folder: Path) -> Iterator[Path]:
    """Folders with masks/ in them, sorted."""
    for parent, folders, _ in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        if "masks" in folders:
            yield Path(parent)
            folders.clear()


def read_one_mask_each(source: Source) -> Iterator[Scene]:
    """Of a folder with all below."""
    for folder in samples_below(source.path):
        images = image_files(folder / "images")
        if len(images) != 1:
            what = (
                f"{folder / 'images'}: {len(images)} images, where one has a mask for each object"
            )
            raise SpatialEmbedError("no_layout", what, "give each image a folder of its own")
        split, name = split_and_name(folder.relative_to(source.path) / "a")
        name = name.rpartition("/")[0] or images[0].stem
        yield Scene(name, split, images[0], partial(_outlines, source, folder / "masks"))


def _outlines(source: Source, folder: Path) -> list[Outline]:
    found = []
    for path in image_files(folder):
        mask = read_labels(path, max_pixels=source.max_pixels) > 0
        runs = box_runs(mask, 0, 0, mask.shape[0])
        found.append(Outline(path.name, "object", runs=runs, size_hw=mask.shape))
    return found
