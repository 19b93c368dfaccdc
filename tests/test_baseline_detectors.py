"""Methods with boxes: truth, pyramid, filled boxes, owners; terms and grouping of Box2Pix."""

from __future__ import annotations

from types import ModuleType

import numpy as np
import pytest
import torch

from baseline_scenes import class_logits, empty, same, scene
from spatialembed.baselines import box2pix, detectors, faster_rcnn, mask_rcnn, panet
from spatialembed.baselines.detectors import Detections
from spatialembed.types import Target

DETECTORS = [faster_rcnn, mask_rcnn, panet, box2pix]


def name(method: ModuleType) -> str:
    return method.__name__.rpartition(".")[2]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Networks of few channels that learn from few boxes: seconds in place of a minute."""
    monkeypatch.setattr(detectors, "WIDTH", 16)
    monkeypatch.setattr(detectors.Backbone, "out_channels", 16)
    monkeypatch.setattr(detectors, "ROIS", 8)


def perfect(target: Target) -> Detections:
    truth = detectors.detection_target(target)
    masks = truth["masks"].numpy().astype(bool)
    scores = np.linspace(0.9, 0.6, len(masks))
    classes = truth["labels"].numpy() - 1
    return Detections(detectors.packed(masks, 24, 24), 24, scores, classes, detectors.names(3))


@pytest.mark.parametrize("seed", range(3))
def test_truth_is_boxes_classes_and_masks(seed: int) -> None:
    target = scene(seed, classes=3)
    labels = np.where(target.ignore, 0, target.labels)
    truth = detectors.detection_target(target)
    ids = [k for k in range(1, labels.max() + 1) if (labels == k).any()]
    assert len(truth["boxes"]) == len(ids)
    for i, k in enumerate(ids):
        y, x = np.nonzero(labels == k)
        assert truth["boxes"][i].tolist() == [x.min(), y.min(), x.max() + 1, y.max() + 1]
        assert int(truth["labels"][i]) == int(target.classes[k - 1]) + 1
        np.testing.assert_array_equal(truth["masks"][i], labels == k)
    assert detectors.detection_target(empty())["boxes"].shape == (0, 4)


@pytest.mark.parametrize(("network", "finest"), [("lite", 4), ("erfnet", 8)])
@pytest.mark.parametrize("bottom_up", [False, True])
def test_the_pyramid_halves_down_to_stride_64(network: str, finest: int, bottom_up: bool) -> None:
    backbone = detectors.Backbone(network, bottom_up=bottom_up)
    maps = list(backbone(torch.zeros(2, 3, 128, 192)).values())
    strides = [128 // m.shape[2] for m in maps]
    assert strides == backbone.pyramid.strides
    assert strides == [s for s in (4, 8, 16, 32, 64) if s >= finest]
    assert {m.shape[:2] for m in maps} == {(2, detectors.WIDTH)}


def test_the_second_way_up_is_that_of_the_equation() -> None:
    torch.manual_seed(0)
    pyramid = detectors.Pyramid([4, 8, 16], 4, bottom_up=True)
    maps = [torch.rand(1, c, 32 // s, 32 // s) for c, s in ((4, 1), (8, 2), (16, 4))]
    found = list(pyramid(maps).values())
    below = list(pyramid.fpn({str(i): m for i, m in enumerate(maps)}).values())
    torch.testing.assert_close(found[0], below[0])
    for i in range(2):
        up = torch.relu(pyramid.down[i](found[i])) + below[i + 1]
        torch.testing.assert_close(found[i + 1], torch.relu(pyramid.smooth[i](up)))


def test_a_filled_box_holds_the_pixels_whose_middles_it_holds() -> None:
    masks = list(faster_rcnn.filled(np.array([[1, 0, 3, 2], [0.6, 0, 2.4, 9]]), 3, 4))
    assert masks[0].astype(int).tolist() == [[0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert masks[1].astype(int).tolist() == [[0, 1, 0, 0]] * 3
    assert not list(faster_rcnn.filled(np.zeros((0, 4)), 3, 4))


def test_the_better_detection_owns_a_pixel() -> None:
    masks = np.zeros((3, 1, 8), bool)
    masks[0, 0, :5] = masks[1, 0, 4:] = masks[2, 0, 3:7] = True
    bits = detectors.packed(masks, 1, 8)
    found = Detections(bits, 8, np.array([0.8, 0.9, 0.7]), np.array([1, 0, 1]), ("a", "b"))
    made = detectors.group(found, detectors.Settings(score=0.1, free=0.5))
    assert made.labels.tolist() == [[2, 2, 2, 2, 1, 1, 1, 1]]
    assert made.classes.tolist() == [0, 1]
    assert made.scores.tolist() == pytest.approx([0.9, 0.8])
    assert len(detectors.group(found, detectors.Settings(score=0.85))) == 1
    assert len(detectors.group(found, detectors.Settings(min_pixels=6))) == 0
    assert len(detectors.group(found, detectors.Settings(score=0.95))) == 0


@pytest.mark.parametrize("seed", range(5))
def test_grouping_of_perfect_masks_is_the_truth(seed: int) -> None:
    target = scene(seed, classes=3, ignored=0)
    assert same(mask_rcnn.group(perfect(target), mask_rcnn.Settings()), target)


@pytest.mark.parametrize("method", DETECTORS, ids=name)
def test_networks_learn_and_predict(method: ModuleType) -> None:
    torch.manual_seed(0)
    net = method.network(2, "lite").train()
    terms = method.loss(net, torch.rand(2, 3, 64, 64), [scene(0, 64), empty(64)])
    assert all(term.shape == () and term.isfinite() for term in terms)
    terms.total().backward()
    learned = {k for k, p in net.named_parameters() if p.grad is not None and p.grad.any()}
    # Only decoders use maps at full resolution.
    missing = {k for k, _ in net.named_parameters() if ".detail." not in k} - learned
    assert {k for k in missing if "backbone" in k or "encoder" in k} == set()
    net.eval()
    if method is not box2pix:  # of an untrained network all that there may be come out
        net.roi_heads.detections_per_img = 20
        net.rpn._post_nms_top_n = {"training": 50, "testing": 50}
    for found in method.predict(net, torch.rand(2, 3, 50, 70)):
        instances = method.group(found, method.Settings(score=0.05))
        assert instances.labels.shape == (50, 70)
        assert instances.labels.max(initial=0) == len(instances)


@pytest.mark.parametrize("method", [mask_rcnn, box2pix], ids=name)
def test_images_without_instances(method: ModuleType) -> None:
    torch.manual_seed(0)
    net = method.network(1, "lite").train()
    total = method.loss(net, torch.rand(2, 3, 64, 64), [empty(64), empty(64)]).total()
    assert total.isfinite()
    total.backward()


# ---------------------------------------------------------------- Box2Pix


def offsets(target: Target) -> np.ndarray:
    """(2, H, W) px from the middle of each pixel to that of its instance's box; 0 elsewhere."""
    labels = np.where(target.ignore, 0, target.labels)
    result = np.zeros((2, *labels.shape))
    for k in range(1, labels.max() + 1):
        y, x = np.nonzero(labels == k)
        if len(y):
            result[0, y, x] = (x.min() + x.max() + 1) / 2 - x - 0.5
            result[1, y, x] = (y.min() + y.max() + 1) / 2 - y - 0.5
    return result


@pytest.mark.parametrize("seed", range(3))
def test_values_of_the_pixels_are_those_of_the_equations(seed: int) -> None:
    targets = [scene(seed), empty(), scene(seed + 10, classes=1)]
    maps = np.random.default_rng(seed).normal(size=(3, 5, 24, 24))
    every = []
    for own, target in zip(maps, targets, strict=True):
        away, semantic = [], []
        goal = offsets(target) / 32
        for y, x in np.argwhere(~target.ignore.numpy()):
            k = int(target.labels[y, x])
            truth = 1 + int(target.classes[k - 1]) if k else 0
            semantic.append(np.log(np.exp(own[2:, y, x]).sum()) - own[2 + truth, y, x])
            if k:
                away.append(((own[:2, y, x] - goal[:, y, x]) ** 2).sum())
        every.append([float(np.sum(away)) / max(len(away), 1), float(np.mean(semantic))])
    found = box2pix.pixel_terms(torch.from_numpy(maps), targets)
    np.testing.assert_allclose([float(t) for t in found], np.mean(every, axis=0), rtol=1e-9)


def test_gradient_of_the_pixels_is_the_slope() -> None:
    target = scene(3, size=7, instances=4, ignored=2)
    maps = torch.from_numpy(np.random.default_rng(0).normal(size=(2, 5, 7, 7))).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda m: tuple(box2pix.pixel_terms(m, [target, empty(7)])), (maps,), fast_mode=True
    )


def ideal(target: Target, classes: int) -> box2pix.Found:
    """Exact offsets and classes; each box twice, once a little too wide and less sure."""
    truth = detectors.detection_target(target)
    boxes = np.concatenate((truth["boxes"], truth["boxes"] + torch.tensor([-0.2, -0.2, 0.2, 0.2])))
    offset = torch.from_numpy(offsets(target) / 32).float()
    return box2pix.Found(
        torch.cat((offset, class_logits(target, classes))),
        boxes,
        np.repeat([0.9, 0.8], len(truth["boxes"])),
        np.tile(truth["labels"].numpy() - 1, 2),
    )


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("classes", [1, 3])
def test_grouping_of_ideal_maps_and_boxes_is_the_truth(seed: int, classes: int) -> None:
    target = scene(seed, classes=classes, ignored=0)
    found = ideal(target, classes)
    # Hidden in part, boxes may overlap by more than half and still be two.
    assert same(box2pix.group(found, box2pix.Settings(overlap=0.8)), target)


def test_a_pixel_goes_to_the_box_with_the_nearest_middle_that_holds_it() -> None:
    """Random boxes, some beyond the image, and offsets, pixel by pixel and box by box."""
    rng = np.random.default_rng(0)
    corner, side = rng.uniform(-6, 20, (9, 2)), rng.uniform(2, 14, (9, 2))
    boxes = np.concatenate((corner, corner + side), axis=1).astype(np.float32)
    maps = torch.from_numpy(rng.normal(scale=0.1, size=(4, 18, 24))).float()
    maps[2:] = torch.tensor([-9.0, 9.0])[:, None, None]  # all of the one class
    found = box2pix.Found(maps, boxes, np.linspace(0.9, 0.5, 9), np.zeros(9, np.int64))
    expected = np.zeros((18, 24), int)
    for y, x in np.ndindex(18, 24):
        to = np.array([x + 0.5, y + 0.5]) + 32 * maps[:2, y, x].numpy().astype(float)
        away = {
            k: np.hypot(*(to - [(x1 + x2) / 2, (y1 + y2) / 2]))
            for k, (x1, y1, x2, y2) in enumerate(boxes.tolist(), 1)
            if x1 <= x + 0.5 <= x2 and y1 <= y + 0.5 <= y2
        }
        expected[y, x] = min(away, key=away.__getitem__) if away else 0
    labels = box2pix.group(found, box2pix.Settings(overlap=1.0)).labels
    pairs = {*zip(labels.ravel().tolist(), expected.ravel().tolist(), strict=True)}
    assert len(pairs) == len(np.unique(expected)) == len(np.unique(labels))
    assert (0, 0) in pairs


def test_grouping_of_nothing_and_of_one_pixel() -> None:
    assert len(box2pix.group(ideal(empty(), 2), box2pix.Settings())) == 0
    one = scene(0, size=1, instances=1, classes=1, ignored=0)
    assert same(box2pix.group(ideal(one, 1), box2pix.Settings(overlap=0.8)), one)
