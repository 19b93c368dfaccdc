"""Foreign layouts into folders of images/, masks/ and classes.csv: ``spatialembed data convert``.

    detect -> a reader of outlines -> for each image: drawn as COCO draws -> image, mask, classes

Readers are ours: those of supervision hold all masks of a data set at once and those of datumaro
bring in 50 packages, and neither bounds what a file may claim.
"""

from __future__ import annotations

import csv
import logging
import os
import shutil
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple
from zipfile import is_zipfile

import numpy as np
import tifffile

from spatialembed.console import printable, track
from spatialembed.data.coco import (
    annotation_runs,
    fault_of_polygons,
    open_coco,
    painted,
    polygon_runs,
)
from spatialembed.data.layouts.cvat import read_cvat
from spatialembed.data.layouts.detect import Kind, detect, parts_of
from spatialembed.data.layouts.label_studio import read_label_studio
from spatialembed.data.layouts.labelme import read_labelme
from spatialembed.data.layouts.one_mask_each import read_one_mask_each
from spatialembed.data.layouts.scene import (
    Outline,
    Scene,
    Source,
    broken,
    not_found,
    split_of,
)
from spatialembed.data.layouts.yolo import read_yolo
from spatialembed.errors import PARTIAL, USAGE, SpatialEmbedError
from spatialembed.files import atomic_write, check_writable
from spatialembed.images.decode import opened
from spatialembed.images.listing import image_files
from spatialembed.images.read import MAX_PIXELS, ImageWarning, each_page, read_oriented
from spatialembed.images.write import write_png
from spatialembed.options import DataOptions

logger = logging.getLogger("spatialembed")


def _read_coco(source: Source) -> Iterator[Scene]:
    """COCO instances, as ``train`` reads them; for the doctor, and to correct masks by hand."""
    try:
        reading = DataOptions(allow_missing=True)
        dataset = open_coco(source.path, source.images, reading=reading)
    except SpatialEmbedError as error:
        if error.code != "no_images":
            raise
        remedy = "name the folder of the images with --images"
        raise SpatialEmbedError("missing_pairs", error.message, remedy) from error

    def outlines(i: int, height: int, width: int) -> list[Outline]:
        found = []
        for a in dataset.annotations(i):
            if a.crowd:
                source.notes["crowds are left out, and become background"] += 1
                continue
            runs, name = annotation_runs(a, height, width), dataset.class_names[a.class_index]
            found.append(Outline(f"annotation {a.id}", name, runs=runs, size_hw=(height, width)))
        return found

    for i, image in enumerate(dataset.images):
        late = partial(outlines, i, *image.size_hw)
        name = image.name.removeprefix("images/")
        yield Scene(name, "", image.path, late, image.size_hw)
    for path in dataset.missing:
        lack = not_found(source.path, Path(path).name, [Path(path).parent])
        yield Scene(path, "", lack, list)


READERS: dict[Kind, Callable[[Source], Iterator[Scene]]] = {
    "labelme": read_labelme,
    "yolo": read_yolo,
    "cvat": read_cvat,
    "label-studio": read_label_studio,
    "one-mask-each": read_one_mask_each,
    "coco": _read_coco,
}
FORMATS = {"PNG": ".png", "JPEG": ".jpg", "TIFF": ".tif", "WebP": ".webp", "BMP": ".bmp"}
FORMATS["GIF"] = ".gif"


def _counted(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


@dataclass
class Converted:
    """What ``convert`` wrote."""

    kind: Kind
    out: Path
    images: int = 0
    classes: Counter[str] = field(default_factory=Counter)  # objects of each
    empty: int = 0  # images without object
    overlapped: int = 0  # objects that lost pixels to a smaller one
    hidden: int = 0  # objects without a pixel left
    splits: tuple[str, ...] = ()
    failed: list[tuple[str, SpatialEmbedError]] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0, 6 if some images failed, the first fault's own if all did."""
        if not self.failed:
            return 0
        return PARTIAL if self.images else self.failed[0][1].exit_code

    def lines(self) -> list[str]:
        """The result in words."""
        objects = _counted(sum(self.classes.values()), "object")
        named = ", ".join(f"{printable(name)} {n}" for name, n in sorted(self.classes.items()))
        parts = f" in {', '.join(self.splits)}" if self.splits else ""
        images = _counted(self.images, "image")
        lines = [f"{self.out}: {images}{parts}, {objects} ({self.kind})"]
        lines += [f"classes: {named}"] * bool(named)
        lines += [f"{_counted(self.empty, 'image')} without object"] * bool(self.empty)
        if n := self.overlapped:
            under = "objects lie partly under smaller ones"
            lines.append("1 object lies partly under a smaller one" if n == 1 else f"{n} {under}")
        gone = f"{_counted(self.hidden, 'object')} without a pixel left out"
        lines += [gone] * bool(self.hidden)
        return lines + [f"{_counted(len(self.failed), 'image')} failed"] * bool(self.failed)


def convert(
    source: str | Path,
    out: str | Path,
    *,
    kind: Kind | None = None,
    images: str | Path | None = None,
    max_pixels: int = MAX_PIXELS,
    progress: bool = True,
) -> Converted:
    """Convert a data set of another layout into images/, masks/ and classes.csv.

    Polygons become pixels as COCO draws them; where objects overlap, the smaller one is on top.
    Ids are 1..K in the order of the source, whose place the column ``source`` of classes.csv names.

    Args:
        source: A file or folder as the other program exported it.
        out: Folder to write, which must hold no images/ yet; with train/, val/, test/ in it where
            the source has such parts.
        kind: The layout; None: found out.
        images: Folder of the images; None: where the layout has them.
        max_pixels: Limit of width x height of an image.
        progress: Whether to draw a bar on stderr.

    Returns:
        Counts and failures; a broken image does not end the others.

    Raises:
        SpatialEmbedError: ``unknown_layout``, ``not_found``, ``bad_json``, ``bad_annotation``,
            ``missing_pairs``, ``no_images``, ``duplicate_name``; ``not_empty``, ``not_writable``,
            ``missing_extra`` (exit 2); ``too_large``, ``disk_full`` (exit 5).
    """
    path, out = Path(source), Path(out)
    kind = _kind(path, kind)
    given = Source(path, None if images is None else Path(images), max_pixels)
    scenes = _scenes(given, kind)
    _check_names(path, scenes)
    _check_empty(out)
    done = Converted(kind, out, splits=tuple(sorted({s.split for s in scenes} - {""})))
    rows = []
    for scene in track(scenes, "converting", shown=progress):
        try:
            rows += _written(scene, out, max_pixels, done)
        except SpatialEmbedError as error:
            if error.exit_code == USAGE or error.code == "disk_full":
                raise  # of this machine, not of an image
            done.failed.append((scene.name, error))
            logger.error("%s", printable(str(error)))
    if rows:  # a table without rows is refused where it is read
        with (
            atomic_write(out / "classes.csv") as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows([("image", "id", "class", "source"), *rows])
    for what, count in sorted(given.notes.items()):
        logger.warning("%s: %d %s", path, count, printable(what))
    return done


def _kind(path: Path, kind: Kind | None) -> Kind:
    if not os.path.lexists(path):
        raise SpatialEmbedError("not_found", f"{path}: no such file or folder", "check the path")
    if (kind := kind or detect(path)) is None:
        remedy = f"name it with --kind: {', '.join(READERS)}"
        if is_zipfile(path):
            remedy = "unpack it, and name the folder"
        raise SpatialEmbedError("unknown_layout", f"{path}: no layout that is known", remedy)
    return kind


def _scenes(source: Source, kind: Kind) -> list[Scene]:
    """Of all files of annotations; images that none of them names are told of.

    Raises SpatialEmbedError: no_images; missing_pairs where no scene at all has its image.
    """
    scenes: list[Scene] = []
    files = parts_of(source.path, kind)
    for file in files:
        those = READERS[kind](replace(source, path=file))
        part = split_of(file.relative_to(source.path)) if len(files) > 1 else ""
        scenes += (replace(scene, split=scene.split or part) for scene in those)
    if not scenes:
        what = f"{source.path}: no image of {kind} in it"
        raise SpatialEmbedError("no_images", what, "check the path")
    lacks = [scene.image for scene in scenes if isinstance(scene.image, SpatialEmbedError)]
    if len(lacks) == len(scenes):  # rather another folder than so many lost images
        raise lacks[0]
    if (folder := source.images or source.path).is_dir():
        used = {scene.image for scene in scenes}
        alone = (p for p in image_files(folder) if p not in used and p.parent.name != "masks")
        if count := sum(1 for _ in alone):
            source.notes["images that no annotation names are left out"] += count
    return _parted(scenes)


def _parted(scenes: list[Scene]) -> list[Scene]:
    """The scenes with their parts, where each has one and there are several."""
    parts = {scene.split for scene in scenes}
    if "" not in parts and len(parts) > 1:
        return scenes
    named = [f"{s.split}/{s.name}" if s.split and "" in parts else s.name for s in scenes]
    pairs = zip(scenes, named, strict=True)
    return [Scene(name, "", s.image, s.outlines, s.size_hw) for s, name in pairs]


def _check_names(path: Path, scenes: Sequence[Scene]) -> None:
    there = (scene for scene in scenes if not isinstance(scene.image, SpatialEmbedError))
    counts = Counter((scene.split, scene.name) for scene in there)
    twice = [f"{split}/{name}".lstrip("/") for (split, name), n in counts.items() if n > 1]
    if twice:
        what = f"{path}: {len(twice)} names of images occur twice, one is {printable(twice[0])}"
        raise SpatialEmbedError("duplicate_name", what, "rename one of each")


def _check_empty(out: Path) -> None:
    names = ("images", "masks", "train", "val", "test", "classes.csv")
    if there := [name for name in names if os.path.lexists(out / name)]:
        what = f"{out}: it holds {there[0]} already"
        raise SpatialEmbedError("not_empty", what, "choose another folder by --out", USAGE)
    check_writable(out)


class _Row(NamedTuple):
    """A row of classes.csv."""

    image: str
    id: int
    class_name: str
    source: str


def _written(scene: Scene, out: Path, max_pixels: int, done: Converted) -> list[_Row]:
    """Write image and mask, and count them; its rows of classes.csv."""
    if isinstance(scene.image, SpatialEmbedError):
        raise scene.image
    name = f"{scene.split}/images/{scene.name}.png".lstrip("/")  # as tables know all names
    if name.encode("utf-8", "ignore").decode() != name:
        broken(printable(scene.name), "its name is not UTF-8, as classes.csv is")
    folder = out / scene.split
    part = out / ".image.part"
    path = scene.image if isinstance(scene.image, Path) else part
    try:
        if not isinstance(scene.image, Path):
            part.write_bytes(scene.image())
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ImageWarning)  # told where the result is read
            pixels, orientation = read_oriented(path, max_pixels=max_pixels, channel="1")
            objects = _objects(scene, pixels.shape[0], pixels.shape[1], orientation)
            mask, kept = _drawn(objects, pixels.shape[0], pixels.shape[1], done)
            _write_image(scene, path, orientation, folder, max_pixels)
        _write_mask(folder / "masks" / scene.name, mask)
    finally:
        part.unlink(missing_ok=True)
    done.images += 1
    done.empty += not kept
    done.classes.update(o.name for o in kept)
    return [_Row(name, i, o.name, printable(o.where)) for i, o in enumerate(kept, start=1)]


class _Object(NamedTuple):
    where: str
    name: str
    layer: int
    runs: np.ndarray  # (R, 2)


def _objects(scene: Scene, height: int, width: int, orientation: int) -> list[_Object]:
    """The objects of a scene, shapes of one group joined."""
    size = (height, width)
    if scene.size_hw not in (None, size):
        stated = "{} x {}".format(*scene.size_hw or ())
        what = f"{scene.name}: {height} x {width} px, its annotations are of {stated} px"
        raise SpatialEmbedError("size_mismatch", what, "use the image that was annotated")
    found: dict[tuple[str, str, str], _Object] = {}
    for i, outline in enumerate(scene.outlines()):
        name = outline.class_name.strip()
        if not name or len(name) > 100 or not name.isprintable():
            broken(f"{scene.name}, {outline.where}", f"the class is called {name[:40]!r}")
        if outline.runs is not None and orientation != 1:
            what = f"{scene.name}: a mask for an image that is turned (EXIF {orientation})"
            raise SpatialEmbedError("oriented_image", what, "save the image upright")
        runs = _runs(f"{scene.name}, {outline.where}", outline, height, width)
        key = (name, outline.group, "" if outline.group else str(i))
        if (other := found.get(key)) is not None:
            found[key] = other._replace(runs=_joined(other.runs, runs))
        else:
            found[key] = _Object(outline.where, name, outline.layer, runs)
    return list(found.values())


def _runs(where: str, outline: Outline, height: int, width: int) -> np.ndarray:
    if outline.runs is not None:
        if outline.size_hw != (height, width):
            sizes = f"a mask of {outline.size_hw} px, its image has {(height, width)}"
            raise SpatialEmbedError("size_mismatch", f"{where}: {sizes}", "export both again")
        return outline.runs
    polygons = outline.polygons
    if outline.relative:
        factors = (width, height)
        # Rounded, since 25.5 px as a share comes back as 25.499999999999996, in another pixel.
        polygons = [[round(v * factors[i % 2], 6) for i, v in enumerate(p)] for p in polygons]
    if fault := fault_of_polygons(list(polygons), height, width):
        broken(where, fault)
    return polygon_runs(polygons, height, width)


def _joined(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """(R, 2) runs of the pixels of both."""
    runs = np.concatenate((one, other))
    runs = runs[np.argsort(runs[:, 0], kind="stable")]
    ends = np.maximum.accumulate(runs[:, 1]) if len(runs) else runs[:, 1]
    first = np.flatnonzero(np.append(True, runs[1:, 0] > ends[:-1])) if len(runs) else runs[:, 0]
    last = np.append(first[1:], len(runs)) - 1
    return np.stack((runs[first, 0], ends[last]), axis=1) if len(runs) else runs


def _drawn(
    objects: list[_Object], height: int, width: int, done: Converted
) -> tuple[np.ndarray, list[_Object]]:
    """Ids (H, W) int32, 1..K in the order of the K objects that have a pixel; and these."""
    areas = [int((o.runs[:, 1] - o.runs[:, 0]).sum()) for o in objects]
    order = sorted(range(len(objects)), key=lambda i: (objects[i].layer, -areas[i]))
    flat = painted((objects[i].runs for i in order), height, width)
    seen = np.bincount(flat, minlength=len(objects) + 1)[1:]
    visible = dict(zip(order, seen.tolist(), strict=True))
    kept = [i for i in range(len(objects)) if visible[i]]
    done.overlapped += sum(visible[i] < areas[i] for i in kept)
    done.hidden += len(objects) - len(kept)
    number = np.zeros(len(objects) + 1, np.int32)
    rank = {i: at for at, i in enumerate(order, start=1)}
    for new, i in enumerate(kept, start=1):
        number[rank[i]] = new
    ids = number[flat].reshape(width, height).T
    return np.ascontiguousarray(ids), [objects[i] for i in kept]


def _write_image(scene: Scene, path: Path, orientation: int, folder: Path, max_pixels: int) -> None:
    """A copy, byte by byte; of a turned image its pixels upright, as the outlines were drawn."""
    place = folder / "images" / scene.name
    if orientation != 1:
        pixels = read_oriented(path, max_pixels=max_pixels)[0]
        pages = len(each_page(path, ""))
        if pixels.dtype != np.uint8 or pages > 1:
            kind = f"{pages} pages" if pages > 1 else f"{pixels.dtype} pixels"
            what = f"{scene.name}: EXIF orientation {orientation} of {kind}"
            raise SpatialEmbedError("oriented_image", what, "save the image upright")
        write_png(place.with_name(place.name + ".png"), pixels)
        return
    with opened(path, quiet=True) as (file, form):
        target = place.with_name(place.name + FORMATS[form])
        with atomic_write(target) as temporary, open(temporary, "wb") as copy:
            shutil.copyfileobj(file, copy)


def _write_mask(place: Path, ids: np.ndarray) -> None:
    if ids.max(initial=0) <= np.iinfo(np.uint16).max:
        write_png(place.with_name(place.name + ".png"), ids.astype(np.uint16))
        return
    with atomic_write(place.with_name(place.name + ".tif")) as temporary:
        tifffile.imwrite(temporary, ids.astype(np.uint32), compression="zlib")
