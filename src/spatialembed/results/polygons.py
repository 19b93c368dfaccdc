"""Outlines of objects as polygons, exactly along the pixel edges or simplified.

A polygon is a list of rings: the outer one, then its holes. A ring (K, 2) is its corners (x, y) in
px, the first not repeated; (0, 0) is the outer corner of the first pixel, whose other corner is
(1, 1). By the formula of the plane, x right and y up, outer rings run counterclockwise and holes
clockwise, as RFC 7946 has it; on the screen, where y points down, that looks the other way round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from skimage.measure import label

from spatialembed.errors import USAGE, SpatialEmbedError, missing_extra
from spatialembed.method.kernels.outlines import rings

Polygon = list[np.ndarray]


def polygons(labels: np.ndarray, number: int, simplify: float = 0.0) -> list[list[Polygon]]:
    """The polygons of the objects of a label image, one for each connected part.

    Parts that meet in a corner only are two. Rings do not touch themselves; they may touch each
    other in corners, as the rules of polygons allow.

    Args:
        labels: (H, W) integer, 0 background.
        number: N; objects are the labels 1..N.
        simplify: Px by which an outline may depart from the pixel edges; object by object, so that
            neighbours may then overlap or part by as much; less where rings of the object would
            cross, so that polygons are valid in any case. Above 0 it needs shapely.

    Returns:
        N lists of polygons; a polygon is its outer ring and its holes, (K, 2) (x, y) in px.

    Raises:
        SpatialEmbedError: ``bad_setting``, ``missing_extra`` (exit 2).
    """
    check_simplify(simplify)
    objects = _exact(np.asarray(labels), number)
    return _simplified(objects, simplify) if simplify > 0 else objects


def check_simplify(simplify: float) -> None:
    """Refuse a meaningless setting, or one that needs a missing package, before the work.

    Raises SpatialEmbedError ``bad_setting``, ``missing_extra`` (both exit 2).
    """
    if not 0 <= simplify < np.inf:
        what = f"simplify is {simplify}"
        raise SpatialEmbedError("bad_setting", what, "give px, 0 for exact outlines", USAGE)
    if simplify > 0:
        _shapely()


def _exact(labels: np.ndarray, number: int) -> list[list[Polygon]]:
    parts = label(labels, background=0, connectivity=1).astype(np.int32)
    corners, ends, owners = rings(np.pad(parts, 1))
    starts = np.concatenate(([0], ends))[:-1]
    of_part: dict[int, Polygon] = {}  # in the order of the parts' first pixels
    objects: list[list[Polygon]] = [[] for _ in range(number)]
    for start, end, part in zip(starts.tolist(), ends.tolist(), owners.tolist(), strict=True):
        ring = corners[start:end]
        if part in of_part:
            of_part[part].append(ring)
        else:
            of_part[part] = [ring]
            x, y = ring[0]
            objects[labels[y, x] - 1].append(of_part[part])
    return objects


def _simplified(objects: list[list[Polygon]], distance: float) -> list[list[Polygon]]:
    shapely = _shapely()
    shapes = [
        shapely.MultiPolygon([shapely.Polygon(outer, holes) for outer, *holes in parts])
        for parts in objects
    ]
    simple = shapely.simplify(shapes, distance, preserve_topology=True)
    for i in np.flatnonzero(~shapely.is_valid(simple)):
        simple[i] = _barely_simplified(shapes[i], distance / 2)
    return [
        [
            [shapely.get_coordinates(r)[:-1] for r in (part.exterior, *part.interiors)]
            for part in shapely.get_parts(shape)
        ]
        for shape in simple
    ]


def _barely_simplified(shape: Any, distance: float) -> Any:
    """A shape whose rings cross when simplified further: less far, in the end not at all.

    shapely keeps the rings of one polygon apart, but not the parts of an object, nor always a ring
    from itself.
    """
    for _ in range(4):
        simple = _shapely().simplify(shape, distance, preserve_topology=True)
        if simple.is_valid:
            return simple
        distance /= 2
    return shape


def _shapely() -> Any:
    try:
        import shapely
    except ImportError as error:
        raise missing_extra("shapely", "geo", "simplifying outlines") from error
    return shapely
