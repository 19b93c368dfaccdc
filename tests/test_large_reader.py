"""Windows of large files: the same pixels as the whole has, and a code for what cannot be read."""

from __future__ import annotations

import contextlib
import struct
import sys
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from PIL import Image

from spatialembed.errors import SpatialEmbedError
from spatialembed.images.checks import ImageWarning
from spatialembed.images.overview import Overview, look_over, rescaled
from spatialembed.images.read import read_image
from spatialembed.images.windows import image_size, open_large
from spatialembed.method.normalization import network_input
from spatialembed.types import Normalization

WINDOWS = ((0, 1, 0, 1), (0, 83, 0, 131), (17, 60, 5, 131), (63, 65, 31, 33), (82, 83, 0, 131))
TIFFS: dict[str, dict[str, Any]] = {
    "strips": {"rowsperstrip": 7, "compression": "zlib"},
    "one strip": {"compression": "zlib"},
    "mapped": {},
    "tiles": {"tile": (32, 48), "compression": "zlib"},
    "differences": {"tile": (32, 48), "compression": "zlib", "predictor": True},
    "plain tiles": {"tile": (16, 16)},
    "BigTIFF": {"tile": (32, 32), "bigtiff": True},
    "big-endian": {"tile": (32, 32), "byteorder": ">"},
    "big-endian mapped": {"byteorder": ">"},
    "OME": {"tile": (32, 32), "ome": True},
    "planes": {"planarconfig": "separate", "tile": (32, 32)},
    "planes mapped": {"planarconfig": "separate"},
    "turned": {"tile": (32, 32), "extratags": [(0x0112, "H", 1, 6, True)]},
    "mirrored": {"rowsperstrip": 9, "extratags": [(0x0112, "H", 1, 5, True)]},
}


def picture(channels: int = 1, dtype: type = np.uint8) -> np.ndarray:
    """(83, 131) or (83, 131, C) of all levels."""
    rng = np.random.default_rng(0)
    shape = (83, 131) if channels == 1 else (83, 131, channels)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 10, shape).astype(dtype)
    return rng.integers(0, np.iinfo(dtype).max, shape, endpoint=True).astype(dtype)


def write_tiff(path: Path, pixels: np.ndarray, layout: str) -> None:
    how = dict(TIFFS[layout])
    if how.get("planarconfig"):
        pixels = np.moveaxis(pixels, -1, 0) if pixels.ndim == 3 else pixels
    colours = "rgb" if pixels.ndim == 3 else "minisblack"
    tifffile.imwrite(path, pixels, photometric=colours, **how)


def check_windows(path: Path, scratch: Path, whole: np.ndarray) -> None:
    with closing(open_large(path, scratch)) as image:
        assert image.shape_hw == whole.shape[:2]
        assert image.channels == (1 if whole.ndim == 2 else 3)
        assert image.dtype == whole.dtype
        for y0, y1, x0, x1 in WINDOWS:
            y1, x1 = min(y1, whole.shape[0]), min(x1, whole.shape[1])  # noqa: PLW2901
            window = image.read(y0, y1, x0, x1)
            assert window.dtype == whole.dtype
            assert np.array_equal(window, whole[y0:y1, x0:x1])


@pytest.mark.parametrize("layout", TIFFS)
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.filterwarnings("ignore:.*upright")
def test_tiff(layout: str, channels: int, dtype: type, tmp_path: Path) -> None:
    if layout.startswith("planes") and channels == 1:
        pytest.skip("one channel has no planes")
    if layout == "differences" and dtype is np.float32:
        pytest.skip("tifffile writes none of floats by itself")
    path = tmp_path / ("a.ome.tif" if layout == "OME" else "a.tif")
    write_tiff(path, picture(channels, dtype), layout)
    check_windows(path, tmp_path, read_image(path))


@pytest.mark.parametrize(
    "kind", ["bits", "inverted", "alpha", "signed", "grey alpha", "lzw", "palette", "CMYK", "YCbCr"]
)
def test_tiff_by_the_rules_of_small_images(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    if kind == "bits":
        tifffile.imwrite(path, picture() > 99, photometric="minisblack", rowsperstrip=5)
    elif kind == "inverted":
        tifffile.imwrite(path, picture(), photometric="miniswhite", tile=(32, 32))
    elif kind == "alpha":
        tifffile.imwrite(path, picture(4), photometric="rgb", extrasamples=["unassalpha"])
    elif kind == "signed":
        pixels = picture().astype(np.int32) * 200
        tifffile.imwrite(path, pixels, tile=(32, 32), compression="zlib")
    elif kind == "grey alpha":
        pixels = np.stack((picture(), picture()[::-1]), axis=-1)
        tifffile.imwrite(path, pixels, photometric="minisblack", extrasamples=["unassalpha"])
    elif kind in ("palette", "CMYK", "YCbCr"):
        mode = {"palette": "P"}.get(kind, kind)
        Image.fromarray(picture(3)).convert(mode).save(path, compression="tiff_deflate")
        with Image.open(path) as again:
            theirs = np.asarray(again.convert("RGB")).astype(int)
        assert np.abs(read_image(path) - theirs).max() <= 2  # libtiff rounds YCbCr otherwise
    else:
        Image.fromarray(picture(3)).save(path, compression="tiff_lzw")
    check_windows(path, tmp_path, read_image(path))


@pytest.mark.parametrize("name", ["a.jpg", "a.webp", "a.bmp", "a.gif"])
def test_decoded_whole_once(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.fromarray(picture(1 if name == "a.gif" else 3)).save(tmp_path / name)
    check_windows(tmp_path / name, tmp_path, read_image(tmp_path / name))
    monkeypatch.setattr("spatialembed.images.windows.read_image", None)  # it is not read again
    check_windows(tmp_path / name, tmp_path, read_image(tmp_path / name))


def test_stopped_while_it_is_noted_it_is_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Image.fromarray(picture(3)).save(tmp_path / "a.bmp")

    def half(path: Path, text: str) -> None:
        with path.open("w") as file:
            file.write(text[: len(text) // 2])
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", half)
        with pytest.raises(KeyboardInterrupt):
            open_large(tmp_path / "a.bmp", tmp_path)
    check_windows(tmp_path / "a.bmp", tmp_path, read_image(tmp_path / "a.bmp"))


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [*range(5), "mixed"])
def test_png_by_rows(
    kind: int | str, bits: int, channels: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every filter, in every row or in turns, in several chunks and blocks."""
    pixels = picture(channels, np.uint8 if bits == 8 else np.uint16)
    write_png(tmp_path / "a.png", pixels.reshape(83, 131, channels), kind)
    want = read_image(tmp_path / "a.png")
    kept = pixels if channels % 2 else pixels[..., : channels - 1]
    assert np.array_equal(want, kept[..., 0] if kept.shape[2:] == (1,) else kept)
    monkeypatch.setattr("spatialembed.images.windows.read_image", None)
    monkeypatch.setattr("spatialembed.images.png.BLOCK_BYTES", 5000)
    check_windows(tmp_path / "a.png", tmp_path, want)


def write_png(path: Path, pixels: np.ndarray, kind: int | str) -> None:
    """A PNG of pixels (H, W, C) whose rows have the filter ``kind``, or all in turns."""
    height, width, channels = pixels.shape
    rows = pixels.astype(pixels.dtype.newbyteorder(">")).view(np.uint8).reshape(height, -1)
    rows = rows.astype(int)
    step = channels * pixels.itemsize
    up = np.vstack((np.zeros_like(rows[:1]), rows[:-1]))
    left, corner = (np.hstack((np.zeros((height, step), int), r[:, :-step])) for r in (rows, up))
    near = np.stack((left, up, corner))
    paeth = np.take_along_axis(near, np.abs(near - (left + up - corner)).argmin(0)[None], 0)[0]
    guesses = np.stack((np.zeros_like(rows), left, up, (left + up) // 2, paeth))
    kinds = np.arange(height) % 5 if kind == "mixed" else np.full(height, kind)
    stored = (rows - guesses[kinds, np.arange(height)]) % 256
    packed = zlib.compress(np.column_stack((kinds, stored)).astype(np.uint8).tobytes())
    colour = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    head = struct.pack(">IIBBBBB", width, height, 8 * pixels.itemsize, colour, 0, 0, 0)
    pieces = [(b"IDAT", packed[i : i + 9000]) for i in range(0, len(packed), 9000)]
    path.write_bytes(png((b"IHDR", head), *pieces, (b"IEND", b"")))


def png(*chunks: tuple[bytes, bytes]) -> bytes:
    made = b"\x89PNG\r\n\x1a\n"
    for kind, body in chunks:
        check = struct.pack(">I", zlib.crc32(kind + body))
        made += struct.pack(">I", len(body)) + kind + body + check
    return made


def test_png_that_is_not_read_by_rows(tmp_path: Path) -> None:
    image = Image.fromarray(picture(3))
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(tmp_path / "turned.png", exif=exif)
    image.quantize(20).save(tmp_path / "palette.png")
    Image.fromarray(picture() > 99).save(tmp_path / "bits.png")
    for name in ("turned.png", "palette.png", "bits.png"):
        (tmp_path / name[0]).mkdir()
        with pytest.warns(ImageWarning) if name[0] == "t" else contextlib.nullcontext():
            whole = read_image(tmp_path / name)
            check_windows(tmp_path / name, tmp_path / name[0], whole)


@pytest.mark.parametrize("change", ["cut", "bit", "filter", "short"])
def test_damaged_png(change: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    write_png(path, picture().reshape(83, 131, 1), "mixed")
    data = path.read_bytes()
    if change == "cut":
        path.write_bytes(data[: len(data) // 2])
    elif change == "bit":
        path.write_bytes(data[:5000] + bytes([data[5000] ^ 1]) + data[5001:])
    else:
        head = struct.pack(">IIBBBBB", 4, 4, 8, 0, 0, 0, 0)
        body = bytes([5, 0, 0, 0, 0]) * 4 if change == "filter" else bytes(15)
        path.write_bytes(png((b"IHDR", head), (b"IDAT", zlib.compress(body)), (b"IEND", b"")))
    with pytest.raises(SpatialEmbedError, match=r"truncated: .*a\.png"):
        open_large(path, tmp_path)


@pytest.mark.parametrize("form", [2, 3])
@pytest.mark.parametrize("axes", ["yx", "yxc", "cyx", "tczyx"])
def test_zarr(form: int, axes: str, tmp_path: Path) -> None:
    import zarr

    whole = picture(3 if "c" in axes else 1, np.uint16)
    stored = np.moveaxis(whole, -1, 0) if axes in ("cyx", "tczyx") else whole
    stored = stored[None, :, None] if axes == "tczyx" else stored
    chunks = (40, 40, 3) if axes == "yxc" else (*[1] * (stored.ndim - 2), 40, 40)
    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=stored, chunks=chunks, zarr_format=form)
    if axes == "cyx":  # without names, three axes are y, x, colour
        with pytest.raises(SpatialEmbedError, match=r"bad_channels: .* 131 channels"):
            open_large(path, tmp_path)
    else:
        assert image_size(path) == (83, 131)
        check_windows(path, tmp_path, whole)


@pytest.mark.parametrize(("form", "version"), [(2, "0.4"), (3, "0.5")])
@pytest.mark.parametrize("channels", [1, 3])
def test_ome_zarr(form: int, version: str, channels: int, tmp_path: Path) -> None:
    import ome_zarr.format
    import ome_zarr.writer
    import zarr

    whole = picture(channels)
    stored = whole if channels == 1 else np.moveaxis(whole, -1, 0)
    group = zarr.open_group(tmp_path / "a.zarr", mode="w", zarr_format=form)
    ome_zarr.writer.write_image(
        stored,
        group,
        axes="yx" if channels == 1 else "cyx",
        fmt=ome_zarr.format.format_from_version(version),
    )
    check_windows(tmp_path / "a.zarr", tmp_path, whole)


# ---------------------------------------------------------------- faults


def broken_tiff(path: Path, change: Callable[[bytes, tifffile.TiffPage], bytes]) -> None:
    tifffile.imwrite(path, picture(), tile=(32, 32), compression="zlib")
    with tifffile.TiffFile(path) as tiff:
        data = change(path.read_bytes(), tiff.pages.first)
    path.write_bytes(data)


def without_end(data: bytes, page: tifffile.TiffPage) -> bytes:
    return data[: page.dataoffsets[-1]]


def with_noise(data: bytes, page: tifffile.TiffPage) -> bytes:
    at = page.dataoffsets[4]
    return data[:at] + b"\x55" * 40 + data[at + 40 :]


@pytest.mark.parametrize("change", [without_end, with_noise], ids=["IMG-02 short", "IMG-02 noise"])
def test_damage_is_found(change: Callable[..., bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    broken_tiff(path, change)
    with pytest.raises(SpatialEmbedError, match=r"truncated: .*a\.tif"):
        read_all(path)


def read_all(path: Path) -> None:
    with closing(open_large(path, path.parent)) as image:
        image.read(0, image.shape_hw[0], 0, image.shape_hw[1])


def bomb(path: Path) -> None:
    head = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 0, 0, 0, 0)
    path.write_bytes(png((b"IHDR", head), (b"IDAT", zlib.compress(b"")), (b"IEND", b"")))


def five_channels(path: Path) -> None:
    how = {"photometric": "minisblack", "planarconfig": "contig"}
    tifffile.imwrite(path, picture(5), tile=(32, 32), **how)


def other_colours(path: Path) -> None:
    tifffile.imwrite(path, picture(3), photometric="cielab", tile=(32, 32))


def not_numbers(path: Path) -> None:
    pixels = picture(dtype=np.float32)
    pixels[3, 4] = np.nan
    tifffile.imwrite(path, pixels, tile=(32, 32))


def nothing(path: Path) -> None:
    path.touch()


def text(path: Path) -> None:
    path.write_text("no image")


@pytest.mark.parametrize(
    ("make", "code"),
    [
        pytest.param(bomb, "truncated", id="IMG-07"),
        pytest.param(five_channels, "bad_channels", id="IMG-24"),
        pytest.param(other_colours, "unsupported_codec", id="IMG-06"),
        pytest.param(not_numbers, "non_finite", id="IMG-20"),
        pytest.param(nothing, "empty_file", id="IMG-01"),
        pytest.param(text, "not_an_image", id="IMG-05"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*named like")
def test_refused(make: Callable[[Path], None], code: str, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    make(path)
    with pytest.raises(SpatialEmbedError) as caught:
        read_all(path)
    assert caught.value.code == code
    assert str(path) in caught.value.message


@pytest.mark.parametrize("make", ["no image", "no axes", "complex", "chunks", "two channels"])
def test_zarr_refused(make: str, tmp_path: Path) -> None:
    import zarr

    path = tmp_path / "a.zarr"
    if make == "no image":
        zarr.open_group(path, mode="w")
    elif make == "no axes":
        zarr.create_array(path, shape=(9,), dtype="uint8")
    elif make == "complex":
        zarr.create_array(path, shape=(9, 9), dtype="complex64")
    elif make == "chunks":
        zarr.create_array(path, shape=(9, 9), chunks=(1 << 20, 1 << 20), dtype="uint8")
    else:
        zarr.create_array(path, shape=(9, 9, 2), dtype="uint8")
    wanted = {
        "complex": "unsupported_codec", "two channels": "bad_channels", "chunks": "too_large",
    }  # fmt: skip
    with pytest.raises(SpatialEmbedError) as caught:
        open_large(path, tmp_path)
    assert caught.value.code == wanted.get(make, "bad_zarr")
    assert image_size(path) is None


@pytest.mark.parametrize("size", [18, 1 << 34, (1 << 64) - 5])
def test_zarr_chunk_that_claims_a_size(size: int, tmp_path: Path) -> None:
    """Found by fuzzing: zstd's frame states the size of its content, here one of no block."""
    import zarr

    path = tmp_path / "a.zarr"
    zarr.create_array(path, data=np.ones((3, 3), np.uint16), chunks=(3, 3))
    frame = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", size) + b"\x01\0\0"
    (path / "c" / "0" / "0").write_bytes(frame)
    with pytest.raises(SpatialEmbedError, match="truncated"):
        open_large(path, tmp_path).read(0, 3, 0, 3)


@pytest.mark.parametrize("tag", [256, 257])
@pytest.mark.parametrize("kind", [(3, 2), (11, 1)], ids=["two numbers", "a float"])
def test_a_side_that_is_no_number_of_pixels(
    tag: int, kind: tuple[int, int], tmp_path: Path
) -> None:
    """Found by fuzzing: the size is asked for before all else, to choose an engine."""
    path = tmp_path / "a.tif"
    write_tiff(path, picture(), "one strip")
    content = bytearray(path.read_bytes())
    at = content.index(struct.pack("<HHI", tag, 4, 1))
    content[at : at + 8] = struct.pack("<HHI", tag, *kind)
    path.write_bytes(content)
    assert image_size(path) is None
    with pytest.raises(SpatialEmbedError):
        read_image(path)


def test_zarr_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "zarr.json").touch()
    monkeypatch.setitem(sys.modules, "zarr", None)
    with pytest.raises(SpatialEmbedError, match=r"missing_extra.*spatialembed\[zarr\]"):
        open_large(tmp_path, tmp_path)


def test_further_pages_are_told(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with tifffile.TiffWriter(path) as tiff:
        for _ in range(3):
            tiff.write(picture(), tile=(32, 32))
    with pytest.warns(ImageWarning, match="first of 3 pages"):
        open_large(path, tmp_path).close()


# ---------------------------------------------------------------- the first look


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.float32])
@pytest.mark.parametrize("factor", [1.0, 0.5])
def test_a_window_is_normalised_as_the_whole(
    channels: int, dtype: type, factor: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("spatialembed.images.overview.BAND_PIXELS", 131 * 10)
    path = tmp_path / "a.tif"
    write_tiff(path, picture(channels, dtype), "plain tiles")
    how = Normalization("percentile", low=1.0, high=99.8)
    shares = []
    with closing(open_large(path, tmp_path)) as source:
        image = rescaled(source, factor)
        height, width = image.shape_hw
        whole = network_input(image.read(0, height, 0, width), how)
        overview = look_over(image, how, side=40, advance=shares.append)
        window = network_input(image.read(7, 30, 11, 40), how, overview.levels)
    assert np.array_equal(window.numpy(), whole[:, 7:30, 11:40].numpy())
    assert sum(shares) == pytest.approx(1)
    assert len(shares) >= 3
    assert max(overview.picture.shape[:2]) <= 40
    assert overview.picture.dtype == dtype
    overview.save(tmp_path / "o.npz")
    again = type(overview).load(tmp_path / "o.npz")
    assert np.array_equal(again.picture, overview.picture)
    assert all(np.array_equal(a, b) for a, b in zip(again.levels, overview.levels, strict=True))


@pytest.mark.parametrize(
    "values",
    [
        np.full((5, 9), 0.25),
        np.r_[np.zeros(44), 1.0].reshape(5, 9),
        -np.arange(45.0).reshape(5, 9),
        np.linspace(-1e-30, 1e30, 45).reshape(5, 9),
    ],
    ids=["constant", "one bright", "negative", "wide"],
)
def test_levels_of_floats_are_exact(values: np.ndarray, tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values.astype(np.float32))
    how = Normalization("percentile", low=3.0, high=97.0)
    with closing(open_large(path, tmp_path)) as image:
        levels = look_over(image, how, side=9).levels
        whole = image.read(0, 5, 0, 9)
    by_levels, by_itself = network_input(whole, how, levels), network_input(whole, how)
    assert np.array_equal(by_levels.numpy(), by_itself.numpy())


def test_floats_out_of_range_are_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "a.tif", picture(dtype=np.float32))
    with (
        closing(open_large(tmp_path / "a.tif", tmp_path)) as image,
        pytest.raises(SpatialEmbedError, match=r"value_range: .*a\.tif"),
    ):
        look_over(image, Normalization("none"), side=9)


CRAFTED_FACTS = [
    "", "{", "[]", '["uint8", 1099511627776, 1099511627776]', '["uint8", -1, 4]', '["object", 20]',
    '["uint8", 1e300]', '["none", 2, 2]', '["uint8", 99999, 2]',
]  # fmt: skip


@pytest.mark.parametrize("facts", CRAFTED_FACTS)
def test_pixels_of_an_earlier_run_are_read_only_where_they_are_whole(
    facts: str, tmp_path: Path
) -> None:
    grey = np.arange(20 * 30, dtype=np.uint8).reshape(20, 30)
    Image.fromarray(grey).save(tmp_path / "a.png")
    with closing(open_large(tmp_path / "a.png", tmp_path)):
        (tmp_path / "pixels.json").write_text(facts)
    with closing(open_large(tmp_path / "a.png", tmp_path)) as image:
        assert np.array_equal(image.read(0, 20, 0, 30), grey)


def test_a_damaged_overview_is_made_anew(tmp_path: Path) -> None:
    path = tmp_path / "overview.npz"
    assert Overview.load(path) is None
    Overview(np.zeros((2, 3), np.uint8), None).save(path)
    whole = path.read_bytes()
    for data in (b"", whole[:-30], whole.replace(b"(2, 3)", b"(2, 9)"), b"PK" + whole[2:60]):
        path.write_bytes(data)
        assert Overview.load(path) is None
