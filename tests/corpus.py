"""Image files made in code, sound and broken, each with the answer that it has to get."""

from __future__ import annotations

import io
import itertools
import pickle
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.read import ImageWarning, read_image

RNG = np.random.default_rng(5)
SHAPE = (22, 27)
LONG = zlib.compress(bytes(300 << 20), 1)
"""Unpacks to 300 MB of zeros."""
PNG_START = b"\x89PNG\r\n\x1a\n"


@dataclass(frozen=True)
class Case:
    """A file, and its answer: these pixels, or an error of one of these codes, or either."""

    name: str  # with suffix
    data: bytes
    truth: np.ndarray | None = None
    codes: tuple[str, ...] = ()
    warned: bool = False  # whether an ImageWarning has to come with the pixels
    tolerance: int = 0


def noise(shape: Sequence[int], dtype: Any = np.uint8) -> np.ndarray:
    return RNG.integers(0, np.iinfo(dtype).max + 1, shape, dtype)


def smooth(channels: int = 3, shape: Sequence[int] = SHAPE) -> np.ndarray:
    """What lossy formats keep: a slow ramp, another one in each channel. (H, W, C) uint8."""
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    ramps = [60 + 120 * x, 200 - 90 * y, 40 + 70 * (x + y), 30 + 50 * x]
    return np.stack(ramps[:channels], axis=2).astype(np.uint8)


def pillow(image: np.ndarray | Image.Image, form: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    image.save(stream, format=form, **options)
    return stream.getvalue()


def tiff(pixels: np.ndarray, **options: Any) -> bytes:
    stream = io.BytesIO()
    tifffile.imwrite(stream, pixels, **options)
    return stream.getvalue()


# ---------------------------------------------------------------- PNG by the standard's text


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def rows(samples: np.ndarray, bits: int) -> bytes:
    """Samples (H, W, C) as unfiltered rows, each padded to whole bytes."""
    if 0 in samples.shape:
        return b""
    flat = samples.reshape(len(samples), -1)
    if bits == 16:
        packed = flat.astype(">u2").view(np.uint8).reshape(len(flat), -1)
    else:
        spread = np.unpackbits(flat.astype(np.uint8)[..., None], axis=2)[..., 8 - bits :]
        packed = np.packbits(spread.reshape(len(flat), -1), axis=1)
    return b"".join(b"\0" + row.tobytes() for row in packed)


ADAM7 = (
    (0, 0, 8, 8),
    (0, 4, 8, 8),
    (4, 0, 8, 4),
    (0, 2, 4, 4),
    (2, 0, 4, 2),
    (0, 1, 2, 2),
    (1, 0, 2, 1),
)


def png(samples: np.ndarray, bits: int, colour: int, *, adam7: bool = False, extra: bytes = b"",
        level: int = 6, pieces: int = 1) -> bytes:  # fmt: skip
    """A PNG of samples (H, W, C); ``extra`` chunks come before the pixels, in ``pieces`` chunks."""
    height, width = samples.shape[:2]
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, adam7)
    passes = ADAM7 if adam7 else ((0, 0, 1, 1),)
    raw = b"".join(rows(samples[y::dy, x::dx], bits) for y, x, dy, dx in passes)
    packed = zlib.compress(raw, level)
    step = -(-len(packed) // pieces)
    data = [chunk(b"IDAT", packed[i : i + step]) for i in range(0, len(packed), step)]
    return PNG_START + chunk(b"IHDR", header) + extra + b"".join(data) + chunk(b"IEND", b"")


def pngs() -> Iterator[Case]:
    """Every colour type and depth, interlaced too, in three sizes, with and without extras."""
    palette = noise((256, 3))
    gamma = chunk(b"gAMA", struct.pack(">I", 220_000)) + chunk(b"sRGB", b"\0")
    bomb = zlib.compress(bytes(40 << 20), 1)
    extras = {
        "plain": b"",
        "gamma": gamma,
        "icc-bomb": chunk(b"iCCP", b"x\0\0" + bomb),
        "text-bomb": chunk(b"zTXt", b"x\0\0" + bomb) + chunk(b"iTXt", b"y\0\1\0\0\0" + bomb),
        "own-chunk": chunk(b"teSt", b"\xff" * 99),
    }
    channels_of = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
    for (colour, channels), bits, adam7, shape in itertools.product(
        channels_of.items(), (1, 2, 4, 8, 16), (False, True), (SHAPE, (1, 1), (5, 9))
    ):
        if (bits < 8 and colour in (2, 4, 6)) or (bits == 16 and colour == 3):
            continue
        samples = noise((*shape, channels), np.uint16) & ((1 << bits) - 1)
        if colour == 3:
            truth = palette[samples[..., 0]]
        else:
            truth = samples[..., : 1 if channels < 3 else 3]
            truth = truth * (1 if bits >= 8 else 255 // ((1 << bits) - 1))
            truth = truth.astype(np.uint16 if bits == 16 else np.uint8)
            truth = truth[..., 0] if channels < 3 else truth
        lookup = chunk(b"PLTE", palette[: 1 << bits].tobytes()) if colour == 3 else b""
        clear = {
            0: struct.pack(">H", 1),
            2: struct.pack(">HHH", 1, 2, 3),
            3: bytes(range(1 << min(bits, 7))),
        }.get(colour)
        name = f"png-{colour}-{bits}{'-adam7' if adam7 else ''}-{shape[1]}x{shape[0]}"
        yield Case(f"{name}.png", png(samples, bits, colour, adam7=adam7, extra=lookup), truth)
        if shape != SHAPE:
            continue
        if clear is not None:
            extra = lookup + chunk(b"tRNS", clear)
            data = png(samples, bits, colour, adam7=adam7, extra=extra)
            yield Case(f"{name}-trns.png", data, truth)
        for what, extra in extras.items():
            if what == "plain" or adam7 or bits not in (8, 16):
                continue
            data = png(samples, bits, colour, extra=extra + lookup, pieces=3)
            yield Case(f"{name}-{what}.png", data, truth)


# ---------------------------------------------------------------- TIFF by the standard's text


def raw_tiff(tags: dict[int, tuple[str, Sequence[int]]], data: bytes, order: str = "<") -> bytes:
    """A TIFF of one page and one strip. tags: number -> (struct code H or I, values)."""
    tags = {273: ("I", [8]), 279: ("I", [len(data)])} | tags
    data += bytes(len(data) % 2)
    entries, extra, at = [], b"", 8 + len(data) + 2 + 12 * len(tags) + 4
    for number, (code, values) in sorted(tags.items()):
        kind = {"H": 3, "I": 4}[code]
        packed = struct.pack(f"{order}{len(values)}{code}", *values)
        if len(packed) > 4:
            packed, extra = struct.pack(f"{order}I", at + len(extra)), extra + packed
        entries.append(
            struct.pack(f"{order}HHI", number, kind, len(values)) + packed.ljust(4, b"\0")
        )
    start = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}I", 8 + len(data))
    ifd = struct.pack(f"{order}H", len(tags)) + b"".join(entries) + bytes(4)
    return start + data + ifd + extra


def strip(samples: np.ndarray, bits: int) -> bytes:
    """Samples (H, W, C) of 1 to 8 bits as TIFF rows."""
    filtered = rows(samples, bits)
    step = len(filtered) // len(samples)
    return b"".join(filtered[i + 1 : i + step] for i in range(0, len(filtered), step))


def tags_of(shape: Sequence[int], bits: int, photometric: int, samples: int = 1) -> dict[int, Any]:
    return {
        256: ("I", [shape[1]]), 257: ("I", [shape[0]]), 258: ("H", [bits] * samples),
        259: ("H", [1]), 262: ("H", [photometric]), 277: ("H", [samples]), 278: ("I", [shape[0]]),
    }  # fmt: skip


def low_bit_tiffs() -> Iterator[Case]:
    for bits, order, white_is_zero in itertools.product((1, 2, 4, 8), "<>", (False, True)):
        samples = noise(SHAPE) & ((1 << bits) - 1)
        truth = samples * np.uint8(255 // ((1 << bits) - 1))
        truth = 255 - truth if white_is_zero else truth
        data = strip(samples[..., None], bits)
        made = raw_tiff(tags_of(SHAPE, bits, int(not white_is_zero)), data, order)
        name = f"tiff-{bits}-bits-{'II' if order == '<' else 'MM'}"
        yield Case(f"{name}{'-white-is-0' if white_is_zero else ''}.tif", made, truth)
    for bits in (4, 8):
        table = noise((3, 1 << bits), np.uint16)
        samples = noise(SHAPE) & ((1 << bits) - 1)
        tags = tags_of(SHAPE, bits, 3) | {320: ("H", table.ravel().tolist())}
        made = raw_tiff(tags, strip(samples[..., None], bits))
        truth = (table >> 8).astype(np.uint8).T[samples]
        yield Case(f"tiff-palette-{bits}-bits.tif", made, truth)


def odd_tiffs() -> Iterator[Case]:
    """Sound files that no rule covers, and headers that lie."""
    grey16, grey = noise(SHAPE, np.uint16), noise(SHAPE)
    two = grey16.astype("<u2").tobytes()
    lab = noise((*SHAPE, 3))
    codec = ("unsupported_codec",)
    table = {320: ("H", [0] * 3 * 65536)}
    yield Case("tiff-palette-16.tif", raw_tiff(tags_of(SHAPE, 16, 3) | table, two), None, codec)
    yield Case("tiff-lab.tif", raw_tiff(tags_of(SHAPE, 8, 8, 3), lab.tobytes()), None, codec)
    yield Case("tiff-cfa.tif", raw_tiff(tags_of(SHAPE, 16, 32803), two), None, codec)
    signed = raw_tiff(tags_of(SHAPE, 16, 0) | {339: ("H", [2])}, two)
    yield Case("tiff-signed-white-is-0.tif", signed, None, codec)
    odd = tags_of(SHAPE, 8, 2, 3) | {258: ("H", [5, 6, 5])}
    yield Case("tiff-565.tif", raw_tiff(odd, two), None, codec)
    jxl = tags_of(SHAPE, 16, 1) | {259: ("H", [50002])}
    yield Case("tiff-jpeg-xl.tif", raw_tiff(jxl, two), None, (*codec, "truncated"))
    unknown = tags_of(SHAPE, 8, 1) | {259: ("H", [64999])}
    yield Case("tiff-unknown-codec.tif", raw_tiff(unknown, two), None, (*codec, "truncated"))
    sound = tags_of(SHAPE, 8, 1)
    bad = ("truncated",)
    lies: dict[str, tuple[dict[int, Any], tuple[str, ...]]] = {
        "wide": ({256: ("I", [100_000]), 257: ("I", [100_000])}, ("too_large",)),
        "taller": ({257: ("I", [SHAPE[0] + 1]), 278: ("I", [SHAPE[0] + 1])}, bad),
        "fewer-strips": ({278: ("I", [4])}, bad),
        "no-width": ({256: ("I", [0])}, ("empty_image", "truncated")),
        "samples": ({277: ("H", [7])}, ("bad_channels", "truncated")),
        "compressed": ({259: ("H", [8])}, bad),
        "lzma": ({259: ("H", [34925])}, bad),
        "nothing": ({259: ("H", [8]), 279: ("I", [0])}, bad),
        "zstd": ({259: ("H", [50000])}, (*bad, *codec)),
        "lzw": ({259: ("H", [5])}, bad),
        "jpeg": ({259: ("H", [7])}, bad),
        "bits-64": ({258: ("H", [64])}, bad),
        "tiles": ({322: ("I", [1 << 20]), 323: ("I", [1 << 20]), 324: ("I", [8]),
                   325: ("I", [594])}, ("too_large",)),
    }  # fmt: skip
    for name, (change, codes) in lies.items():
        yield Case(f"tiff-says-{name}.tif", raw_tiff(sound | change, grey.tobytes()), None, codes)
    for kind, packed in (
        ("deflate", LONG),
        ("packbits", b"\x81\0" * 50_000),
    ):
        number = {"deflate": 8, "packbits": 32773}[kind]
        made = raw_tiff(sound | {259: ("H", [number])}, packed)
        either = np.zeros(SHAPE, np.uint8)
        yield Case(f"tiff-{kind}-bomb.tif", made, either, bad)


def tiffs() -> Iterator[Case]:
    tiles, deflate = {"tile": (16, 16)}, {"compression": "zlib"}
    stores: dict[str, dict[str, Any]] = {
        "strips": {"rowsperstrip": 5},
        "tiles": tiles,
        "big-endian": {"byteorder": ">"},
        "bigtiff": {"bigtiff": True},
        "bigtiff-tiles": {"bigtiff": True, **tiles},
        "deflate": deflate,
        "deflate-tiles": deflate | tiles,
        "predicted": {"predictor": True, **deflate},
        "lzma": {"compression": "lzma"},
        "deflate-big-endian": {"byteorder": ">", "rowsperstrip": 3, **deflate},
    }
    for dtype, (how, store) in itertools.product((np.uint8, np.uint16), stores.items()):
        name = f"tiff-{np.dtype(dtype)}-{how}"
        grey, colour = noise(SHAPE, dtype), noise((*SHAPE, 4), dtype)
        yield Case(f"{name}-grey.tif", tiff(grey, photometric="minisblack", **store), grey)
        rgb = colour[..., :3]
        yield Case(f"{name}-rgb.tif", tiff(rgb, photometric="rgb", **store), rgb)
        for alpha in ("unassalpha", "assocalpha"):
            data = tiff(colour, photometric="rgb", extrasamples=[alpha], **store)
            yield Case(f"{name}-rgb-{alpha}.tif", data, rgb)
        data = tiff(colour[..., :2], photometric="minisblack", planarconfig="contig",
                    extrasamples=["unassalpha"], **store)  # fmt: skip
        yield Case(f"{name}-grey-alpha.tif", data, colour[..., 0])
        planes = np.ascontiguousarray(np.moveaxis(rgb, -1, 0))
        data = tiff(planes, photometric="rgb", planarconfig="separate", **store)
        yield Case(f"{name}-planes.tif", data, rgb)
        inverted = tiff(grey, photometric="miniswhite", **store)
        yield Case(f"{name}-white-is-0.tif", inverted, np.iinfo(dtype).max - grey)
    for dtype, how in itertools.product(
        ("int8", "int16", "int32", "uint32", "int64", "float16", "float32", "float64"),
        ("strips", "tiles", "deflate", "big-endian"),
    ):
        numbers = (noise(SHAPE).astype(np.float64) - (0 if dtype.startswith("u") else 100)) / 2
        numbers = numbers.astype(dtype)
        data = tiff(numbers, **stores[how])
        yield Case(f"tiff-{dtype}-{how}.tif", data, numbers.astype(np.float32))
    for dtype, bad in itertools.product(("float16", "float32", "float64"), (np.nan, np.inf)):
        numbers = np.ones(SHAPE, dtype)
        numbers[3, 4] = bad
        yield Case(f"tiff-{dtype}-{bad}.tif", tiff(numbers), None, ("non_finite",))
    yield Case("tiff-complex.tif", tiff(np.ones(SHAPE, np.complex64)), None, ("value_range",))
    for dtype, count, planar in itertools.product(
        (np.uint8, np.uint16, np.float32), (2, 5, 13), ("contig", "separate")
    ):
        many = noise((count, *SHAPE)).astype(dtype)
        many = many if planar == "separate" else np.ascontiguousarray(np.moveaxis(many, 0, -1))
        data = tiff(many, photometric="minisblack", planarconfig=planar,
                    extrasamples=["unspecified"] * (count - 1))  # fmt: skip
        name = f"tiff-{count}-channels-{np.dtype(dtype)}-{planar}.tif"
        yield Case(name, data, None, ("bad_channels",))
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate", "group3", "group4", "raw"):
        modes = (
            ("1",)
            if compression.startswith("group")
            else ("1", "L", "P", "RGB", "RGBA", "LA", "CMYK")
        )
        for mode in modes:
            yield pillow_case(f"tiff-{compression}", "TIFF", "tif", mode, compression=compression)
    grey16 = noise(SHAPE, np.uint16)
    for compression in ("tiff_lzw", "packbits", "tiff_adobe_deflate"):
        data = pillow(grey16, "TIFF", compression=compression)
        yield Case(f"tiff-16-{compression}.tif", data, grey16)
        numbers = noise(SHAPE).astype(np.float32) / 7
        data = pillow(numbers, "TIFF", compression=compression)
        yield Case(f"tiff-float-{compression}.tif", data, numbers)
    yield from patched_tiffs()
    for channels in (1, 3):
        picture = smooth(channels).squeeze()
        data = pillow(picture, "TIFF", compression="jpeg", quality=98)
        yield Case(f"tiff-jpeg-{channels}.tif", data, picture, tolerance=8)
    yield from low_bit_tiffs()
    yield from odd_tiffs()
    yield from stacks()


def patched_tiffs() -> Iterator[Case]:
    """LZW of kinds that Pillow does not write: its files, a tag changed."""

    def with_tag(image: np.ndarray, number: int, old: int, new: int) -> bytes:
        data = pillow(image, "TIFF", compression="tiff_lzw")
        entry = struct.pack("<HHI", number, 3, 1)
        assert data.count(entry + struct.pack("<H", old)) == 1
        return data.replace(entry + struct.pack("<H", old), entry + struct.pack("<H", new))

    colours, grey16 = noise((*SHAPE, 4)), noise(SHAPE, np.uint16)
    premultiplied = with_tag(colours, 338, 2, 1)
    yield Case("tiff-lzw-assocalpha.tif", premultiplied, colours[..., :3])
    yield Case("tiff-lzw-uint16-white-is-0.tif", with_tag(grey16, 262, 1, 0), 65535 - grey16)
    signed = noise(SHAPE).astype(np.int32) - 128
    unsigned = signed.astype(np.uint32).astype(np.float32)
    yield Case("tiff-lzw-uint32.tif", with_tag(signed, 339, 2, 1), unsigned)


def stacks() -> Iterator[Case]:
    pages = noise((13, *SHAPE))
    for count in (2, 3, 13):
        yield Case(
            f"tiff-{count}-pages.tif",
            tiff(pages[:count], photometric="minisblack"),
            pages[0],
            warned=True,
        )
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(pages[0])
        file.write(pages[0, ::2, ::2], subfiletype=1)
    yield Case("tiff-with-reduced-copy.tif", stream.getvalue(), pages[0])
    stream = io.BytesIO()
    with tifffile.TiffWriter(stream) as file:
        file.write(pages[0, ::2, ::2], subfiletype=1)
        file.write(pages[0])
    yield Case("tiff-thumbnail-first.tif", stream.getvalue(), pages[0])
    yield Case("tiff-imagej.tif", tiff(pages[:4], imagej=True), pages[0], warned=True)
    data = tiff(pages[:4], ome=True, metadata={"axes": "ZYX"})
    yield Case("tiff-ome.tif", data, pages[0], warned=True)


# ---------------------------------------------------------------- what Pillow writes


def pillow_case(name: str, form: str, suffix: str, mode: str, **options: Any) -> Case:
    """An image of a mode, noise, and what the documented rule makes of it."""
    grey, colours = noise(SHAPE), noise((*SHAPE, 4))
    truth: np.ndarray
    if mode == "1":
        image, truth = Image.fromarray(grey > 90), np.uint8(255) * (grey > 90)
    elif mode == "L":
        image, truth = Image.fromarray(grey), grey
    elif mode == "LA":
        image, truth = Image.fromarray(colours[..., :2].copy()), colours[..., 0]
    elif mode == "P":
        image = Image.fromarray(colours[..., :3].copy()).quantize(40, dither=Image.Dither.NONE)
        truth = (
            np.array(image.getpalette() or []).reshape(-1, 3)[np.asarray(image)].astype(np.uint8)
        )
    elif mode == "RGB":
        image, truth = Image.fromarray(colours[..., :3].copy()), colours[..., :3]
    elif mode == "RGBA":
        image, truth = Image.fromarray(colours), colours[..., :3]
    else:  # C, M, Y and K: a colour c is 255 - min(255, c + k) by Pillow's simple rule
        image = Image.fromarray(colours, mode="CMYK")
        ink = colours.astype(int)
        truth = (255 - ink[..., :3]) * (255 - ink[..., 3:]) // 255
        return Case(f"{name}-{mode}.{suffix}", pillow(image, form, **options),
                    truth.astype(np.uint8), tolerance=1)  # fmt: skip
    return Case(f"{name}-{mode}.{suffix}", pillow(image, form, **options), truth)


def jpegs() -> Iterator[Case]:
    ways: dict[str, dict[str, Any]] = {
        "444": {"subsampling": 0}, "422": {"subsampling": 1}, "420": {"subsampling": 2},
        "progressive": {"progressive": True}, "optimised": {"optimize": True},
        "restarts": {"restart_marker_blocks": 1}, "rows": {"restart_marker_rows": 1},
        "comment": {"comment": b"\xff\xd9 \xff\xda no markers"},
    }  # fmt: skip
    for (name, how), channels in itertools.product(ways.items(), (1, 3, 4)):
        picture = smooth(channels).squeeze()
        truth = picture
        image = Image.fromarray(picture) if channels < 4 else Image.fromarray(picture, mode="CMYK")
        if channels == 4:
            ink = picture.astype(int)
            truth = ((255 - ink[..., :3]) * (255 - ink[..., 3:]) // 255).astype(np.uint8)
        data = pillow(image, "JPEG", quality=97, **how)
        yield Case(f"jpeg-{name}-{channels}.jpg", data, truth, tolerance=9)
    grey_end = np.full(SHAPE, 128, np.uint8)
    yield Case("jpeg-all-grey.jpg", pillow(grey_end, "JPEG"), grey_end, tolerance=1)
    whole = pillow(smooth(), "JPEG", quality=97)
    start = whole.index(b"\xff\xc0")
    codec = ("unsupported_codec",)
    yield Case("jpeg-12-bits.jpg", whole[: start + 4] + b"\x0c" + whole[start + 5 :], None, codec)
    huge = whole[: start + 5] + b"\xff\xff\xff\xff" + whole[start + 9 :]
    yield Case("jpeg-says-65535.jpg", huge, None, ("too_large",))


def others() -> Iterator[Case]:
    for mode in ("1", "L", "P", "RGB", "RGBA"):
        yield pillow_case("bmp", "BMP", "bmp", mode)
    for mode, exact in itertools.product(("RGB", "RGBA", "L"), (True, False)):
        case = pillow_case(f"webp-exact-{exact}", "WEBP", "webp", mode, lossless=True, exact=True)
        assert case.truth is not None
        truth = np.repeat(case.truth[..., None], 3, axis=2) if mode == "L" else case.truth
        yield replace(case, truth=truth)
    for channels in (3, 4):
        picture = smooth(channels)
        data = pillow(picture, "WEBP", quality=98)
        yield Case(f"webp-lossy-{channels}.webp", data, picture[..., :3], tolerance=14)
    yield from gifs()
    base = pillow(noise(SHAPE), "BMP")
    for name, size in (("huge", (70_000, 70_000)), ("tall", (27, 1 << 30))):
        lie = base[:18] + struct.pack("<ii", *size) + base[26:]
        yield Case(f"bmp-says-{name}.bmp", lie, None, ("too_large",))
    vp8x = b"VP8X" + struct.pack("<I", 10) + bytes(4) + b"\xfe\x3f\0" * 2
    bomb = b"RIFF" + struct.pack("<I", 4 + len(vp8x) + 200) + b"WEBP" + vp8x + bytes(200)
    yield Case("webp-says-huge.webp", bomb, None, ("too_large", "truncated"))


def gifs() -> Iterator[Case]:
    frames = [pillow_case("", "GIF", "gif", "P") for _ in range(2)]
    images = [Image.open(io.BytesIO(frame.data)) for frame in frames]
    first = frames[0].truth
    yield Case("gif-palette.gif", frames[0].data, first)
    yield Case("gif-interlaced.gif", pillow(images[0], "GIF", interlace=True), first)
    yield Case("gif-transparent.gif", pillow(images[0], "GIF", transparency=3), first)
    moving = pillow(images[0], "GIF", save_all=True, append_images=images[1:], duration=50)
    yield Case("gif-animated-local-palettes.gif", moving, first, warned=True)
    grey = noise(SHAPE)
    colour = np.repeat(grey[..., None], 3, axis=2)
    yield Case("gif-grey.gif", pillow(grey, "GIF"), colour)
    stills = [Image.fromarray(noise((*SHAPE, 3))) for _ in range(3)]
    data = pillow(stills[0], "PNG", save_all=True, append_images=stills[1:])
    yield Case("apng.png", data, np.asarray(stills[0]), warned=True)
    data = pillow(stills[0], "WEBP", save_all=True, append_images=stills[1:], lossless=True)
    yield Case("webp-animated.webp", data, np.asarray(stills[0]), warned=True)


def turned() -> Iterator[Case]:
    """The eight EXIF orientations: what has to be done to the stored pixels, by the standard."""
    upright = {
        1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud,
        5: lambda a: a.swapaxes(0, 1), 6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).swapaxes(0, 1), 8: np.rot90,
    }  # fmt: skip
    ways = {
        "png": ("PNG", {}), "jpg": ("JPEG", {"quality": 97, "subsampling": 0}), "tif": ("TIFF", {}),
        "lzw.tif": ("TIFF", {"compression": "tiff_lzw"}), "webp": ("WEBP", {"lossless": True}),
    }  # fmt: skip
    for number, turn in upright.items():
        exif = Image.Exif()
        exif[0x0112] = number
        for suffix, (form, options) in ways.items():
            data = pillow(smooth(), form, exif=exif, **options)
            name = f"exif-{number}.{suffix}"
            tolerance = 9 if form == "JPEG" else 0
            yield Case(name, data, turn(smooth()), warned=number != 1, tolerance=tolerance)


# ---------------------------------------------------------------- broken


def bases() -> list[Case]:
    """One sound file of each kind, to be broken."""
    colours, grey = noise((*SHAPE, 3)), noise(SHAPE)
    deep, wide = noise((*SHAPE, 3), np.uint16), smooth(3, (70, 90))
    palette = pillow_case("gif", "GIF", "gif", "P")
    paletted = Image.open(io.BytesIO(palette.data))
    interlaced = pillow(paletted, "GIF", interlace=True)
    return [
        Case("png.png", pillow(colours, "PNG"), colours),
        Case("png-grey.png", pillow(grey, "PNG"), grey),
        Case("png-stored.png", png(colours, 8, 2, level=0), colours),
        Case("png-adam7.png", png(colours, 8, 2, adam7=True), colours),
        Case("png-deep.png", png(deep, 16, 2, pieces=4), deep),
        Case("jpeg.jpg", pillow(wide, "JPEG", quality=97), wide, tolerance=9),
        Case("jpeg-grey.jpg", pillow(wide[..., 0], "JPEG", quality=97), wide[..., 0], tolerance=9),
        Case("jpeg-progressive.jpg", pillow(wide, "JPEG", quality=97, progressive=True), wide,
             tolerance=9),
        Case("tiff.tif", pillow(colours, "TIFF"), colours),
        Case("tiff-strips.tif", tiff(deep, photometric="rgb", rowsperstrip=4), deep),
        Case("tiff-tiles.tif", tiff(colours, photometric="rgb", tile=(16, 16), compression="zlib"),
             colours),
        Case("tiff-ifd-first.tif", tiff(grey, metadata=None), grey),
        Case("tiff-lzw.tif", pillow(colours, "TIFF", compression="tiff_lzw"), colours),
        Case("tiff-big.tif", tiff(grey, bigtiff=True, byteorder=">"), grey),
        Case("webp.webp", pillow(colours, "WEBP", lossless=True), colours),
        Case("webp-lossy.webp", pillow(smooth(), "WEBP", quality=98), smooth(), tolerance=14),
        Case("bmp.bmp", pillow(colours, "BMP"), colours),
        replace(palette, name="bmp-palette.bmp", data=pillow(paletted, "BMP")),
        palette,
        replace(palette, name="gif-interlaced.gif", data=interlaced),
    ]  # fmt: skip


SHORT = ("truncated", "not_an_image", "empty_file")
CLOSING = {"png": chunk(b"IEND", b""), "jpg": b"\xff\xd9", "gif": b"\0;"}


def broken() -> Iterator[Case]:
    for base in bases():
        stem, suffix = base.name.rsplit(".", 1)
        for tenth in range(1, 11):
            end = len(base.data) * tenth // 10 - (tenth == 10)
            # Behind the last pixel a file may lack something and still have every one.
            yield replace(
                base, name=f"cut-{tenth}-{stem}.{suffix}", data=base.data[:end], codes=SHORT
            )
        garbage = base.data + b"\xff\xd8\xff\xd9 garbage \0\0" * 9
        yield replace(base, name=f"tail-{stem}.{suffix}", data=garbage)
        if suffix in CLOSING:
            for percent in (50, 70, 90):
                data = base.data[: len(base.data) * percent // 100] + CLOSING[suffix]
                if "progressive" in stem:  # a scan less is a sound file of a coarser picture
                    continue
                yield replace(base, name=f"closed-{percent}-{stem}.{suffix}", data=data, truth=None,
                              codes=SHORT)  # fmt: skip
        if suffix in ("png", "jpg"):
            half = len(base.data) // 2
            data = base.data[:half] + bytes(len(base.data) - half)
            yield Case(f"zeros-{stem}.{suffix}", data, None, SHORT)
        other = "png" if suffix != "png" else "jpg"
        yield replace(base, name=f"misnamed-{stem}.{other}", warned=True)
        yield replace(base, name=f"shouting-{stem}.{suffix.upper()}")
    for base in bases()[:5]:
        at = base.data.rindex(b"IDAT") + 9
        data = base.data[:at] + bytes([base.data[at] ^ 0x40]) + base.data[at + 1 :]
        yield Case(f"flipped-{base.name}", data, None, ("truncated",))


def foreign() -> Iterator[Case]:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as file:
        file.writestr("a.txt", "a")
    contents = {
        "text": b"BMW is no bitmap, nor is this", "html": b"<html><img src=a.png></html>",
        "zip": stream.getvalue(), "pickle": pickle.dumps({"a": 1}), "pdf": b"%PDF-1.7\n%\xe2\xe3",
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>", "nul": bytes(4096), "one": b"\x89",
        "ppm": pillow(noise((4, 4, 3)), "PPM"), "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n",
        "jp2": pillow(noise((4, 4, 3)), "JPEG2000"), "ico": pillow(noise((16, 16, 3)), "ICO"),
        "tga": pillow(noise((4, 4, 3)), "TGA"), "riff": b"RIFF\x24\0\0\0WAVEfmt ",
    }  # fmt: skip
    for (what, data), suffix in itertools.product(contents.items(), ("png", "jpg", "tif", "gif")):
        yield Case(f"foreign-{what}.{suffix}", data, None, ("not_an_image",))
    for suffix in ("png", "jpg", "jpeg", "tif", "tiff", "webp", "bmp", "gif"):
        yield Case(f"empty.{suffix}", b"", None, ("empty_file",))
    apple = PNG_START + chunk(b"CgBI", bytes(4)) + png(noise((3, 3, 3)), 8, 2)[8:]
    yield Case("png-of-apple.png", apple, None, ("unsupported_codec",))
    lost = png(noise(SHAPE), 8, 3)  # of a palette, without it
    yield Case("png-without-palette.png", lost, None, ("truncated",))
    for side in (20_000, 1 << 30):
        header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        data = PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", b"x") + chunk(b"IEND", b"")
        yield Case(f"png-says-{side}.png", data, None, ("too_large",))
    header = struct.pack(">IIBBBBB", 9, 7, 8, 0, 0, 0, 0)
    data = PNG_START + chunk(b"IHDR", header) + chunk(b"IDAT", LONG) + chunk(b"IEND", b"")
    yield Case("png-data-bomb.png", data, None, ("too_large",))
    screen = b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6)
    frame = b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\0;"
    yield Case("gif-says-65535.gif", screen + frame, None, ("too_large",))
    inside = b"GIF89a" + struct.pack("<HHBBB", 4, 4, 0x80, 0, 0) + bytes(6) + frame
    yield Case("gif-frame-65535.gif", inside, None, ("too_large", "truncated"))


def corpus() -> list[Case]:
    """All cases, each with its own name."""
    cases = [*pngs(), *tiffs(), *jpegs(), *others(), *turned(), *broken(), *foreign()]
    return [replace(case, name=f"{i:04d}-{case.name}") for i, case in enumerate(cases)]


# ---------------------------------------------------------------- the verdict


def fault_of(case: Case, path: Path) -> str | None:
    """What is wrong with how a file of the corpus is read; None where it gets its answer."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            found = read_image(path)
        except SpatialEmbedError as error:
            if str(path) not in error.message or not error.remedy:
                return f"{error}: without path or remedy"
            return None if error.code in case.codes else f"{error}, not {case.codes or 'pixels'}"
        except Exception as error:  # the one thing that may never come
            return f"{error!r} escaped"
    heard = any(issubclass(w.category, ImageWarning) for w in said)
    if heard != case.warned and not case.codes:
        return f"warned: {heard}"
    return _difference(found, case)


def _difference(found: np.ndarray, case: Case) -> str | None:
    """How pixels differ from those of the case."""
    if case.truth is None:
        return f"pixels {found.shape}, not {case.codes}"
    if (found.shape, found.dtype) != (case.truth.shape, case.truth.dtype):
        return f"{found.shape} {found.dtype}, not {case.truth.shape} {case.truth.dtype}"
    far = np.abs(found.astype(float) - case.truth).max()
    return f"pixels differ by {far}" if far > case.tolerance else None


def faults_in(folder: Path, only: str = "") -> list[str]:
    """Name and fault of each file of ``corpus()`` below a folder that is read wrongly."""
    found = []
    for case in corpus():
        if only in case.name:
            (folder / case.name).write_bytes(case.data)
            if (fault := fault_of(case, folder / case.name)) is not None:
                found.append(f"{case.name}: {fault}")
    return found
