"""The models that can be named, bundled ones and those in the cache of the hub."""

from __future__ import annotations

from spatialembed.console import printable
from spatialembed.inference.bundled import summaries
from spatialembed.inference.hub import cached_models


def choices() -> str:
    """All of them, a line each."""
    lines = ["bundled models, or the folder of one of your own:"]
    lines += [f"  --model {name:10} {line}" for name, line in summaries().items()]
    if cached := cached_models():
        lines += ["in the cache of the hub, of which hf://OWNER/NAME@REVISION fetches others:"]
        lines += [f"  --model {name} {printable(line)}".rstrip() for name, line in cached.items()]
    return "\n".join(lines)
