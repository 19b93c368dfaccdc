"""Fuzz the readers of foreign bytes: every input gets a value or a SpatialEmbedError, nothing else.

    python benchmarks/fuzz.py [--target png] [--runs 10000] [--seconds 60] [--atheris]

Inputs are mutations of a few small valid files that are made here. --atheris lets coverage guide
them (pip install atheris); without it they are drawn at random. More than 5 s of the
processor for one of them is a fault, as is memory beyond 1 GB over what the libraries take. The
input of a fault is written to runs/fuzz/.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import io
import json
import logging
import os
import random
import resource
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tifffile
import torch
import yaml
from PIL import Image

from spatialembed.data.coco import open_coco
from spatialembed.data.tables import read_classes, read_index
from spatialembed.errors import SpatialEmbedError
from spatialembed.images.read import read_image, read_labels
from spatialembed.images.windows import image_size, open_large
from spatialembed.inference import model_file
from spatialembed.inference.model_file import ModelInfo
from spatialembed.method.cluster import ClusterOptions
from spatialembed.method.labels import decode, encode
from spatialembed.method.model import SpatialEmbeddingNet
from spatialembed.training.run_folder import read_settings
from spatialembed.types import Normalization

MOST_SECONDS = 5  # of the processor; on a busy machine a file takes longer to come
STUCK_SECONDS = 60
MORE_BYTES = 1 << 30
MAX_PIXELS = 1 << 22

Target = tuple[Callable[[Path], object], list[bytes]]


def pictures(form: str) -> list[bytes]:
    """A grey and a colour picture of 12 x 9 px in a format of Pillow."""
    rng = np.random.default_rng(0)
    found = []
    for shape in ((12, 9), (12, 9, 3)):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 256, shape, np.uint8)).save(stream, form)
        found.append(stream.getvalue())
    return found


def tiffs() -> list[bytes]:
    pixels = np.random.default_rng(0).integers(0, 4000, (48, 40), np.uint16)
    found = []
    for settings in ({}, {"tile": (16, 16)}, {"compression": "zlib"}, {"bigtiff": True}):
        stream = io.BytesIO()
        tifffile.imwrite(stream, pixels, **settings)  # type: ignore[arg-type]
        found.append(stream.getvalue())
    return found


def coco_texts() -> list[bytes]:
    """Polygons, plain and compressed run lengths on one image of 9 x 12 px."""
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


def model_files() -> tuple[bytes, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        info = ModelInfo(("cell",), True, Normalization("none"), ClusterOptions())
        torch.manual_seed(0)
        model_file.save(folder, SpatialEmbeddingNet(1), info, half=True)
        return tuple(Path(folder, n).read_bytes() for n in ("model.json", "model.safetensors"))  # type: ignore[return-value]


FACTS, WEIGHTS = model_files()


def facts(path: Path) -> None:
    (path.parent / "model.safetensors").write_bytes(WEIGHTS)
    os.replace(path, path.parent / "model.json")
    model_file.load(path.parent)


def weights(path: Path) -> None:
    """With the hash of the very bytes, or nothing but the hash would be tried."""
    said = json.loads(FACTS) | {"weights_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    (path.parent / "model.json").write_text(json.dumps(said))
    os.replace(path, path.parent / "model.safetensors")
    model_file.load(path.parent)


def settings(path: Path) -> None:
    os.replace(path, path.parent / "config.yaml")
    read_settings(path.parent)


def run_lengths(path: Path) -> None:
    decode({"size": [9, 12], "counts": path.read_bytes().decode("latin-1")})


def image(path: Path) -> None:
    read_image(path, max_pixels=MAX_PIXELS)


TARGETS: dict[str, Target] = {
    **{form.lower(): (image, pictures(form)) for form in ("PNG", "JPEG", "BMP", "GIF", "WebP")},
    "tiff": (image, tiffs()),
    "labels": (lambda path: read_labels(path, max_pixels=MAX_PIXELS), tiffs() + pictures("PNG")),
    "windows": (windows, tiffs()),
    "coco": (coco, coco_texts()),
    "rle": (run_lengths, [encode(np.eye(9, 12, dtype=bool))["counts"].encode(), b"d3", b"0000"]),
    "classes": (read_classes, [b"image,id,class\na,1,x\na.png,2,y\n"]),
    "index": (read_index, [b"id,plate\na,1\nimages/b.png,2\n", b"image,x\n\xef\xbb\xbfa,1\n"]),
    "facts": (facts, [FACTS]),
    "weights": (weights, [WEIGHTS[:20000], WEIGHTS]),
    "yaml": (settings, [yaml.safe_dump({"data": "x", "stage1": {"crop": 256}}).encode()]),
}


def tried(target: str, content: bytes) -> bool:
    """One input; whether it was taken rather than refused. Raises whatever else it meets."""
    function, _ = TARGETS[target]
    with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
        path = Path(folder, "input")
        path.write_bytes(content)
        faulthandler.dump_traceback_later(STUCK_SECONDS, exit=True)
        began = time.process_time()
        try:
            function(path)
        except SpatialEmbedError:
            return False
        finally:
            faulthandler.cancel_dump_traceback_later()
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
    return bytes(data)


def at_random(target: str, runs: int, seconds: float, seed: int) -> tuple[int, int]:
    """How many inputs were tried, and taken. A fault leaves its input in runs/fuzz/."""
    draw = random.Random(f"{target} {seed}")
    corpus = TARGETS[target][1]
    until = time.monotonic() + seconds
    done = taken = 0
    while done < runs and time.monotonic() < until:
        content = mutated(draw.choice(corpus), draw)
        try:
            taken += tried(target, content)
        except BaseException:
            kept = Path("runs/fuzz", f"{target}-{hashlib.sha256(content).hexdigest()[:12]}")
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_bytes(content)
            print(f"fault of {target}: {kept}", file=sys.stderr)
            raise
        done += 1
    return done, taken


def by_coverage(target: str, runs: int, seconds: float) -> None:
    """Ends the process, as libFuzzer does."""
    import atheris

    folder = Path("runs/fuzz", f"corpus_{target}")
    folder.mkdir(parents=True, exist_ok=True)
    for n, content in enumerate(TARGETS[target][1]):
        (folder / f"seed{n}").write_bytes(content)
    atheris.instrument_all()
    flags = [f"-runs={runs}", f"-max_total_time={int(seconds)}", "-artifact_prefix=runs/fuzz/"]
    atheris.Setup([sys.argv[0], str(folder), *flags], lambda content: tried(target, content))
    atheris.Fuzz()


def bounded() -> None:
    """Let memory grow by MORE_BYTES at most, in address space."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * os.sysconf("SC_PAGESIZE") + MORE_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))


def main() -> None:
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
    if given.atheris:
        by_coverage(given.target, given.runs, given.seconds)
    bounded()
    for target in given.target.split(","):
        done, taken = at_random(target, given.runs, given.seconds, given.seed)
        print(f"{target:8} {done:8} inputs, {taken} taken, the others refused", flush=True)


if __name__ == "__main__":
    main()
