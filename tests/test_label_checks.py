"""Masks that hold no instances, made from instances in every known way; and masks that do."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage
from skimage.segmentation import expand_labels

from drawn_labels import discs
from spatialembed.data.label_checks import label_facts, label_faults
from spatialembed.images.read import read_labels

SIDE = 96


def scene(seed: int, *, count: int = 9, radius: int = 8) -> np.ndarray:
    """Labels (SIDE, SIDE) of discs on a jittered grid: none touches another."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid([16, 48, 80], [16, 48, 80]), axis=-1).reshape(-1, 2)
    centres = grid[rng.permutation(9)[:count]] + rng.integers(-6, 7, (count, 2))
    return discs(SIDE, [(int(y), int(x)) for y, x in centres], radius).astype(np.int32)


def crowd(seed: int) -> np.ndarray:
    """340 squares of 5 px, no two touching: more than 8 bits can number."""
    y, x = np.mgrid[:120, :119]
    numbers = (y // 6 * 17 + (x - x % 7) // 7 + 1) * ((y % 6 < 5) & (x % 7 < 5)) * (x // 7 < 17)
    order = np.random.default_rng(seed).permutation(20 * 17) + 1
    return np.concatenate(([0], order))[numbers]


def resized(labels: np.ndarray) -> np.ndarray:
    """To half and back, bilinear."""
    small = Image.fromarray(labels.astype(np.uint8)).resize((48, 48), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((SIDE, SIDE), Image.Resampling.BILINEAR))


def jpeg(labels: np.ndarray) -> np.ndarray:
    stream = BytesIO()
    Image.fromarray((20 * labels).astype(np.uint8)).save(stream, "JPEG", quality=90)
    return np.asarray(Image.open(stream))


def with_void(labels: np.ndarray) -> np.ndarray:
    """255 along the outlines, as Pascal VOC has it."""
    return np.where((labels > 0) ^ ndimage.binary_erosion(labels > 0), 255, labels)


def void_blobs(labels: np.ndarray) -> np.ndarray:
    labels = labels.copy()
    labels[:9, 30:34] = labels[60:64, 90:] = 255
    return labels


def inside_and_border(labels: np.ndarray) -> np.ndarray:
    inside = ndimage.binary_erosion(labels > 0, iterations=2)
    return np.where(inside, 128, 255 * (labels > 0))


def large(labels: np.ndarray, inner: int) -> np.ndarray:
    """One object as two shades: its inside and its rim."""
    inside = ndimage.binary_fill_holes(expand_labels(labels, 16) > 0)
    return np.where(ndimage.binary_erosion(inside, iterations=4), inner, 255 * inside)


BROKEN: dict[str, tuple[str, Callable[[np.ndarray], np.ndarray]]] = {
    "two classes": ("class_maps", lambda m: np.where(m > 0, 1 + m % 2, 0)),
    "one class": ("class_maps", lambda m: 2 * (m > 0)),
    "0, 128, 255": ("class_maps", inside_and_border),
    "0, 127, 255 of one object": ("class_maps", lambda m: large(m, 127)),
    "void outlines": ("void_id", with_void),
    "void blobs": ("void_id", void_blobs),
    "bilinear": ("soft_labels", resized),
    "bilinear, ids apart": ("soft_labels", lambda m: resized(20 * m)),
    "JPEG": ("soft_labels", jpeg),
    "soft edges": (
        "soft_labels",
        lambda m: ndimage.gaussian_filter(255.0 * (m > 0), 1).astype(int),
    ),
    "background 1": ("background_id", lambda m: m + 1),
    "background 255": ("background_id", lambda m: np.where(m > 0, m, 255)),
    "objects 0": ("background_id", lambda m: 255 * (m == 0)),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("masks", [1, 12])
def test_no_instances(name: str, masks: int) -> None:
    code, damage = BROKEN[name]
    if masks == 1 and "one object" in name:
        pytest.skip("of one mask nothing is known")
    faults = label_faults([label_facts(damage(scene(i))) for i in range(masks)])
    assert [(fault.code, fault.masks) for fault in faults] == [(code, tuple(range(masks)))]


def test_ids_wrapped_at_255() -> None:
    whole, wrapped = crowd(0), crowd(0) % 256
    assert label_faults([label_facts(whole)]) == []
    assert [f.code for f in label_faults([label_facts(wrapped)])] == ["ids_wrapped"]
    limit = np.where(whole > 255, 0, whole)  # all of 8 bits, each once
    assert label_faults([label_facts(limit)]) == []


def test_certainty() -> None:
    """Certain is refused: what most masks have. Regions that cover them are doubtful."""
    masks = [scene(i) for i in range(6)]
    halves = [np.where(np.indices(m.shape)[0] < 40 + i, 1, 2) for i, m in enumerate(masks)]
    for maps, expected in (
        ([large(m, 128) for m in masks], "certain"),
        ([m + 1 for m in masks], "certain"),
        ([*map(resized, masks[:2]), *masks[2:]], "likely"),
        ([with_void(m) for m in masks], "likely"),
        (halves, "doubtful"),
        ([resized(masks[0])], "likely"),
    ):
        assert [f.certainty for f in label_faults(map(label_facts, maps))] == [expected]


INSTANCES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "as they are": lambda m: m,
    "touching": lambda m: expand_labels(m, 8),
    "no background": lambda m: expand_labels(m, SIDE),
    "ids in hundreds": lambda m: 100 * m,
    "slivers": lambda m: np.where((m == 0) & (np.indices(m.shape).sum(0) % 50 == 7), 3, m),
    "nearest": lambda m: m[::2, ::2],
    "one px wide": lambda m: m[:, ::12],
    "two": lambda m: np.where(m < 3, m, 0),
    "two, 100 and 200": lambda m: 100 * np.where(m < 3, m, 0),
    "one, 255": lambda m: 255 * (m == 1),
    "none": lambda m: 0 * m,
    "all": lambda m: 0 * m + 1,
}


@pytest.mark.parametrize("name", INSTANCES)
def test_instances(name: str) -> None:
    assert label_faults([label_facts(INSTANCES[name](scene(i))) for i in range(12)]) == []


def test_the_masks_at_fault_are_named() -> None:
    masks = [scene(i) for i in range(6)]
    masks[2], masks[5] = resized(masks[2]), np.zeros((0, 4), np.int32)
    assert [fault.masks for fault in label_faults(map(label_facts, masks))] == [(2,)]
    one_split = [scene(0, count=2), *(scene(i, count=9) for i in range(1, 6))]
    one_split[0][one_split[0] == 2] = 1
    assert label_faults(map(label_facts, one_split)) == []
    assert label_faults([]) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nuclei", "stained", "phase", "worms"])
def test_masks_that_people_drew(name: str, data_root: Path) -> None:
    paths = sorted((data_root / name / "masks").glob("*.png"))
    if not paths:
        pytest.skip(f"no masks in {data_root / name}")
    facts = [label_facts(read_labels(path)) for path in paths]
    assert label_faults(facts) == []
    assert [label_faults([fact]) for fact in facts] == [[]] * len(facts)
