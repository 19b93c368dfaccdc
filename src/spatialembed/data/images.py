"""The one image reader: training, prediction and label masks all come through here.

What a file holds becomes an array by these rules, whatever its name says::

    1-bit                  (H, W) uint8, 0 or 255
    grey 8, 16 bits        (H, W) uint8, uint16, every level kept
    RGB 8, 16 bits         (H, W, 3) uint8, uint16, every level kept
    palette, CMYK, YCbCr   (H, W, 3) uint8
    alpha                  dropped: the colours stored under it stand
    float TIFF             float32, NaN and Inf refused
    other integer TIFF     uint16 where all values fit, else refused: their range is not known

Of several frames or pages the first is read, with an ImageWarning. An image with an EXIF
orientation is turned upright, with another.
"""

from __future__ import annotations

import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from glob import glob, has_magic
from pathlib import Path
from typing import BinaryIO, NamedTuple, NoReturn

import numpy as np
import tifffile
from PIL import (
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from spatialembed.errors import RESOURCE, SpatialEmbedError
from spatialembed.files import atomic_write

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp", ".bmp", ".gif")
"""Names that a folder is searched for; the content alone decides how a file is read."""
MAX_PIXELS = 2**28
"""Default limit of width x height, 268 million."""

_ORIENTATION_TAG = 0x0112
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, IndexError, KeyError, TypeError, AttributeError,
    ArithmeticError, zlib.error, struct.error, tifffile.TiffFileError,
)  # fmt: skip
"""What the decoders raise on broken bytes."""


class ImageWarning(UserWarning):
    """An image was read, but not the whole of it or not as it lay."""


class _Stored(NamedTuple):
    """What a decoder got out of a file."""

    pixels: np.ndarray  # (H, W) or (H, W, C), any type, upright
    orientation: int  # EXIF, 1 to 8, that was undone
    mode: str = ""  # Pillow's, "" where tifffile read it


# ---------------------------------------------------------------- which format a file has


def _sniff(head: bytes) -> str | None:
    """Format by the first 16 bytes; only these formats' readers ever see the file."""
    starts = {
        b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"BM": "BMP",
        b"GIF87a": "GIF", b"GIF89a": "GIF",
        b"II*\0": "TIFF", b"MM\0*": "TIFF", b"II+\0": "TIFF", b"MM\0+": "TIFF",
    }  # fmt: skip
    if head[:2] == b"BM" and head[6:10] != bytes(4):  # two letters that many a text begins with
        return None
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return next((name for start, name in starts.items() if head.startswith(start)), None)


@contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, str]]:
    """Yield the open file and its format. Its status comes first: opening a FIFO would hang."""
    try:
        status = os.stat(path)
        if not stat.S_ISREG(status.st_mode):
            raise SpatialEmbedError("not_a_file", f"{path}: no regular file", "name an image file")
        file = open(path, "rb")  # noqa: SIM115  faults of opening only are caught here
    except FileNotFoundError:
        raise SpatialEmbedError("not_found", f"{path}: no such file", "check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a zero byte in the name
        raise SpatialEmbedError(
            "unreadable", f"{path}: {error}", "check its permissions"
        ) from error
    with file:
        if status.st_size == 0:
            raise SpatialEmbedError("empty_file", f"{path}: zero bytes", "copy the file again")
        head = file.read(16)
        file.seek(0)
        if (form := _sniff(head)) is None:
            raise SpatialEmbedError(
                "not_an_image",
                f"{path}: the content is no PNG, JPEG, TIFF, WebP, BMP or GIF",
                "convert it to PNG or TIFF",
            )
        _check_suffix(path, form)
        yield file, form


def _check_suffix(path: Path, form: str) -> None:
    """Warn where the name says another format than the content: the content wins."""
    family = {".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".webp": "WebP"}
    family |= {".png": "PNG", ".bmp": "BMP", ".gif": "GIF"}
    named = family.get(path.suffix.lower(), form)
    if named != form:
        _warn(f"{path}: named like {named}, read as {form}, which it is")


def _warn(message: str) -> None:
    warnings.warn(message, ImageWarning, stacklevel=2)


def _refuse_damaged(path: Path, form: str, detail: object) -> NoReturn:
    raise SpatialEmbedError(
        "truncated", f"{path}: {form} cut short or damaged: {detail}", "copy or export it again"
    )


def _check_size(path: Path, width: int, height: int, pixel_bytes: int, max_pixels: int) -> None:
    """Refuse by the header alone: too many pixels, or more bytes than 8-bit RGB of as many."""
    if width < 1 or height < 1:
        raise SpatialEmbedError("empty_image", f"{path}: {width}x{height} px", "export it again")
    if width * height > max_pixels or width * height * pixel_bytes > 3 * max_pixels:
        _refuse_size(path, f"{width}x{height} px of {pixel_bytes} bytes", max_pixels)


def _refuse_size(path: Path, size: str, max_pixels: int) -> NoReturn:
    raise SpatialEmbedError(
        "too_large",
        f"{path}: {size}, the limit is {max_pixels} px of 3 bytes",
        "cut it into tiles, or raise max_pixels",
        RESOURCE,
    )


def _valid(orientation: object) -> int:
    """An EXIF orientation as 1 to 8; 1 for what is none."""
    return orientation if isinstance(orientation, int) and orientation in range(1, 9) else 1


def _upright(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Undo an EXIF orientation: 2 mirrored, 3 by 180 degrees, 4 flipped, 5 to 8 axes swapped."""
    if orientation >= 5:
        pixels = pixels.swapaxes(0, 1)  # (H, W, ...) -> (W, H, ...)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels


# ---------------------------------------------------------------- Pillow: all formats but most TIFF

_PLUGINS: dict[str, type[ImageFile.ImageFile]] = {
    "PNG": PngImagePlugin.PngImageFile,
    "JPEG": JpegImagePlugin.JpegImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}


def _read_pillow(path: Path, file: BinaryIO, form: str, max_pixels: int) -> _Stored:
    """Read with the one plugin of this format.

    It is called as ``Image.open(file, formats=[form])`` would call it; that itself only warns from
    89 to 179 million pixels, and takes more only where a global of Pillow is changed.
    """
    try:
        image = _PLUGINS[form](file)
    except Image.DecompressionBombError as error:
        _refuse_size(path, str(error), max_pixels)
    except _DAMAGED as error:
        _refuse_damaged(path, form, error)
    raw = str(image.tile[0][3]) if image.tile else ""
    deep = form == "PNG" and raw in ("RGB;16B", "RGBA;16B", "LA;16B")
    item = 2 if deep or image.mode.startswith("I;16") else 4 if image.mode in "IF" else 1
    _check_size(path, *image.size, len(image.getbands()) * item, max_pixels)
    try:
        if getattr(image, "is_animated", False):
            _warn(f"{path}: the first of several frames was read")
        image.load()
        orientation = _valid(image.getexif().get(_ORIENTATION_TAG))  # none left in a TIFF
        pixels = _deep_png(file, raw) if deep else np.asarray(_plain_mode(image))
    except Image.DecompressionBombError as error:  # a GIF frame larger than its header says
        _refuse_size(path, str(error), max_pixels)
    except _DAMAGED as error:
        _refuse_damaged(path, form, error)
    return _Stored(_upright(pixels, orientation), orientation, image.mode)


def _plain_mode(image: Image.Image) -> Image.Image:
    """The image in a mode whose array is what the module's rules say."""
    image.info.pop("transparency", None)  # else convert() would mix it in, or warn
    if image.mode in ("1", "LA"):
        return image.convert("L")
    if image.mode in ("L", "RGB", "F") or image.mode.startswith("I"):
        return image
    return image.convert("RGB")  # of RGBA too: it keeps the stored colours


def _deep_png(file: BinaryIO, raw: str) -> np.ndarray:
    """16-bit PNG of several channels, (H, W, C) or (H, W) uint16 without its alpha.

    Pillow keeps the high byte only. Its unpackers for the two byte orders differ in which byte of
    a big-endian sample they keep, so that two passes give both.
    """
    if raw == "LA;16B":  # four bytes a pixel, as RGBA has: L high, L low, alpha high, alpha low
        bytes_ = np.asarray(_repeat_png(file, "RGBA", "RGBA"))
        return bytes_[..., 0].astype(np.uint16) << 8 | bytes_[..., 1]
    mode = raw.removesuffix(";16B")
    high = np.asarray(_repeat_png(file, mode, f"{mode};16B"))[..., :3]
    low = np.asarray(_repeat_png(file, mode, f"{mode};16L"))[..., :3]
    return high.astype(np.uint16) << 8 | low


def _repeat_png(file: BinaryIO, mode: str, raw: str) -> PngImagePlugin.PngImageFile:
    """Decode the PNG once more, its rows unpacked as ``raw`` says."""
    file.seek(0)
    image = PngImagePlugin.PngImageFile(file)
    image._mode = mode
    image.tile = [tile._replace(args=raw) for tile in image.tile]
    image.load()
    return image


# ---------------------------------------------------------------- TIFF


def _read_tiff(path: Path, file: BinaryIO, max_pixels: int) -> _Stored:
    """Read with tifffile, which keeps every level, or Pillow, which has more codecs and colours."""
    try:
        with tifffile.TiffFile(file) as tiff:
            page = tiff.pages.first
            # ImageJ writes stacks beyond 4 GB as one page that names the number of images.
            count = max(len(tiff.pages), int((tiff.imagej_metadata or {}).get("images", 1)))
            item = max(1, page.bitspersample // 8)
            pixel_bytes = page.samplesperpixel * item
            _check_size(path, page.imagewidth, page.imagelength, pixel_bytes, max_pixels)
            _check_segments(path, page, os.fstat(file.fileno()).st_size)
            if count > 1 or page.imagedepth > 1:
                _warn(f"{path}: the first of {max(count, page.imagedepth)} pages was read")
            orientation = _valid(page.tags.valueof(_ORIENTATION_TAG))
            wide = page.bitspersample > 8 or page.samplesperpixel > 4
            pixels = _page_pixels(path, page) if wide or page.photometric in (1, 2) else None
    except _DAMAGED as error:
        _refuse_damaged(path, "TIFF", error)
    if pixels is not None:
        return _Stored(_upright(pixels, orientation), orientation)
    file.seek(0)
    # Pillow turns TIFF upright by itself, and forgets that it did.
    return _read_pillow(path, file, "TIFF", max_pixels)._replace(orientation=orientation)


def _check_segments(path: Path, page: tifffile.TiffPage, size: int) -> None:
    """Every strip and tile must lie inside the file: tifffile would make a missing one zeros."""
    for start, count in zip(page.dataoffsets, page.databytecounts, strict=True):
        if count == 0 or start + count > size:
            _refuse_damaged(path, "TIFF", f"pixels up to byte {start + count}, the file has {size}")


def _page_pixels(path: Path, page: tifffile.TiffPage) -> np.ndarray | None:
    """Pixels (H, W) or (H, W, C) of a page; None where only Pillow knows the codec."""
    try:
        pixels = page.asarray()
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
        if page.bitspersample > 8 and (page.samplesperpixel > 1 or page.bitspersample % 16):
            raise SpatialEmbedError(
                "unsupported_codec",
                f"{path}: TIFF samples of {page.bitspersample} bits as {page.compression.name}",
                "save 8 or 16 bits with deflate or uncompressed, or pip install imagecodecs",
            ) from error
        return None
    if page.planarconfig == 2 and page.samplesperpixel > 1:
        pixels = np.moveaxis(pixels, 0, -1)  # (C, H, W) -> (H, W, C)
    pixels = pixels.reshape(page.imagelength, page.imagewidth, -1)
    if pixels.dtype == bool:
        pixels = pixels.astype(np.uint8) * 255
    if page.photometric == 0 and pixels.dtype.kind == "u":  # white is zero
        pixels = np.iinfo(pixels.dtype).max - pixels
    colours = 3 if page.photometric == 2 else 1
    # Alpha is what is declared so (1, 2), or a fourth sample beside RGB that nothing is said of.
    alpha = page.extrasamples[0] in (1, 2) if page.extrasamples else colours == 3
    if pixels.shape[-1] == colours + 1 and alpha:
        pixels = pixels[..., :colours]
    return pixels[..., 0] if pixels.shape[-1] == 1 else pixels


# ---------------------------------------------------------------- what callers use


def read_image(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read an image file: (H, W) grey or (H, W, 3) RGB, uint8, uint16 or float32, upright.

    max_pixels limits width x height; nor may it take more bytes than 8-bit RGB of that many.
    Warns with ImageWarning of a wrong suffix, further frames or pages, and of turning.

    Raises SpatialEmbedError: not_found, not_a_file, unreadable, empty_file, not_an_image,
    truncated, empty_image, too_large (exit 5), unsupported_codec, bad_channels, value_range,
    non_finite.
    """
    pixels, orientation = read_oriented(path, max_pixels=max_pixels)
    if orientation != 1:
        _warn(f"{path}: turned upright (EXIF orientation {orientation})")
    return pixels


def read_oriented(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS
) -> tuple[np.ndarray, int]:
    """As ``read_image``, and the EXIF orientation (1 to 8) that was undone, not warned of."""
    path = Path(path)
    stored = _read(path, max_pixels)
    pixels = stored.pixels
    if pixels.ndim == 3 and pixels.shape[2] != 3:
        raise SpatialEmbedError(
            "bad_channels",
            f"{path}: {pixels.shape[2]} channels",
            "keep one (grey) or three (RGB), and save again",
        )
    return np.ascontiguousarray(_plain_type(path, pixels)), stored.orientation


def _read(path: Path, max_pixels: int) -> _Stored:
    with _opened(path) as (file, form):
        if form == "TIFF":
            return _read_tiff(path, file, max_pixels)
        return _read_pillow(path, file, form, max_pixels)


def _plain_type(path: Path, pixels: np.ndarray) -> np.ndarray:
    """The same values as uint8, uint16 or float32."""
    if pixels.dtype in (np.uint8, np.uint16):
        return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)
    if pixels.dtype.kind == "f":
        with np.errstate(over="ignore"):
            pixels = pixels.astype(np.float32)
        if bad := int(np.count_nonzero(~np.isfinite(pixels))):
            raise SpatialEmbedError(
                "non_finite", f"{path}: {bad} pixels are NaN or Inf", "replace them before"
            )
        return pixels
    if pixels.dtype.kind not in "iu":
        raise SpatialEmbedError("value_range", f"{path}: {pixels.dtype} pixels", "save as float32")
    low, high = int(pixels.min()), int(pixels.max())
    if low < 0 or high > 65535:
        raise SpatialEmbedError(
            "value_range",
            f"{path}: {pixels.dtype} values from {low} to {high}, which have no stated range",
            "save as 16-bit (0 to 65535) or as float32",
        )
    return pixels.astype(np.uint16)


def read_labels(path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS) -> np.ndarray:
    """Read a label mask, PNG or TIFF of 1, 8, 16 or 32 bits: (H, W) int32 ids, 0 background.

    The ids are as stored. 1-bit masks have the id 255. Whole numbers stored as float are taken.

    Raises SpatialEmbedError as ``read_image`` does, and: label_format (JPEG and other lossy or
    foreign formats), colour_labels (RGB or palette), label_values (negative, fractions, NaN).
    """
    path = Path(path)
    with _opened(path) as (_, form):
        pass
    if form not in ("PNG", "TIFF"):
        raise SpatialEmbedError(
            "label_format",
            f"{path}: a mask as {form}, which does not keep ids",
            "save masks as 16-bit PNG or TIFF",
        )
    stored = _read(path, max_pixels)
    if stored.pixels.ndim != 2:
        palette = stored.mode.startswith("P")
        what = "a palette" if palette else f"{stored.pixels.shape[2]} channels"
        raise SpatialEmbedError(
            "colour_labels",
            f"{path}: a mask with {what}: colours are no ids",
            "save one channel of ids, 16-bit PNG or TIFF",
        )
    return np.ascontiguousarray(_as_ids(path, stored.pixels))


def _as_ids(path: Path, pixels: np.ndarray) -> np.ndarray:
    """The same ids as int32; refused where one is no whole number in [0, 2^31)."""
    wrong = ~np.isfinite(pixels) | (pixels < 0) | (pixels > np.iinfo(np.int32).max)
    if pixels.dtype.kind == "f":
        wrong |= pixels != np.trunc(pixels)
    if wrong.any():
        raise SpatialEmbedError(
            "label_values",
            f"{path}: {int(wrong.sum())} pixels have no valid id, one is {pixels[wrong][0]}",
            "ids are whole numbers, 0 for background",
        )
    return pixels.astype(np.int32)


def write_png(path: str | os.PathLike[str], pixels: np.ndarray) -> None:
    """Write (H, W) uint8 or uint16, or (H, W, 3) uint8, atomically, making the folder.

    Raises SpatialEmbedError: disk_full (exit 5).
    """
    with atomic_write(path) as temporary:
        Image.fromarray(pixels).save(temporary, format="PNG")


# ---------------------------------------------------------------- which files


def list_images(
    sources: Sequence[str | os.PathLike[str]], exclude: str | os.PathLike[str] | None = None
) -> list[tuple[Path, str]]:
    """Image files of files, folders (with all below) and globs, each with its name for the outputs.

    The name is the path below the folder (or below the fixed part of the glob) without suffix, with
    "/" between. Order: as the sources, inside a folder by name. Hidden files, linked folders and
    the folder ``exclude`` (where outputs go) are passed over; folders are searched by suffix.

    Raises SpatialEmbedError: not_found, no_images, name_collision, output_in_input.
    """
    found: dict[str, tuple[Path, str]] = {}
    out = None if exclude is None else Path(exclude).resolve()
    for source in map(Path, sources):
        for path, name in _of_source(source, out):
            found.setdefault(os.path.abspath(path), (path, name))
    if not found:
        raise SpatialEmbedError(
            "no_images",
            f"{', '.join(map(str, sources)) or 'no source'}: no image found",
            f"looked for {' '.join(SUFFIXES)}",
        )
    _refuse_collisions(list(found.values()))
    return list(found.values())


def _of_source(source: Path, out: Path | None) -> list[tuple[Path, str]]:
    """Paths and output names of one file, folder or glob."""
    if source.is_dir():
        if out == source.resolve():
            raise SpatialEmbedError(
                "output_in_input",
                f"{source}: both input and output folder",
                "choose another output folder; one inside the input is fine",
            )
        return [(path, _name(path, source)) for path in image_files(source, out)]
    if has_magic(str(source)) and not source.exists():
        return _of_glob(source, out)
    if not os.path.lexists(source):
        raise SpatialEmbedError("not_found", f"{source}: no such file or folder", "check the path")
    return [(source, source.stem)]


def image_files(folder: Path, out: Path | None = None) -> list[Path]:
    """Image files below a folder, by suffix, sorted by name; links to folders are not followed."""
    paths = []
    for parent, folders, files in os.walk(folder, followlinks=False):
        if out is not None and Path(parent).resolve() == out:
            folders.clear()
            continue
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths += [Path(parent, name) for name in files if _is_image_name(name)]
    return sorted(paths, key=lambda path: path.parts)


def _is_image_name(name: str) -> bool:
    return not name.startswith(".") and name.lower().endswith(SUFFIXES)


def _of_glob(pattern: Path, out: Path | None) -> list[tuple[Path, str]]:
    """Matches of a glob; "**" is walked here, since the standard one follows links in circles."""
    fixed = next(i for i, part in enumerate(pattern.parts) if has_magic(part))
    base, parts = Path(*pattern.parts[:fixed]), pattern.parts[fixed:]
    if "**" in parts:
        paths = [p for p in image_files(base, out) if _matches(p.relative_to(base).parts, parts)]
    else:
        hits = [Path(hit) for hit in sorted(glob(str(pattern))) if _is_image_name(Path(hit).name)]
        paths = [hit for hit in hits if out is None or out not in hit.resolve().parents]
    return [(path, _name(path, base)) for path in paths if not path.is_dir()]


def _matches(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return _matches(parts, pattern[1:]) or (bool(parts) and _matches(parts[1:], pattern))
    return bool(parts) and fnmatchcase(parts[0], pattern[0]) and _matches(parts[1:], pattern[1:])


def _name(path: Path, base: Path) -> str:
    return path.relative_to(base).with_suffix("").as_posix()


def _refuse_collisions(found: Sequence[tuple[Path, str]]) -> None:
    """Two inputs of one name would overwrite each other's outputs: said before anything runs."""
    first: dict[str, Path] = {}
    for path, name in found:
        if name in first:
            raise SpatialEmbedError(
                "name_collision",
                f"{path}: its outputs would overwrite those of {first[name]}",
                "name their common folder, or use one output folder for each",
            )
        first[name] = path
