"""Models by name from a stand-in of the hub, in processes of their own: its client reads its
settings from the environment as it is imported."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import pytest

from hub_server import Hub, running_hub
from spatialembed.errors import SpatialEmbedError
from spatialembed.evaluation import tune

pytest.importorskip("huggingface_hub")

SHAPES = resources.files("spatialembed") / "models" / "shapes"
MODEL = {name: (SHAPES / name).read_bytes() for name in ("model.json", "model.safetensors")}
CARD = b"---\nlicense: apache-2.0\n---\n# Shapes\n\nPlain shapes of a lab. More of it.\n"
NOT_OURS = {"pytorch_model.bin": b"a pickle", "run_me.py": b"raise SystemExit", "model.zip": b""}
FOLDERS = """
import logging, sys
from spatialembed.errors import SpatialEmbedError
from spatialembed.inference.hub import hub_folder
logging.basicConfig(format="%(message)s", level="INFO", stream=sys.stdout)
for noisy in ("httpx", "httpx2"): logging.getLogger(noisy).setLevel("WARNING")
for name in sys.argv[1:]:
    try:
        print(hub_folder(name))
    except SpatialEmbedError as error:
        print(error.exit_code, error)
"""
LABELS = """
import hashlib, sys
import spatialembed
from spatialembed.generated.nuclei_and_shapes import shapes_scene
image = shapes_scene(96, 96, seed=(0, 0)).image
for model in sys.argv[1:]:
    found = spatialembed.load(model, engine="torch", precision="float32")(image)
    print(len(found), hashlib.sha256(found.labels.tobytes()).hexdigest())
"""


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running_hub() as hub:
        yield hub


def python(code: str, *words: str, url: str, cache: Path, offline: bool = False) -> list[str]:
    """Lines that a process prints whose hub and cache are these."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": url, "HF_HOME": str(cache), "HF_HUB_DISABLE_TELEMETRY": "1"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words],
        env=kept | own | ({"HF_HUB_OFFLINE": "1"} if offline else {}),
        capture_output=True,
        text=True,
        timeout=400,
        check=True,
    )
    return done.stdout.splitlines()


@pytest.mark.slow
def test_a_commit_is_fetched_once_and_gives_the_same_labels(hub: Hub, tmp_path: Path) -> None:
    name = f"hf://lab/shapes@{hub.push('lab/shapes', MODEL | NOT_OURS | {'README.md': CARD})}"
    ours, again, bundled = python(LABELS, name, name, "shapes", url=hub.url, cache=tmp_path)
    assert ours == again == bundled
    assert int(ours.split()[0]) > 0
    assert sorted(hub.fetched) == ["README.md", "model.json", "model.safetensors"]

    asked = len(hub.asked)
    (folder,) = python(FOLDERS, name, url=hub.url, cache=tmp_path)
    assert len(hub.asked) == asked  # a commit in the cache needs no network
    assert python(FOLDERS, name, url=hub.url, cache=tmp_path, offline=True) == [folder]
    assert {p.name: p.read_bytes() for p in Path(folder).iterdir()} == MODEL | {"README.md": CARD}

    listing = "from spatialembed.command.main import main; main(['models'])"
    lines = python(listing, url=hub.url, cache=tmp_path, offline=True)
    assert f"  --model {name} Plain shapes of a lab." in lines
    assert any(line.startswith("  --model nuclei ") for line in lines)


def test_a_tag_is_resolved_and_told(hub: Hub, tmp_path: Path) -> None:
    first = hub.push("lab/shapes", MODEL, "v1")
    said, folder = python(FOLDERS, "hf://lab/shapes@v1", url=hub.url, cache=tmp_path)
    assert said == f"hf://lab/shapes@v1 is commit {first}, and may be another one later"
    assert Path(folder).name == first

    second = hub.push("lab/shapes", MODEL | {"README.md": CARD}, "v1")  # the tag moves
    offline = python(FOLDERS, "hf://lab/shapes@v1", url=hub.url, cache=tmp_path, offline=True)
    assert offline[0].endswith("the hub cannot be asked; the commit in the cache is taken")
    assert offline[-1] == folder
    *_, folder = python(FOLDERS, "hf://lab/shapes@v1", url=hub.url, cache=tmp_path)
    assert Path(folder).name == second


def test_every_refusal_is_a_line(hub: Hub, tmp_path: Path) -> None:
    newest = hub.push("lab/shapes", MODEL)
    hub.push("lab/other", {"model.safetensors": b"weights", "config.json": b"{}"})
    hub.push("lab/alike", {"model.safetensors": b"weights", "model.json": b'{"layers": 3}'})
    hub.gated.add("lab/closed")
    refusals = {
        "hf://lab/shapes": (2, "bad_setting", f"give hf://lab/shapes@{newest}"),
        "hf://shapes@main": (2, "bad_setting", "hf://OWNER/NAME@REVISION"),
        "hf://lab/shapes@../../x": (2, "bad_setting", "hf://OWNER/NAME@REVISION"),
        "hf://lab/none@main": (4, "no_model", "no such model, or a private one"),
        "hf://lab/shapes@v9": (4, "no_model", "no such revision"),
        "hf://lab/closed@main": (4, "no_model", "access on request"),
        "hf://lab/other@main": (4, "no_model", "it has no model.json"),
        "hf://lab/alike@main": (4, "no_model", "its model.json is not one of ours"),
    }
    lines = python(FOLDERS, *refusals, url=hub.url, cache=tmp_path)
    assert "model.safetensors" not in hub.fetched  # weights of others may be gigabytes
    assert len(lines) == len(refusals)
    for line, (exit_code, code, part) in zip(lines, refusals.values(), strict=True):
        assert line.startswith(f"{exit_code} {code}: hf://"), line
        assert part in line, line


@pytest.mark.parametrize("offline", [False, True])
def test_without_network(tmp_path: Path, offline: bool) -> None:
    url = "http://127.0.0.1:9"  # nobody listens there
    (line,) = python(FOLDERS, "hf://lab/shapes@v1", url=url, cache=tmp_path, offline=offline)
    assert line.startswith("4 no_hub: hf://lab/shapes@v1: ")
    assert ("HF_HUB_OFFLINE" in line) == offline


def test_a_model_of_the_hub_is_never_overwritten() -> None:
    with pytest.raises(SpatialEmbedError, match="never overwritten"):
        tune.prepare("hf://lab/shapes@v1", None)
