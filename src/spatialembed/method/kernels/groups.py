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

from typing import NamedTuple

import numpy as np

from spatialembed.method.kernels.candidates import Candidates
from spatialembed.method.kernels.jit import compiled

MOST_CELLS = 1 << 21
"""Cells of a grid: they take 80 bytes each."""
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
def half_width(raw: float, reach: float) -> float:
    """Distance in units beyond which an exponent is not below ``reach``, on one axis."""
    return SLACK * np.sqrt(np.float64(reach) / np.float64(precision(raw)))


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
    side = half_width(usual, reach)
    most = min(MOST_CELLS, len(found.pixel) // 4) + 1
    width, height = right - left, bottom - top
    side = max(side, np.sqrt(width * height / most), width / most, height / most)
    per_unit = 1 / side
    return Grid(left, top, per_unit, int(width * per_unit) + 1, int(height * per_unit) + 1)


@compiled
def survey(
    x: np.ndarray,
    y: np.ndarray,
    raw: np.ndarray,
    seed: np.ndarray,
    start: np.float32,
    grid: Grid,
) -> Cells:
    """One look at the candidates x, y, seed (P,), raw (S, P)."""
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
        if seed[k] < start:
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
    """Parent in a forest of cells (and then blocks) whose roots are cells: a tree is a group.

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
        wide, high = half_width(cells.raw[cell, 0], reach), half_width(cells.raw[cell, 1], reach)
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
    return parent


@compiled
def _sum_up(cells: Cells, parent: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Group (M,) int64 of each cell, -1 where nothing can start, and the groups (G, 4) int64.

    Columns: candidates, those that may start, first and last candidate.
    """
    starts, number = np.zeros((2, len(cells.points)), np.int64)  # of a group, at its root
    count = 0
    for cell in range(len(starts)):
        root = root_of(parent, cell)
        count += starts[root] == 0 and cells.starts[cell] > 0
        starts[root] += cells.starts[cell]
    group_of = np.empty(len(starts), np.int64)
    groups = np.zeros((count, 4), np.int64)
    count = 0
    for cell in range(len(starts)):
        root = root_of(parent, cell)
        group_of[cell] = -1
        if cells.points[cell] == 0 or starts[root] == 0:
            continue
        if number[root] == 0:
            groups[count, 2] = cells.first[cell]
            count += 1
            number[root] = count
        group_of[cell] = number[root] - 1
        group = groups[group_of[cell]]
        group[0] += cells.points[cell]
        group[1] += cells.starts[cell]
        group[2] = min(group[2], cells.first[cell])
        group[3] = max(group[3], cells.last[cell])
    return group_of, groups


class Parts(NamedTuple):
    """N parts of whole groups. Their cells and candidates stand one part after the other."""

    of_cell: np.ndarray  # (M,) int64, part of each cell, -1: none
    cells: np.ndarray  # (K,) int64, cells by part, each part's ascending
    cell_ends: np.ndarray  # (N + 1,) int64, where the cells of part n - 1 end
    ends: np.ndarray  # (N + 1,) int64, the same of the candidates
    start_ends: np.ndarray  # (N + 1,) int64, the same of those that may start
    first: np.ndarray  # (N,) int64, first candidate of a part
    last: np.ndarray  # (N,) int64, its last one
    place: np.ndarray  # (M,) int64, where the candidates of a cell begin


def make_parts(cells: Cells, grid: Grid, reach: np.float32, size: int) -> Parts:
    """Groups packed into parts of about ``size`` candidates, in the order of the first ones."""
    group, groups = _sum_up(cells, _join(cells, grid, reach))
    order = np.argsort(groups[:, 2])
    points, starts, first, last = groups[order].T
    part = (points.cumsum() - points) // size  # (G,)
    begins = np.flatnonzero(np.append(True, part[1:] > part[:-1]))[: len(part)]
    number = np.empty(len(part) + 1, np.int64)
    number[order] = np.searchsorted(begins, np.arange(len(part)), side="right") - 1
    number[-1] = -1  # where a cell without a group looks
    of_cell = number[group]
    by_part = np.argsort(of_cell, kind="stable")
    by_part = by_part[np.count_nonzero(of_cell < 0) :]
    place = np.zeros(len(of_cell), np.int64)
    place[by_part] = _ends(cells.points[by_part])[:-1]
    return Parts(
        of_cell,
        by_part,
        np.searchsorted(of_cell[by_part], np.arange(len(begins) + 1)),
        _ends(np.add.reduceat(points, begins) if len(begins) else points),
        _ends(np.add.reduceat(starts, begins) if len(begins) else starts),
        np.minimum.reduceat(first, begins) if len(begins) else first,
        np.maximum.reduceat(last, begins) if len(begins) else last,
        place,
    )


def _ends(sizes: np.ndarray) -> np.ndarray:
    """0 and the running sums."""
    return np.append(0, sizes.cumsum())


def gather(
    x: np.ndarray,
    y: np.ndarray,
    seed: np.ndarray,
    start: np.float32,
    grid: Grid,
    parts: Parts,
    first: int,
    last: int,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]:
    """Candidates of the parts first:last (exclusive), by part and cell.

    -> x, y (n,) float32 and candidate (n,) int32; those that may start (q,) int32, numbered within
    their part, by part, ascending by candidate, and the bits of their seeds (q,) int32.
    """
    size = parts.ends[last] - parts.ends[first]
    room = parts.start_ends[last] - parts.start_ends[first]
    points = (np.empty(size, np.float32), np.empty(size, np.float32), np.empty(size, np.int32))
    starts = (np.empty(room, np.int32), np.empty(room, np.int32))
    look = slice(int(parts.first[first:last].min()), int(parts.last[first:last].max()) + 1)
    own = (parts.of_cell, parts.place, parts.ends, parts.start_ends.copy())
    _gather(x, y, seed, look.start, look.stop, start, grid, own, (first, last), points, starts)
    return points, starts


@compiled
def _gather(
    x: np.ndarray,
    y: np.ndarray,
    seed: np.ndarray,
    begin: int,
    end: int,
    start: np.float32,
    grid: Grid,
    own: tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray],
    parts: tuple[int, int],
    points: tuple[np.ndarray, np.ndarray, np.ndarray],
    starts: tuple[np.ndarray, np.ndarray],
) -> None:
    """Fill ``points`` and ``starts`` of ``gather`` from the candidates begin:end; moves places."""
    of_cell, place, ends, start_place = own
    first, last = parts
    before, starts_before = ends[first], start_place[first]
    for k in range(begin, end):
        cell = row_of(grid, y[k]) * grid.columns + column_of(grid, x[k])
        part = of_cell[cell]
        if part < first or part >= last:
            continue
        at = place[cell]
        place[cell] += 1
        points[0][at - before], points[1][at - before], points[2][at - before] = x[k], y[k], k
        if seed[k] >= start:
            to = start_place[part]
            start_place[part] += 1
            starts[0][to - starts_before] = at - ends[part]
            starts[1][to - starts_before] = np.float32(seed[k]).view(np.int32)
