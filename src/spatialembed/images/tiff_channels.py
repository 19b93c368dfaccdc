"""Where the channels of a TIFF lie: pages or samples of a page, by what its writer says of them.

    several samples a pixel     each is a channel; colours: red, green, blue
    OME-XML                     SizeC, the order of the planes, names of the channels
    ImageJ                      channels before slices before times; labels are names
    axes of tifffile            their C
    else                        each page is a channel

Of several planes in Z or time, the channel is that of the first.
"""

from __future__ import annotations

import html
import math
import re
from bisect import bisect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import tifffile

from spatialembed.images.channels import COLOURS, Channel, chosen, combined
from spatialembed.images.checks import refuse_codec, refuse_damaged, warn
from spatialembed.images.tiff import (
    CMYK,
    DAMAGED,
    PALETTE,
    YCBCR,
    Decoded,
    read_samples,
    whole_pages,
)

MOST_CHANNELS = 1 << 12


class Plane(NamedTuple):
    """Where a channel lies."""

    name: str  # "" without one
    page: int  # among all pages of the file
    sample: int  # of its pixels, from 0


class _Stack(NamedTuple):
    """What a writer says of a stack of pages."""

    channels: int
    step: int  # images from one channel to the next
    images: int
    names: Sequence[str]
    blocks: Sequence[tuple[int, int, int]] = ()  # first image, how many, first page; sorted

    def page(self, channel: int, pages: Sequence[int]) -> int | None:
        """The page of the first image of a channel, among the whole ones unless stated."""
        image = channel * self.step
        if not self.blocks:
            return pages[image] if image < len(pages) else None
        first, count, page = self.blocks[max(0, bisect(self.blocks, (image + 1,)) - 1)]
        return page + image - first if 0 <= image - first < count else None


def read_channel(
    path: Path, file: BinaryIO, max_pixels: int, index: int | None, channel: Channel
) -> Decoded | None:
    """Read a channel (H, W), not turned; None where none was found that was only preferred.

    index: of the page whose samples are the channels; None: channels may be pages too.

    Raises SpatialEmbedError: as ``read_tiff``, and no_channel.
    """
    try:
        with tifffile.TiffFile(file) as tiff:
            planes = channel_planes(path, tiff) if index is None else page_planes(tiff, index)
            if (which := chosen(path, [plane.name for plane in planes], channel)) is None:
                return None
            facts: list[Decoded] = []

            def pixels() -> Iterator[np.ndarray]:  # page after page: a stack may have thousands
                for page, samples in by_page(planes, which):
                    found = read_samples(path, file, tiff.pages[page].aspage(), samples, max_pixels)
                    facts.append(found._replace(pixels=found.pixels[:0]))
                    yield from np.moveaxis(found.pixels, -1, 0)

            plane = combined(channel, pixels())
            return facts[0]._replace(pixels=plane)
    except DAMAGED as error:
        refuse_damaged(path, "TIFF", error)


def channel_names(path: Path, file: BinaryIO) -> list[str]:
    """Names of the channels of a TIFF, "" without one. Raises as ``channel_planes``; truncated."""
    try:
        with tifffile.TiffFile(file) as tiff:
            return [plane.name for plane in channel_planes(path, tiff)]
    except DAMAGED as error:
        refuse_damaged(path, "TIFF", error)


def by_page(planes: Sequence[Plane], which: Sequence[int]) -> list[tuple[int, list[int]]]:
    """The pages of these planes, each with the samples that are wanted of it."""
    found: dict[int, list[int]] = {}
    for i in which:
        found.setdefault(planes[i].page, []).append(planes[i].sample)
    return list(found.items())


def page_planes(tiff: tifffile.TiffFile, index: int) -> list[Plane]:
    """The channels of one page: its samples."""
    page = tiff.pages[index].aspage()
    colours = page.photometric in (PALETTE, CMYK, YCBCR)
    if not colours and page.samplesperpixel == 1:
        return [Plane("", index, 0)]
    return [Plane(name, index, i) for i, name in enumerate(_samples(page, colours, ()))]


def channel_planes(path: Path, tiff: tifffile.TiffFile) -> list[Plane]:
    """The channels of a TIFF, one for a grey picture.

    Raises SpatialEmbedError ``unsupported_codec`` of a stack that is stored as fewer pages.
    """
    pages = list(whole_pages(tiff)) or [0]
    first = tiff.pages[pages[0]].aspage()
    said = _of_ome(tiff.ome_metadata or "") or _of_imagej(tiff.imagej_metadata or {})
    said = said or _of_axes(tiff.shaped_metadata or ())
    colours = first.photometric in (PALETTE, CMYK, YCBCR)
    if colours or first.samplesperpixel > 1:
        if len(pages) > 1:
            warn(f"{path}: the first of {len(pages)} pages was read")
        names = _samples(first, colours, said.names if said else ())
        return [Plane(name, pages[0], i) for i, name in enumerate(names)]
    if said is None:
        return [Plane("", page, 0) for page in pages[:MOST_CHANNELS]]
    of_channel = [said.page(i, pages) for i in range(said.channels)]
    count = len(tiff.pages)
    places = [page for page in of_channel if page is not None and page < count]
    if len(places) < said.channels:
        what = f"{said.images} images stored as {len(pages)} pages"
        refuse_codec(path, what, "save each image as a page of its own")
    if said.images > said.channels:
        warn(f"{path}: the first of {said.images // said.channels} planes of the channel was read")
    names = [*said.names, *[""] * said.channels]
    return [Plane(name, page, 0) for name, page in zip(names, places, strict=False)]


def _samples(page: tifffile.TiffPage, colours: bool, names: Sequence[str]) -> Sequence[str]:
    """Names of the samples that are channels: alpha is none."""
    count = page.samplesperpixel
    if colours or (page.photometric == 2 and count == 3):
        return COLOURS
    alpha = page.extrasamples[-1] in (1, 2) if page.extrasamples else False
    count -= alpha or (page.photometric == 2 and count == 4 and not page.extrasamples)
    known = names if len(names) == count else COLOURS if page.photometric == 2 else ()
    return [*known, *[""] * count][:count]


def _stack(names: Sequence[str], channels: int, step: int, images: int) -> _Stack | None:
    """None where the numbers cannot be those of a stack."""
    sane = 1 <= channels <= MOST_CHANNELS and step >= 1 and channels * step <= images < 1 << 40
    return _Stack(channels, step, images, names[:channels]) if sane else None


def _of_ome(xml: str) -> _Stack | None:
    """Of the first image, by expressions: an XML reader would expand entities.

    None of them looks twice at one place, however foolish the text is.
    """
    begin = re.search(r"<(?:\w+:)?Pixels\b([^<>]*)>", xml)
    end = begin and re.compile(r"</(?:\w+:)?Pixels>").search(xml, begin.end())
    if not begin or not end:
        return None
    said, inside = _attributes(begin[1]), xml[begin.end() : end.start()]
    sizes = {axis: said.get(f"Size{axis}", "") for axis in "ZCT"}
    if not all(re.fullmatch(r"\d{1,9}", size) for size in sizes.values()):
        return None
    size = {axis: int(value) for axis, value in sizes.items()}
    order = [axis for axis in said.get("DimensionOrder", "XYCZT") if axis in size]
    if sorted(order) != ["C", "T", "Z"]:
        return None
    step = math.prod(size[axis] for axis in order[: order.index("C")])
    channels = re.findall(r"<(?:\w+:)?Channel\b([^<>]*)>", inside)
    names = [_attributes(channel).get("Name", "") for channel in channels]
    stack = _stack(names, size["C"], step, math.prod(size.values()))
    file = _attributes(xml[: begin.start()]).get("UUID", "")
    return stack and stack._replace(blocks=_blocks(inside, file, order, size))


def _blocks(
    inside: str, file: str, order: Sequence[str], size: Mapping[str, int]
) -> list[tuple[int, int, int]]:
    """Where the images lie by TiffData: first image, how many, first page; sorted.

    Microscopes store them in another order than they say. Those in another file than that of the
    UUID ``file`` get a page that no file has, so that their channels are refused.
    """
    found = []
    for block in re.split(r"<(?:\w+:)?TiffData\b", inside)[1:]:
        head, _, rest = block.partition(">")
        said = _attributes(head)
        if not {"IFD", "PlaneCount"} & set(said):
            continue  # all pages, in the order of the images
        stated = [said.get(f"First{axis}", "0") for axis in order]
        stated += [said.get("PlaneCount", "1"), said.get("IFD", "0")]
        if not all(re.fullmatch(r"\d{1,9}", number) for number in stated):
            continue
        *firsts, count, page = map(int, stated)
        image, step = 0, 1
        for axis, first in zip(order, firsts, strict=True):
            image, step = image + first * step, step * size[axis]
        other = re.match(r"\s*<(?:\w+:)?UUID\b[^<>]*>([^<]*)<", rest)
        found.append((image, count, 1 << 62 if other and file not in ("", other[1]) else page))
    return sorted(found)


def _attributes(text: str) -> dict[str, str]:
    return {name: html.unescape(value) for name, value in re.findall(r'\b(\w+)="([^"]*)"', text)}


def _of_imagej(said: Mapping[str, Any]) -> _Stack | None:
    sizes = [said.get(name, 1) for name in ("channels", "slices", "frames")]
    if "ImageJ" not in said or not {"channels", "slices", "frames"} & set(said):
        return None  # a plain stack names its images only
    if not all(isinstance(size, int) for size in sizes):
        return None
    labels, images = said.get("Labels") or [], math.prod(sizes)
    named = len(labels) == images and len(set(labels[: sizes[0]])) == sizes[0] > 1
    return _stack(labels if named else (), sizes[0], 1, images)


def _of_axes(series: Sequence[Mapping[str, Any]]) -> _Stack | None:
    said = series[0] if series else {}
    axes, shape = said.get("axes"), said.get("shape")
    if not isinstance(axes, str) or not isinstance(shape, (list, tuple)) or "C" not in axes:
        return None
    if len(axes) != len(shape) or not all(isinstance(side, int) for side in shape):
        return None
    stack = [(a, n) for a, n in zip(axes, shape, strict=True) if a not in "YXS"]
    at = [a for a, _ in stack].index("C")
    after = math.prod(n for _, n in stack[at + 1 :])
    return _stack(_names(said), stack[at][1], after, math.prod(n for _, n in stack))


def _names(said: Mapping[str, Any]) -> Sequence[str]:
    """``metadata={"Channel": {"Name": [...]}}``, as tifffile stores it."""
    channel = said.get("Channel")
    names = channel.get("Name") if isinstance(channel, dict) else None
    return [str(name) for name in names] if isinstance(names, list) else ()
