"""Clustering on the CPU, compiled by numba: numpy in, numpy out, no torch.

    maps -> candidates (candidates.py) -> cells, groups, parts (groups.py)
         -> rounds in each part (rounds.py) -> owners by candidate, or labels by pixel (here)

What is in memory beside the candidates is a batch of parts, so that these may be memory-mapped. The
result does not depend on grid, parts, batches or threads: parts cannot meet.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from spatialembed.concurrency import spread, usable
from spatialembed.method.kernels import groups
from spatialembed.method.kernels.candidates import Candidates, candidates
from spatialembed.method.kernels.groups import Parts
from spatialembed.method.kernels.jit import compiled
from spatialembed.method.kernels.rounds import Rounds, rounds

PART = 1 << 14
"""Candidates that are worth a part of their own."""
BATCH = 1 << 22
"""Candidates whose parts are in memory at a time, unless one group alone has more."""
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
    *,
    foreground: float = 0.5,
    start: float = 0.9,
    membership: float = 0.5,
    min_pixels: int = 128,
    min_free: float = 0.5,
    max_instances: int | None = None,
    threads: int | None = None,
    name: str = "maps",
) -> Found:
    """Instances of one image: greedy by class, then one owner a pixel. Neven et al. 2019.

    offset: (2, H, W) float32 (x, y) in units. log_precision: (S, H, W) float32, a tenth of the log,
    S = 1 or 2 (x, y). seed: (C, H, W) float32 in [0, 1]. The settings are those of
    ``ClusterOptions``; threads: None takes those that the process may use.
    Raises SpatialEmbedError ``non_finite_output`` (exit 4) for NaN or infinity in the maps.
    """
    by_class = candidates(
        offset, log_precision, seed, foreground=foreground, threads=threads, name=name
    )
    settled = cluster_candidates(
        by_class,
        start=start,
        reach=reach_of(membership),
        min_pixels=min_pixels,
        min_free=min_free,
        max_instances=max_instances,
        threads=threads,
    )
    labels = np.zeros(seed.shape[1:], np.int32)
    for found, owner in zip(by_class, settled.owners, strict=True):
        _paint(labels.ravel(), found.pixel, owner)
    return Found(labels, *settled[1:])


def reach_of(membership: float) -> float:
    """The exponent below which phi > membership, rounded to float32."""
    return float(np.float32(-math.log(membership)))


def cluster_candidates(
    by_class: Sequence[Candidates],
    *,
    start: float,
    reach: float,
    min_pixels: int,
    min_free: float,
    max_instances: int | None,
    threads: int | None = None,
) -> Settled:
    """Instances from the candidates of each class. Arrays may be memory-mapped.

    start: a candidate may start if its seed is at least this. reach: one is a member where its
    exponent is below this, ``reach_of(membership)``. Both are compared as float32. min_pixels,
    min_free, max_instances: as in ``ClusterOptions``.
    """
    workers = usable(threads)
    most = -1 if max_instances is None else max_instances
    limits = (np.float32(reach), min_pixels, float(min_free), most)
    proposed = [_propose(found, np.float32(start), limits, workers) for found in by_class]
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
    kept = owning[:max_instances]
    if len(kept) < len(order):
        label = np.zeros(len(order) + 1, np.int32)
        label[rank[kept]] = np.arange(1, len(kept) + 1)
        for owner in owners:
            _relabel(owner, label)
    truncated = len(kept) < len(owning) or any(p.truncated for p in proposed)
    return Settled(owners, scores[kept], classes[kept], truncated, sum(p.work for p in proposed))


def _propose(
    found: Candidates,
    start: np.float32,
    limits: tuple[np.float32, int, float, int],
    workers: int,
) -> Proposals:
    """The rounds of one class."""
    owner = np.zeros(len(found.pixel), np.int32)
    parts_of = Proposals(owner, np.zeros(0, np.float32), np.zeros(0, np.int64), False, 0)
    if len(owner) == 0:
        return parts_of
    _, x, y, raw, seed = (np.asarray(a) for a in found)
    grid = groups.lay_grid(found, start, limits[0])
    cells = groups.survey(x, y, raw, seed, start, grid)
    size = min(max(PART, len(owner) // (4 * workers)), BATCH // workers)
    parts = groups.make_parts(cells, grid, limits[0], size)
    node_of_cell = np.full(len(cells.points), -1)
    results: list[Rounds] = []
    count = 0
    for first, last in _batches(parts):
        points, starts = groups.gather(x, y, seed, start, grid, parts, first, last)
        jobs = []
        for n in range(first, last):
            own = slice(*(parts.ends[n : n + 2] - parts.ends[first]))
            may = slice(*(parts.start_ends[n : n + 2] - parts.start_ends[first]))
            its = (parts.cells[slice(*parts.cell_ends[n : n + 2])], cells.points, node_of_cell)
            its_points, its_starts = tuple(p[own] for p in points), tuple(s[may] for s in starts)
            jobs.append((its_points, its_starts, its, grid, (x, y, raw), limits))
        new = spread(rounds, jobs, workers)
        for job, result in zip(jobs, new, strict=True):
            _write_owners(owner, job[0][2], result.state, count)
            count += len(result.scores)
            results.append(result._replace(state=result.state[:0]))
    return _merge(owner, results, limits[3])


def _batches(parts: Parts) -> Iterator[tuple[int, int]]:
    """First and last part (exclusive) of each batch: as many as fit, one at least."""
    first, count = 0, len(parts.first)
    while first < count:
        end = np.searchsorted(parts.ends, parts.ends[first] + BATCH, side="right") - 1
        last = max(int(end), first + 1)
        yield first, last
        first = last


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
