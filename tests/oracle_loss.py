"""The loss of one image as slow loops in float64, straight from the equations.

Nothing here is shared with the package: no torch, no sparsity, no vectorising over instances.
Arrays are (channel, y, x); coordinates (x, y) in units of 1024 pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

Pixel = tuple[int, int]  # (y, x)


@dataclass(frozen=True)
class Scene:
    """Maps and truth of one image."""

    offset: np.ndarray  # (2, H, W)
    log_precision: np.ndarray  # (S, H, W)
    seed: np.ndarray  # (C, H, W)
    labels: np.ndarray  # (H, W) int
    classes: Sequence[int]  # of instance k at index k - 1
    ignore: np.ndarray  # (H, W) bool

    def pixels(self) -> list[Pixel]:
        """All pixels with truth."""
        height, width = self.labels.shape
        return [(y, x) for y in range(height) for x in range(width) if not self.ignore[y, x]]

    def instances(self) -> dict[int, list[Pixel]]:
        """The pixels of each instance that has a pixel with truth."""
        own: dict[int, list[Pixel]] = {}
        for y, x in self.pixels():
            if self.labels[y, x] > 0:
                own.setdefault(int(self.labels[y, x]), []).append((y, x))
        return own

    def embedding(self, pixel: Pixel) -> tuple[float, float]:
        """Where a pixel points to: its position plus its offset."""
        y, x = pixel
        return x / 1024 + float(self.offset[0, y, x]), y / 1024 + float(self.offset[1, y, x])


def medoid(own: list[Pixel]) -> Pixel:
    """The pixel nearest to the centroid, in whole numbers so that ties are ties; first one wins."""
    count, sum_y, sum_x = len(own), sum(y for y, _ in own), sum(x for _, x in own)
    return min(sorted(own), key=lambda p: (count * p[0] - sum_y) ** 2 + (count * p[1] - sum_x) ** 2)


def center_of(scene: Scene, own: list[Pixel], kind: str) -> tuple[float, float]:
    """(x, y) in units of an instance's centre."""
    if kind == "medoid":
        y, x = medoid(own)
        return x / 1024, y / 1024
    if kind == "centroid":
        points = [(x / 1024, y / 1024) for y, x in own]
    else:
        points = [scene.embedding(pixel) for pixel in own]
    return sum(p[0] for p in points) / len(own), sum(p[1] for p in points) / len(own)


def mean_bandwidth(scene: Scene, own: list[Pixel]) -> list[float]:
    """Mean raw bandwidth of an instance, per channel."""
    channels = scene.log_precision.shape[0]
    return [
        sum(float(scene.log_precision[s, y, x]) for y, x in own) / len(own) for s in range(channels)
    ]


def phi(scene: Scene, pixel: Pixel, center: tuple[float, float], raw: list[float]) -> float:
    """The soft membership of a pixel in an instance."""
    exponent = 0.0
    for axis, (here, there) in enumerate(zip(scene.embedding(pixel), center, strict=True)):
        r = raw[axis] if len(raw) == 2 else raw[0]
        exponent += math.exp(min(max(10 * r, -40.0), 40.0)) * (here - there) ** 2
    return math.exp(-exponent)


def jaccard_loss(wrong: int, wrong_others: int, own: int) -> float:
    """|M| / |mask or M| of a set M of wrong pixels, of which so many are not in the mask."""
    return wrong / (own + wrong_others) if wrong else 0.0


def lovasz(logits: Sequence[float], mask: Sequence[bool]) -> float:
    """The Lovasz extension of the Jaccard loss at the hinge errors of the logits."""
    errors = [max(1 - z if m else 1 + z, 0.0) for z, m in zip(logits, mask, strict=True)]
    order = sorted(range(len(errors)), key=lambda i: -errors[i])
    total, before, others, own = 0.0, 0.0, 0, sum(mask)
    for rank, i in enumerate(order, start=1):
        others += not mask[i]
        now = jaccard_loss(rank, others, own)
        total += errors[i] * (now - before)
        before = now
    return total


def image_loss(scene: Scene, center: str, weights: Sequence[float]) -> tuple[float, float, float]:
    """(instance, smoothness, seed) of one image."""
    pixels, instances = scene.pixels(), scene.instances()
    instance_terms, smoothness_terms = [], []
    member: dict[Pixel, tuple[int, float]] = {}  # of each own pixel: its class and its phi
    for k, own in instances.items():
        middle, raw = center_of(scene, own, center), mean_bandwidth(scene, own)
        inside = set(own)
        soft = {pixel: phi(scene, pixel, middle, raw) for pixel in pixels}
        mask = [pixel in inside for pixel in pixels]
        instance_terms.append(lovasz([2 * soft[pixel] - 1 for pixel in pixels], mask))
        squares = [
            (float(scene.log_precision[s, y, x]) - raw[s]) ** 2
            for y, x in own
            for s in range(len(raw))
        ]
        smoothness_terms.append(sum(squares) / len(squares))
        member |= {pixel: (int(scene.classes[k - 1]), soft[pixel]) for pixel in own}
    seed = 0.0
    for c, weight in enumerate(weights):
        for y, x in pixels:
            s = float(scene.seed[c, y, x])
            its_class, target = member.get((y, x), (-1, 0.0))
            seed += weight * (s - target) ** 2 if its_class == c else s**2
    count = max(len(instances), 1)
    area = scene.labels.size
    return sum(instance_terms) / count, sum(smoothness_terms) / count, seed / area


def batch_loss(
    scenes: Sequence[Scene], center: str, weights: Sequence[float]
) -> tuple[float, float, float]:
    """The mean of the terms over the images."""
    terms = [image_loss(scene, center, weights) for scene in scenes]
    instance, smoothness, seed = (sum(term) / len(scenes) for term in zip(*terms, strict=True))
    return instance, smoothness, seed


def hinge_image(
    scene: Scene, center: str, delta_px: float, weights: Sequence[float]
) -> tuple[float, float]:
    """(instance, seed) of the fixed-bandwidth baseline; distances in units."""
    delta, instances = delta_px / 1024, scene.instances()
    terms = []
    member: dict[Pixel, tuple[int, float]] = {}
    for k, own in instances.items():
        middle = center_of(scene, own, center)
        distances = {pixel: math.dist(scene.embedding(pixel), middle) for pixel in own}
        terms.append(sum(max(d - delta, 0.0) for d in distances.values()) / len(own))
        for pixel, d in distances.items():
            member[pixel] = int(scene.classes[k - 1]), 0.5 ** ((d / delta) ** 2)
    seed = 0.0
    for c, weight in enumerate(weights):
        for y, x in scene.pixels():
            s = float(scene.seed[c, y, x])
            its_class, target = member.get((y, x), (-1, 0.0))
            seed += weight * (s - target) ** 2 if its_class == c else s**2
    return sum(terms) / max(len(instances), 1), seed / scene.labels.size
