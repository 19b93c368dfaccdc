"""What comes of the comparison: tables on the terminal and in docs/mask_rcnn.md, and the plot."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rich.table
from report import Table
from rich.console import Console

from spatialembed.files import atomic_write

DOCS = Path(__file__).resolve().parent.parent / "docs"
RIVAL, OURS = "Mask R-CNN", "ours"
COLORS = {RIVAL: "#b4552d", OURS: "#1f6f8b"}
UNITS = {"streets": "Cityscapes AP", "nuclei": "COCO AP of masks"}


def tables(parts: Sequence[dict[str, Any]]) -> list[Table]:
    """At the end, on the way, and what it costs."""
    return [at_the_end(parts), *(on_the_way(part) for part in parts), costs(parts)]


def at_the_end(parts: Sequence[dict[str, Any]]) -> Table:
    """AP of both after the same time, and ours after the images that Mask R-CNN saw."""
    rows = []
    for part in parts:
        theirs, ours = (part["curves"][name][-1] for name in (RIVAL, OURS))
        rows += [
            [part["name"], RIVAL, *_figures(theirs), *_label(part, RIVAL)],
            [part["name"], "ours, same time", *_figures(ours), *_label(part, OURS)],
        ]
        early = at_images(part["curves"][OURS], theirs["images"])
        if early is not None:
            rows.append([part["name"], "ours, same images", *_figures(early), "", ""])
    columns = ["data", "", "images seen", "AP", "AP50", "label AP", "label AP50"]
    return Table("At the end of training", columns, rows)


def _figures(point: dict[str, float]) -> list[str]:
    return [f"{point['images']:,.0f}", f"{point['ap']:.3f}", f"{point['ap50']:.3f}"]


def _label(part: dict[str, Any], name: str) -> list[str]:
    figures = part["labels"].get(name)
    return [f"{figures[key]:.3f}" for key in ("label_ap", "label_ap50")] if figures else ["", ""]


def at_images(curve: Sequence[dict[str, float]], images: float) -> dict[str, float] | None:
    """The point of a curve at so many images, between its neighbours; None beyond its end.

    Before the first scoring it goes from 0 at no image.
    """
    if images > curve[-1]["images"]:
        return None
    seen = [0.0, *(point["images"] for point in curve)]
    ap, ap50 = (
        float(np.interp(images, seen, [0.0, *(point[key] for point in curve)]))
        for key in ("ap", "ap50")
    )
    return {"images": images, "ap": ap, "ap50": ap50}


def on_the_way(part: dict[str, Any]) -> Table:
    """AP of both by share of the training time."""
    theirs, ours = (part["curves"][name] for name in (RIVAL, OURS))
    longest = max(theirs[-1]["seconds"], ours[-1]["seconds"])
    rows = []
    for k in range(max(len(theirs), len(ours))):
        cells = []
        for curve in (theirs, ours):
            point = curve[k] if k < len(curve) else None
            cells += [f"{point['images']:,.0f}", f"{point['ap']:.3f}"] if point else ["", ""]
        seconds = (theirs[k] if k < len(theirs) else ours[k])["seconds"]
        rows.append([f"{100 * seconds / longest:.0f} %", *cells])
    names = [f"{RIVAL}: images", "AP", f"{OURS}: images", "AP"]
    return Table(f"{part['name']}, {UNITS[part['name']]}", ["time", *names], rows)


def costs(parts: Sequence[dict[str, Any]]) -> Table:
    """Ratios of times, Mask R-CNN by ours, and the parameters."""
    rows = []
    for part in parts:
        step = _each(part, RIVAL) / _each(part, OURS)
        counts = [f"{part['parameters'][name] / 1e6:.1f} M" for name in (RIVAL, OURS)]
        rows.append([part["name"], f"{step:.1f}", part["prediction"]["ratio"], *counts])
        if part["device"] != "cpu":
            times = part["prediction"]["seconds"]
            said = ", ".join(f"{n} {1000 * np.median(times[n]):.1f} ms" for n in (RIVAL, OURS))
            rows.append([f"{part['name']}, {part['prediction']['size']} px", "", said, "", ""])
    columns = ["data", "training, an image", "prediction, an image", RIVAL, OURS]
    return Table(f"Time of {RIVAL} / time of ours, and parameters", columns, rows)


def _each(part: dict[str, Any], name: str) -> float:
    """Seconds of training an image."""
    last = part["curves"][name][-1]
    return float(last["seconds"] / last["images"])


# ---------------------------------------------------------------- where it goes


def show(made: Sequence[Table]) -> None:
    console = Console()
    for table in made:
        shown = rich.table.Table(title=table.title)
        for i, column in enumerate(table.columns):
            shown.add_column(column, justify="right" if i else "left")
        for row in table.rows:
            shown.add_row(*row)
        console.print(shown)


def renew_page(page: Path, result: dict[str, Any], made: Sequence[Table]) -> None:
    """Put the tables between the markers of this size on the page; the rest of it stays."""
    begin, end = f"<!-- {result['size']} -->", f"<!-- /{result['size']} -->"
    text = page.read_text(encoding="utf-8")
    body = "\n".join(markdown(result, made))
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    with atomic_write(page) as temporary:
        text = re.sub(pattern, lambda _: f"{begin}\n{body}\n{end}", text, flags=re.S)
        temporary.write_text(text, encoding="utf-8")


def markdown(result: dict[str, Any], made: Sequence[Table]) -> Iterator[str]:
    where = result["machine"]
    yield f"`{result['command']}`"
    yield (
        f"on {where['gpu'] or where['processor']}, {where['threads']} threads; "
        f"torch {where['packages'].get('torch')}.\n"
    )
    yield f"![AP against images seen and against time](images/mask_rcnn_{result['size']}.png)"
    for table in made:
        yield f"\n**{table.title}**\n"
        yield f"| {' | '.join(table.columns)} |"
        yield "|---" + "|--:" * (len(table.columns) - 1) + "|"
        yield from (f"| {' | '.join(row)} |" for row in table.rows)


def plot(parts: Sequence[dict[str, Any]], path: Path) -> Path:
    """AP against images seen and against training time, a row each data set."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, rows = pyplot.subplots(
        len(parts), 2, figsize=(8.4, 3.1 * len(parts)), sharey="row", layout="constrained",
        squeeze=False,
    )  # fmt: skip
    for part, (by_images, by_time) in zip(parts, rows, strict=True):
        longest = max(curve[-1]["seconds"] for curve in part["curves"].values())
        for name, curve in part["curves"].items():
            ap = [point["ap"] for point in curve]
            style = {"color": COLORS[name], "marker": "o", "markersize": 4, "label": name}
            by_images.plot([point["images"] for point in curve], ap, **style)
            by_time.plot([0, *(p["seconds"] / longest for p in curve)], [0, *ap], **style)
        by_images.set_xscale("log")
        by_images.set_ylabel(f"{part['name']}: {UNITS[part['name']]}")
        by_images.set_xlabel("training crops seen")
        by_time.set_xlabel("training time, share of the budget")
        by_images.set_ylim(bottom=0)
        for axes in (by_images, by_time):
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
    rows[0][0].legend(frameon=False, loc="upper left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path


def write_json(path: Path, result: dict[str, Any]) -> None:
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
