"""The rounds of the clustering over one part of the candidates: who is taken, who owns it.

The plain loop looks at every candidate in every round. Here the candidates stand in cells by their
embeddings, a cell is the root of a k-d tree, and a round looks only where its margin reaches::

    node outside the margin            dropped in one step
    node inside, marked before         counted in one step
    node inside, not yet marked        its points are marked, once in the whole run
    node across the margin             looked at point by point; split in two where that has been
                                       in vain too often

- On trained maps cells are about as wide as margins and nothing is ever split. Tiny margins in one
  heap split it as finely as they need: a node is split half way along the axis in which the margin
  is the smaller part of it, once more looks at its points have been in vain than it has points.
- Squares are wrong for thin margins, and strips along x for margins along y: each such margin would
  cross sqrt(P) nodes. So every other band of aspect ratios has a tree of its own over the whole
  part, made when the first such margin comes. Trained maps need none.
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

from spatialembed.method.kernels.candidates import Candidates
from spatialembed.method.kernels.groups import Grid, Part, half_width, precision, rectangle
from spatialembed.method.kernels.jit import compiled, radix_sort

LEAF = 24
"""Points of a node that is never split."""
BAND = 10
"""Doublings of precision x / precision y that share a tree: one takes all margins up to 5.7 : 1."""
BANDS = 32
"""Slots for trees: precisions from exp(-40) to exp(40) have 25 bands."""
SQUARE = BANDS // 2
"""The band of 1 : 1, whose trees stand in cells."""
STACK = 64
"""The larger child waits, the smaller one is next: at most log2(candidates) nodes wait."""
FREE, TAKEN = 0, -1
"""State of a candidate; owned ones hold the number of their instance, from 1."""


class Trees(NamedTuple):
    """P candidates of a part by embedding. Node n holds points span[n, 0]:span[n, 1].

    First the trees of the cells, node n that of cell n of the part; then, over all points once
    more, a tree for each further band of aspect ratios.
    """

    x: np.ndarray  # (T*P,) float32, each time in an own order, as y and point
    y: np.ndarray  # (T*P,) float32
    point: np.ndarray  # (T*P,) int32, which candidate
    box: np.ndarray  # (N, 4) float32, x_min y_min x_max y_max of the points of a node, tight
    span: np.ndarray  # (N, 4) int64: begin, end, first child (the second follows it; -1: not
    #                   split), points looked at in vain
    done: np.ndarray  # (N, 2) bool: all points taken; all points owned
    root: np.ndarray  # (BANDS,) int64: node of the tree of a band, -1: none yet
    tally: np.ndarray  # (2,) int64: nodes made, nodes and points looked at
    stack: np.ndarray  # (STACK,) int64, nodes that wait in a round


class Rounds(NamedTuple):
    """What came out of a part: F instances in the order found."""

    state: np.ndarray  # (P,) int32: FREE, TAKEN, or the number 1..F of the owner
    scores: np.ndarray  # (F,) float32
    seeds: np.ndarray  # (F,) int64, candidate that each was started from
    last_score: float  # of the last round, kept or not; of the next one where it was stopped
    last_seed: int  # and its candidate; -1: there was no round
    work: int  # nodes and points looked at


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
    span[0], span[1], span[2], span[3] = begin, end, -1, 0
    trees.done[node, 0], trees.done[node, 1] = taken, owned
    return node


@compiled
def _cell_trees(part: Part, points: np.ndarray, node_of_cell: np.ndarray) -> Trees:
    """The trees of the cells of a part, one node each; writes ``node_of_cell`` of them."""
    most = 2 * len(part.x)
    trees = Trees(
        part.x,
        part.y,
        np.arange(len(part.x)).astype(np.int32),
        np.empty((most, 4), np.float32),  # pages that are never written cost no memory
        np.empty((most, 4), np.int64),
        np.empty((most, 2), np.bool_),
        np.zeros(BANDS, np.int64) - 1,
        np.zeros(2, np.int64),
        np.empty(STACK, np.int64),
    )
    begin = 0
    for cell in part.cells:
        node_of_cell[cell] = _make_node(trees, begin, begin + points[cell], False, False)
        begin += points[cell]
    return trees


@compiled
def _band(px: np.float32, py: np.float32) -> int:
    """Which trees serve margins of these precisions."""
    if 0.1 * py < px < 10 * py:
        return SQUARE  # as nearly all are, and two logarithms cost as much as a small round
    doublings = np.log2(np.float64(px)) - np.log2(np.float64(py))
    return int(min(max(np.rint(doublings / BAND) + SQUARE, 0), BANDS - 1))


@compiled
def _plant(trees: Trees, band: int, points: int) -> Trees:
    """The trees with one more, of a single node over all points, for a band."""
    rows, n = len(trees.box) + 2 * points, trees.tally[0]
    box, span = np.empty((rows, 4), np.float32), np.empty((rows, 4), np.int64)
    done = np.empty((rows, 2), np.bool_)
    box[:n], span[:n], done[:n] = trees.box[:n], trees.span[:n], trees.done[:n]
    begin, end = len(trees.x), len(trees.x) + points
    x = np.concatenate((trees.x, trees.x[:points]))
    y = np.concatenate((trees.y, trees.y[:points]))
    point = np.concatenate((trees.point, trees.point[:points]))
    trees = Trees(x, y, point, box, span, done, trees.root, trees.tally, trees.stack)
    trees.root[band] = _make_node(trees, begin, end, False, False)
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
def _mark_below(
    trees: Trees,
    root: int,
    margin: tuple[np.float32, np.float32, np.float32, np.float32, np.float32],
    state: np.ndarray,
    old: int,
    new: int,
) -> tuple[int, int]:
    """Turn the state of the members below a root from ``old`` to ``new``.

    margin: centre x, y, precision x, y, and the exponent below which a point belongs. Returns the
    number of members and how many of them were turned.
    """
    cx, cy, px, py, reach = margin
    kind = 0 if old == FREE else 1
    members, fresh, seen = 0, 0, 0
    stack = trees.stack
    stack[0], waiting = root, 1
    while waiting:
        waiting -= 1
        node = stack[waiting]
        box, span = trees.box[node], trees.span[node]
        begin, end = span[0], span[1]
        seen += 1
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
        elif span[2] < 0 and end - begin > LEAF and span[3] > end - begin:
            _split(trees, node, px, py)
        if span[2] < 0:
            seen += end - begin
            before = members
            for j in range(begin, end):
                if inside or _exponent(px, py, trees.x[j] - cx, trees.y[j] - cy) < reach:
                    members += 1
                    if state[trees.point[j]] == old:
                        state[trees.point[j]] = new
                        fresh += 1
            span[3] += end - begin - (members - before)
            continue
        child = span[2]
        second_larger = 2 * trees.span[child, 1] < begin + end
        stack[waiting] = child + second_larger
        stack[waiting + 1] = child + 1 - second_larger
        waiting += 2
    trees.tally[1] += seen
    return members, fresh


@compiled
def _mark(
    trees: Trees,
    where: tuple[Grid, np.ndarray],
    margin: tuple[np.float32, np.float32, np.float32, np.float32, np.float32],
    state: np.ndarray,
    old: int,
    new: int,
) -> tuple[int, int]:
    """``_mark_below`` all roots that serve a margin.

    where: the grid, and the node of each cell.
    """
    grid, node_of_cell = where
    band = _band(margin[2], margin[3])
    c1, c2, r1, r2 = 0, 0, 0, 0  # one tree over everything
    if band == SQUARE:
        wide, high = half_width(margin[2], margin[4]), half_width(margin[3], margin[4])
        x, y = margin[0], margin[1]
        c1, c2, r1, r2 = rectangle(grid, x - wide, y - high, x + wide, y + high)
    members, fresh = 0, 0
    trees.tally[1] += (c2 - c1 + 1) * (r2 - r1 + 1)
    for row in range(r1, r2 + 1):
        for column in range(c1, c2 + 1):
            root = trees.root[band]
            if band == SQUARE:
                root = node_of_cell[row * grid.columns + column]
            if root >= 0:
                its, turned = _mark_below(trees, root, margin, state, old, new)
                members += its
                fresh += turned
    return members, fresh


@compiled
def _best_first(seed: np.ndarray) -> np.ndarray:
    """Indices of seeds (Q,), bits of float32 >= 0, descending, ties as they stand."""
    keys, order = np.empty((2, len(seed)), np.uint32), np.empty((2, len(seed)), np.int64)
    if len(seed):
        keys[0] = seed.max() - seed  # float32 have the order of their bits; few differ in all
    return order[radix_sort(keys, order, len(seed))]


@compiled
def rounds(
    part: Part,
    everyone: Candidates,
    grid: Grid,
    points_of_cell: np.ndarray,
    node_of_cell: np.ndarray,
    limits: tuple[np.float32, int, float, int],
) -> Rounds:
    """The rounds over one part.

    points_of_cell (M,): candidates in each cell of the grid. node_of_cell (M,): room for the node
    of each, -1 where no part has one. limits: reach, min_pixels, min_free, max_instances (-1:
    none).
    """
    reach, min_pixels, min_free, max_instances = limits
    raw = everyone.log_precision
    size = len(part.candidate)
    trees = _cell_trees(part, points_of_cell, node_of_cell)
    state = np.zeros(size, np.int32)
    scores, seeds = np.empty(len(part.start), np.float32), np.empty(len(part.start), np.int64)
    found, last_score, last_seed = 0, 0.0, -1
    bits, where = part.seed.view(np.float32), (grid, node_of_cell)
    for q in _best_first(part.seed):
        k = part.start[q]
        if state[k] != FREE:
            continue
        i = part.candidate[k]
        last_score, last_seed = bits[q], i
        if found == max_instances:
            break
        px = precision(raw[0, i])
        py = precision(raw[1, i]) if len(raw) > 1 else px
        margin = (everyone.x[i], everyone.y[i], px, py, reach)
        band = _band(margin[2], margin[3])
        if band != SQUARE and trees.root[band] < 0:
            trees = _plant(trees, band, size)
        members, free = _mark(trees, where, margin, state, FREE, TAKEN)
        if members > min_pixels and free > min_free * members:
            scores[found], seeds[found] = bits[q], i
            found += 1
            # Members that an earlier, rejected round took have no owner yet: they are won here.
            _mark(trees, where, margin, state, TAKEN, found)
    return Rounds(
        state, scores[:found].copy(), seeds[:found].copy(), last_score, last_seed, trees.tally[1]
    )
