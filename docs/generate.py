"""Write the pages that are not written by hand: model cards, and notebooks with what they show.

    python docs/generate.py [--as-they-are]

The notebooks are run, each in a folder of its own; a cell that fails ends this with its error.
``--as-they-are`` only shows their code. All goes to docs/generated/, which git leaves out.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbconvert import MarkdownExporter
from traitlets.config import Config

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "docs" / "generated"
SECONDS = 3600
"""No cell may take longer."""


def main(*, run: bool) -> None:
    """Write docs/generated/ anew."""
    shutil.rmtree(OUT, ignore_errors=True)
    for card in sorted((ROOT / "src/spatialembed/models").glob("*/README.md")):
        write(OUT / "models" / f"{card.parent.name}.md", card.read_bytes())
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        print(path.name, flush=True)
        notebook = nbformat.read(path, as_version=4)
        if run:
            with tempfile.TemporaryDirectory() as folder:
                execute(notebook, folder)
        write_notebook(path.stem, notebook)


def execute(notebook: nbformat.NotebookNode, folder: str) -> None:
    """Run the cells in place. Where there are sockets that are files, no port is opened."""
    socket = {} if os.name == "nt" else {"transport": "ipc", "ip": f"{folder}/socket"}
    NotebookClient(
        notebook,
        timeout=SECONDS,
        startup_timeout=SECONDS,
        resources={"metadata": {"path": folder}},
        config=Config({"ConnectionFileMixin": socket}),
    ).execute()


def write_notebook(name: str, notebook: nbformat.NotebookNode) -> None:
    """One page, and a file for each picture in it."""
    for cell in notebook.cells:  # a bar that ipywidgets drew is nothing on a page
        cell["outputs"] = [each for each in cell.get("outputs", []) if not _drawn_live(each)]
    pictures = f"{name}_files"
    text, resources = MarkdownExporter().from_notebook_node(
        notebook, resources={"output_files_dir": pictures, "unique_key": name}
    )
    note = f"\n*This page is `notebooks/{name}.ipynb`, run as it stands.*\n"
    title, _, rest = text.lstrip().partition("\n")
    write(OUT / "notebooks" / f"{name}.md", f"{title}\n{note}{rest}".encode())
    for file, content in resources["outputs"].items():
        write(OUT / "notebooks" / file, content)


def _drawn_live(output: nbformat.NotebookNode) -> bool:
    data = output.get("data", {})
    empty = "<pre" in data.get("text/html", "") and not data.get("text/plain")
    return empty or "application/vnd.jupyter.widget-view+json" in data


def write(path: Path, content: bytes) -> None:
    """Write a file, with the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


if __name__ == "__main__":
    main(run="--as-they-are" not in sys.argv[1:])
