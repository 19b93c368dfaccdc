"""Candidates that cannot meet, apart: cells of embedding space, and groups of cells by reach.

A grid of square cells lies over the embeddings. What a cell's candidates can reach, if they start,
is a rectangle: the extent of those that may start, wider by their widest margin. Cells joined by
such rectangles form a group, and what happens in one group never touches another::

    +----+----+----+----+----+
    | .. | :: |    |    | ,, |      two groups: the margins of :: reach .. and not ,,
    | .  | :. |    |    | ;  |
    +----+----+----+----+----+

Groups are packed into parts, one after the other by their first candidate: a part is the work of
one thread, and what is in memory at a time is a batch of parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from spatialembed.method.kernels.candidates import Candidates
from spatialembed.method.kernels.jit import compiled

MOST_CELLS = 1 << 21
"""Cells of a grid: they take 80 bytes each."""
BATCH = 1 << 22
"""Candidates whose parts are in memory at a time, unless one group alone has more."""
DIRECT = 64
"""A rectangle of more cells than this is joined by larger blocks: joining stays linear."""
LOG_SCALE, LOG_LIMIT = 10.0, 40.0
"""precision = exp(clamp(10 r, -40, 40)), as in geometry.py, which needs torch."""
SLACK = 1.00001
"""Rectangles are this much wider than margins: rounding in an exponent must not lose a member."""


class Grid(NamedTuple):
    """Cells of embedding space, numbered by row; what lies outside belongs to the border cells."""

    left: float  # units
    top: float
    per_unit: float  # cells
    columns: int
    rows: int


class Part(NamedTuple):
    """Some groups: P candidates by cell, Q of which may start, in K cells."""

    x: np.ndarray  # (P,) float32, in an order that the trees change, as y and candidate
    y: np.ndarray  # (P,) float32
    candidate: np.ndarray  # (P,) int32
    start: np.ndarray  # (Q,) int32, in [0, P), ascending by candidate
    seed: np.ndarray  # (Q,) int32, bits of the float32
    cells: np.ndarray  # (K,) int64, ascending


class Cells(NamedTuple):
    """What is known of the M cells of a grid after one look at the candidates."""

    points: np.ndarray  # (M,) int64, number of candidates
    starts: np.ndarray  # (M,) int64, how many of them may start
    first: np.ndarray  # (M,) int64, index of the first candidate
    last: np.ndarray  # (M,) int64, of the last one
    extent: np.ndarray  # (M, 4) float32, x_min y_min x_max y_max of those that may start
    raw: np.ndarray  # (M, 2) float32, the least log-precision (x, y) of those


@compiled
def precision(raw: float) -> np.float32:
    """exp(10 raw) in float64, then rounded: the same in every library, as a float32 exp is not."""
    return np.float32(np.exp(min(max(LOG_SCALE * np.float64(raw), -LOG_LIMIT), LOG_LIMIT)))


@compiled
def half_width(p: np.float32, reach: float) -> float:
    """Distance in units beyond which an exponent is not below ``reach``, on one axis."""
    return SLACK * np.sqrt(np.float64(reach) / np.float64(p))


@compiled
def column_of(grid: Grid, x: float) -> int:
    """Column of cells at x. Monotone in x, so that an interval covers the columns of its ends."""
    return int(min(max((x - grid.left) * grid.per_unit, 0.0), grid.columns - 1.0))


@compiled
def row_of(grid: Grid, y: float) -> int:
    """Row of cells at y."""
    return int(min(max((y - grid.top) * grid.per_unit, 0.0), grid.rows - 1.0))


@compiled
def rectangle(
    grid: Grid, x_min: float, y_min: float, x_max: float, y_max: float
) -> tuple[int, int, int, int]:
    """First and last column, first and last row of the cells between two corners."""
    return column_of(grid, x_min), column_of(grid, x_max), row_of(grid, y_min), row_of(grid, y_max)


def lay_grid(found: Candidates, start: np.float32, reach: np.float32) -> Grid:
    """A grid whose cells are about as wide as the usual margin; at most a cell for 4 candidates."""
    left, right = float(found.x.min()), float(found.x.max())
    top, bottom = float(found.y.min()), float(found.y.max())
    step = max(1, len(found.pixel) // 4096)  # a sample: the grid decides on time, not on results
    raw = found.log_precision[:, ::step][:, found.seed[::step] >= start]  # (S, n)
    usual = float(np.median(raw)) if raw.size else 1.0
    side = half_width(precision(usual), reach)
    most = min(MOST_CELLS, len(found.pixel) // 4) + 1
    width, height = right - left, bottom - top
    side = max(side, np.sqrt(width * height / most), width / most, height / most)
    per_unit = 1 / side
    return Grid(left, top, per_unit, int(width * per_unit) + 1, int(height * per_unit) + 1)


@compiled
def survey(found: Candidates, start: np.float32, grid: Grid) -> Cells:
    """One look at the candidates."""
    x, y, raw = found.x, found.y, found.log_precision
    size = grid.columns * grid.rows
    cells = Cells(
        np.zeros(size, np.int64),
        np.zeros(size, np.int64),
        np.empty(size, np.int64),
        np.empty(size, np.int64),
        np.empty((size, 4), np.float32),
        np.empty((size, 2), np.float32),
    )
    for k in range(len(x)):
        cell = row_of(grid, y[k]) * grid.columns + column_of(grid, x[k])
        if cells.points[cell] == 0:
            cells.first[cell] = k
        cells.points[cell] += 1
        cells.last[cell] = k
        if found.seed[k] < start:
            continue
        extent, least, raw_x, raw_y = cells.extent[cell], cells.raw[cell], raw[0, k], raw[-1, k]
        if cells.starts[cell] == 0:
            extent[0], extent[1], extent[2], extent[3] = x[k], y[k], x[k], y[k]
            least[0], least[1] = raw_x, raw_y
        cells.starts[cell] += 1
        extent[0], extent[2] = min(extent[0], x[k]), max(extent[2], x[k])
        extent[1], extent[3] = min(extent[1], y[k]), max(extent[3], y[k])
        least[0], least[1] = min(least[0], raw_x), min(least[1], raw_y)
    return cells


@compiled
def root_of(parent: np.ndarray, node: int) -> int:
    """The end of the chain of parents; chains are halved on the way."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def unite(parent: np.ndarray, a: int, b: int) -> None:
    """Make one tree of those of two nodes; its root is the lower of their roots."""
    a, b = root_of(parent, a), root_of(parent, b)
    parent[max(a, b)] = min(a, b)


@compiled
def _blocks(cells: int, level: int) -> int:
    """Blocks of 2^level cells that cover so many."""
    return (cells + (1 << level) - 1) >> level


@compiled
def _join(cells: Cells, grid: Grid, reach: np.float32) -> np.ndarray:
    """A cell (M,) int64 that stands for the group of each cell: the lowest of the group.

    A rectangle of many cells is joined to blocks of 2^level cells a side instead, so large that
    they are few; what lies in such a block is joined to it at the end.
    """
    levels = 1
    while max(grid.columns, grid.rows) > 1 << (levels - 1):
        levels += 1
    base = np.zeros(levels + 1, np.int64)  # number of the first block of a level
    for level in range(levels):
        blocks = _blocks(grid.columns, level) * _blocks(grid.rows, level)
        base[level + 1] = base[level] + blocks
    parent = np.arange(base[levels])
    whole = np.zeros(base[levels], np.bool_)
    for cell in range(len(cells.starts)):
        if cells.starts[cell] == 0:
            continue
        extent = cells.extent[cell]
        wide = half_width(precision(cells.raw[cell, 0]), reach)
        high = half_width(precision(cells.raw[cell, 1]), reach)
        c1, c2, r1, r2 = rectangle(
            grid, extent[0] - wide, extent[1] - high, extent[2] + wide, extent[3] + high
        )
        level = 0
        while ((c2 >> level) - (c1 >> level) + 1) * ((r2 >> level) - (r1 >> level) + 1) > DIRECT:
            level += 1
        columns = _blocks(grid.columns, level)
        for row in range(r1 >> level, (r2 >> level) + 1):
            for column in range(c1 >> level, (c2 >> level) + 1):
                block = base[level] + row * columns + column
                if level or cells.points[block]:
                    unite(parent, cell, block)
                    whole[block] |= level > 0
    for level in range(levels - 1, 0, -1):
        columns, parts = _blocks(grid.columns, level), _blocks(grid.columns, level - 1)
        for n in range(base[level + 1] - base[level]):
            block, row, column = base[level] + n, n // columns, n % columns
            if not whole[block]:
                continue
            for r in range(2 * row, min(2 * row + 2, _blocks(grid.rows, level - 1))):
                for c in range(2 * column, min(2 * column + 2, parts)):
                    part = base[level - 1] + r * parts + c
                    unite(parent, block, part)
                    whole[part] = True
    return np.array([root_of(parent, cell) for cell in range(len(cells.starts))])


class _Places(NamedTuple):
    """N parts, one after the other by their first candidate: where their candidates stand."""

    of_cell: np.ndarray  # (M,) int64, part of each cell, -1: none
    cells: np.ndarray  # (K,) int64, cells by part, each part's ascending
    cell_ends: np.ndarray  # (N + 1,) int64, where the cells of part n - 1 end
    ends: np.ndarray  # (N + 1,) int64, the same of the candidates
    start_ends: np.ndarray  # (N + 1,) int64, the same of those that may start
    first: np.ndarray  # (N,) int64, first candidate of a part
    last: np.ndarray  # (N,) int64, its last one
    next: np.ndarray  # (M,) int64, where the next candidate of a cell goes
    next_start: np.ndarray  # (N + 1,) int64, where the next one that may start goes


@compiled
def _pack(cells: Cells, root: np.ndarray, size: int) -> _Places:
    """Groups packed into parts of about ``size`` candidates. root (M,): the group of each cell."""
    points, starts = np.zeros((2, len(root)), np.int64)  # of each group
    first = np.full(len(root), np.iinfo(np.int64).max)
    for cell in range(len(root)):
        if cells.points[cell]:
            points[root[cell]] += cells.points[cell]
            starts[root[cell]] += cells.starts[cell]
            first[root[cell]] = min(first[root[cell]], cells.first[cell])
    groups = np.flatnonzero(starts)  # nothing can start in the others
    groups = groups[np.argsort(first[groups])]
    part_of, part, before = np.full(len(root), -1), -1, 0
    for n in range(len(groups)):
        if n == 0 or before // size > (before - points[groups[n - 1]]) // size:
            part += 1
        part_of[groups[n]] = part
        before += points[groups[n]]
    of_cell = np.full(len(root), -1)
    cell_ends, ends, start_ends = np.zeros((3, part + 2), np.int64)
    first_of, last_of = np.full(part + 1, np.iinfo(np.int64).max), np.zeros(part + 1, np.int64)
    for cell in range(len(root)):
        n = part_of[root[cell]]
        if cells.points[cell] and n >= 0:
            of_cell[cell] = n
            cell_ends[n + 1] += 1
            ends[n + 1] += cells.points[cell]
            start_ends[n + 1] += cells.starts[cell]
            first_of[n] = min(first_of[n], cells.first[cell])
            last_of[n] = max(last_of[n], cells.last[cell])
    cell_ends, ends, start_ends = cell_ends.cumsum(), ends.cumsum(), start_ends.cumsum()
    by_part, next_place = np.empty(cell_ends[-1], np.int64), np.zeros(len(root), np.int64)
    next_cell, filled = cell_ends.copy(), ends.copy()
    for cell in range(len(root)):
        n = of_cell[cell]
        if n >= 0:
            by_part[next_cell[n]] = cell
            next_cell[n] += 1
            next_place[cell] = filled[n]
            filled[n] += cells.points[cell]
    return _Places(
        of_cell, by_part, cell_ends, ends, start_ends, first_of, last_of, next_place,
        start_ends.copy(),
    )  # fmt: skip


def batches(
    found: Candidates, cells: Cells, grid: Grid, start: np.float32, reach: np.float32, size: int
) -> Iterator[list[Part]]:
    """All parts, about ``size`` candidates each, in batches that fit into memory."""
    places = _pack(cells, _join(cells, grid, reach), size)
    begin, count = 0, len(places.first)
    while begin < count:
        fitting = np.searchsorted(places.ends, places.ends[begin] + BATCH, side="right") - 1
        end = max(int(fitting), begin + 1)
        yield _gather(found, start, grid, places, begin, end)
        begin = end


def _gather(
    found: Candidates, start: np.float32, grid: Grid, places: _Places, begin: int, end: int
) -> list[Part]:
    """The parts begin:end."""
    ends, start_ends = (e[begin : end + 1] - e[begin] for e in (places.ends, places.start_ends))
    x, y = np.empty((2, ends[-1]), np.float32)
    candidate = np.empty(ends[-1], np.int32)
    starts, seeds = np.empty((2, start_ends[-1]), np.int32)
    look = int(places.first[begin:end].min()), int(places.last[begin:end].max()) + 1
    _fill(found, look, start, grid, places, (begin, end), (x, y, candidate), (starts, seeds))
    parts = []
    for n in range(end - begin):
        own, may = slice(*ends[n : n + 2]), slice(*start_ends[n : n + 2])
        its_cells = places.cells[slice(*places.cell_ends[begin + n : begin + n + 2])]
        parts.append(Part(x[own], y[own], candidate[own], starts[may], seeds[may], its_cells))
    return parts


@compiled
def _fill(
    found: Candidates,
    look: tuple[int, int],
    start: np.float32,
    grid: Grid,
    places: _Places,
    parts: tuple[int, int],
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    starts: tuple[np.ndarray, np.ndarray],
) -> None:
    """Write x, y, candidate and those that may start of some parts; look at a range of candidates.

    ``places.next`` and ``places.next_start`` move on.
    """
    (first, last), (x, y, candidate), (may_start, seed) = parts, points, starts
    before, starts_before = places.ends[first], places.start_ends[first]
    for k in range(look[0], look[1]):
        cell = row_of(grid, found.y[k]) * grid.columns + column_of(grid, found.x[k])
        part = places.of_cell[cell]
        if part < first or part >= last:
            continue
        at = places.next[cell]
        places.next[cell] += 1
        x[at - before], y[at - before], candidate[at - before] = found.x[k], found.y[k], k
        if found.seed[k] >= start:
            to = places.next_start[part] - starts_before
            places.next_start[part] += 1
            may_start[to] = at - places.ends[part]
            seed[to] = np.float32(found.seed[k]).view(np.int32)
