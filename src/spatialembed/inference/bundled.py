"""The models in the package, by name, each with a line of what it is for; without torch."""

from __future__ import annotations

from importlib import resources

CARD = "README.md"


def summaries() -> dict[str, str]:
    """Name of each bundled model, sorted, and the first sentence of its card."""
    root = resources.files("spatialembed") / "models"
    if not root.is_dir():
        return {}
    folders = [folder for folder in root.iterdir() if folder.joinpath(CARD).is_file()]
    return {
        folder.name: _first_sentence(folder.joinpath(CARD).read_text(encoding="utf-8"))
        for folder in sorted(folders, key=lambda folder: folder.name)
    }


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
