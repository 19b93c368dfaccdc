"""Random degradations of crops: what they change, what they leave, and that 0 draws nothing."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from spatialembed.errors import SpatialEmbedError
from spatialembed.training.augment import (
    AugmentOptions,
    after_camera,
    before_camera,
    compressed,
    noise_alone,
    single_objects,
    uneven_light,
)
from spatialembed.training.crops import training_crop
from spatialembed.types import Normalization, Sample, Target

STILL = AugmentOptions(brightness=0, contrast=0, noise=0, blur=0, flip=False, rotate=False)
LABELS = torch.zeros(32, 32, dtype=torch.int32)
LABELS[4:12, 4:12], LABELS[16:28, 16:28] = 1, 2


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def test_nothing_is_drawn_that_is_off() -> None:
    image, draws = torch.rand(1, 32, 32), rng()
    state = draws.bit_generator.state
    assert before_camera(image, LABELS, STILL, draws) is image
    assert after_camera(image, STILL, draws) is image
    assert draws.bit_generator.state == state


def test_single_objects_change_and_the_ground_stays() -> None:
    image = torch.where(LABELS > 0, 0.8, 0.1)[None]
    changed = single_objects(image, LABELS, 0.5, rng())
    inside = [changed[0, 8, 8], changed[0, 22, 22]]
    assert all(0.1 + 0.35 <= float(v) <= 0.1 + 1.05 for v in inside)
    assert inside[0] != inside[1]
    assert torch.equal(changed[:, LABELS == 0], image[:, LABELS == 0])


def test_a_crop_without_ground_or_objects_is_left() -> None:
    image = torch.rand(3, 8, 8)
    for labels in (torch.zeros(8, 8, dtype=torch.int32), torch.ones(8, 8, dtype=torch.int32)):
        assert single_objects(image, labels, 0.5, rng()) is image


def test_light_is_uneven_and_smooth() -> None:
    changed = uneven_light(torch.ones(1, 64, 64), 0.3, rng())
    assert 0.05 < float(changed.max() - changed.min()) < 1.2
    assert float(changed.diff(dim=-1).abs().max()) < 0.05


def test_gamma_keeps_the_order_of_values() -> None:
    image = torch.linspace(-0.2, 1.4, 100).view(1, 10, 10)
    for seed in range(5):
        changed = before_camera(image, LABELS, AugmentOptions(gamma=0.5), rng(seed))
        assert bool((changed.view(-1).diff() >= 0).all())
        assert torch.equal(changed[image <= 0], image[image <= 0])


def test_compression_leaves_blocks() -> None:
    for channels in (1, 3):
        image = torch.rand(channels, 64, 64)
        rough, fine = compressed(image, 10), compressed(image, 98)
        assert rough.shape == image.shape
        assert float((rough - image).abs().mean()) > float((fine - image).abs().mean())
        assert float((fine - image).abs().mean()) < 0.2
    flat = compressed(torch.full((1, 64, 64), 0.3) + 0.02 * torch.randn(1, 64, 64), 20)
    assert len(flat[0, :8, :8].unique()) < 20


def test_noise_alone_is_noise() -> None:
    levels = set()
    for seed in range(12):
        field = noise_alone(torch.zeros(3, 40, 41), rng(seed))
        assert field.shape == (3, 40, 41)
        assert 0.02 <= float(field.std()) <= 0.121
        levels.add(len(field[0].unique()) < 400)
    assert levels == {False, True}  # grains, and blocks


def test_blank_crops_have_no_object_and_nothing_to_ignore() -> None:
    image = np.zeros((20, 20), np.uint8)
    labels = torch.zeros(20, 20, dtype=torch.int32)
    labels[5:15, 5:15] = 1
    truth = Target(labels, torch.zeros(1, dtype=torch.int64), torch.zeros(20, 20, dtype=torch.bool))
    sample = Sample(image, truth, "a")
    how = Normalization("none")
    crop, target = training_crop(sample, how, 32, 1.0, AugmentOptions(blank=1.0), rng())
    assert crop.shape == (3, 32, 32)
    assert len(target.classes) == 0
    assert not target.labels.any()
    assert not target.ignore.any()
    _, target = training_crop(sample, how, 32, 1.0, AugmentOptions(), rng())
    assert len(target.classes) == 1


@pytest.mark.parametrize("name", ["gamma", "objects", "uneven", "jpeg", "blank"])
def test_settings_out_of_range_are_refused(name: str) -> None:
    with pytest.raises(SpatialEmbedError, match=f"{name} is 1.5"):
        AugmentOptions(**{name: 1.5})
