"""The fenced blocks of a page of the guide, and how each one is to be run.

A page is Markdown. Its ``sh`` and ``python`` blocks run in order; a comment before a block changes
that::

    <!-- not run: why -->     only parsed
    <!-- run with: FLAGS -->  added to each spatialembed line, to make it small
    <!-- setup: python        a block that is run and not shown
    ...
    -->
"""

from __future__ import annotations

import re
import shlex
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

COMMANDS = ("spatialembed", "python", "pip", "make")
"""What a block without a language must not hold at the start of a line."""


@dataclass(frozen=True)
class Block:
    """A fenced or hidden block: ``language`` as the fence names it, ``line`` of its first line."""

    language: str
    text: str
    line: int
    not_run: str = ""
    flags: tuple[str, ...] = field(default=())

    def commands(self) -> list[list[str]]:
        """The words of each line of a sh block, without comments, continued lines joined."""
        lines = re.sub(r"\\\n\s*", " ", self.text).splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def blocks(page: Path) -> Iterator[Block]:
    """All blocks of a page, in order."""
    lines = page.read_text(encoding="utf-8").splitlines()
    marks: dict[str, str] = {}
    i = 0
    while i < len(lines):
        line = lines[i].strip()
        i += 1
        if fence := re.fullmatch(r"(```+)\s*(\w*).*", line):
            first = i
            while lines[i].strip() != fence[1]:
                i += 1
            text = textwrap.dedent("\n".join(lines[first:i]))
            flags = tuple(shlex.split(marks.get("run with", "")))
            yield Block(fence[2], text, first + 1, marks.get("not run", ""), flags)
            marks = {}
            i += 1
        elif hidden := re.fullmatch(r"<!-- setup: (\w+)", line):
            first = i
            while lines[i].strip() != "-->":
                i += 1
            text = textwrap.dedent("\n".join(lines[first:i]))
            yield Block(hidden[1], text, first + 1)
            i += 1
        elif comment := re.fullmatch(r"<!-- (not run: .+|run with: .+) -->", line):
            mark, _, value = comment[1].partition(": ")
            marks[mark] = value
        elif line:
            marks = {}


def inline_commands(page: Path) -> Iterator[list[str]]:
    """The words of each `spatialembed ...` between single backticks, outside of blocks."""
    text = re.sub(r"^\s*```.*?^\s*```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S)
    for code in re.findall(r"(?<!`)`(spatialembed [^`]+)`(?!`)", text):
        yield shlex.split(" ".join(code.split()).removesuffix("...").removesuffix("…"))
