"""The models in the package, by name, each with a line of what it is for; without torch."""

from __future__ import annotations

import re
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from importlib.abc import Traversable  # elsewhere in later Pythons

WEIGHTS, FACTS, CARD = "model.safetensors", "model.json", "README.md"
"""Files of a model's folder."""
LARGEST = {
    WEIGHTS: 1 << 30,
    FACTS: 1 << 24,  # 8 bytes for each image of the training, see SplitRecord
    CARD: 1 << 20,
}
"""Bytes, beyond which a file is refused."""


def bundled_folder(name: str) -> Traversable:
    """The folder of a bundled model, which may lie inside a zip."""
    return resources.files("spatialembed") / "models" / name


def bundled_models() -> list[str]:
    """Names of the models in the package, sorted."""
    root = bundled_folder("")
    if not root.is_dir():
        return []
    return sorted(entry.name for entry in root.iterdir() if (entry / FACTS).is_file())


def summaries() -> dict[str, str]:
    """Name of each bundled model, sorted, and the first sentence of its card."""
    return {name: summary_of(bundled_folder(name)) for name in bundled_models()}


def summary_of(folder: Traversable) -> str:
    """First sentence of a model's card, of the first paragraph that is no heading; maybe empty."""
    card = folder / CARD
    if not card.is_file():
        return ""
    with card.open("rb") as file:
        text = file.read(LARGEST[CARD]).decode("utf-8", "replace")
    text = re.sub(r"\A---\n.*?\n---\n", "", text, flags=re.DOTALL)  # facts for the hub
    paragraphs = (" ".join(p.split()) for p in text.split("\n\n"))
    text = next((p for p in paragraphs if p and not p.startswith("#")), "")
    sentence, dot, _ = text.partition(". ")
    return (sentence + dot.strip())[:160]
