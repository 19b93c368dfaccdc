"""Hundreds of files, sound and broken: each gets its pixels, its warning or its code."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from corpus import Case, corpus, fault_of
from known_predictor import INFO
from spatialembed.images.read import read_image, read_pixels
from spatialembed.inference.predict_folder import predict_folder
from spatialembed.inference.predictor import Predictor
from spatialembed.types import Embeddings

Files = list[tuple[Case, Path]]
ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "spatialembed"
SLOWEST = 5.0
"""Seconds for one tiny file; what takes longer hangs or unpacks a bomb."""
PILLOW_DIFFERS = ("assocalpha", "uint16", "lzw-uint32", "png-4-16", "tiff-int8", "thumbnail-first")
"""Colours divided by their alpha, no white as 0 in 16 bits, 32 bits with a sign, the high byte of
16-bit alpha images and colours, no sign in 8 bits, the first page whatever it is."""
pytestmark = [
    pytest.mark.filterwarnings("ignore::spatialembed.images.checks.ImageWarning"),
    pytest.mark.filterwarnings("ignore:Truncated File Read:UserWarning"),
]


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Files:
    folder = tmp_path_factory.mktemp("corpus")
    made = [(case, folder / case.name) for case in corpus()]
    for case, path in made:
        path.write_bytes(case.data)
    return made


def test_corpus_is_large(files: Files) -> None:
    assert len(files) >= 500
    assert len({path for _, path in files}) == len(files)
    assert min(sum(f".{suffix}" in case.name for case, _ in files) for suffix in
               ("png", "jpg", "tif", "webp", "bmp", "gif")) > 25  # fmt: skip


@pytest.mark.parametrize("suffix", ["png", "jpg", "tif", "webp", "bmp", "gif"])
def test_each_file_gets_its_answer(suffix: str, files: Files) -> None:
    wrong = []
    for case, path in files:
        if not case.name.lower().endswith(suffix):
            continue
        began = time.thread_time()
        if (fault := fault_of(case, path)) is not None:
            wrong.append(f"{case.name}: {fault}")
        if (took := time.thread_time() - began) > SLOWEST:
            wrong.append(f"{case.name}: {took:.1f} s")
    assert wrong == []


def alone(code: str, folder: Path) -> str:
    """What Python code prints in a process of its own, with the corpus at hand."""
    prefix = f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
    code = prefix + code.replace("FOLDER", repr(str(folder)))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="getrusage counts the parent's memory too")
@pytest.mark.parametrize("fault", ["IMG-07"])
def test_bombs_take_no_memory(fault: str, files: Files) -> None:
    """Whatever a header, a strip, a chunk or a frame claims; 300 MB are there to unpack."""
    code = (
        "from pathlib import Path\n"
        "from spatialembed.images.read import read_image\n"
        "def peak_kb():\n"
        "    text = open('/proc/self/status').read()\n"
        "    return int(text.split('VmHWM:')[1].split()[0])\n"
        "paths = [p for p in Path(FOLDER).iterdir() if 'bomb' in p.name or 'says' in p.name]\n"
        "before = peak_kb()\n"
        "for path in paths:\n"
        "    try: read_image(path)\n"
        "    except Exception: pass\n"
        "print(len(paths), peak_kb() - before)"
    )
    count, grown_kb = map(int, alone(code, files[0][1].parent).split())
    assert count > 20
    assert grown_kb < 60_000


def test_a_pillow_image_and_an_array_are_read_like_the_file(files: Files) -> None:
    """But for what Pillow itself reads in another way, as PILLOW_DIFFERS says."""
    compared, other = 0, []
    for case, path in files:
        if case.truth is None or case.codes or any(word in case.name for word in PILLOW_DIFFERS):
            continue
        pixels = read_image(path)
        assert np.array_equal(read_pixels(pixels), pixels)
        assert np.array_equal(read_pixels(str(path)), pixels)
        try:
            image = Image.open(path)
        except (OSError, ValueError):  # a kind of TIFF, or a text bomb, that only we take
            continue
        if pixels.ndim == 3 and pixels.dtype == np.uint16:
            continue
        compared += 1
        if not np.array_equal(read_pixels(image), pixels):
            other.append(case.name)
    assert not other, " ".join(other)
    assert compared > 300


class Nothing:
    """An engine that sees nothing anywhere."""

    device = torch.device("cpu")
    name, precision, scale = "nothing", "float32", 1.0

    def __call__(self, images: Tensor) -> Embeddings:
        maps = torch.zeros(len(images), 5, *images.shape[-2:])
        return Embeddings(maps[:, :2], maps[:, 2:4], maps[:, 4:])


def test_no_file_ends_a_job(files: Files) -> None:
    """Every file with pixels gets its result, every other one its code, all in order."""
    predictor = Predictor(Nothing(), INFO)  # type: ignore[arg-type]
    outcomes = list(predictor.outcomes(path for _, path in files))
    assert [outcome.source for outcome in outcomes] == [path for _, path in files]
    for (case, _), outcome in zip(files, outcomes, strict=True):
        if outcome.instances is None:
            assert outcome.error is not None
            # A model without percentiles refuses floats beyond [0, 1], one with them takes any.
            assert outcome.error.code in (*case.codes, "value_range"), case.name
        else:
            assert case.truth is not None, case.name
            assert outcome.instances.labels.shape == case.truth.shape[:2]


def test_no_file_ends_the_command(files: Files, tmp_path: Path) -> None:
    """Of every ninth file, and of all that say that they are huge, which may go by tiles."""
    some = [path for i, (case, path) in enumerate(files) if i % 9 == 0 or "says" in case.name]
    predictor = Predictor(Nothing(), INFO)  # type: ignore[arg-type]
    result = predict_folder(predictor, some, tmp_path, progress=False)
    failed = {path for path, _ in result.failed}
    assert result.images + len(failed) == len(some)
    assert result.images > 30
    assert len(failed) > 20
    labels = {path.name for path in tmp_path.glob("*_labels.png")}
    assert labels == {f"{path.stem}_labels.png" for path in some if path not in failed}


READERS = sorted([*(SOURCE / "images").glob("*.py"), *(SOURCE / "data").glob("*.py")])
"""The files that read inputs; docs/troubleshooting.md has their codes."""


def test_the_codes_of_inputs_are_documented() -> None:
    raised = set()
    for path in READERS:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "SpatialEmbedError":
                code = node.args[0]
                if ast.unparse(code) != "fault.code":  # of a LabelFault, which _fault makes
                    assert isinstance(code, ast.Constant)
                    raised.add(code.value)
            elif (
                isinstance(node, ast.Call)
                and ast.unparse(node.func) == "_fault"
                and len(node.args) > 4  # a certainty is named, and a certain one is refused
            ):
                assert isinstance(node.args[0], ast.Constant)
                raised.add(node.args[0].value)
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    table = re.findall(r"^\| `(\w+)` \|", page, re.MULTILINE)
    assert len(set(table)) == len(table)
    assert raised <= set(table)
    assert {code for case in corpus() for code in case.codes} <= set(table)
