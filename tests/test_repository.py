"""What is true of the repository as a whole: its files, its promises, its public face."""

from __future__ import annotations

import ast
import contextlib
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import spatialembed

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "spatialembed"
IGNORED = {
    ".git", ".venv", "__pycache__", "runs", "demo", "predictions", "dist", "build",
    "site", "generated", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis",
}  # fmt: skip
# Written in parts, so that this file does not hold what it looks for.
FORBIDDEN = {
    "registry address": r"(py" r"pi|python" r"hosted|npm" r"js|conda\.ana" r"conda)\.(org|com)",
    "index of packages": r"--(extra-)?index" r"-url",
    "path of a machine": r"(?<![\w.])/(wo" r"rk|ro" r"ot|ho" r"me|Us" r"ers|tmp/w)/",
}
FAULTS = (
    *(f"TRN-{i:02d}" for i in (1, 2, 3, 4, 7, 9, 10, 11, 12, 16, 18, 19)),
    *(f"CKP-{i:02d}" for i in (1, 2, 4, 5, 6)),
    *(f"IMG-{i:02d}" for i in range(1, 34) if i not in (3, 11, 12, 13, 17, 32)),
    *(f"LBL-{i:02d}" for i in range(1, 23) if i not in (16, 18, 19)),
    *(f"INF-{i:02d}" for i in range(1, 14) if i not in (9, 11)),
)


@pytest.fixture(scope="module")
def texts() -> dict[str, str]:
    """Every text file of the repository by its path."""
    found = {}
    for folder, folders, files in os.walk(ROOT):
        folders[:] = sorted(set(folders) - IGNORED)
        for path in (Path(folder) / name for name in sorted(files)):
            with contextlib.suppress(UnicodeDecodeError):  # a picture or weights
                found[path.relative_to(ROOT).as_posix()] = path.read_text(encoding="utf-8")
    assert "README.md" in found
    return found


@pytest.mark.parametrize("what", FORBIDDEN)
def test_no_file_holds(what: str, texts: dict[str, str]) -> None:
    found = [
        f"{path}: {match.group()}"
        for path, text in texts.items()
        for match in re.finditer(FORBIDDEN[what], text)
    ]
    assert found == []


@pytest.mark.parametrize(
    "name",
    ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "CITATION.cff", "LICENSE", "Makefile"],
)
def test_file_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 100


def test_licence_is_apache() -> None:
    text = (ROOT / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert re.search(r'^license = "Apache-2.0"$', pyproject(), re.MULTILINE)


def pyproject() -> str:
    return (ROOT / "pyproject.toml").read_text()


def test_versions_agree() -> None:
    version = spatialembed.__version__
    assert f'\nversion = "{version}"\n' in pyproject()
    assert f"\nversion: {version}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## [{version}]" in (ROOT / "CHANGELOG.md").read_text()


def test_every_extra_that_an_error_names_exists() -> None:
    extras = set(tomllib.loads(pyproject())["project"]["optional-dependencies"])
    named = {
        match
        for path in SOURCE.rglob("*.py")
        for match in re.findall(r'missing_extra\(\s*"\w+",\s*"(\w+)"', path.read_text())
    }
    assert named <= extras


def test_links_of_the_documents_lead_somewhere() -> None:
    for document in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        for target in re.findall(r"\]\(([^)#]+)\)", document.read_text()):
            elsewhere = target.startswith(("http", "mailto", "generated/"))
            if not elsewhere and not target.endswith(".png"):
                assert (document.parent / target).exists(), f"{document.name}: {target}"


def test_commands_of_the_readme_exist() -> None:
    from spatialembed.command.main import VERBS

    text = (ROOT / "README.md").read_text()
    used = set(re.findall(r"\bspatialembed ([a-z]+)", text))
    assert {"demo", "train", "evaluate", "predict"} <= used
    assert used <= {verb.split()[0] for verb in VERBS}
    rules = (ROOT / "Makefile").read_text()
    for target in re.findall(r"^make (\w+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", rules, re.MULTILINE)


def test_import_is_light() -> None:
    """No torch, no numba, no socket, and no file but the code itself."""
    code = r"""
import re, socket, sys
def refuse(*_): raise AssertionError("a socket was opened")
socket.socket = refuse
opened = []
sys.addaudithook(lambda event, a: opened.append(str(a[0])) if event == "open" else None)
import spatialembed
heavy = {"torch", "numba", "lightning", "torchvision", "skimage", "PIL"} & set(sys.modules)
assert not heavy, heavy
code = re.compile(r"\.(pyc?|so|pyd|dylib)(\.\d+)?$")  # a fresh .pyc is first NAME.pyc.NUMBER
data = [path for path in opened if "spatialembed/" in path and not code.search(path)]
assert not data, data
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, done.stderr


def public_functions() -> Iterator[tuple[str, ast.FunctionDef]]:
    """Functions without a leading underscore, at the top of a module or of a public class."""
    for path in sorted(SOURCE.rglob("*.py")):
        todo: list[tuple[str, ast.stmt]] = [
            (str(path.relative_to(SOURCE)), node) for node in ast.parse(path.read_text()).body
        ]
        while todo:
            where, node = todo.pop()
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                protocol = any(ast.unparse(base) == "Protocol" for base in node.bases)
                todo += [] if protocol else [(f"{where} {node.name}", inner) for inner in node.body]
            elif (
                isinstance(node, ast.FunctionDef)
                and not node.name.startswith("_")
                and "overload" not in map(ast.unparse, node.decorator_list)
            ):
                yield f"{where} {node.name}", node


HOOKS = re.compile(r"^(on_|configure_|training_step|train_dataloader|transfer_|save_checkpoint)")
"""Methods that a framework names and calls, and ``forward``, whose class says what it does."""


def test_public_functions_say_what_they_do() -> None:
    silent = [
        where
        for where, node in public_functions()
        if ast.get_docstring(node) is None
        and not HOOKS.match(node.name)
        and node.name not in ("forward", "backward", "emit", "load_checkpoint", "to")
    ]
    assert silent == []


def test_public_functions_name_their_arguments() -> None:
    """One by one, or by a TypedDict, which editors and mypy read."""
    for where, node in public_functions():
        taken = node.args.kwarg
        named = taken is None or ast.unparse(taken.annotation or taken).startswith("Unpack[")
        assert named, f"{where}: takes **{taken and taken.arg}"


def parameter_ids(tree: ast.AST) -> Iterator[str]:
    """All strings of a test file but its docstrings."""
    docstrings = {
        node.body[0].value
        for node in ast.walk(tree)
        if isinstance(node, (ast.Module, ast.FunctionDef, ast.ClassDef))
        and node.body
        and isinstance(node.body[0], ast.Expr)
    }
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and node not in docstrings
        ):
            yield node.value


@pytest.fixture(scope="module")
def ids() -> list[str]:
    found: list[str] = []
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        if path.name != Path(__file__).name:
            found += parameter_ids(ast.parse(path.read_text()))
    return found


@pytest.mark.parametrize("fault", FAULTS)
def test_fault_has_a_test(fault: str, ids: list[str]) -> None:
    assert any(fault in text for text in ids), f"no parameter id of a test names {fault}"
