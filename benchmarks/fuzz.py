"""Fuzz the readers of foreign bytes: every input gets a value or a SpatialEmbedError, nothing else.

    python benchmarks/fuzz.py [--target png] [--runs 10000] [--seconds 60] [--atheris]

Inputs are mutations of a few small valid files that are made here; checksums of PNG are put right
again, or nothing behind the first one would ever be reached. They lie in memory, where the system
has a folder there: a disk takes longer for a file than our readers. --atheris lets the coverage of
our own readers, tifffile and Pillow guide them (pip install atheris): all targets in one process,
told apart by the first byte of an input, with a corpus and the counts of inputs in runs/fuzz/.
Without it they are drawn at random. More than 5 s of the processor for one of them is a fault, as
is memory beyond 1 GB over what the libraries take. The input of a fault is written to runs/fuzz/,
once for each place in the program; of one that kills the process it is left in /dev/shm/fuzz-*.
"""

from __future__ import annotations

import argparse
import atexit
import base64
import contextlib
import faulthandler
import functools
import hashlib
import importlib
import io
import json
import logging
import math
import os
import random
import resource
import shutil
import struct
import sys
import tempfile
import time
import traceback
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

GUIDED = "--atheris" in sys.argv
if GUIDED:
    import atheris
FOLLOWED = ["spatialembed", "tifffile", "PIL"]
"""Packages whose branches guide."""
KERNELS = Path(__file__).parents[1] / "src" / "spatialembed" / "method" / "kernels"
COMPILED = [f"spatialembed.method.kernels.{path.stem}" for path in KERNELS.glob("*.py")]
"""Numba takes no code that was changed."""
LATE = ("data.cityscapes", "data.coco", "data.tables", "training.run_folder")
FOLLOWING = atheris.instrument_imports(FOLLOWED, COMPILED) if GUIDED else contextlib.nullcontext()
with FOLLOWING:
    import numpy as np
    import tifffile
    import yaml
    from PIL import Image

    from spatialembed.errors import SpatialEmbedError
    from spatialembed.images.listing import list_images
    from spatialembed.images.pixel_size import pixel_size
    from spatialembed.images.read import each_page, read_image, read_labels
    from spatialembed.images.windows import image_size, open_large

    if GUIDED:  # the others import them where they are used
        for module in LATE:
            importlib.import_module(f"spatialembed.{module}")

MOST_SECONDS = 5  # of the processor; on a busy machine a file takes longer to come
STUCK_SECONDS = 60
MORE_BYTES = 1 << 30
MAX_PIXELS = 1 << 22
LONGEST = 1 << 16  # bytes of an input that is guided
SHARD = "part-000000-of-000001"

Target = tuple[Callable[[Path], object], Callable[[], list[bytes]]]


@functools.cache
def pictures(form: str) -> list[bytes]:
    """A grey and a colour picture of 12 x 9 px in a format of Pillow."""
    rng = np.random.default_rng(0)
    found = []
    for shape in ((12, 9), (12, 9, 3)):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(stream, form)
        found.append(stream.getvalue())
    return found


@functools.cache
def tiffs() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 4000, (48, 40), np.uint16)
    found = []
    for settings in ({}, {"tile": (16, 16)}, {"compression": "zlib"}, {"bigtiff": True}):
        stream = io.BytesIO()
        tifffile.imwrite(stream, pixels, **settings)  # type: ignore[arg-type]
        found.append(stream.getvalue())
    return found


@functools.cache
def coco_texts() -> list[bytes]:
    """Polygons, plain and compressed run lengths on one image of 9 x 12 px."""
    from spatialembed.method.labels import encode

    masks = [
        [[1, 1, 5, 1, 5, 5]],
        {"size": [9, 12], "counts": [10, 5, 93]},
        encode(np.arange(108).reshape(9, 12) % 7 < 3),
    ]
    facts = {
        "images": [{"id": 1, "file_name": "a.png", "height": 9, "width": 12}],
        "categories": [{"id": 3, "name": "cell"}],
        "annotations": [
            {"id": n, "image_id": 1, "category_id": 3, "segmentation": mask, "iscrowd": 0}
            for n, mask in enumerate(masks)
        ],
    }
    return [json.dumps(facts).encode()]


def coco(path: Path) -> None:
    folder = path.parent / "images"
    folder.mkdir(exist_ok=True)
    (folder / "a.png").write_bytes(pictures("PNG")[0])
    from spatialembed.data.coco import open_coco

    dataset = open_coco(path)
    for i in range(len(dataset)):
        dataset.truth(i)


def windows(path: Path) -> None:
    size = image_size(path)
    if size is None or size[0] * size[1] > MAX_PIXELS:
        return
    source = open_large(path, path.parent)
    try:
        height, width = source.shape_hw
        source.read(0, min(height, 20), 0, min(width, 20))
    finally:
        source.close()


@functools.cache
def model_files() -> tuple[bytes, bytes]:
    import torch

    from spatialembed.inference import model_file
    from spatialembed.method.cluster import ClusterOptions
    from spatialembed.method.model import SpatialEmbeddingNet
    from spatialembed.types import Normalization

    with tempfile.TemporaryDirectory() as folder:
        how = Normalization("none"), ClusterOptions()
        info = model_file.ModelInfo(("cell",), True, *how, network="lite")  # the smallest
        torch.manual_seed(0)
        model_file.save(folder, SpatialEmbeddingNet(1, network="lite"), info, half=True)
        return tuple(Path(folder, n).read_bytes() for n in ("model.json", "model.safetensors"))  # type: ignore[return-value]


def facts(path: Path) -> None:
    from spatialembed.inference import model_file

    (path.parent / "model.safetensors").write_bytes(model_files()[1])
    os.replace(path, path.parent / "model.json")
    model_file.load(path.parent)


def weights(path: Path) -> None:
    """With the hash of the very bytes, or nothing but the hash would be tried."""
    from spatialembed.inference import model_file

    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    said = json.loads(model_files()[0]) | {"weights_sha256": sha256}
    (path.parent / "model.json").write_text(json.dumps(said))
    os.replace(path, path.parent / "model.safetensors")
    model_file.load(path.parent)


def settings(path: Path) -> None:
    from spatialembed.training.run_folder import read_settings

    os.replace(path, path.parent / "config.yaml")
    read_settings(path.parent)


def some_lengths() -> list[bytes]:
    from spatialembed.method.labels import encode

    return [encode(np.eye(9, 12, dtype=bool))["counts"].encode(), b"d3", b"0000"]


def run_lengths(path: Path) -> None:
    from spatialembed.method.labels import decode

    decode({"size": [9, 12], "counts": path.read_bytes().decode("latin-1")})


def classes(path: Path) -> None:
    from spatialembed.data.tables import read_classes

    read_classes(path)


def index(path: Path) -> None:
    from spatialembed.data.tables import read_index

    read_index(path)


def cityscapes(path: Path) -> None:
    """A file of ids, beside an image of its size."""
    from spatialembed.data.cityscapes import open_cityscapes

    stem = "ulm_000000_000019"
    for kind, name in (("gtFine", "gtFine_instanceIds"), ("leftImg8bit", "leftImg8bit")):
        folder = path.parent / kind / "val" / "ulm"
        folder.mkdir(parents=True)
        file = folder / f"{stem}_{name}.png"
        file.write_bytes(path.read_bytes() if kind == "gtFine" else pictures("PNG")[1])
    open_cityscapes(path.parent, split="val")[0]


def street_ids() -> list[bytes]:
    ids = np.zeros((12, 9), np.uint16)
    ids[3:6], ids[7:, 4:] = 26_001, 24_000
    stream = io.BytesIO()
    Image.fromarray(ids).save(stream, "PNG")
    return [stream.getvalue()]


def zarr_array(path: Path) -> None:
    """The first line is the attributes of the array, the rest its one chunk."""
    text, _, chunk = path.read_bytes().partition(b"\n")
    folder = path.parent / "a.zarr"
    (folder / "c" / "0").mkdir(parents=True)
    (folder / "zarr.json").write_bytes(text)
    (folder / "c" / "0" / "0").write_bytes(chunk)
    pixel_size(folder)
    size = image_size(folder)
    if size is not None and size[0] * size[1] <= MAX_PIXELS:
        open_large(folder, path.parent).read(0, min(size[0], 20), 0, min(size[1], 20))


def zarrs() -> list[bytes]:
    import zarr

    with tempfile.TemporaryDirectory() as folder:
        array = np.arange(108, dtype=np.uint16).reshape(9, 12)
        zarr.create_array(f"{folder}/a.zarr", data=array, chunks=(9, 12))
        text = json.dumps(json.loads(Path(folder, "a.zarr", "zarr.json").read_text()))
        return [text.encode() + b"\n" + Path(folder, "a.zarr", "c", "0", "0").read_bytes()]


def names(path: Path) -> None:
    """Files of each name in a list, and each name as a source."""
    made = path.parent / "in"
    made.mkdir()
    for line in path.read_bytes().split(b"\n")[:20]:
        name = os.fsdecode(line)
        with contextlib.suppress(OSError, ValueError):  # names that no file can have
            (made / name.replace("/", "_")).touch()
        with contextlib.suppress(SpatialEmbedError):
            list_images([made / name.lstrip("/")])
    list_images([made])


def physical(path: Path) -> None:
    pixel_size(path)
    with contextlib.suppress(SpatialEmbedError):
        each_page(path, "a")


def ome_tiffs() -> list[bytes]:
    found = []
    for how in (
        {"ome": True, "metadata": {"axes": "YX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}},
        {"imagej": True, "resolution": (4, 4), "metadata": {"unit": "um"}},
        {"resolution": (9000, 9000), "resolutionunit": "CENTIMETER"},
    ):
        stream = io.BytesIO()
        tifffile.imwrite(stream, np.zeros((8, 9), np.uint8), **how)  # type: ignore[arg-type]
        found.append(stream.getvalue())
    return found


def onnx_graph(path: Path) -> None:
    from spatialembed.export.check import OnnxFile

    OnnxFile(path)


def onnx_graphs() -> list[bytes]:
    """One whose maps are its image, with the facts of an exported file."""
    from onnx import TensorProto, helper

    names = ("offset", "log_precision", "seed")
    sides = [None, 3, None, None]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, sides) for n in ("image", *names)]
    nodes = [helper.make_node("Identity", ["image"], [name]) for name in names]
    graph = helper.make_graph(nodes, "maps", ends[:1], ends[1:])
    model = helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 18)])
    facts = {"precision": "float32", "licence": "Apache-2.0", "network": "erfnet"}
    helper.set_model_props(model, {key: json.dumps(value) for key, value in facts.items()})
    return [model.SerializeToString()]


def checkpoint(path: Path) -> None:
    from spatialembed.inference.convert import convert

    convert(path, path.parent / "car")


def checkpoints() -> list[bytes]:
    """Of one tensor: a file of the released names and shapes has 9 MB."""
    import torch

    found = []
    for zipped in (True, False):
        stream = io.BytesIO()
        contents = {"epoch": np.float64(1), "model_state_dict": {"module.a": torch.ones(2)}}
        torch.save(contents, stream, _use_new_zipfile_serialization=zipped)
        found.append(stream.getvalue())
    return found


def annotations(name: str, path: Path) -> None:
    """A file of annotations of that name, beside its image of 12 x 9 px."""
    from spatialembed.data.layouts.convert import convert

    source = path.parent / "in"
    (source / "images").mkdir(parents=True)
    (source / "images" / "a.png").write_bytes(pictures("PNG")[0])
    os.replace(path, source / name)
    found = convert(source / name, path.parent / "out", progress=False)
    for _, error in found.failed:
        raise error


def yolo(path: Path) -> None:
    """data.yaml, an empty line, the labels of the image."""
    names, _, lines = path.read_bytes().partition(b"\n\n")
    labels = path.parent / "in" / "labels"
    labels.mkdir(parents=True)
    (labels / "a.txt").write_bytes(lines)
    path.write_bytes(names)
    annotations("data.yaml", path)


def labelme_files() -> list[bytes]:
    png = base64.b64encode(pictures("PNG")[0]).decode()
    shapes = [
        {"label": "a", "points": [[1, 1], [7, 1], [7, 6]], "shape_type": "polygon"},
        {"label": "b", "points": [[1, 7], [3, 9.5]], "shape_type": "rectangle", "group_id": 1},
        {"label": "b", "points": [[6, 9], [6, 11]], "shape_type": "circle", "group_id": 1},
        {"label": "c", "points": [[0, 0], [9, 12]], "shape_type": "mask", "mask": png},
    ]
    file = {"shapes": shapes, "imageHeight": 12, "imageWidth": 9}
    return [
        json.dumps({**file, **image}).encode()
        for image in ({"imagePath": "a.png"}, {"imageData": png})
    ]


def cvat_files() -> list[bytes]:
    return [
        b"""<?xml version="1.0" encoding="utf-8"?><annotations><version>1.1</version>
<image id="0" name="a.png" width="9" height="12" subset="train">
<polygon label="a" points="1.0,1.0;7.0,1.0;7.0,6.0" z_order="1" group_id="2"/>
<box label="b" xtl="1" ytl="7" xbr="3" ybr="9.5" rotation="20"/>
<ellipse label="b" cx="6" cy="9" rx="2" ry="1"/>
<mask label="c" left="1" top="1" width="3" height="2" rle="1, 4, 1"/>
<points label="d" points="1,1"/></image></annotations>"""
    ]


def label_studio_files() -> list[bytes]:
    bits = f"{12 * 9 * 4:032b}" + f"{7:05b}" + "0011011110111111"  # see ``decoded_brush``
    bits += "110" + f"{12 * 9 * 4 - 1:012b}" + "1" * 8
    bits += "0" * (-len(bits) % 8)
    rle = list(int(bits, 2).to_bytes(len(bits) // 8, "big"))
    size = {"original_width": 9, "original_height": 12}
    values = {
        "polygonlabels": {"points": [[10, 10], [80, 10], [80, 50]]},
        "brushlabels": {"format": "rle", "rle": rle},
        "rectanglelabels": {"x": 10, "y": 60, "width": 30, "height": 20, "rotation": 5},
        "ellipselabels": {"x": 60, "y": 70, "radiusX": 20, "radiusY": 10},
    }
    results = [
        {"id": kind, "type": kind, "value": {**value, kind: ["cell"]}, **size}
        for kind, value in values.items()
    ]
    task = {
        "id": 1,
        "data": {"image": "/data/upload/1/a.png"},
        "annotations": [{"result": results}],
    }
    return [json.dumps([task]).encode()]


def inputs(suffix: str, path: Path) -> None:
    """A list for ``bulk``."""
    from spatialembed.bulk.sources import list_inputs

    os.replace(path, source := path.with_suffix(suffix))
    list_inputs([str(source)], str(path.parent / "out"))


def plan(path: Path) -> None:
    """The files of a plan of ``bulk``, and of its only shard, with a line -- between."""
    from spatialembed.bulk.ledger import Ledger
    from spatialembed.bulk.merge import merge
    from spatialembed.bulk.plan import make_or_check, read_plan
    from spatialembed.bulk.sources import Input
    from spatialembed.bulk.store import Folder

    names = ("plan.json", "inputs-000.jsonl", f"{SHARD}.jsonl", f".bulk/ledger/{SHARD}/at")
    (path.parent / ".bulk" / "ledger" / SHARD).mkdir(parents=True)
    for name, part in zip(names, path.read_bytes().split(b"\n--\n"), strict=False):
        (path.parent / name).write_bytes(part)
    store = Folder(path.parent)
    if (found := read_plan(store)) is None:
        return
    Ledger(store, SHARD).begin()
    images = [Input("a.png", "/in/"), Input("b.png", "/in/")]
    make_or_check(store, images, {"classes": ["cell"]}, 2, False)
    merge(store, found, False)


def plans() -> list[bytes]:
    from spatialembed.bulk.plan import Plan
    from spatialembed.bulk.sources import Input
    from spatialembed.bulk.store import Folder

    with tempfile.TemporaryDirectory() as folder:
        store = Folder(Path(folder))
        made = Plan({"classes": ["cell"]}, 2)
        made.add(store, [Input("a.png", "/in/"), Input("b.png", "/in/")])
        rows = [
            {"part": SHARD, "images": 2},
            {"image": "a.png", "rows": "a,1\n", "entry": {"image": {"id": 0}, "objects": []}},
            {"image": "b.png", "error": ["truncated", "b.png: cut"]},
        ]
        parts = [
            store.read("plan.json").replace(b"\n", b""),
            store.read("inputs-000.jsonl"),
        ]
        parts += ["\n".join(map(json.dumps, rows)).encode(), b"[0, 1]"]
        return [b"\n--\n".join(parts)]


def multipart(path: Path) -> None:
    """The content type, an empty line, the body."""
    from spatialembed.serve.faults import Refused
    from spatialembed.serve.multipart import one_file

    kind, _, body = path.read_bytes().partition(b"\n\n")
    with contextlib.suppress(Refused):
        one_file(kind.decode("latin-1"), body)


def image(path: Path) -> None:
    read_image(path, max_pixels=MAX_PIXELS)


TARGETS: dict[str, Target] = {
    **{
        form.lower(): (image, functools.partial(pictures, form))
        for form in ("PNG", "JPEG", "BMP", "GIF", "WebP")
    },
    "tiff": (image, tiffs),
    "labels": (
        lambda path: read_labels(path, max_pixels=MAX_PIXELS),
        lambda: tiffs() + pictures("PNG") + street_ids(),
    ),
    "windows": (windows, lambda: tiffs() + pictures("PNG")),
    "zarr": (zarr_array, zarrs),
    "physical": (physical, ome_tiffs),
    "names": (names, lambda: [b"a.png\nb*.tif\n**/c.png\n[x].jpg", b"\xff.png\n..\n.hid.tif"]),
    "coco": (coco, coco_texts),
    "rle": (run_lengths, some_lengths),
    "cityscapes": (cityscapes, street_ids),
    "classes": (classes, lambda: [b"image,id,class\na,1,x\na.png,2,y\n"]),
    "index": (
        index,
        lambda: [b"id,plate\na,1\nimages/b.png,2\n", b"image,x\n\xef\xbb\xbfa,1\n"],
    ),
    "facts": (facts, lambda: [model_files()[0]]),
    "weights": (weights, lambda: [model_files()[1][:20000], model_files()[1]]),
    "yaml": (
        settings,
        lambda: [yaml.safe_dump({"data": "x", "stage1": {"crop": 256}}).encode()],
    ),
    "onnx": (onnx_graph, onnx_graphs),
    "checkpoint": (checkpoint, checkpoints),
    "labelme": (functools.partial(annotations, "a.json"), labelme_files),
    "cvat": (functools.partial(annotations, "annotations.xml"), cvat_files),
    "studio": (functools.partial(annotations, "tasks.json"), label_studio_files),
    "yolo": (
        yolo,
        lambda: [b"names:\n  0: a\n  1: b\n\n0 .1 .1 .8 .1 .8 .5\n1 0.5 0.7 0.2 0.2\n"],
    ),
    "lines": (functools.partial(inputs, ".txt"), lambda: [b"a.png\n../b/c.png\n/d/e.tif\n"]),
    "columns": (functools.partial(inputs, ".csv"), lambda: [b'x,image\n1,a.png\n2,"b/c.tif"\n']),
    "plan": (plan, plans),
    "multipart": (
        multipart,
        lambda: [
            b"multipart/form-data; boundary=xyz\n\n--xyz\r\nContent-Disposition: form-data; "
            b'name="image"; filename="a.png"\r\nContent-Type: image/png\r\n\r\nabc\r\n--xyz--\r\n',
        ],
    ),
}


@functools.cache
def corpus(target: str) -> list[bytes]:
    """The valid files that inputs of a target are made of."""
    return TARGETS[target][1]()


@functools.cache
def room() -> Path:
    """The folder of all inputs of this process."""
    memory = "/dev/shm"
    folder = tempfile.mkdtemp(prefix="fuzz-", dir=memory if os.access(memory, os.W_OK) else None)
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def cleared() -> Path:
    """The same, empty."""
    for entry in os.scandir(room()):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry)
        else:
            os.unlink(entry)
    return room()


@contextlib.contextmanager
def watched() -> Iterator[Callable[[], None]]:
    """Yield a function to call at each input; one that hangs ends the process, and says where."""
    since = -math.inf

    def look() -> None:
        nonlocal since
        if (now := time.monotonic()) - since > 1:  # it starts a thread: not for each input
            since = now
            faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)

    try:
        yield look
    finally:
        faulthandler.cancel_dump_traceback_later()


def tried(target: str, content: bytes) -> bool:
    """One input; whether it was taken rather than refused. Raises whatever else it meets."""
    function, _ = TARGETS[target]
    path = cleared() / "input"
    path.write_bytes(content)
    began = time.process_time()
    try:
        function(path)
    except SpatialEmbedError:
        return False
    finally:
        spent = time.process_time() - began
        if spent > MOST_SECONDS:
            raise TimeoutError(f"{target} took {spent:.1f} s")
    return True


def mutated(content: bytes, draw: random.Random) -> bytes:
    """A few bytes changed, cut, doubled, or numbers set to extremes."""
    data = bytearray(content)
    for _ in range(draw.choice((1, 1, 2, 4, 8))):
        at = draw.randrange(len(data) + 1)
        kind = draw.randrange(6)
        if kind == 0 and at < len(data):
            data[at] ^= 1 << draw.randrange(8)
        elif kind == 1 and at < len(data):
            data[at] = draw.choice(b'\x00\xff\x7f\x80-9{[",e.')
        elif kind == 2:
            del data[at : at + draw.choice((1, 2, 4, 100, len(data)))]
        elif kind == 3:
            data[at:at] = data[at : at + draw.choice((1, 4, 16, 200))]
        elif kind == 4:
            data[at : at + 4] = draw.choice((b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"9999"))
        else:
            data[at:at] = bytes(draw.randrange(256) for _ in range(draw.choice((1, 3, 9))))
    return with_checksums(bytes(data)) if draw.randrange(4) else bytes(data)


def with_checksums(content: bytes) -> bytes:
    """The same PNG, or what is left of it, with the checksum of each chunk as it has to be."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    data, at = bytearray(content), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        end = at + 8 + length
        if end + 4 > len(data):
            break
        struct.pack_into(">I", data, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(data)


def kept(target: str, content: bytes) -> None:
    """Write the input of a fault."""
    path = Path("runs/fuzz", f"{target}-{hashlib.sha256(content).hexdigest()[:12]}")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    print(f"fault of {target}: {path}", file=sys.stderr, flush=True)


class Faults:
    """The faults that were met, one for each place in the program."""

    def __init__(self) -> None:
        self.met: set[tuple[object, ...]] = set()

    def note(self, target: str, content: bytes, error: Exception) -> None:
        """Print and keep a new one."""
        where = traceback.extract_tb(error.__traceback__)[-1]
        if (fault := (target, type(error), where.filename, where.lineno)) not in self.met:
            self.met.add(fault)
            traceback.print_exception(error)
            kept(target, content)


def at_random(target: str, runs: int, seconds: float, seed: int, faults: Faults) -> tuple[int, int]:
    """How many inputs were tried, and taken."""
    draw = random.Random(f"{target} {seed}")
    until = time.monotonic() + seconds
    done = taken = 0
    with watched() as look:
        while done < runs and time.monotonic() < until:
            look()
            content = mutated(draw.choice(corpus(target)), draw)
            try:
                taken += tried(target, content)
            except Exception as error:
                faults.note(target, content, error)
            done += 1
    return done, taken


def by_coverage(targets: list[str], runs: int, seconds: float) -> None:
    """Ends the process, as libFuzzer does."""
    folder = Path("runs/fuzz/corpus")
    folder.mkdir(parents=True, exist_ok=True)
    for i, target in enumerate(targets):
        for n, content in enumerate(corpus(target)):
            if len(content) < LONGEST:
                (folder / f"{target}{n}").write_bytes(bytes([i]) + content)
    counts, faults = dict.fromkeys(targets, 0), Faults()

    def one(content: bytes) -> None:
        if not content:
            return
        target = targets[content[0] % len(targets)]
        try:
            tried(target, content[1:])
        except Exception as error:  # noted, and on: a start takes minutes
            faults.note(target, content[1:], error)
        counts[target] += 1
        if sum(counts.values()) % 200 == 0:  # the process ends without a word to Python
            Path("runs/fuzz/counts.json").write_text(json.dumps(counts))

    def mutate(content: bytes, most: int, seed: int) -> bytes:
        changed = atheris.Mutate(content[1:], most - 1)
        return content[:1] + (with_checksums(changed) if seed % 4 else changed)

    rss_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    flags = [
        f"-runs={runs * len(targets)}", f"-max_total_time={int(seconds * len(targets))}",
        f"-rss_limit_mb={rss_mb + (MORE_BYTES >> 20)}", f"-timeout={STUCK_SECONDS}",
        "-artifact_prefix=runs/fuzz/", f"-max_len={LONGEST}",
    ]  # fmt: skip
    atheris.Setup([sys.argv[0], str(folder), *flags], one, custom_mutator=mutate)
    atheris.Fuzz()


def bounded() -> None:
    """Let memory grow by MORE_BYTES at most, in address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGESIZE") + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--target", default=",".join(TARGETS), help="one or several with commas between"
    )
    parser.add_argument("--runs", type=int, default=10_000, help="of each target")
    parser.add_argument("--seconds", type=float, default=60, help="for each target")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--atheris", action="store_true")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    logging.disable()
    targets = given.target.split(",")
    if given.atheris:
        by_coverage(targets, given.runs, given.seconds)
    for target in targets:
        corpus(target)
    for module in (*LATE, "inference.model_file"):  # before memory is bounded
        importlib.import_module(f"spatialembed.{module}")
    bounded()
    faulthandler.enable()
    faults = Faults()
    for target in targets:
        began = time.process_time()
        done, taken = at_random(target, given.runs, given.seconds, given.seed, faults)
        each = (time.process_time() - began) / max(1, done) * 1e6
        print(f"{target:12} {done:8} inputs, {taken} taken, {each:.0f} us each", flush=True)
    return 1 if faults.met else 0


if __name__ == "__main__":
    sys.exit(main())
