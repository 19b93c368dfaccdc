"""The guide: every command and snippet in it is run, every code of a fault is in its table.

How a page says what to run is told in ``doc_blocks``.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from doc_blocks import COMMANDS, Block, blocks, inline_commands
from spatialembed.command import main
from spatialembed.command.arguments import bundled_configs, parse
from spatialembed.console import console
from spatialembed.doctor.checks import CHECKS
from spatialembed.errors import SpatialEmbedError
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, nuclei_field, write_folder
from spatialembed.images.write import write_png

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "spatialembed"
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(p for p in DOCS.glob("*.md"))]
CARDS = sorted((SOURCE / "models").glob("*/README.md"))
OTHERS = {"cd", "ls", "git", "source", "pip", "make", "python", "python3"}
"""Commands that stand on pages and are not run here."""


def name_of(page: Path) -> str:
    """The parameter id of a page."""
    return page.parent.name if page in CARDS else page.stem


def pages_to_run() -> list[Any]:
    """The pages with something to run."""
    run = {page: [b for b in blocks(page) if b.language in ("sh", "python")] for page in PAGES}
    return [
        pytest.param(page, id=name_of(page))
        for page, found in run.items()
        if not all(block.not_run for block in found)
    ]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What lies in the folder in which a reader begins: DIR, photos/ and cells.png."""
    folder = tmp_path_factory.mktemp("start")
    write_folder(SyntheticDataset("nuclei", 96, 10), folder / "DIR")
    names = sorted(path.stem for path in (folder / "DIR" / "images").iterdir())
    rows = [f"{name},field{i % 5}" for i, name in enumerate(names)]
    (folder / "DIR" / "index.csv").write_text("\n".join(["image,mosaic", *rows]) + "\n")
    for i, name in enumerate(("cells", "photos/a", "photos/b", "photos/c")):
        write_png(folder / f"{name}.png", nuclei_field(128, 128, seed=i).image)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_to_run())
def test_page_runs(
    page: Path, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Do what a page says, from top to bottom, in a folder of its own."""
    folder = tmp_path / "here"
    shutil.copytree(start, folder)
    monkeypatch.chdir(folder)
    names: dict[str, object] = {"__name__": page.stem}
    for block in blocks(page):
        if block.not_run:
            continue
        where = f"{page.name}:{block.line}"
        if block.language == "python":
            exec(compile("\n" * (block.line - 1) + block.text, str(page), "exec"), names)
        elif block.language == "sh":
            for words in block.commands():
                if words[0] == "spatialembed":
                    assert main.main([*words[1:], *block.flags]) == 0, f"{where}: {words}"


@pytest.mark.parametrize("page", [*PAGES, *CARDS], ids=name_of)
def test_every_command_is_one(page: Path) -> None:
    """Commands that are not run too: the verb and its flags are there, and values fit."""
    for block in blocks(page):
        where = f"{page.name}:{block.line}"
        if block.language == "sh":
            for words in block.commands():
                check_command(words, where)
        elif block.language == "python":
            compile(block.text, where, "exec")
        elif page.parent == DOCS:
            lines = block.text.splitlines()
            assert not any(line.startswith(COMMANDS) for line in lines), f"{where}: say ```sh"
    for words in inline_commands(page):
        with contextlib.suppress(NotGiven):
            check_spatialembed(words[1:], f"{page.name}: `{' '.join(words)}`")


class NotGiven(Exception):
    """A command in running text that leaves out what it must be given."""


def check_command(words: list[str], where: str) -> None:
    """Refuse what is no command of ours, names no file, or has a flag that nothing takes."""
    assert not {"|", "&&", ">", "<", ";"} & set(words), f"{where}: one command a line, please"
    if words[0] == "spatialembed":
        check_spatialembed(words[1:], where)
        return
    assert words[0] in OTHERS or words[0].startswith(".venv/bin/"), f"{where}: {words[0]}"
    if words[0] == "pip":
        extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M))
        for named in re.findall(r"\[([\w,]+)\]", " ".join(words)):
            assert set(named.split(",")) <= extras, f"{where}: no extra {named}"
    if words[0] == "make":
        for target in (word for word in words[1:] if "=" not in word):
            assert f"\n{target}:" in (ROOT / "Makefile").read_text(), f"{where}: make {target}"
    if words[0].startswith("python") and len(words) > 1 and words[1].endswith(".py"):
        program = (ROOT / words[1]).read_text()
        for flag in (word.partition("=")[0] for word in words if word.startswith("--")):
            named = flag.removeprefix("--").replace("-", "_")
            taken = re.search(rf"""["']{flag}["']|^    {named}: """, program, re.MULTILINE)
            assert taken, f"{where}: {flag}"


def check_spatialembed(words: list[str], where: str) -> None:
    """Parse a command as the program does; raises NotGiven where a needed value is not there."""
    if words[0] in ("--help", "--version") or words[0].isupper():
        return
    name = next((n for n in main.VERBS if words[: n.count(" ") + 1] == n.split()), None)
    assert name, f"{where}: no verb {words[0]}"
    verb = main.VERBS[name]
    rest = words[name.count(" ") + 1 :]
    for i in [i for i, word in enumerate(rest) if word == "--config"]:
        if rest[i + 1] not in bundled_configs():
            rest[i : i + 2] = ["", ""]
    rest = [word for word in rest if word]
    try:
        parse(verb.settings(), rest, verb=name, help=verb.help, positional=verb.positional)
    except SpatialEmbedError as error:
        if error.message.startswith(("the following arguments are required", "no data")):
            raise NotGiven(f"{where}: {error.message}") from error
        raise AssertionError(f"{where}: {error}") from error
    except SystemExit as stop:  # --help, --print_config
        if stop.code:
            raise AssertionError(where) from stop


def test_a_wrong_command_is_found() -> None:
    for words, fault in (
        (["predikt"], "no verb"),
        (["demo", "--outt", "x"], "unknown_setting"),
        (["demo", "--seed", "many"], "bad_setting"),
    ):
        with pytest.raises(AssertionError, match=fault):
            check_spatialembed(words, "here")
    with pytest.raises(NotGiven):
        check_spatialembed(["train", "--stage1.epochs", "3"], "here")
    for line in ("pip install '.[trian]'", "make tea", "curl x", "python benchmarks/loss.py --no"):
        with pytest.raises(AssertionError):
            check_command(Block("sh", line, 1).commands()[0], "here")


# ---------------------------------------------------------------- codes of faults


def codes_of(name: str, place: int) -> Iterator[tuple[str, str]]:
    """Each code given to ``name(...)`` as its argument at ``place``, with the file; * is any."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call) or len(node.args) <= place:
                continue
            if ast.unparse(node.func).rpartition(".")[2] != name:
                continue
            code = node.args[place]
            if isinstance(code, ast.JoinedStr):
                parts = [p.value if isinstance(p, ast.Constant) else r"\w+" for p in code.values]
                yield "".join(map(str, parts)), path.name
            for inner in ast.walk(code):
                if isinstance(inner, ast.Constant) and not isinstance(code, ast.JoinedStr):
                    yield str(inner.value), path.name


def table(page: str) -> dict[str, str]:
    """The codes in the first column of a page's tables, each with its row."""
    text = (DOCS / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`.*?) \|(.*)$", text, re.MULTILINE)
    return {code: row for cell, row in rows for code in re.findall(r"`(\w+)`", cell)}


def test_every_code_of_a_fault_is_in_the_table() -> None:
    known = table("troubleshooting.md")
    assert len(known) > 60
    raised = set(codes_of("SpatialEmbedError", 0))
    missing = sorted(
        f"{file}: {code}" for code, file in raised if not any(re.fullmatch(code, k) for k in known)
    )
    assert missing == []
    passed_on = "\n".join(path.read_text(encoding="utf-8") for path in SOURCE.rglob("*.py"))
    stale = {
        code
        for code in known
        if f'"{code}"' not in passed_on and not any(re.fullmatch(c, code) for c, _ in raised)
    }
    assert stale == set()


def test_every_finding_of_the_doctor_is_in_its_table() -> None:
    known = table("doctor.md")
    of_masks = {code for code, file in codes_of("_fault", 0) if file == "label_checks.py"}
    assert len(of_masks) == 5
    assert ({check.code for check in CHECKS} | of_masks) - set(known) == set()


# ---------------------------------------------------------------- notebooks


@pytest.mark.parametrize("path", sorted((ROOT / "notebooks").glob("*.ipynb")), ids=name_of)
def test_notebook_is_small_and_holds_no_output(path: Path) -> None:
    """``make docs`` runs them; their outputs are in the pages that it writes."""
    content = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
    assert cells
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells)
    assert path.stat().st_size < 20_000
    for cell in cells:
        compile("".join(cell["source"]), path.name, "exec")


@pytest.mark.parametrize("widgets", [False, True])
def test_bars_in_a_notebook_are_widgets_or_plain_lines(
    widgets: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", ModuleType("ipykernel"))
    monkeypatch.setattr("spatialembed.console.find_spec", lambda _: object() if widgets else None)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    assert not console().is_terminal
    assert console().is_jupyter == widgets
    monkeypatch.delitem(sys.modules, "ipykernel")
    assert console().is_terminal
