"""The models in the package, by name, each with a line of what it is for; without torch."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Traversable  # elsewhere in later Pythons


def bundled_folder(name: str) -> Traversable:
    """The folder of a bundled model, which may lie inside a zip."""
    return resources.files("spatialembed") / "models" / name


def bundled_models() -> list[str]:
    """Names of the models in the package, sorted."""
    root = bundled_folder("")
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / "model.json").is_file())


def summaries() -> dict[str, str]:
    """Name of each bundled model, sorted, and the first sentence of its card."""
    cards = {name: bundled_folder(name) / "README.md" for name in bundled_models()}
    return {name: _first_sentence(card.read_text("utf-8")) for name, card in cards.items()}


def _first_sentence(card: str) -> str:
    """Of the first paragraph that is no heading."""
    paragraphs = (" ".join(p.split()) for p in card.split("\n\n"))
    text = next((p for p in paragraphs if p and not p.startswith("#")), "")
    sentence, dot, _ = text.partition(". ")
    return sentence + dot.strip()


def choices() -> str:
    """All of them, a line each."""
    lines = [f"  --model {name:10} {line}" for name, line in summaries().items()]
    return "\n".join(["bundled models, or the folder of one of your own:", *lines])
