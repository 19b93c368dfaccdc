"""Clustering on the CPU, compiled by numba: numpy in, numpy out, no torch.

The plain loop looks at every candidate in every round. Here the candidates of a class stand in a
k-d tree over their embeddings, and a round looks only where its margin reaches::

    node outside the margin            dropped in one step
    node inside, marked before         counted in one step
    node inside, not yet marked        its points are marked, once in the whole run
    node across the margin             split in two, or looked at point by point when small

- The tree is split only where a round asks for it, half way along the axis in which the margin is
  the smaller part of the node. So a trained map, whose points lie in a few tight heaps, is split
  into those heaps and no further; tiny margins in one heap split it as finely as they need.
- Squares are wrong for thin margins, and strips along x for margins along y: each such margin would
  cross sqrt(P) nodes. So every band of aspect ratios has a tree of its own, made when the first
  such margin comes. Trained maps need one.
- A split halves the side of a box that fits its points, so that the bits of a float32 bound the
  depth.
- A free seed lies outside all earlier margins. So few margins can share a point (a constant for
  each doubling of the bandwidth), and recounting members that are taken stays linear as well.

Exactness: boxes and points go through one float32 expression without fused operations. Rounding is
monotone, so the nearest and the farthest corner bound what the points of a box compute, to the last
bit.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from spatialembed.kernels.jit import compiled

LEAF = 24
"""Points of a node that are looked at one by one instead of splitting it."""
RADIX = 11
"""Bits of one sorting pass: its 2048 counters stay in the first-level cache."""
BAND = 10
"""Doublings of precision x / precision y that share a tree: one takes all margins up to 5.7 : 1."""
BANDS = 32
"""Slots for trees: precisions from exp(-40) to exp(40) have 25 bands."""
STACK = 64
"""The larger child waits, the smaller one is next: at most log2(candidates) nodes wait."""


class Found(NamedTuple):
    """The instances of one image."""

    labels: np.ndarray  # (H, W) int32, 0 background, 1..N
    scores: np.ndarray  # (N,) float32, descending
    classes: np.ndarray  # (N,) int64
    truncated: bool  # stopped at max_instances
    work: int  # nodes and points looked at: what must stay linear


class Trees(NamedTuple):
    """P candidates of a class by embedding, T trees. Node n holds points span[n, 0]:span[n, 1]."""

    x: np.ndarray  # (T*P,) float32, tree after tree, each in its own order, as y and point
    y: np.ndarray  # (T*P,) float32
    point: np.ndarray  # (T*P,) int32, which candidate
    box: np.ndarray  # (2*T*P, 4) float32, x_min y_min x_max y_max of the points of a node, tight
    span: (
        np.ndarray
    )  # (2*T*P, 3) int64: begin, end, first child (the second follows it; -1: not split)
    done: np.ndarray  # (2*T*P, 2) bool: all points taken; all points owned
    root: np.ndarray  # (BANDS,) int64: node of the tree of a band of aspect ratios, -1: none yet
    tally: np.ndarray  # (2,) int64: nodes made, nodes and points looked at


@compiled
def _candidates(seed: np.ndarray, foreground: np.float32) -> np.ndarray:
    """Linear indices (P,) int32 of the pixels whose seed (H*W,) is above ``foreground``."""
    index = np.empty(len(seed) + 1, np.int32)
    n = 0
    for i in range(len(seed)):
        index[n] = i  # written always, kept where n moves on: no branch to mispredict
        n += seed[i] > foreground
    return index[:n]


@compiled
def _starts(
    seed: np.ndarray, pixel: np.ndarray, start: np.float32
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (Q,) int32, ascending, that may start, and the bits of their seeds (Q,) int32."""
    bits = seed.view(np.int32)
    index = np.empty(len(pixel) + 1, np.int32)
    keys = np.empty(len(pixel) + 1, np.int32)
    n = 0
    for k in range(len(pixel)):
        index[n] = k
        keys[n] = bits[pixel[k]]
        n += seed[pixel[k]] >= start
    return index[:n], keys[:n]


@compiled
def _sort_descending(index: np.ndarray, keys: np.ndarray) -> np.ndarray:
    """``index`` by ``keys`` descending, ties as they stand: a radix sort.

    Non-negative float32 have the order of their bits. Seeds in [0.9, 1] differ in 21 bits: two
    passes.
    """
    if len(keys) == 0:
        return index
    top, bottom = keys.max(), keys.min()
    keys = top - keys
    shift = 0
    while (top - bottom) >> shift:
        digit = (keys >> shift) & ((1 << RADIX) - 1)
        place = np.zeros((1 << RADIX) + 1, np.int64)
        for d in digit:
            place[d + 1] += 1
        place = place.cumsum()
        index_sorted, keys_sorted = np.empty_like(index), np.empty_like(keys)
        for k in range(len(keys)):
            to = place[digit[k]]
            place[digit[k]] += 1
            index_sorted[to] = index[k]
            keys_sorted[to] = keys[k]
        index, keys = index_sorted, keys_sorted
        shift += RADIX
    return index


@compiled
def _make_node(trees: Trees, begin: int, end: int, taken: bool, owned: bool) -> int:
    """Add a node for the points begin:end, with the box that fits them."""
    node = trees.tally[0]
    trees.tally[0] += 1
    x_min, y_min = trees.x[begin], trees.y[begin]
    x_max, y_max = x_min, y_min
    for j in range(begin, end):
        x_min, x_max = min(x_min, trees.x[j]), max(x_max, trees.x[j])
        y_min, y_max = min(y_min, trees.y[j]), max(y_max, trees.y[j])
    box, span = trees.box[node], trees.span[node]
    box[0], box[1], box[2], box[3] = x_min, y_min, x_max, y_max
    span[0], span[1], span[2] = begin, end, -1
    trees.done[node, 0], trees.done[node, 1] = taken, owned
    return node


@compiled
def _no_trees(embedding: np.ndarray, pixel: np.ndarray) -> Trees:
    """No tree yet, but the points of the candidates ``pixel`` (P,), P >= 1; embedding (2, H*W)."""
    points = len(pixel)
    x, y = np.empty(points, np.float32), np.empty(points, np.float32)
    for k in range(points):
        x[k], y[k] = embedding[0, pixel[k]], embedding[1, pixel[k]]
    return Trees(
        x,
        y,
        np.arange(points).astype(np.int32),
        np.empty((2 * points, 4), np.float32),  # pages that are never written cost no memory
        np.empty((2 * points, 3), np.int64),
        np.empty((2 * points, 2), np.bool_),
        np.full(BANDS, -1),
        np.zeros(2, np.int64),
    )


@compiled
def _band(px: np.float32, py: np.float32) -> int:
    """Which tree serves margins of these precisions."""
    doublings = np.log2(np.float64(px)) - np.log2(np.float64(py))
    return int(min(max(np.rint(doublings / BAND) + BANDS // 2, 0), BANDS - 1))


@compiled
def _plant(trees: Trees, band: int, points: int) -> Trees:
    """The trees with one more, of a single node, for a band."""
    if trees.tally[0]:
        rows = len(trees.box) + 2 * points
        box, span = np.empty((rows, 4), np.float32), np.empty((rows, 3), np.int64)
        done = np.empty((rows, 2), np.bool_)
        n = trees.tally[0]
        box[:n], span[:n], done[:n] = trees.box[:n], trees.span[:n], trees.done[:n]
        x = np.concatenate((trees.x, trees.x[:points]))
        y = np.concatenate((trees.y, trees.y[:points]))
        point = np.concatenate((trees.point, trees.point[:points]))
        trees = Trees(x, y, point, box, span, done, trees.root, trees.tally)
    end = len(trees.x)
    trees.root[band] = _make_node(trees, end - points, end, False, False)
    return trees


@compiled
def _partition(trees: Trees, key: np.ndarray, begin: int, end: int, cut: np.float32) -> int:
    """Move the points with key <= cut before the others; where those begin. Both must occur."""
    i, j = begin, end - 1
    while True:
        while key[i] <= cut:  # stops at the latest where the other scan has put a larger one
            i += 1
        while key[j] > cut:
            j -= 1
        if i > j:
            return i
        trees.x[i], trees.x[j] = trees.x[j], trees.x[i]
        trees.y[i], trees.y[j] = trees.y[j], trees.y[i]
        trees.point[i], trees.point[j] = trees.point[j], trees.point[i]
        i += 1
        j -= 1


@compiled
def _split(trees: Trees, node: int, px: np.float32, py: np.float32) -> None:
    """Halve a node along its longer axis, measured in margins. Not all points may coincide."""
    box, span = trees.box[node], trees.span[node]
    width, height = np.float64(box[2]) - box[0], np.float64(box[3]) - box[1]
    across = (
        px * width * width >= py * height * height
    )  # float64: the smallest side does not vanish
    key, low, high = (trees.x, box[0], box[2]) if across else (trees.y, box[1], box[3])
    cut = np.float32(0.5 * (np.float64(low) + high))
    if cut >= high:  # neighbouring floats: the middle was rounded up
        cut = low
    begin, end = span[0], span[1]
    middle = _partition(trees, key, begin, end, cut)
    trees.tally[1] += end - begin
    span[2] = _make_node(trees, begin, middle, trees.done[node, 0], trees.done[node, 1])
    _make_node(trees, middle, end, trees.done[node, 0], trees.done[node, 1])


@compiled
def _exponent(px: np.float32, py: np.float32, dx: np.float32, dy: np.float32) -> np.float32:
    """d of phi = exp(-d), in the one order of operations that the plain way has too."""
    return px * dx * dx + py * dy * dy


@compiled
def _mark(
    trees: Trees,
    margin: tuple[np.float32, np.float32, np.float32, np.float32, np.float32],
    kind: int,
    marks: np.ndarray,
    value: int,
) -> tuple[int, int]:
    """Set ``marks`` (P,) int32 to ``value`` at the members of a margin that still have 0 there.

    margin: centre x, y, precision x, y, and the exponent below which a point belongs. kind: the
    column of ``done`` that belongs to ``marks``. Returns the number of members and how many of them
    were marked now.
    """
    cx, cy, px, py, reach = margin
    members, fresh = 0, 0
    stack = np.empty(STACK, np.int64)
    stack[0], waiting = trees.root[_band(px, py)], 1
    while waiting:
        waiting -= 1
        node = stack[waiting]
        box, begin, end = trees.box[node], trees.span[node, 0], trees.span[node, 1]
        trees.tally[1] += 1
        left, right, above, below = box[0] - cx, cx - box[2], box[1] - cy, cy - box[3]
        zero = np.float32(0)
        if _exponent(px, py, max(left, right, zero), max(above, below, zero)) >= reach:
            continue
        inside = _exponent(px, py, max(-left, -right), max(-above, -below)) < reach
        if inside and trees.done[node, kind]:
            members += end - begin
            continue
        if inside:
            trees.done[node, kind] = True  # by the end of this call: its children are visited below
        if (inside and trees.span[node, 2] < 0) or end - begin <= LEAF:
            trees.tally[1] += end - begin
            for j in range(begin, end):
                if inside or _exponent(px, py, trees.x[j] - cx, trees.y[j] - cy) < reach:
                    members += 1
                    if marks[trees.point[j]] == 0:
                        marks[trees.point[j]] = value
                        fresh += 1
            continue
        if trees.span[node, 2] < 0:
            _split(trees, node, px, py)
        child = trees.span[node, 2]
        second_larger = 2 * trees.span[child, 1] < begin + end
        stack[waiting] = child + second_larger
        stack[waiting + 1] = child + 1 - second_larger
        waiting += 2
    return members, fresh


@compiled
def _greedy(
    trees: Trees,
    order: np.ndarray,
    pixel: np.ndarray,
    maps: tuple[np.ndarray, np.ndarray, np.ndarray],
    limits: tuple[np.float32, int, float, int],
) -> tuple[np.ndarray, np.ndarray, bool, int]:
    """The rounds of one class.

    order (Q,): the candidates that may start, best first. pixel (P,): of each candidate. maps:
    embedding (2, H*W), precision (S, H*W), seed (H*W,). limits: reach, min_pixels, min_free,
    max_instances (-1: none).
    Returns the owner of each candidate (P,) int32, 0 none, 1.. in the order found; the scores;
    whether it was stopped; nodes and points looked at.
    """
    embedding, precision, seed = maps
    reach, min_pixels, min_free, max_instances = limits
    taken, owner = np.zeros(len(pixel), np.int32), np.zeros(len(pixel), np.int32)
    scores = np.empty(len(order), np.float32)
    found = 0
    for k in order:
        if taken[k]:
            continue
        if found == max_instances:
            return owner, scores[:found], True, trees.tally[1]
        i = pixel[k]
        margin = (embedding[0, i], embedding[1, i], precision[0, i], precision[-1, i], reach)
        band = _band(margin[2], margin[3])
        if trees.root[band] < 0:
            trees = _plant(trees, band, len(pixel))
        members, free = _mark(trees, margin, 0, taken, 1)
        if members > min_pixels and free > min_free * members:
            scores[found] = seed[i]
            found += 1
            # Members that an earlier, rejected round took have no owner yet: they are won here.
            _mark(trees, margin, 1, owner, found)
    return owner, scores[:found], False, trees.tally[1]


@compiled
def _settle(
    labels: np.ndarray, areas: np.ndarray, scores: np.ndarray, pixel: np.ndarray, owner: np.ndarray
) -> None:
    """Give candidates to their owners of one more class where these have the higher score."""
    for k in range(len(pixel)):
        new, old = owner[k], labels[pixel[k]]
        if new and (old == 0 or scores[new - 1] > scores[old - 1]):
            labels[pixel[k]] = new
            areas[new] += 1
            areas[old] -= 1


@compiled
def _renumber(labels: np.ndarray, new: np.ndarray) -> None:
    """Replace each label (H*W,) by ``new`` of it."""
    for i in range(len(labels)):
        labels[i] = new[labels[i]]


def cluster(
    embedding: np.ndarray,
    precision: np.ndarray,
    seed: np.ndarray,
    *,
    foreground: float,
    start: float,
    reach: float,
    min_pixels: int,
    min_free: float,
    max_instances: int | None,
) -> Found:
    """Instances of one image: greedy by class, then one owner a pixel. Neven et al. 2019.

    embedding: (2, H, W) float32 (x, y) in units. precision: (S, H, W) float32, 1/unit^2, S = 1 or 2
    (x, y). seed: (C, H, W) float32. All contiguous and finite. reach: a pixel is a member where its
    exponent is below this, -log(membership). The other settings are those of ``ClusterOptions``,
    with foreground not negative. foreground, start and reach are compared as float32.
    """
    shape = seed.shape[1:]
    embedding, precision, seed = (m.reshape(len(m), -1) for m in (embedding, precision, seed))
    most = -1 if max_instances is None else max_instances
    limits = (np.float32(reach), min_pixels, float(min_free), most)
    labels = np.zeros(seed.shape[1], np.int32)
    scores, classes = np.zeros(0, np.float32), np.zeros(0, np.int64)
    areas = np.zeros(1, np.int64)  # of labels 0.., before they are put in order
    truncated, work = False, 0
    for c in range(len(seed)):
        pixel = _candidates(seed[c], np.float32(foreground))
        order = _sort_descending(*_starts(seed[c], pixel, np.float32(start)))
        if len(order) == 0:
            continue
        trees, maps = _no_trees(embedding, pixel), (embedding, precision, seed[c])
        owner, new, stopped, steps = _greedy(trees, order, pixel, maps, limits)
        owner[owner > 0] += len(scores)
        scores, classes = np.append(scores, new), np.append(classes, np.full(len(new), c))
        areas = np.append(areas, np.zeros(len(new), np.int64))
        _settle(labels, areas, scores, pixel, owner)
        truncated, work = truncated or stopped, work + int(steps)
    rank = np.argsort(-scores, kind="stable")  # ties: lower class, then order found
    rank = rank[areas[1:][rank] > 0]
    kept = rank[:max_instances]
    new_label = np.zeros(len(scores) + 1, np.int32)
    new_label[kept + 1] = np.arange(1, len(kept) + 1)
    _renumber(labels, new_label)
    truncated = truncated or len(kept) < len(rank)
    return Found(labels.reshape(shape), scores[kept], classes[kept], truncated, work)
