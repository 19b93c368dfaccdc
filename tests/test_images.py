"""The image reader: every broken or odd file gets its answer, every level and colour is kept."""

from __future__ import annotations

import os
import pickle
import struct
import subprocess
import sys
import warnings
import zipfile
import zlib
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import tifffile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from spatialembed.errors import RESOURCE, SpatialEmbedError
from spatialembed.images.read import (
    ImageWarning,
    each_page,
    read_image,
    read_labels,
    read_pixels,
)
from spatialembed.images.tiff import whole_pages
from spatialembed.method.normalization import network_input
from spatialembed.types import Normalization

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 50), np.uint8)
RGB = RNG.integers(0, 256, (40, 50, 3), np.uint8)
DEEP = RNG.integers(0, 65536, (40, 50), np.uint16)
DEEP_RGB = RNG.integers(0, 65536, (40, 50, 3), np.uint16)


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def paeth(a: int, b: int, c: int) -> int:
    return min((a, b, c), key=lambda value: (abs(a + b - c - value), (a, b, c).index(value)))


def deep_png(path: Path, pixels: np.ndarray) -> Path:
    """Write (H, W, C) uint16 as PNG by the standard's text, its five row filters in turn."""
    height, width, channels = pixels.shape
    step = 2 * channels
    rows = [bytes(step) + row.astype(">u2").tobytes() for row in pixels]
    above, lines = bytes(len(rows[0])), []
    for number, row in enumerate(rows):
        kind = number % 5
        guess = [
            (0, row[i - step], above[i], (row[i - step] + above[i]) // 2,
             paeth(row[i - step], above[i], above[i - step]))[kind]
            for i in range(step, len(row))
        ]  # fmt: skip
        lines.append(bytes([kind, *((row[step + i] - g) % 256 for i, g in enumerate(guess))]))
        above = row
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"".join(lines)))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b""))
    return path


def saved(path: Path, pixels: np.ndarray, **options: object) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def cut(path: Path, pixels: np.ndarray) -> Path:
    """A file that ends at 60 % of its bytes."""
    whole = saved(path, pixels).read_bytes()
    path.write_bytes(whole[: int(0.6 * len(whole))])
    return path


def bomb(path: Path) -> Path:
    header = struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"x"))
    return path


def wrote(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


def zipped(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a.txt", "a")
    return path


def made(path: Path, make: Callable[[Path], object]) -> Path:
    make(path)
    return path


def tiff(path: Path, pixels: np.ndarray, **options: object) -> Path:
    tifffile.imwrite(path, pixels, **options)
    return path


def foreign(path: Path) -> Path:
    """A format that Pillow knows and we do not let it open."""
    Image.fromarray(RGB).save(path, format="PPM")
    return path


WITH_NAN = np.where(GREY[0, 0] == GREY, np.nan, GREY).astype(np.float32)
ZERO_WIDTH = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 0, 5, 8, 0, 0, 0, 0))
REFUSED: list[tuple[str, str, Callable[[Path], Path]]] = [
    ("IMG-01", "empty_file", lambda d: wrote(d / "a.png", b"")),
    *[
        (f"IMG-02-{kind}", "truncated", lambda d, kind=kind: cut(d / f"a.{kind}", RGB))
        for kind in ("png", "jpg", "tif", "webp", "bmp", "gif")
    ],
    ("IMG-02-header", "truncated", lambda d: wrote(d / "a.png", b"\x89PNG\r\n\x1a\n\0\0")),
    ("IMG-02-flipped", "truncated", lambda d: wrote(d / "a.tif", b"II*\0" + b"\xff" * 60)),
    ("IMG-05-text", "not_an_image", lambda d: wrote(d / "a.png", b"BMW is no bitmap, nor this")),
    ("IMG-05-html", "not_an_image", lambda d: wrote(d / "a.png", b"<html><img src=a.png></html>")),
    ("IMG-05-zip", "not_an_image", lambda d: zipped(d / "a.png")),
    ("IMG-05-pickle", "not_an_image", lambda d: wrote(d / "a.png", pickle.dumps({1: 2}))),
    ("IMG-06", "not_an_image", lambda d: foreign(d / "a.png")),
    ("IMG-07", "too_large", lambda d: bomb(d / "a.png")),
    ("IMG-10", "empty_image", lambda d: wrote(d / "a.png", ZERO_WIDTH)),
    ("IMG-19-complex", "value_range", lambda d: tiff(d / "a.tif", GREY.astype(np.complex64))),
    ("IMG-20-nan", "non_finite", lambda d: tiff(d / "a.tif", WITH_NAN)),
    ("IMG-20-inf", "non_finite", lambda d: tiff(d / "a.tif", np.full((5, 6), 1e300))),
    ("IMG-24-2", "bad_channels", lambda d: tiff(
        d / "a.tif", DEEP_RGB[..., :2], photometric="minisblack", extrasamples=["unspecified"])),
    ("IMG-24-2-planes", "bad_channels", lambda d: tiff(
        d / "a.tif", np.stack([GREY, GREY]), photometric="minisblack", planarconfig="separate",
        extrasamples=["unspecified"])),
    ("IMG-24-4-rgb", "bad_channels", lambda d: tiff(
        d / "a.tif", np.dstack([RGB, GREY]), photometric="rgb", extrasamples=["unspecified"])),
    ("IMG-24-5", "bad_channels", lambda d: tiff(
        d / "a.tif", np.dstack([RGB, RGB[..., :2]]),
        photometric="minisblack", planarconfig="contig")),
    ("IMG-24-13", "bad_channels", lambda d: tiff(
        d / "a.tif", RNG.integers(0, 9, (13, 8, 9), np.uint8),
        photometric="minisblack", planarconfig="separate")),
    ("IMG-26-missing", "not_found", lambda d: d / "a.png"),
    ("IMG-26-folder", "not_a_file", lambda d: made(d / "a.png", Path.mkdir)),
    ("IMG-28-fifo", "not_a_file", lambda d: made(d / "a.png", os.mkfifo)),
    ("IMG-28-zero", "not_a_file", lambda d: made(d / "a.png", lambda p: p.symlink_to("/dev/zero"))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("code", "make"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED]
)
def test_refused(code: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(SpatialEmbedError) as caught:
        read_image(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message
    assert caught.value.remedy


def test_refused_names_the_count_of_bad_pixels(tmp_path: Path) -> None:
    path = tiff(tmp_path / "a.tif", WITH_NAN)
    with pytest.raises(SpatialEmbedError, match=f" {np.isnan(WITH_NAN).sum()} pixels"):
        read_image(path)


def test_refused_names_the_number_of_channels(tmp_path: Path) -> None:
    path = tiff(
        tmp_path / "a.tif",
        np.dstack([RGB, RGB[..., :2]]),
        photometric="minisblack",
        planarconfig="contig",
    )
    with pytest.raises(SpatialEmbedError, match="5 channels"):
        read_image(path)


@pytest.mark.parametrize("cut_at", range(1, 100, 7), ids=lambda percent: f"IMG-02-{percent}%")
@pytest.mark.parametrize("suffix", ["png", "tif", "bmp"])
def test_cut_anywhere_is_never_padded(cut_at: int, suffix: str, tmp_path: Path) -> None:
    """A file cut at any place is refused, or (behind its last pixel) gives every pixel."""
    path = tmp_path / f"a.{suffix}"
    whole = saved(path, RGB).read_bytes()
    path.write_bytes(whole[: len(whole) * cut_at // 100])
    try:
        assert np.array_equal(read_image(path), RGB)
    except SpatialEmbedError as error:
        assert error.code in ("truncated", "not_an_image")  # noqa: PT017  either answer is right


@pytest.mark.parametrize(
    ("pixels", "limit", "fits"),
    [(GREY, 2000, True), (GREY, 1999, False), (DEEP_RGB, 2000, False), (DEEP_RGB, 4000, True)],
    ids=["IMG-08-fits", "IMG-08", "IMG-09", "IMG-09-fits"],
)
def test_limit_counts_pixels_and_bytes(
    pixels: np.ndarray, limit: int, fits: bool, tmp_path: Path
) -> None:
    path = tiff(tmp_path / "a.tif", pixels)
    if fits:
        assert np.array_equal(read_image(path, max_pixels=limit), pixels)
    else:
        with pytest.raises(SpatialEmbedError, match="too_large") as caught:
            read_image(path, max_pixels=limit)
        assert caught.value.exit_code == RESOURCE


def packed(path: Path, pixels: np.ndarray) -> Path:
    """A TIFF of 12 bits a sample, (H, W) of an even width."""
    bits = np.unpackbits(pixels.astype(">u2").view(np.uint8).reshape(*pixels.shape, 2), axis=2)
    data = np.packbits(bits[..., 4:]).tobytes()
    tifffile.imwrite(path, np.frombuffer(data, np.uint8).reshape(len(pixels), -1), metadata=None)
    with tifffile.TiffFile(path, mode="r+") as file:
        file.pages[0].tags["BitsPerSample"].overwrite(12)
        file.pages[0].tags["ImageWidth"].overwrite(pixels.shape[1])
    return path


@pytest.mark.parametrize("bits", [12], ids=lambda bits: f"IMG-18-tif-{bits}-bits")
def test_packed_bits(bits: int, tmp_path: Path) -> None:
    path = packed(tmp_path / "a.tif", DEEP >> (16 - bits))
    assert np.array_equal(read_image(path), DEEP >> (16 - bits))


@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts the parent's memory too")
def test_header_bomb_takes_no_memory(tmp_path: Path) -> None:
    """IMG-07: the refusal comes before any allocation, whatever limit the system sets."""
    path = bomb(tmp_path / "a.png")
    code = (
        "from spatialembed.images.read import read_image\n"
        "def peak_kb():\n"
        "    text = open('/proc/self/status').read()\n"
        "    return int(text.split('VmHWM:')[1].split()[0])\n"
        "before = peak_kb()\n"
        f"try: read_image({str(path)!r})\n"
        "except Exception as error: print(error)\n"
        "print(peak_kb() - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    message, grown_kb = done.stdout.strip().splitlines()
    assert message.startswith("too_large")
    assert int(grown_kb) < 20_000


def animation(path: Path, kind: str) -> Path:
    frames = [Image.fromarray(GREY), Image.fromarray(255 - GREY)]
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:], lossless=True)
    return path


@pytest.mark.parametrize("make", [
    pytest.param(lambda d: saved(d / "a.jpg", GREY, format="PNG"), id="IMG-04"),
    pytest.param(lambda d: animation(d / "a.gif", "GIF"), id="IMG-14-gif"),
    pytest.param(lambda d: animation(d / "a.webp", "WEBP"), id="IMG-14-webp"),
    pytest.param(lambda d: animation(d / "a.png", "PNG"), id="IMG-14-png"),
    pytest.param(lambda d: tiff(d / "a.tif", np.stack([GREY, 255 - GREY])), id="IMG-15"),
    pytest.param(lambda d: tiff(d / "a.tif", np.stack([GREY] * 13)), id="IMG-15-13-pages"),
])  # fmt: skip
def test_warned(make: Callable[[Path], Path], tmp_path: Path) -> None:
    with pytest.warns(ImageWarning, match=r"a\."):
        pixels = read_image(make(tmp_path))
    assert np.array_equal(pixels if pixels.ndim == 2 else pixels[..., 1], GREY)


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
@pytest.mark.filterwarnings("ignore:.*several frames")
def test_an_animation_cut_anywhere_is_refused_or_read(kind: str, tmp_path: Path) -> None:
    """Found by the fuzzer: a GIF that ends in the header of its second frame."""
    path = tmp_path / f"a.{kind.lower()}"
    frames = [Image.fromarray(GREY[:5, :6]), Image.fromarray(255 - GREY[:5, :6])]
    frames[0].save(path, format=kind, save_all=True, append_images=frames[1:], lossless=True)
    whole = path.read_bytes()
    for length in range(1, len(whole)):
        path.write_bytes(whole[:length])
        try:
            assert read_image(path).shape[:2] == (5, 6)
        except SpatialEmbedError as error:
            assert error.code in ("truncated", "not_an_image")  # noqa: PT017  either is right


SIZES = [(1, 1), (1, 9), (9, 1), (7, 7), (1, 20000), (3, 5), (5, 3)]


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "gif"])
@pytest.mark.parametrize("shape", SIZES, ids=[f"IMG-16-{w}x{h}" for h, w in SIZES])
def test_any_size(shape: tuple[int, int], suffix: str, tmp_path: Path) -> None:
    """The layout is never guessed from the numbers; a GIF has a palette, so three channels."""
    grey = RNG.integers(0, 256, shape, np.uint8)
    found = read_image(saved(tmp_path / f"a.{suffix}", grey))
    assert found.shape[:2] == shape
    assert np.array_equal(found if found.ndim == 2 else found[..., 2], grey)


RAMP = np.arange(65536, dtype=np.uint16).reshape(256, 256)
RAMP_RGB = np.dstack([RAMP, RAMP.T, RAMP[::-1]])
DEEP_FILES: list[tuple[str, np.ndarray, Callable[[Path], Path]]] = [
    ("png", RAMP, lambda d: saved(d / "a.png", RAMP)),
    ("png-written-here", RAMP[:9], lambda d: deep_png(d / "a.png", RAMP[:9, :, None])),
    ("png-rgb", DEEP_RGB, lambda d: deep_png(d / "a.png", DEEP_RGB)),
    ("png-rgba", DEEP_RGB, lambda d: deep_png(d / "a.png", np.dstack([DEEP_RGB, DEEP]))),
    ("png-la", DEEP, lambda d: deep_png(d / "a.png", np.dstack([DEEP, DEEP_RGB[..., 0]]))),
    ("tif", RAMP, lambda d: tiff(d / "a.tif", RAMP)),
    ("tif-big-endian", RAMP, lambda d: tiff(d / "a.tif", RAMP, byteorder=">")),
    ("tif-bigtiff", RAMP, lambda d: tiff(d / "a.tif", RAMP, bigtiff=True)),
    ("tif-deflate", RAMP, lambda d: tiff(d / "a.tif", RAMP, compression="zlib")),
    ("tif-tiles", RAMP, lambda d: tiff(d / "a.tif", RAMP, tile=(64, 64))),
    ("tif-lzw", RAMP, lambda d: saved(d / "a.tif", RAMP, compression="tiff_lzw")),
    ("tif-rgb", RAMP_RGB, lambda d: tiff(d / "a.tif", RAMP_RGB, photometric="rgb")),
    ("tif-planes", RAMP_RGB, lambda d: tiff(
        d / "a.tif", np.moveaxis(RAMP_RGB, -1, 0), photometric="rgb", planarconfig="separate")),
    ("tif-rgba", DEEP_RGB, lambda d: tiff(
        d / "a.tif", np.dstack([DEEP_RGB, DEEP]), photometric="rgb", extrasamples=["unassalpha"])),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pixels", "make"), [row[1:] for row in DEEP_FILES], ids=[f"IMG-18-{r[0]}" for r in DEEP_FILES]
)
def test_16_bits_are_kept(pixels: np.ndarray, make: Callable[[Path], Path], tmp_path: Path) -> None:
    found = read_image(make(tmp_path))
    assert found.dtype == np.uint16
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize(
    "dtype",
    ["float16", "float32", "float64", "int8", "int16", "int32", "uint32", "int64"],
    ids=lambda dtype: f"IMG-19-{dtype}",
)
def test_numbers_without_a_range_are_kept(dtype: str, tmp_path: Path) -> None:
    """As float32, which a model takes that normalises by percentiles, and others in [0, 1] only."""
    values = GREY / 255 - 0.25 if dtype.startswith("f") else GREY.astype(np.int64) - 70
    pixels = values.astype(dtype)
    found = read_image(tiff(tmp_path / "a.tif", pixels))
    assert found.dtype == np.float32
    assert np.array_equal(found, pixels.astype(np.float32))
    assert np.isfinite(network_input(found, Normalization("percentile")).numpy()).all()
    with pytest.raises(SpatialEmbedError, match="value_range"):
        network_input(found, Normalization("none"))


def as_palette(path: Path, colours: int, **options: object) -> Path:
    Image.fromarray(RGB).quantize(colours, dither=Image.Dither.NONE).save(path, **options)
    return path


ALPHA = np.linspace(0, 255, 50, dtype=np.uint8)[None].repeat(40, 0)
COLOURS = np.asarray(Image.fromarray(RGB).quantize(16, dither=Image.Dither.NONE).convert("RGB"))
BITS = GREY > 100
MODES: list[tuple[str, np.ndarray, Callable[[Path], Path]]] = [
    ("rgb-png", RGB, lambda d: saved(d / "a.png", RGB)),
    ("rgb-bmp", RGB, lambda d: saved(d / "a.bmp", RGB)),
    ("rgb-webp", RGB, lambda d: saved(d / "a.webp", RGB, lossless=True)),
    ("rgb-tif-lzw", RGB, lambda d: saved(d / "a.tif", RGB, compression="tiff_lzw")),
    ("rgba-png", RGB, lambda d: saved(d / "a.png", np.dstack([RGB, ALPHA]))),
    ("rgba-tif", RGB, lambda d: saved(d / "a.tif", np.dstack([RGB, ALPHA]))),
    ("rgba-webp", RGB, lambda d: saved(
        d / "a.webp", np.dstack([RGB, ALPHA]), lossless=True, exact=True)),
    ("la-png", GREY, lambda d: saved(d / "a.png", np.dstack([GREY, ALPHA]))),
    ("la-tif", GREY, lambda d: saved(d / "a.tif", np.dstack([GREY, ALPHA]))),
    ("1-png", np.uint8(255) * BITS, lambda d: saved(d / "a.png", BITS)),
    ("1-tif", np.uint8(255) * BITS, lambda d: saved(d / "a.tif", BITS)),
    ("1-group4", np.uint8(255) * BITS, lambda d: saved(d / "a.tif", BITS, compression="group4")),
    ("white-is-zero", 255 - GREY, lambda d: tiff(d / "a.tif", GREY, photometric="miniswhite")),
    ("palette-png", COLOURS, lambda d: as_palette(d / "a.png", 16)),
    ("palette-tif", COLOURS, lambda d: as_palette(d / "a.tif", 16)),
    ("palette-gif", COLOURS, lambda d: as_palette(d / "a.gif", 16)),
    ("palette-transparent", COLOURS, lambda d: as_palette(d / "a.png", 16, transparency=3)),
    ("palette-alphas", COLOURS, lambda d: as_palette(
        d / "a.png", 16, transparency=bytes(range(0, 160, 10)))),
]  # fmt: skip


@pytest.mark.parametrize(
    ("pixels", "make"), [row[1:] for row in MODES], ids=[f"IMG-21-{row[0]}" for row in MODES]
)
def test_modes(pixels: np.ndarray, make: Callable[[Path], Path], tmp_path: Path) -> None:
    """Alpha is dropped, palettes are looked up, bits are 0 and 255, in every format alike."""
    found = read_image(make(tmp_path))
    assert found.dtype == np.uint8
    assert np.array_equal(found, pixels)


@pytest.mark.parametrize("suffix", ["jpg", "tif"], ids=["IMG-22-jpg", "IMG-22-tif"])
def test_cmyk(suffix: str, tmp_path: Path) -> None:
    """No ink is white, all cyan is (0, 255, 255)."""
    path = tmp_path / f"a.{suffix}"
    inks = np.zeros((16, 32, 4), np.uint8)
    inks[:, 16:, 0] = 255
    Image.fromarray(inks, mode="CMYK").save(path)
    found = read_image(path).astype(int)
    assert np.abs(found[:, :8] - 255).max() < 8
    assert np.abs(found[:, 24:] - (0, 255, 255)).max() < 8


def image_warnings(said: list[warnings.WarningMessage]) -> list[warnings.WarningMessage]:
    """Without those of what the collector ends meanwhile, unclosed sockets of other tests say."""
    return [w for w in said if issubclass(w.category, ImageWarning)]


def turned(path: Path, orientation: int, image: Image.Image) -> Path:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image.save(path, exif=exif)
    return path


# What has to be done to the stored pixels, by the EXIF standard's words on row 0 and column 0.
UPRIGHT = {
    1: lambda a: a, 2: np.fliplr, 3: lambda a: np.rot90(a, 2), 4: np.flipud, 5: lambda a: a.T,
    6: lambda a: np.rot90(a, -1), 7: lambda a: np.rot90(a, 2).T, 8: np.rot90,
}  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", range(1, 9), ids=lambda n: f"IMG-23-{n}")
def test_exif_orientation(orientation: int, suffix: str, tmp_path: Path) -> None:
    path = turned(tmp_path / f"a.{suffix}", orientation, Image.fromarray(GREY))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = read_image(path)
    assert np.array_equal(found, UPRIGHT[orientation](GREY))
    assert len(image_warnings(said)) == (orientation != 1)


@pytest.mark.parametrize("orientation", [3, 6], ids=lambda n: f"IMG-23-other-codec-{n}")
def test_exif_orientation_is_undone_once(orientation: int, tmp_path: Path) -> None:
    image = Image.fromarray(GREY).convert("P")
    with pytest.warns(ImageWarning, match="upright"):
        found = read_image(turned(tmp_path / "a.tif", orientation, image))
    assert np.array_equal(found[..., 0], UPRIGHT[orientation](GREY))


@pytest.mark.parametrize("value", [0, 255], ids=lambda v: f"IMG-25-{v}")
def test_constant(value: int, tmp_path: Path) -> None:
    pixels = np.full((30, 20), value, np.uint8)
    assert np.array_equal(read_image(saved(tmp_path / "a.png", pixels)), pixels)


@settings(max_examples=40, deadline=None)
@given(
    flips=st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=8)
)
@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "gif"])
def test_flipped_bytes_never_escape(
    suffix: str, flips: list[tuple[int, int]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Any damage gives an image or the one exception, no other."""
    path = saved(tmp_path_factory.mktemp("flip") / f"a.{suffix}", RGB[:12, :11])
    data = bytearray(path.read_bytes())
    for place, mask in flips:
        data[place % len(data)] ^= mask
    path.write_bytes(data)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = read_image(path, max_pixels=10**6)
    except SpatialEmbedError:
        return
    assert found.dtype in (np.uint8, np.uint16, np.float32)
    assert found.ndim == 2 or found.shape[2] == 3


@pytest.mark.parametrize("fault", ["IMG-15 pages in a circle"])
def test_pages_in_a_circle_end(fault: str, tmp_path: Path) -> None:
    """The second page names the first one as the next: two pages, and no hang."""
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, np.stack([GREY, 255 - GREY]), photometric="minisblack", metadata=None)
    data = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as file:
        offsets = [page.offset for page in file.pages]
    (count,) = struct.unpack_from("<H", data, offsets[1])
    struct.pack_into("<I", data, offsets[1] + 2 + 12 * count, offsets[0])
    path.write_bytes(data)
    with tifffile.TiffFile(path) as file:
        assert list(islice(whole_pages(file), 9)) == [0, 1]
    with pytest.warns(ImageWarning, match="the first of 2 pages"):
        assert np.array_equal(read_image(path), GREY)
    pages = each_page(path, "a")
    assert [name for _, name in pages] == ["a_p0001", "a_p0002"]
    assert np.array_equal(read_image(pages[1][0]), 255 - GREY)


# ---------------------------------------------------------------- labels


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("count", [255, 300, 65535], ids=lambda n: f"LBL-01-{n}")
def test_ids_do_not_wrap(count: int, suffix: str, tmp_path: Path) -> None:
    ids = np.arange(count + 1, dtype=np.uint16)[None].repeat(2, 0)
    found = read_labels(saved(tmp_path / f"a.{suffix}", ids))
    assert found.dtype == np.int32
    assert np.array_equal(found, ids)


@pytest.mark.parametrize("dtype", [np.uint32, np.int32, np.float32, np.int64, np.uint64])
def test_wide_ids(dtype: type, tmp_path: Path) -> None:
    """LBL-01 and LBL-07: 70,000 ids in any type that holds them, whole floats too."""
    ids = np.arange(70_000, dtype=dtype).reshape(700, 100)
    assert np.array_equal(read_labels(tiff(tmp_path / "a.tif", ids)), ids)


def test_bits_as_labels(tmp_path: Path) -> None:
    for suffix in ("png", "tif"):
        assert np.array_equal(read_labels(saved(tmp_path / f"a.{suffix}", BITS)), 255 * BITS)


def turned_mask(path: Path) -> Path:
    """GREY with an orientation that its image may not have."""
    exif = Image.Exif()
    exif[274] = 3
    Image.fromarray(GREY).save(path, exif=exif)
    return path


@pytest.mark.parametrize("store", [{}, {"compression": "zlib"}, {"compression": "packbits"}])
@pytest.mark.parametrize("dtype", [bool, np.uint8, np.uint16, np.uint32])
def test_ids_are_as_stored_where_white_is_0(
    dtype: type, store: dict[str, str], tmp_path: Path
) -> None:
    """So tifffile writes masks of bool, and ImageJ those with an inverting table."""
    ids = np.zeros((20, 24), dtype)
    ids[3:9, 4:9] = 1
    ids[12:15, 10:20] = 2
    tifffile.imwrite(tmp_path / "a.tif", ids, photometric="miniswhite", **store)
    expected = 255 * ids.astype(int) if dtype is bool else ids
    assert np.array_equal(read_labels(tmp_path / "a.tif"), expected)
    if dtype is bool:
        tifffile.imwrite(tmp_path / "b.tif", ids)
        assert np.array_equal(read_labels(tmp_path / "b.tif"), expected)


def test_fax_masks(tmp_path: Path) -> None:
    for name in ("group4", "tiff_lzw"):
        path = tmp_path / f"{name}.tif"
        Image.fromarray(BITS).save(path, compression=name, tiffinfo={262: 0})
        with tifffile.TiffFile(path) as file:
            stored = file.pages.first.photometric == 0
        assert np.array_equal(read_labels(path), 255 * (~BITS if stored else BITS))


LABELS_REFUSED: list[tuple[str, str, Callable[[Path], Path]]] = [
    ("LBL-04-rgb", "colour_labels", lambda d: saved(d / "a.png", RGB)),
    ("LBL-04-tif", "colour_labels", lambda d: saved(d / "a.tif", RGB)),
    ("pages", "several_masks", lambda d: tiff(d / "a.tif", np.stack([GREY, GREY]))),
    (
        "one-page",
        "several_masks",
        lambda d: tiff(d / "a.tif", np.stack([GREY] * 3), truncate=True, photometric="minisblack"),
    ),
    (
        "pages-imagej",
        "several_masks",
        lambda d: tiff(d / "a.tif", np.stack([GREY] * 3), imagej=True, photometric=None),
    ),
    ("LBL-06", "label_format", lambda d: saved(d / "a.jpg", GREY)),
    ("LBL-06-named-png", "label_format", lambda d: saved(d / "a.png", GREY, format="JPEG")),
    ("LBL-07-fraction", "label_values", lambda d: tiff(d / "a.tif", GREY / np.float32(2))),
    ("LBL-07-negative", "label_values", lambda d: tiff(d / "a.tif", -np.int32(GREY))),
    ("LBL-07-nan", "label_values", lambda d: tiff(d / "a.tif", WITH_NAN)),
    ("IMG-23-png", "oriented_image", lambda d: turned_mask(d / "a.png")),
    ("IMG-23-tif", "oriented_image", lambda d: turned_mask(d / "a.tif")),
    ("LBL-07-too-large", "label_values", lambda d: tiff(d / "a.tif", np.uint32(GREY) << 24)),
]


@pytest.mark.parametrize(
    ("code", "make"), [row[1:] for row in LABELS_REFUSED], ids=[row[0] for row in LABELS_REFUSED]
)
@pytest.mark.filterwarnings("ignore:.*named like PNG")
def test_labels_refused(code: str, make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    with pytest.raises(SpatialEmbedError) as caught:
        read_labels(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message


@pytest.mark.parametrize("colours", [2, 4, 16, 256])
@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_masks_with_a_colour_table_keep_their_ids(
    colours: int, suffix: str, tmp_path: Path
) -> None:
    """LBL-04: the number that is stored is the id, whatever colour a viewer gives it."""
    ids = (np.arange(12 * 9) % colours).astype(np.uint8).reshape(12, 9)
    image = Image.fromarray(ids, mode="P")
    image.putpalette(RNG.integers(0, 256, 3 * colours, np.uint8).tobytes())
    path = tmp_path / f"a.{suffix}"
    image.save(path, **({"bits": colours.bit_length() - 1} if suffix == "png" else {}))
    assert np.array_equal(read_labels(path), ids)
    table = RNG.integers(0, 1 << 16, (3, 256), np.uint16)
    tifffile.imwrite(path, ids, photometric="palette", colormap=table, compression="zlib")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ImageWarning)  # of the name
        assert np.array_equal(read_labels(path), ids)


# ---------------------------------------------------------------- what is no path


@pytest.mark.parametrize("dtype", ["u2", "f4", "f8"])
def test_arrays_of_either_byte_order_are_the_same(dtype: str, tmp_path: Path) -> None:
    pixels = (RAMP / (1 if dtype == "u2" else 65_535)).astype(dtype)
    found = read_pixels(pixels.astype(f">{dtype}"))
    assert found.dtype == read_pixels(pixels).dtype
    assert found.dtype.isnative
    assert np.array_equal(found, read_pixels(pixels))
    tifffile.imwrite(tmp_path / "a.tif", pixels, byteorder=">")
    assert np.array_equal(read_pixels(tifffile.memmap(tmp_path / "a.tif")), read_pixels(pixels))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "RGB", "RGBA", "P", "I;16"])
def test_path_pillow_and_array_agree(mode: str, tmp_path: Path) -> None:
    noise = RNG.integers(0, 256, (12, 9, 4), np.uint8)
    if mode == "I;16":
        image = Image.fromarray(noise[..., 0].astype(np.uint16) * 200)
    else:
        image = Image.fromarray(noise).convert(mode)
    path = tmp_path / "image.png"
    image.save(path)
    pixels = read_image(path)
    for given_image in (image, pixels, str(path), Image.open(path)):
        found = read_pixels(given_image)
        assert np.array_equal(found, pixels)
        assert found.dtype == pixels.dtype


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6], ids=lambda n: f"IMG-23-PIL-{n}")
def test_pillow_image_is_turned_upright_like_its_file(
    orientation: int, suffix: str, tmp_path: Path
) -> None:
    image = Image.open(turned(tmp_path / f"a.{suffix}", orientation, Image.fromarray(GREY)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert np.array_equal(read_pixels(image), UPRIGHT[orientation](GREY))
    assert len(image_warnings(said)) == (orientation != 1)


def test_pillow_image_stays_as_it_is(tmp_path: Path) -> None:
    image = Image.open(as_palette(tmp_path / "a.png", 16, transparency=3))
    for _ in range(2):
        found = read_pixels(image)
        assert np.array_equal(found, read_image(tmp_path / "a.png"))
        assert (image.mode, image.info["transparency"]) == ("P", 3)


@pytest.mark.parametrize("fault", ["IMG-02 as a PIL image"])
def test_pillow_image_that_is_cut_short(tmp_path: Path, fault: str) -> None:
    image = Image.open(cut(tmp_path / "a.png", RGB))
    with pytest.raises(SpatialEmbedError, match="truncated"):
        read_pixels(image)


@pytest.mark.parametrize(
    ("image", "code"),
    [
        pytest.param(Image.new("L", (0, 5)), "empty_image", id="IMG-10 PIL image"),
        pytest.param(Image.new("LAB", (3, 3)), "bad_image", id="IMG-06 PIL image"),
        pytest.param(Image.new("F", (3, 3), float("nan")), "non_finite", id="IMG-20 PIL image"),
    ],
)
def test_pillow_image_refused(image: Image.Image, code: str) -> None:
    with pytest.raises(SpatialEmbedError, match="PIL image") as caught:
        read_pixels(image)
    assert caught.value.code == code


# ------------------------------------------------- PNG with fewer pixels than it says


def png_of(header: tuple[int, ...], raw: bytes) -> bytes:
    """header: width, height, bits, colour type, interlaced."""
    width, height, bits, colour, interlaced = header
    facts = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, interlaced)
    palette = chunk(b"PLTE", bytes(range(256)) * 3) if colour == 3 else b""
    data = chunk(b"IDAT", zlib.compress(raw))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", facts) + palette + data + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("bits", "colour", "pixel_bits"),
    [(8, 0, 8), (16, 0, 16), (1, 0, 1), (4, 0, 4), (8, 3, 8), (2, 3, 2), (8, 2, 24), (16, 2, 48),
     (8, 4, 16), (8, 6, 32)],
)  # fmt: skip
@pytest.mark.parametrize("interlaced", [0, 1])
def test_missing_rows_are_not_read_as_black(
    bits: int, colour: int, pixel_bits: int, interlaced: int, tmp_path: Path
) -> None:
    """Found by fuzzing: Pillow takes a stream that ends early as such, and leaves the rest zero."""
    path = tmp_path / "a.png"
    seven = [(1, 1), (1, 1), (1, 1), (3, 1), (2, 2), (5, 2)]  # of 5 x 4 px one has none
    passes = seven if interlaced else [(5, 4)]
    rows = [bytes(1 + -(-w * pixel_bits // 8)) for w, h in passes for _ in range(h)]
    header = (5, 4, bits, colour, interlaced)
    path.write_bytes(png_of(header, b"".join(rows)))
    assert not read_image(path)[..., :1].any()  # black, as it is stored
    for kept in (rows[:-1], [*rows[:-1], rows[-1][:-1]]):
        path.write_bytes(png_of(header, b"".join(kept)))
        with pytest.raises(SpatialEmbedError, match="truncated"):
            read_image(path)


def test_room_is_made_for_no_more_pixels_than_the_data_can_be(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(png_of((1 << 13, 1 << 14, 16, 0, 0), bytes(100)))
    with pytest.raises(SpatialEmbedError, match=r"truncated.* bytes, its pixels need 268\d+"):
        read_labels(path)
