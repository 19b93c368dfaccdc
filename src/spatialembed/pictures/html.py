"""HTML pages from the jinja2 templates beside this file.

A page needs no other file and asks no server, follows the light or dark ground of its reader, fits
a phone, and has no script. Every value is escaped, whatever a file or a class is called.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np

from spatialembed.console import printable
from spatialembed.images.write import jpeg_bytes, png_bytes

if TYPE_CHECKING:
    from jinja2 import Environment


@cache
def _templates() -> Environment:
    from jinja2 import Environment, PackageLoader, StrictUndefined  # late: most uses need no page

    made = Environment(
        loader=PackageLoader(__package__),
        autoescape=True,
        finalize=_shown,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    made.filters |= {"counted": counted, "address": _address, "png": _png, "jpeg": _jpeg}
    return made


def render(template: str, values: Mapping[str, object]) -> str:
    """A page or a part of one by the name of its template, with the values that stand in it."""
    return _templates().get_template(template).render(values)


def _shown(value: Any) -> Any:
    """A value without control and broken characters; its lines stay lines."""
    if hasattr(value, "__html__"):
        return value
    return "\n".join(printable(line) for line in str(value).split("\n"))


def counted(number: int, noun: str) -> str:
    """ "1 image", "1,200 images"."""
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _address(path: str) -> str:
    """Of a file, by its path from the folder of the page."""
    # Names that are no UTF-8 keep their bytes; a colon would make a scheme of what is before it.
    return "./" + quote(path, safe="/", errors="surrogateescape")


def _png(picture: np.ndarray) -> str:
    return "data:image/png;base64," + base64.b64encode(png_bytes(picture)).decode("ascii")


def _jpeg(picture: np.ndarray) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(jpeg_bytes(picture)).decode("ascii")
