"""The split of a training, as its model keeps it: which images were trained on, for good.

An image is known by the first 6 bytes of the SHA-256 of its file, whatever its name: of 100,000
trained images and 10,000 others, one is mistaken in one of 280,000 such comparisons. They are
kept as one base64 text, 8 characters an image. A copy in another format is another image here;
``spatialembed doctor`` finds those.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from spatialembed.data.dataset import Dataset, FileDataset
from spatialembed.images.decode import opened

logger = logging.getLogger("spatialembed")

F = TypeVar("F", bound=FileDataset)
HASH_BYTES = 6
MOST_IMAGES = 1 << 20
"""A record of more would be larger than the rest of most models."""


@dataclass(frozen=True)
class SplitRecord:
    """How a training parted its images into those it learned from and those it held out."""

    fingerprint: str  # of all its images, trained on or held out
    trained: frozenset[bytes]  # hashes of the files of the images that it learned from
    val_fraction: float | None  # None where the data set came in parts
    group_by: str | None
    seed: int

    def to_json(self) -> dict[str, Any]:
        """As JSON types, for a model file."""
        packed = b"".join(sorted(self.trained))
        return {
            "fingerprint": self.fingerprint,
            "val_fraction": self.val_fraction,
            "group_by": self.group_by,
            "seed": self.seed,
            "trained": base64.b64encode(packed).decode(),
        }

    @classmethod
    def from_json(cls, value: Any) -> SplitRecord:
        """What ``to_json`` gave. Raises ValueError for anything else."""
        kinds = {
            "fingerprint": (str,),
            "val_fraction": (float, int, type(None)),
            "group_by": (str, type(None)),
            "seed": (int,),
            "trained": (str,),
        }
        if not isinstance(value, dict) or set(value) != set(kinds):
            raise ValueError(f"not an object of {', '.join(kinds)}")
        for key, kind in kinds.items():
            if type(value[key]) not in kind:
                raise ValueError(f"{key} is {str(value[key])[:100]!r}")
        fraction = value["val_fraction"]
        if fraction is not None and not 0 < fraction < 1:
            raise ValueError(f"val_fraction is {fraction}")
        if not 0 <= value["seed"] < 1 << 62:
            raise ValueError(f"seed is {value['seed']}")
        try:
            packed = base64.b64decode(value["trained"], validate=True)
        except binascii.Error as error:
            raise ValueError(f"trained: {error}") from error
        if len(packed) % HASH_BYTES:
            raise ValueError("trained ends within a hash")
        hashes = (packed[i : i + HASH_BYTES] for i in range(0, len(packed), HASH_BYTES))
        return cls(
            value["fingerprint"], frozenset(hashes), fraction, value["group_by"], value["seed"]
        )

    def saw(self, images: FileDataset) -> list[bool]:
        """Of each image, whether it was trained on. Raises as ``opened`` does."""
        return [digest in self.trained for digest in image_hashes(images)]

    def held_out(self, images: F) -> F:
        """Those that were not trained on, nor belong to a group that was, in their order."""
        saw = self.saw(images)
        rows = [images.index_row(i) for i in range(len(images))]
        groups = [row.get(self.group_by, "") if self.group_by else "" for row in rows]
        tainted = {group for group, seen in zip(groups, saw, strict=True) if seen and group}
        kept = (not seen and group not in tainted for group, seen in zip(groups, saw, strict=True))
        return images.subset(i for i, keep in enumerate(kept) if keep)


def split_record(
    train: FileDataset,
    val: FileDataset,
    *,
    val_fraction: float | None,
    group_by: str | None,
    seed: int,
    progress: Callable[[], None] = lambda: None,
) -> SplitRecord:
    """The record of a split; every image file is read once, a call of ``progress`` for each."""
    trained = image_hashes(train, progress)
    everything = sorted((*trained, *image_hashes(val, progress)))
    fingerprint = hashlib.sha256(b"".join(everything)).hexdigest()[:16]
    return SplitRecord(fingerprint, frozenset(trained), val_fraction, group_by, seed)


def trained_on(record: SplitRecord | None, dataset: Dataset) -> int | None:
    """How many of these images a model was trained on, with a warning where there are any.

    None where that is not known: the model has no record, or the images are no files.
    """
    if record is None or not hasattr(dataset, "image_path"):
        return None
    count = sum(record.saw(cast(FileDataset, dataset)))
    if count:
        logger.warning(
            "%d of these %d images %s trained on: figures are better than on new images",
            count,
            len(dataset),
            _were(count),
        )
    return count


def sentence(trained: int | None, images: int) -> str:
    """For a report: how many of its images were trained on; empty where that is not known."""
    if trained is None:
        return ""
    return f"{trained or 'None'} of these {images} images {_were(trained)} trained on."


def _were(count: int) -> str:
    return "was" if count == 1 else "were"


def image_hashes(images: FileDataset, progress: Callable[[], None] = lambda: None) -> list[bytes]:
    """HASH_BYTES of the SHA-256 of each image file. Raises SpatialEmbedError as ``opened`` does."""
    hashes = []
    for i in range(len(images)):
        digest = hashlib.sha256()
        with opened(images.image_path(i)) as (file, _):
            while block := file.read(1 << 20):
                digest.update(block)
        hashes.append(digest.digest()[:HASH_BYTES])
        progress()
    return hashes
