"""A hook of mkdocs: the section Models lists the cards that docs/generate.py has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def on_config(config: Any) -> Any:
    """Fill the section by the folder, so that a bundled model needs no line in mkdocs.yml."""
    cards = sorted(Path(config.docs_dir, "generated", "models").glob("*.md"))
    section = next(entry for entry in config.nav if "Models" in entry)
    section["Models"] = [{card.stem: f"generated/models/{card.name}"} for card in cards]
    return config
