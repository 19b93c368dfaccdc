"""The result type: selecting, boxes, areas; on numpy and on torch."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from spatialembed import Instances

LABELS = np.array(
    [
        [1, 1, 0, 0, 3],
        [1, 0, 2, 2, 3],
        [0, 0, 2, 0, 0],
    ],
    np.int32,
)
SCORES = np.array([0.9, 0.8, 0.7], np.float32)
CLASSES = np.array([0, 1, 0])
NAMES = ("round", "square")


def found(kind: str = "numpy") -> Instances:
    arrays: list[Any] = [LABELS, SCORES, CLASSES]
    if kind == "torch":
        arrays = [torch.from_numpy(array) for array in arrays]
    return Instances(*arrays, NAMES, truncated=True)


both = pytest.mark.parametrize("kind", ["numpy", "torch"])


@both
def test_length_boxes_areas_masks(kind: str) -> None:
    instances = found(kind)
    assert len(instances) == 3
    assert instances.boxes.tolist() == [[0, 0, 2, 2], [2, 1, 4, 3], [4, 0, 5, 2]]
    assert instances.areas.tolist() == [3, 3, 2]
    for i in range(3):
        x1, y1, x2, y2 = instances.boxes[i]
        mask = np.asarray(instances.mask(i))
        assert np.array_equal(mask, i + 1 == LABELS)
        assert mask[y1:y2, x1:x2].sum() == instances.areas[i]


@both
@pytest.mark.parametrize("i", [-1, 3])
def test_a_mask_out_of_range_is_refused(kind: str, i: int) -> None:
    with pytest.raises(IndexError, match=f"instance {i} of 3"):
        found(kind).mask(i)


@both
@pytest.mark.parametrize(
    "which",
    [[0, 2], np.array([True, False, True]), [2, 0], np.array([0, 2, 2]), [-1, 0]],
    ids=["index", "mask", "order is kept", "twice", "from the end"],
)
def test_selecting_numbers_anew(kind: str, which: Any) -> None:
    chosen = found(kind)[which]
    assert type(chosen.labels) is type(found(kind).labels)
    assert np.asarray(chosen.labels).tolist() == [[1, 1, 0, 0, 2], [1, 0, 0, 0, 2], [0] * 5]
    assert np.asarray(chosen.labels).dtype == np.int32
    assert np.asarray(chosen.scores).tolist() == pytest.approx([0.9, 0.7])
    assert np.asarray(chosen.classes).tolist() == [0, 0]
    assert (chosen.class_names, chosen.truncated) == (NAMES, True)


def test_selecting_by_a_condition() -> None:
    instances = found()
    assert instances[instances.areas > 2].areas.tolist() == [3, 3]
    assert instances[instances.scores > 0.75].areas.tolist() == [3, 3]


@both
@pytest.mark.parametrize("which", [[], np.zeros(3, bool)])
def test_selecting_nothing(kind: str, which: Any) -> None:
    none = found(kind)[which]
    assert len(none) == 0
    assert not np.asarray(none.labels).any()
    assert none.boxes.shape == (0, 4)
    assert none.areas.shape == (0,)


@pytest.mark.parametrize("which", [[3], np.ones(2, bool), [-4]])
def test_selecting_what_is_not_there_is_refused(which: Any) -> None:
    with pytest.raises(IndexError):
        found()[which]


def test_numpy_of_numpy_is_itself_and_of_torch_is_equal() -> None:
    instances = found()
    assert instances.numpy() is instances
    host = found("torch").numpy()
    assert np.array_equal(host.labels, LABELS)
    assert (host.scores.dtype, host.class_names, host.truncated) == (np.float32, NAMES, True)


@both
def test_the_expected_iou_goes_along(kind: str) -> None:
    values: Any = np.array([0.9, 0.5, 0.7], np.float32)
    calibrated = replace(
        found(kind), expected_iou=values if kind == "numpy" else torch.from_numpy(values)
    )
    chosen = calibrated[[0, 2]]
    assert type(chosen.expected_iou) is type(chosen.labels)
    assert np.asarray(chosen.expected_iou).tolist() == pytest.approx([0.9, 0.7])
    assert np.array_equal(calibrated.numpy().expected_iou, values)
    assert found(kind)[[0]].expected_iou is None
    assert found(kind).numpy().expected_iou is None


def test_an_empty_image() -> None:
    none = Instances(np.zeros((4, 5), np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert len(none) == len(none.boxes) == len(none.areas) == 0


def test_repr_is_a_line() -> None:
    found = Instances(np.zeros((3, 5), np.int32), np.zeros(0, np.float32), np.zeros(0, np.int64))
    assert repr(found) == "Instances(0 objects, 5 x 3 px)"
