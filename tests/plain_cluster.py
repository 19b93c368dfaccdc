"""The clustering as the paper reads: a round looks at all candidates."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from spatialembed.method import geometry
from spatialembed.method.cluster import float32_maps, name_of, names_of_classes, on_device_of
from spatialembed.method.kernels.candidates import check_finite
from spatialembed.options import ClusterOptions
from spatialembed.types import Embeddings, Instances


def cluster_plain(
    prediction: Embeddings,
    options: ClusterOptions = ClusterOptions(),
    class_names: tuple[str, ...] | None = None,
) -> list[Instances]:
    """``cluster``, in time that grows with instances x pixels."""
    names = names_of_classes(prediction, class_names)
    results = []
    for b, maps in enumerate(float32_maps(prediction)):
        offset, log_precision, seeds = (m.numpy() for m in maps)
        check_finite(offset, log_precision, seeds, name_of(b))
        embedding = geometry.embed(maps.offset)
        proposals: list[tuple[float, int, Tensor]] = []
        truncated = False
        for c, seed in enumerate(maps.seed):
            found, stopped = _greedy(embedding, maps.log_precision, seed, options)
            proposals += [(score, c, members) for score, members in found]
            truncated |= stopped
        found_by_all = _one_owner(proposals, maps.seed.shape[1:], options.max_instances)
        truncated |= found_by_all.truncated
        instances = replace(found_by_all, class_names=names, truncated=truncated)
        results.append(on_device_of(prediction, instances))
    return results


def _greedy(
    embedding: Tensor, log_precision: Tensor, seed: Tensor, options: ClusterOptions
) -> tuple[list[tuple[float, Tensor]], bool]:
    """The rounds of one class: score and members (linear indices) of each; whether it stopped."""
    foreground, start = float(np.float32(options.foreground)), float(np.float32(options.start))
    pixel = (seed > foreground).flatten().nonzero()[:, 0]  # (P,)
    e = embedding.flatten(1)[:, pixel]  # (2, P)
    r = log_precision.flatten(1)[:, pixel]  # (S, P)
    s = seed.flatten()[pixel]  # (P,)
    free = torch.ones_like(s, dtype=torch.bool)
    found: list[tuple[float, Tensor]] = []
    while free.any():
        k = int(torch.where(free, s, -1).argmax())  # the first of equal ones
        if s[k] < start:
            break
        if len(found) == options.max_instances:
            return found, True
        precision = geometry.precision(r[:, k].double()).float()  # (S,)
        dx, dy = e - e[:, k, None]
        member = precision[0] * dx * dx + precision[-1] * dy * dy < options.reach
        n, n_free = int(member.sum()), int((member & free).sum())
        if n > options.min_pixels and n_free > options.min_free * n:
            found.append((float(s[k]), pixel[member]))
        free &= ~member
    return found, False


def _one_owner(
    proposals: list[tuple[float, int, Tensor]], size_hw: torch.Size, most: int | None
) -> Instances:
    """Settle overlaps of proposals (score, class, members) in the order found; drop the empty."""
    proposals = sorted(proposals, key=lambda proposal: -proposal[0])  # stable
    labels = torch.zeros(size_hw.numel(), dtype=torch.int32)
    for i in reversed(range(len(proposals))):  # the best comes last, over all others
        labels[proposals[i][2]] = i + 1
    owning = labels[labels > 0].unique().tolist()  # best first
    kept = owning[:most]
    new_label = torch.zeros(len(proposals) + 1, dtype=torch.int32)
    new_label[kept] = torch.arange(1, len(kept) + 1, dtype=torch.int32)
    labels = new_label[labels.long()].view(size_hw)  # (H, W)
    scores = torch.tensor([proposals[i - 1][0] for i in kept], dtype=torch.float32)
    classes = torch.tensor([proposals[i - 1][1] for i in kept], dtype=torch.int64)
    return Instances(labels, scores, classes, truncated=len(kept) < len(owning))
