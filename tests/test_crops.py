"""Normalisation and crops: known answers, and truth that stays the truth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from spatialembed.errors import SpatialEmbedError
from spatialembed.method.normalization import network_input, normalize, to_tensor
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.crops import training_crop
from spatialembed.types import Normalization, Sample, Target

NONE = Normalization("none")
STILL = AugmentOptions(
    object_centred=0,
    zoom=(1, 1),
    flip=False,
    rotate=False,
    brightness=0,
    contrast=0,
    noise=0,
    blur=0,
)


def sample(labels: np.ndarray, ignore: np.ndarray | None = None) -> Sample:
    """An image of 256ths of the label, so that image and truth can be compared."""
    truth = Target(
        torch.from_numpy(labels.astype(np.int32)),
        torch.arange(labels.max()) % 3,
        torch.from_numpy(np.zeros(labels.shape, bool) if ignore is None else ignore),
    )
    return Sample(labels.astype(np.float32) / 256, truth, "a")


def crop_of(s: Sample, size: int, augment: AugmentOptions, seed: int, scale: float = 1.0):
    return training_crop(s, NONE, size, scale, augment, np.random.default_rng(seed))


@pytest.mark.parametrize(("dtype", "top"), [(np.uint8, 255), (np.uint16, 65535), (np.float32, 1.0)])
def test_to_tensor_scales_by_type(dtype: type, top: float) -> None:
    grey = np.array([[0, top]], dtype)
    assert to_tensor(grey).tolist() == [[[0.0, 1.0]]] * 3
    colour = np.stack((grey, grey * 0, grey), axis=-1)
    assert to_tensor(colour).tolist() == [[[0.0, 1.0]], [[0.0, 0.0]], [[0.0, 1.0]]]


def test_percentiles_by_channel() -> None:
    rng = np.random.default_rng(0)
    image = rng.uniform(size=(40, 30, 3)).astype(np.float32) * (1, 10, 100)
    scaled = normalize(to_tensor(image.astype(np.float32)), Normalization()).numpy()
    for c in range(3):
        low, high = np.percentile(image[..., c], (1, 99.8))
        expected = (image[..., c] - low) / (high - low)
        np.testing.assert_allclose(scaled[c], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("clean", [True, False])
def test_a_small_object_on_a_clean_ground_is_not_lost(clean: bool) -> None:
    """It covers less than 0.2 % of the image, so that both percentiles are the ground."""
    image = np.full((100, 100), 10, np.uint8)
    image[4:7, 4:7] = 210
    image[50, 50] = 110
    image[9, 9] = 10 if clean else 0
    scaled = normalize(to_tensor(image), Normalization())
    least = 10 if clean else 0
    for y, x in ((5, 5), (50, 50), (0, 0)):
        expected = (int(image[y, x]) - least) / (210 - least)
        assert float(scaled[0, y, x]) == pytest.approx(expected, abs=1e-6)


def test_grey_and_its_repetition_agree() -> None:
    grey = np.random.default_rng(0).integers(0, 255, (20, 20), np.uint8)
    one = normalize(to_tensor(grey), Normalization())
    three = normalize(to_tensor(np.repeat(grey[..., None], 3, axis=2)), Normalization())
    assert torch.equal(one, three)


@pytest.mark.parametrize("kind", ["none", "fixed", "percentile"])
def test_constant_image_stays_finite(kind: str) -> None:
    image = np.full((9, 9), 7, np.uint8)
    assert normalize(to_tensor(image), Normalization(kind)).isfinite().all()  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", ["none", "fixed"])
@pytest.mark.parametrize("value", [-0.5, 1.5, 255.0])
def test_floats_without_a_range_are_refused(kind: Any, value: float) -> None:
    image = np.array([[0.0, value]], np.float32)
    with pytest.raises(SpatialEmbedError, match=rf"value_range.*{value:g}") as caught:
        network_input(image, Normalization(kind))
    assert caught.value.exit_code == 3
    assert network_input(image, Normalization("percentile")).isfinite().all()


def test_fixed_normalisation() -> None:
    how = Normalization("fixed", mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 2.0))
    image = normalize(to_tensor(np.ones((1, 1), np.float32)), how)
    assert image.flatten().tolist() == [1.0, 3.0, 0.5]


IMAGES = st.one_of(
    arrays(dtype, (*size, *channels), elements=st.integers(0, top))
    for dtype, top in ((np.uint8, 255), (np.uint8, 3), (np.uint16, 65535), (np.uint16, 4095))
    for size in ((1, 1), (3, 5), (16, 17))
    for channels in ((), (3,))
)


@given(
    IMAGES,
    st.sampled_from(("none", "fixed", "percentile")),
    st.tuples(st.floats(0, 100), st.floats(0, 100)).map(sorted),
)
@settings(deadline=None)
def test_levels_give_the_bits_of_pixels(image: np.ndarray, kind: Any, ends: list[float]) -> None:
    """Integers go by a table of their levels; one by one, as floats, they give the same."""
    how = Normalization(kind, low=ends[0], high=ends[1])
    assert torch.equal(network_input(image, how), normalize(to_tensor(image), how))


def test_every_percentile_of_levels() -> None:
    image = np.random.default_rng(0).integers(0, 65536, (5, 7, 3)).astype(np.uint16)
    for percent in np.linspace(0, 100, 111):
        how = Normalization("percentile", low=float(percent) / 3, high=float(percent))
        assert torch.equal(network_input(image, how), normalize(to_tensor(image), how))


@pytest.mark.parametrize("kind", ["none", "fixed", "percentile"])
def test_levels_of_any_memory_order(kind: Any) -> None:
    image = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    how = Normalization(kind)
    for view in (image[::-1, ::2], np.asfortranarray(image), image.transpose(1, 0, 2)):
        assert torch.equal(network_input(view, how), network_input(view.copy(), how))


@pytest.mark.parametrize("seed", range(20))
def test_turned_crops_keep_image_and_truth_together(seed: int) -> None:
    labels = np.kron(np.arange(16).reshape(4, 4), np.ones((12, 12), int))
    augment = AugmentOptions(brightness=0, contrast=0, noise=0, blur=0, zoom=(1, 1))
    image, target = crop_of(sample(labels), 30, augment, seed)
    ids = (256 * image[0]).round().int()
    # Each new id is one old grey value, and the background is the grey value 0.
    for k in target.labels.unique().tolist():
        old = ids[target.labels == k].unique()
        assert len(old) == 1
        assert (k == 0) == (old == 0)
        assert k == 0 or target.classes[k - 1] == (old - 1) % 3
    assert image.shape == (3, 30, 30)


def test_lbl_17_lost_instances_are_gone() -> None:
    labels = np.zeros((60, 60), int)
    labels[2:8, 2:8], labels[50:55, 50:55] = 1, 2
    seen = set()
    for seed in range(40):
        _, target = crop_of(sample(labels), 20, STILL, seed)
        ids = target.labels.unique()
        assert ids[ids > 0].tolist() == list(range(1, len(target.classes) + 1))
        seen.add(tuple(target.classes.tolist()))
    assert seen == {(), (0,), (1,)}


@pytest.mark.parametrize("fault", ["LBL-17"])
def test_ignored_instance_is_not_in_the_target(fault: str) -> None:
    labels = np.zeros((20, 20), int)
    labels[:5, :5] = 1
    labels[10:15, 10:15] = 2
    _, target = crop_of(sample(labels, labels == 1), 20, STILL, 0)
    assert target.classes.tolist() == [1]
    assert target.labels.max() == 1
    assert target.ignore.sum() == 25


@pytest.mark.parametrize("fault", ["LBL-22"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 40), (16, 9)])
def test_small_image_is_padded_with_ignore(fault: str, shape: tuple[int, int]) -> None:
    image, target = crop_of(sample(np.ones(shape, int)), 32, STILL, 3)
    assert image.shape == (3, 32, 32)
    inside = min(shape[0], 32) * min(shape[1], 32)
    assert (~target.ignore).sum() == inside
    assert (target.labels == 1).sum() == inside


def test_object_centred_crops_hold_an_object() -> None:
    labels = np.zeros((300, 300), int)
    labels[140:150, 200:210] = 1
    centred = AugmentOptions(object_centred=1.0)
    assert all(len(crop_of(sample(labels), 64, centred, s)[1].classes) for s in range(30))


def test_scale_magnifies() -> None:
    labels = np.zeros((100, 100), int)
    labels[40:60, 40:60] = 1
    _, target = crop_of(sample(labels), 200, STILL, 0, scale=2.0)
    assert (target.labels == 1).sum() == 40 * 40


def test_same_generator_same_crop() -> None:
    s = sample(np.kron(np.arange(9).reshape(3, 3), np.ones((20, 20), int)))
    (a, truth_a), (b, truth_b) = (crop_of(s, 32, AugmentOptions(), 5) for _ in range(2))
    assert torch.equal(a, b)
    assert torch.equal(truth_a.labels, truth_b.labels)


@pytest.mark.parametrize("bad", [{"zoom": (0.0, 1.0)}, {"zoom": (2.0, 1.0)}, {"object_centred": 2}])
def test_bad_settings(bad: dict) -> None:
    with pytest.raises(SpatialEmbedError, match="bad_setting"):
        AugmentOptions(**bad)
