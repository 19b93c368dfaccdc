"""Clustering on the CPU, compiled by numba: numpy in, numpy out, no torch.

    maps -> candidates (candidates.py) -> cells, groups, parts (groups.py)
         -> rounds in each part (rounds.py) -> owners by candidate, or labels by pixel (here)

What is in memory beside the candidates is a batch of parts, so that these may be memory-mapped. The
result does not depend on grid, parts, batches or threads: parts cannot meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from spatialembed.concurrency import spread, usable
from spatialembed.method.kernels import groups
from spatialembed.method.kernels.candidates import Candidates, candidates
from spatialembed.method.kernels.jit import compiled
from spatialembed.method.kernels.rounds import Rounds, rounds
from spatialembed.options import ClusterOptions

PART = 1 << 14
"""Candidates that are worth a part of their own."""
WINDOW = 1 << 22
"""Pixels that are settled between classes at a time."""


class Settled(NamedTuple):
    """The instances of one image, by candidates."""

    owners: list[np.ndarray]  # by class (P_c,) int32: label 1..N, 0: none, or of another class
    scores: np.ndarray  # (N,) float32, descending
    classes: np.ndarray  # (N,) int64
    truncated: bool  # stopped at max_instances
    work: int  # nodes and points looked at: what must stay linear


class Found(NamedTuple):
    """The instances of one image."""

    labels: np.ndarray  # (H, W) int32, 0 background, 1..N
    scores: np.ndarray  # (N,) float32, descending
    classes: np.ndarray  # (N,) int64
    truncated: bool
    work: int


class Proposals(NamedTuple):
    """The instances of one class, before classes are settled, in the order of their parts."""

    owner: np.ndarray  # (P,) int32: 0, or number 1..F
    scores: np.ndarray  # (F,) float32
    seeds: np.ndarray  # (F,) int64, candidate that each was started from
    truncated: bool
    work: int


def cluster(
    offset: np.ndarray,
    log_precision: np.ndarray,
    seed: np.ndarray,
    options: ClusterOptions = ClusterOptions(),
    *,
    threads: int | None = None,
    name: str = "maps",
) -> Found:
    """Instances of one image: greedy by class, then one owner a pixel. Neven et al. 2019.

    offset: (2, H, W) float32 (x, y) in units. log_precision: (S, H, W) float32, a tenth of the log,
    S = 1 or 2 (x, y). seed: (C, H, W) float32 in [0, 1]. threads: None takes those that the process
    may use.
    Raises SpatialEmbedError ``non_finite_output`` (exit 4) for NaN or infinity in the maps.
    """
    by_class = candidates(
        offset, log_precision, seed, foreground=options.foreground, threads=threads, name=name
    )
    settled = cluster_candidates(by_class, options, threads=threads)
    labels = np.zeros(seed.shape[1:], np.int32)
    for found, owner in zip(by_class, settled.owners, strict=True):
        _paint(labels.ravel(), found.pixel, owner)
    return Found(labels, *settled[1:])


def cluster_candidates(
    by_class: Sequence[Candidates], options: ClusterOptions, *, threads: int | None = None
) -> Settled:
    """Instances from the candidates of each class. Arrays may be memory-mapped."""
    proposed = [_propose(found, options, usable(threads)) for found in by_class]
    scores = np.concatenate([np.zeros(0, np.float32), *(p.scores for p in proposed)])
    classes = np.repeat(np.arange(len(proposed)), [len(p.scores) for p in proposed])
    seeds = np.concatenate([np.zeros(0, np.int64), *(p.seeds for p in proposed)])
    order = np.lexsort((seeds, classes, -scores))  # ties: lower class, then order found
    rank = np.empty(len(order), np.int32)
    rank[order] = np.arange(1, len(order) + 1)
    owners, begin = [], 0
    for p in proposed:
        _relabel(p.owner, np.append(np.int32(0), rank[begin : begin + len(p.scores)]))
        owners.append(p.owner)
        begin += len(p.scores)
    owning = order
    if len(by_class) > 1:
        owning = order[_settle([found.pixel for found in by_class], owners, len(order))]
    kept = owning[: options.max_instances]
    if len(kept) < len(order):
        label = np.zeros(len(order) + 1, np.int32)
        label[rank[kept]] = np.arange(1, len(kept) + 1)
        for owner in owners:
            _relabel(owner, label)
    truncated = len(kept) < len(owning) or any(p.truncated for p in proposed)
    return Settled(owners, scores[kept], classes[kept], truncated, sum(p.work for p in proposed))


def _propose(found: Candidates, options: ClusterOptions, workers: int) -> Proposals:
    """The rounds of one class."""
    found = Candidates(*map(np.asarray, found))  # kernels take no memory-mapped ones
    owner = np.zeros(len(found.pixel), np.int32)
    if len(owner) == 0:
        return Proposals(owner, np.zeros(0, np.float32), np.zeros(0, np.int64), False, 0)
    start, reach = np.float32(options.start), np.float32(options.reach)
    most = -1 if options.max_instances is None else options.max_instances
    limits = (reach, options.min_pixels, float(options.min_free), most)
    grid = groups.lay_grid(found, start, reach)
    cells = groups.survey(found, start, grid)
    size = min(max(PART, len(owner) // (4 * workers)), groups.BATCH // workers)
    room = np.full(len(cells.points), -1)
    results: list[Rounds] = []
    count = 0
    for parts in groups.batches(found, cells, grid, start, reach, size):
        jobs = [(part, found, grid, cells.points, room, limits) for part in parts]
        for part, result in zip(parts, spread(rounds, jobs, workers), strict=True):
            _write_owners(owner, part.candidate, result.state, count)
            count += len(result.scores)
            results.append(result._replace(state=result.state[:0]))
    return _merge(owner, results, most)


def _merge(owner: np.ndarray, results: list[Rounds], most: int) -> Proposals:
    """Proposals of a class from the rounds of its parts; beyond ``most`` the later ones go."""
    scores = np.concatenate([np.zeros(0, np.float32), *(r.scores for r in results)])
    seeds = np.concatenate([np.zeros(0, np.int64), *(r.seeds for r in results)])
    work = sum(r.work for r in results)
    if most < 0 or len(scores) < most:
        return Proposals(owner, scores, seeds, False, work)
    order = np.lexsort((seeds, -scores))  # the order in which one loop over all finds them
    end = order[most - 1]
    rounds_last = [(-r.last_score, r.last_seed) for r in results if r.last_seed >= 0]
    truncated = max(rounds_last) > (-scores[end], seeds[end])
    kept = np.sort(order[:most])
    number = np.zeros(len(scores) + 1, np.int32)
    number[kept + 1] = np.arange(1, len(kept) + 1)
    _relabel(owner, number)
    return Proposals(owner, scores[kept], seeds[kept], truncated, work)


def _settle(pixels: list[np.ndarray], owners: list[np.ndarray], count: int) -> np.ndarray:
    """Give each pixel to its owner of the lowest rank 1..count over all classes, in place.

    pixels, owners: (P_c,) of each class. Returns (count,) bool: who still owns a pixel.
    """
    owning = np.zeros(count + 1, np.bool_)
    begin = min((int(p[0]) for p in pixels if len(p)), default=0)
    end = max((int(p[-1]) + 1 for p in pixels if len(p)), default=0)
    for low in range(begin, end, WINDOW):
        best = np.full(min(WINDOW, end - low), np.iinfo(np.int32).max, np.int32)
        edges = (low, low + len(best))
        slices = [slice(*np.searchsorted(p, edges)) for p in pixels]
        windows = [(np.asarray(p[s]), o[s]) for p, o, s in zip(pixels, owners, slices, strict=True)]
        for pixel, owner in windows:
            _lower(best, pixel, low, owner)
        for pixel, owner in windows:
            _yield_to(best, pixel, low, owner, owning)
    return owning[1:]


@compiled
def _lower(best: np.ndarray, pixel: np.ndarray, low: int, owner: np.ndarray) -> None:
    """The lowest rank at each pixel from ``low`` on."""
    for k in range(len(pixel)):
        if owner[k]:
            best[pixel[k] - low] = min(best[pixel[k] - low], owner[k])


@compiled
def _yield_to(
    best: np.ndarray, pixel: np.ndarray, low: int, owner: np.ndarray, owning: np.ndarray
) -> None:
    """Take pixels from all but the best; note who keeps one."""
    for k in range(len(pixel)):
        if owner[k]:
            if owner[k] == best[pixel[k] - low]:
                owning[owner[k]] = True
            else:
                owner[k] = 0


@compiled
def _write_owners(owner: np.ndarray, index: np.ndarray, state: np.ndarray, before: int) -> None:
    """Owners of the candidates ``index`` of a part, numbered on from ``before``."""
    for k in range(len(index)):
        if state[k] > 0:
            owner[index[k]] = before + state[k]


@compiled
def _relabel(owner: np.ndarray, label: np.ndarray) -> None:
    """Replace each owner by ``label`` of it."""
    for k in range(len(owner)):
        owner[k] = label[owner[k]]


@compiled
def _paint(labels: np.ndarray, pixel: np.ndarray, owner: np.ndarray) -> None:
    """Write the owners that there are at their pixels of labels (H*W,)."""
    for k in range(len(pixel)):
        if owner[k]:
            labels[pixel[k]] = owner[k]
