"""Clustering on the GPU: no host round trip an instance, three a batch.

    candidates of all images and classes, sorted by cell of a grid over the embeddings
      -> groups: cells that a possible seed of one reaches from another, joined on the host
      -> one program a group plays its rounds, best seed first; groups never touch each other
      -> overlaps between classes settled by rank

A margin covers, row by row of the grid, one run of the sorted candidates, so that a round looks at
little more than its members. Nothing is added up in floating point and no two programs share a
candidate: the result does not depend on the order in which programs run.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from spatialembed.method.kernels.groups import root_of, unite
from spatialembed.method.kernels.jit import compiled
from spatialembed.options import ClusterOptions
from spatialembed.types import UNIT

CELLS_PER_UNIT = 64
"""Cells of 16 px: a few across a usual margin."""
BORDER = CELLS_PER_UNIT
"""Cells around the image: an offset is shorter than a unit. What lies beyond counts as the rim."""
WIDER = 1.001
"""Margins are enlarged by this before they are rounded to cells, so that rounding loses nobody."""
BLOCK = 1024
BUDGET = 64
"""A group may look at this many times the candidates there are; see ``cluster``."""
_POSITIVE_BITS = 0x7FFFFFFF


class Found(NamedTuple):
    """The instances of a batch, on the device of the maps."""

    labels: Tensor  # (B, H, W) int32, 0 background, 1..N of each image
    scores: list[Tensor]  # B of (N,) float32, descending
    classes: list[Tensor]  # B of (N,) int64


class _Points(NamedTuple):
    """P candidates of all planes (image, class), sorted by cell."""

    where: Tensor  # (P,) int64 linear index into (B, C, H, W)
    seed: Tensor  # (P,) float32
    x: Tensor  # (P,) float32 embedding, units
    y: Tensor  # (P,) float32
    cell: Tensor  # (P,) int64, ascending


class _Starts(NamedTuple):
    """N candidates that may start an instance, by group, best first."""

    position: Tensor  # (N,) int64 index into the points
    precision: Tensor  # (2, N) float32 x, y
    box: Tensor  # (3, N) int64: first cell, cells across, rows of cells that hold the margin
    begins: Tensor  # (G + 1,) int64 where each group begins


@triton.jit
def _rounds(  # type: ignore[no-untyped-def]
    x, y, taken, owner, accepted, gave_up, position, precision_x, precision_y,
    first, across, down, begins, cell_start, share,
    columns, reach, min_pixels, budget,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """All rounds of one group: ``taken`` (P,) and ``owner`` (P,) of its points, ``accepted`` (N,).

    owner: 1 + index of the start that won a point, the first of its class; 0 nobody's.
    """
    group = tl.program_id(0)
    k = tl.load(begins + group)
    end = tl.load(begins + group + 1)
    min_free = tl.load(share)
    lane = tl.arange(0, BLOCK)
    looked = tl.full((), 0, tl.int64)
    while k < end:
        ahead = k + lane
        waits = ahead < end
        at = tl.load(position + ahead, mask=waits, other=0)
        free_ahead = waits & (tl.load(taken + at, mask=waits, other=1) == 0)
        stop = tl.minimum(k + BLOCK, end)
        # The minimum is known to all threads at once: a second look at ``taken`` could differ
        # between them, as the first of them may already take.
        k = tl.min(tl.where(free_ahead, ahead, stop))
        if k < stop:
            here = tl.load(position + k)
            cx, cy = tl.load(x + here), tl.load(y + here)
            px, py = tl.load(precision_x + k), tl.load(precision_y + k)
            cell, width, rows = tl.load(first + k), tl.load(across + k), tl.load(down + k)
            members_by_lane = tl.zeros((BLOCK,), tl.int32)
            free_by_lane = tl.zeros((BLOCK,), tl.int32)
            for row in range(rows):
                low = tl.load(cell_start + cell + row * columns)
                high = tl.load(cell_start + cell + row * columns + width)
                looked += high - low
                for run in range(low, high, BLOCK):
                    point = run + lane
                    inside = point < high
                    dx = tl.load(x + point, mask=inside, other=0.0) - cx
                    dy = tl.load(y + point, mask=inside, other=0.0) - cy
                    member = inside & (px * dx * dx + py * dy * dy < reach)
                    free = member & (tl.load(taken + point, mask=inside, other=1) == 0)
                    tl.store(taken + point, 1, mask=free)
                    members_by_lane += member.to(tl.int32)
                    free_by_lane += free.to(tl.int32)
            members, free_members = tl.sum(members_by_lane), tl.sum(free_by_lane)
            enough = free_members.to(tl.float64) > min_free * members.to(tl.float64)
            if (members > min_pixels) & enough:
                tl.store(accepted + k, 1)
                for row in range(rows):
                    low = tl.load(cell_start + cell + row * columns)
                    high = tl.load(cell_start + cell + row * columns + width)
                    for run in range(low, high, BLOCK):
                        point = run + lane
                        inside = point < high
                        dx = tl.load(x + point, mask=inside, other=0.0) - cx
                        dy = tl.load(y + point, mask=inside, other=0.0) - cy
                        member = inside & (px * dx * dx + py * dy * dy < reach)
                        won = member & (tl.load(owner + point, mask=inside, other=1) == 0)
                        tl.store(owner + point, k + 1, mask=won)
            k += 1
            if looked > budget:
                tl.store(gave_up, 1)
                k = end
        tl.debug_barrier()  # what one thread has taken is seen by all in the next round


def cluster(
    embedding: Tensor, precision: Tensor, seed: Tensor, options: ClusterOptions
) -> Found | None:
    """Instances of a batch, as ``kernels.cpu.cluster`` finds them. Neven et al. 2019.

    embedding: (B, 2, H, W) (x, y) in units. precision: (B, S, H, W), 1/unit^2, S = 1 or 2 (x, y).
    seed: (B, C, H, W). All float32, contiguous, finite, on one device. ``max_instances`` is not
    looked at.
    Returns None where a group of candidates would take far more than linear time, as on maps of
    tiny bandwidths whose embeddings coincide: the kernel of the processor stays linear there.
    """
    grid = _Grid.of(seed.shape)
    foreground, start = float(np.float32(options.foreground)), float(np.float32(options.start))
    candidate = (seed.flatten() > foreground).nonzero()[:, 0]  # (P,)
    points, order = _points(embedding, seed, candidate, grid)
    place = torch.empty_like(order)
    place[order] = torch.arange(len(order), device=order.device)
    position = place[seed.flatten()[candidate] >= start]  # (N,)
    if len(position) == 0:
        return _none_found(seed)
    starts = _starts(precision, seed.shape, points, position, grid, options.reach)
    played = _play(points, starts, grid, options)
    return None if played is None else _settle(seed.shape, points, starts, *played)


class _Grid(NamedTuple):
    """Cells over the embeddings of every plane (image, class), numbered plane by plane."""

    planes: int
    rows: int
    columns: int

    @classmethod
    def of(cls, shape: torch.Size) -> _Grid:
        """The grid of seed maps (B, C, H, W)."""
        rows, columns = (-(-side * CELLS_PER_UNIT // UNIT) + 2 * BORDER for side in shape[2:])
        return cls(shape[0] * shape[1], rows, columns)

    @property
    def cells(self) -> int:
        return self.planes * self.rows * self.columns

    def row(self, y: Tensor) -> Tensor:
        """Row of coordinates y in units, float32: one function, so that order is kept."""
        return ((y + 1) * CELLS_PER_UNIT).floor().clamp(0, self.rows - 1).long()

    def column(self, x: Tensor) -> Tensor:
        """Column of coordinates x in units, float32."""
        return ((x + 1) * CELLS_PER_UNIT).floor().clamp(0, self.columns - 1).long()


def _points(
    embedding: Tensor, seed: Tensor, candidate: Tensor, grid: _Grid
) -> tuple[_Points, Tensor]:
    """The candidates (P,), linear indices into the seeds, sorted by cell; and their order."""
    _, classes, height, width = seed.shape
    size = height * width
    at = candidate // (classes * size) * 2 * size + candidate % size
    x, y = embedding.flatten()[at], embedding.flatten()[at + size]
    cell = (candidate // size * grid.rows + grid.row(y)) * grid.columns + grid.column(x)
    cell, order = cell.sort(stable=True)
    where = candidate[order]
    return _Points(where, seed.flatten()[where], x[order], y[order], cell), order


def _starts(
    precision: Tensor,
    shape: torch.Size,
    points: _Points,
    position: Tensor,
    grid: _Grid,
    reach: float,
) -> _Starts:
    """The starts ``position`` (N,), ascending by linear index, put in groups, best first."""
    _, classes, height, width = shape
    where = points.where[position]
    image, pixel = where // (classes * height * width), where % (height * width)
    p = precision.flatten(2)[image, :, pixel].T.expand(2, -1)  # (2, N)
    half = WIDER * (reach / p.double()).sqrt()
    x, y = points.x[position].double(), points.y[position].double()
    # Rounded to float32, as the points are, so that a point that is nearer is in no farther cell.
    left, right = (grid.column(edge.float()) for edge in (x - half[0], x + half[0]))
    top, bottom = (grid.row(edge.float()) for edge in (y - half[1], y + half[1]))
    plane = where // (height * width)
    first = (plane * grid.rows + top) * grid.columns + left
    group = _groups(points.cell, position, torch.stack((left, right, top, bottom)), grid)  # (N,)
    # Non-negative float32 have the order of their bits; ties stay in the order of their pixels.
    key = group << 31 | _POSITIVE_BITS - points.seed[position].view(torch.int32).long()
    best_first = key.sort(stable=True).indices
    begins = torch.cat((group.new_zeros(1), group.bincount().cumsum(0)))
    box = torch.stack((first, right - left + 1, bottom - top + 1))
    return _Starts(position[best_first], p[:, best_first], box[:, best_first], begins)


def _groups(cell: Tensor, position: Tensor, box: Tensor, grid: _Grid) -> Tensor:
    """Group (N,) int64 of each start: those of one group may want the same points.

    cell (P,): of the points, ascending. position (N,): of the starts in them. box (4, N): columns
    from, to and rows from, to that the margin of a start covers.
    """
    occupied, index = cell.unique_consecutive(return_inverse=True)  # (M,), (P,)
    mine = index[position]
    widest = [
        torch.full_like(occupied, empty).scatter_reduce(0, mine, side, how)
        for side, how, empty in zip(
            box, ("amin", "amax", "amin", "amax"), (grid.columns, -1, grid.rows, -1), strict=True
        )
    ]
    host = torch.stack((occupied, *widest)).cpu().numpy()
    root = _join(host[0], host[1:], grid.rows, grid.columns)
    return torch.from_numpy(root).to(cell.device)[mine].unique(return_inverse=True)[1]


@compiled
def _join(occupied: np.ndarray, box: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Join each occupied cell (M,) with all that its box (4, M) covers -> root (M,) of each."""
    count = len(occupied)
    root = np.arange(count)
    last = np.arange(count)  # the end of the run of neighbours in ``occupied`` already joined
    for i in range(count):
        plane = occupied[i] // (rows * columns)
        for row in range(box[2, i], box[3, i] + 1):
            cell = (plane * rows + row) * columns
            j = np.searchsorted(occupied, cell + box[0, i])
            stop = np.searchsorted(occupied, cell + box[1, i], side="right")
            if j == stop:
                continue
            unite(root, i, j)
            while True:
                j = root_of(last, j)
                if j + 1 >= stop:
                    break
                unite(root, j, j + 1)
                last[j] = j + 1
    for i in range(count):
        root[i] = root_of(root, i)
    return root


def _play(
    points: _Points, starts: _Starts, grid: _Grid, options: ClusterOptions
) -> tuple[Tensor, Tensor] | None:
    """Owner (P,) of each point, 1 + its start, 0 nobody's; and accepted (N,), 1 for an instance.

    None if a group gave up.
    """
    taken, owner = (torch.zeros_like(points.cell, dtype=torch.int32) for _ in range(2))
    accepted = torch.zeros_like(starts.position, dtype=torch.int32)
    gave_up = torch.zeros_like(taken[:1])
    share = points.x.new_full((1,), options.min_free, dtype=torch.float64)
    ends = points.cell.bincount(minlength=grid.cells).cumsum(0)
    cell_start = torch.cat((ends.new_zeros(1), ends))
    _rounds[(len(starts.begins) - 1,)](
        points.x, points.y, taken, owner, accepted, gave_up,
        starts.position, starts.precision[0], starts.precision[1],
        starts.box[0], starts.box[1], starts.box[2], starts.begins, cell_start, share,
        grid.columns, options.reach, options.min_pixels, BUDGET * len(points.cell),
        BLOCK=BLOCK, num_warps=8,
        enable_fp_fusion=False,  # px * dx * dx + py * dy * dy, rounded as the processor rounds it
    )  # fmt: skip
    return None if gave_up.item() else (owner, accepted)


def _settle(
    shape: torch.Size, points: _Points, starts: _Starts, owner: Tensor, accepted: Tensor
) -> Found:
    """One owner a pixel, over all classes; labels by descending score in each image."""
    batch, classes, height, width = shape
    size = height * width
    found = accepted.nonzero()[:, 0]  # (n,)
    at = starts.position[found]
    found, at = (t[points.where[at].argsort()] for t in (found, at))
    best_first = points.seed[at].sort(descending=True, stable=True).indices
    found, at = found[best_first], at[best_first]
    by_image = (points.where[at] // (classes * size)).sort(stable=True).indices
    found, at = found[by_image], at[by_image]  # by image, score, class, order found
    image = points.where[at] // (classes * size)

    n = len(found)
    rank = owner.new_zeros(len(accepted) + 1)
    rank[found + 1] = torch.arange(1, n + 1, dtype=rank.dtype, device=rank.device)
    rank = rank[owner]  # (P,), 0 nobody's
    rank[rank == 0] = n + 1
    pixel = points.where // (classes * size) * size + points.where % size
    labels = rank.new_full((batch * size,), n + 1).scatter_reduce(0, pixel, rank, "amin")
    owning = labels.bincount(minlength=n + 2)[1 : n + 1] > 0  # (n,)
    count = image[owning].bincount(minlength=batch)  # (B,)
    number = labels.new_zeros(n + 2)
    before = count.cumsum(0) - count
    number[1 : n + 1] = torch.where(owning, owning.cumsum(0) - before[image], 0)
    parts = count.tolist()
    where = points.where[at[owning]]
    return Found(
        number[labels].view(batch, height, width),
        list(points.seed[at[owning]].split(parts)),
        list((where // size % classes).split(parts)),
    )


def _none_found(seed: Tensor) -> Found:
    batch, _, height, width = seed.shape
    labels = torch.zeros(batch, height, width, dtype=torch.int32, device=seed.device)
    nobody = [seed.new_zeros(0) for _ in range(batch)]
    return Found(labels, nobody, [scores.long() for scores in nobody])
