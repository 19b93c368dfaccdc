"""Run-length encoding against pycocotools; contiguous ids."""

from __future__ import annotations

import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from spatialembed.errors import SpatialEmbedError
from spatialembed.method.labels import Rle, decode, encode, encode_instances, relabel

coco = pytest.importorskip("pycocotools.mask")

label_images = hnp.arrays(
    np.int32,
    hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12),
    elements=st.integers(0, 4),
)


def coco_encode(mask: np.ndarray) -> Rle:
    rle = coco.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(rle["size"]), "counts": rle["counts"].decode()}


@settings(max_examples=200, deadline=None)
@given(label_images)
def test_every_instance_as_pycocotools_encodes_it(labels: np.ndarray) -> None:
    encoded = encode_instances(labels, 5)
    assert len(encoded) == 5  # label 5 never occurs: an empty mask
    for k, rle in enumerate(encoded, start=1):
        assert rle == coco_encode(labels == k)
        np.testing.assert_array_equal(decode(rle), labels == k)


def blob(height: int, width: int, seed: int) -> np.ndarray:
    y, x = np.mgrid[:height, :width]
    rng = np.random.default_rng(seed)
    noise = rng.random((height, width)) < 0.02
    return (((x - width / 2) / width) ** 2 + ((y - height / 2) / height) ** 2 < 0.1) ^ noise


@pytest.mark.parametrize(
    "mask",
    [
        np.zeros((7, 5), bool),
        np.ones((7, 5), bool),
        np.eye(9, dtype=bool),
        np.zeros((0, 4), bool),
        np.tile(np.arange(2000) >= 1999, (1500, 1)),  # counts of five groups
        blob(700, 900, seed=0),
        np.arange(6).reshape(2, 3) == 5,  # ends in its last pixel
    ],
    ids=["none", "all", "diagonal", "no_pixels", "long_runs", "blob", "last_pixel"],
)
def test_one_mask_as_pycocotools_encodes_it(mask: np.ndarray) -> None:
    rle = encode(mask)
    if mask.size:  # pycocotools writes "" for an image without pixels, a zero count means the same
        assert rle == coco_encode(mask)
        assert coco.area({"size": rle["size"], "counts": rle["counts"].encode()}) == mask.sum()
    np.testing.assert_array_equal(decode(rle), mask)


def test_known_answer() -> None:
    assert encode(np.array([[0, 1], [1, 0]], bool)) == {"size": [2, 2], "counts": "121"}


def test_no_instances() -> None:
    assert encode_instances(np.zeros((3, 4), np.int32), 0) == []


@pytest.mark.parametrize("number", [300, 70_000], ids=["LBL-01-300", "LBL-01-70000"])
def test_many_instances(number: int) -> None:
    labels = (np.arange(1, number + 1).reshape(-1, 100)).repeat(2, axis=0)
    began = time.thread_time()
    encoded = encode_instances(labels, number)
    seconds = time.thread_time() - began
    assert len(encoded) == number
    for k in (1, 256, 257, number):
        assert encoded[k - 1] == coco_encode(labels == k)
    assert seconds < 10  # a pass over the image for each instance would take minutes


@pytest.mark.parametrize(
    "counts",
    ["", "1", "Q", "11111", "~~", "121é", "o" * 20 + "0", "2N",
     "PPPPPPPPPPPP4PPPPPPPPPPPP4PPPPPPPPPPPP44", "oooooooooooo7oooooooooooo76",
     "PPPPPPPPP`04PPPPPPPPP@"],
    ids=["empty", "short", "cut", "long", "alphabet", "not_ascii", "overflow", "negative",
         "sum_wraps_to_the_area", "largest_of_64_bits", "wraps_back"],
)  # fmt: skip
def test_broken_counts_are_refused(counts: str) -> None:
    with pytest.raises(SpatialEmbedError, match="bad_rle"):
        decode({"size": [2, 2], "counts": counts})


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.int64, np.uint64])
def test_relabel_keeps_original_ids(dtype: type) -> None:
    labels = np.array([[0, 7, 7], [200, 0, 3]], dtype)
    new, ids = relabel(labels)
    np.testing.assert_array_equal(new, [[0, 2, 2], [3, 0, 1]])
    np.testing.assert_array_equal(ids, [3, 7, 200])
    assert new.dtype == np.int32
    assert ids.dtype == np.int64


@pytest.mark.parametrize("scale", [1, 3, 2**40], ids=["LBL-08-none", "LBL-08-gaps", "LBL-08-huge"])
@given(labels=label_images)
def test_relabel_is_undone_by_the_ids(scale: int, labels: np.ndarray) -> None:
    old = labels.astype(np.int64) * scale
    new, ids = relabel(old)
    np.testing.assert_array_equal(np.concatenate(([0], ids))[new], old)
    assert sorted(set(new.ravel()) - {0}) == list(range(1, len(ids) + 1))


def test_relabel_copies() -> None:
    labels = np.array([[0, 1]], np.int32)
    relabel(labels)[0][:] = 5
    assert labels.tolist() == [[0, 1]]


@pytest.mark.parametrize(
    "labels",
    [np.array([[0.5, 1.0]]), np.array([[-1, 1]]), np.array([[np.nan]]), np.zeros((2, 2, 3), int)],
    ids=["LBL-07-float", "LBL-07-negative", "LBL-07-nan", "LBL-04-rgb"],
)
def test_labels_that_are_none(labels: np.ndarray) -> None:
    with pytest.raises(SpatialEmbedError, match="bad_labels"):
        relabel(labels)
