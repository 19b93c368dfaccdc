"""Greedy merging of a signed graph, the strongest edge first: a compiled loop.

    attraction   joins the segments at its ends, unless these exclude each other
    repulsion    makes the segments at its ends exclude each other, unless they are one

Every edge is looked at once. A segment that grows takes over whom its parts exclude, the shorter
list into the longer one, so that E edges cost about E log E whatever their weights are.
"""

from __future__ import annotations

import numpy as np

from spatialembed.method.kernels.jit import compiled

EMPTY = np.int64(-1)
SCATTER = np.uint64(0x9E3779B97F4A7C15)
"""2^64 over the golden ratio: neighbouring keys fall far apart (Knuth, The Art, 6.4)."""


def merge(first: np.ndarray, second: np.ndarray, weight: np.ndarray, nodes: int) -> np.ndarray:
    """Segments (nodes,) int64, numbered 0, 1, ... in the order of their first node.

    first, second: (E,) int, ends of the edges, in [0, nodes). weight: (E,) in [-1, 1]: above 0 an
    attraction, below it a repulsion, 0 nothing. Edges of equal strength, in float32, are taken in
    their order.
    """
    strength = np.abs(weight).astype(np.float32, copy=False)
    order = _descending(strength)[: np.count_nonzero(strength)]
    ends = (end[order].astype(np.int64, copy=False) for end in (first, second))
    root = _merged(*ends, weight[order] > 0, nodes)
    _, where, segment = np.unique(root, return_index=True, return_inverse=True)
    rank = np.empty(len(where), np.int64)
    rank[np.argsort(where)] = np.arange(len(where))
    return rank[segment]


def _descending(strength: np.ndarray) -> np.ndarray:
    """Places (E,) of float32 from 0 on, the largest first, equal ones in their order.

    Their bits are in the order of the numbers; of 16 bits at a time numpy's sort is a radix sort.
    """
    bits = ~strength.view(np.uint32)
    order = np.argsort(bits.astype(np.uint16), kind="stable")
    high: np.ndarray = (bits >> 16).astype(np.uint16)[order]
    return order[np.argsort(high, kind="stable")]


@compiled
def _merged(first: np.ndarray, second: np.ndarray, attracts: np.ndarray, nodes: int) -> np.ndarray:
    """Root (nodes,) int64 of each node, of edges in the order in which they are taken."""
    parent = np.arange(nodes)
    head = np.full(nodes, -1, np.int64)  # of the list of those that a root excludes
    length = np.zeros(nodes, np.int64)
    link, other = np.empty(1024, np.int64), np.empty(1024, np.int64)  # the lists' entries
    used = 0
    excluded, count = np.full(4096, EMPTY, np.int64), 0  # a set of pairs
    for e in range(len(first)):
        a, b = _root(parent, first[e]), _root(parent, second[e])
        if a == b or excluded[_slot(excluded, _pair(a, b, nodes))] != EMPTY:
            continue
        if attracts[e] and length[a] < length[b]:
            a, b = b, a
        parent[b] = a if attracts[e] else b
        entry = head[b] if attracts[e] else -2  # -2: the pair of this edge, and no more
        while entry != -1:
            c = b if entry == -2 else _root(parent, other[entry])
            slot = _slot(excluded, _pair(a, c, nodes))
            if excluded[slot] == EMPTY:
                excluded[slot] = _pair(a, c, nodes)
                count += 1
                if 2 * count > len(excluded):
                    excluded = _larger(excluded)
                if used + 2 > len(link):
                    link, other = np.append(link, link), np.append(other, other)
                for one, two in ((a, c), (c, a)):
                    link[used], other[used] = head[one], two
                    head[one] = used
                    length[one] += 1
                    used += 1
            entry = -1 if entry == -2 else link[entry]
    return np.array([_root(parent, n) for n in range(nodes)])


@compiled
def _root(parent: np.ndarray, node: int) -> int:
    """Root of a node; the way there is halved."""
    while parent[node] != node:
        parent[node] = parent[parent[node]]
        node = parent[node]
    return node


@compiled
def _pair(a: int, b: int, nodes: int) -> int:
    return min(a, b) * nodes + max(a, b)


@compiled
def _slot(table: np.ndarray, key: int) -> int:
    """Where a key stands in a table of a power of two, or would stand."""
    mask = len(table) - 1
    slot = np.int64((np.uint64(key) * SCATTER) >> np.uint64(20)) & mask
    while table[slot] != EMPTY and table[slot] != key:
        slot = (slot + 1) & mask
    return int(slot)


@compiled
def _larger(table: np.ndarray) -> np.ndarray:
    """The same set in twice the room."""
    result = np.full(2 * len(table), EMPTY, np.int64)
    for key in table:
        if key != EMPTY:
            result[_slot(result, key)] = key
    return result
