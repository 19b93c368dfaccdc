"""Tables and plots of ``ablation.py``, between the markers of docs/ablation.md."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from report import RESULTS

from spatialembed.command.bench import machine

DOCS = Path(__file__).resolve().parent.parent / "docs"
PUBLISHED = {
    "fixed + centroid": 28.0,
    "circular + centroid": 38.7,
    "circular + learnable": 39.5,
    "elliptical + centroid": 39.1,
    "elliptical + learnable": 40.5,
}
"""AP on Cityscapes val from true centres, all classes (Neven et al. 2019, table 2)."""
ORDERINGS = (
    ("circular + centroid", "fixed + centroid"),
    ("elliptical + centroid", "circular + centroid"),
    ("elliptical + learnable", "circular + learnable"),
    ("circular + learnable", "circular + centroid"),
    ("elliptical + learnable", "elliptical + centroid"),
)
"""Of each pair the paper has the first one ahead."""
BLUE, ORANGE, GREEN, GREY = "#2f6db3", "#d9822b", "#3a8f5c", "#8a8f98"

Run = dict[str, Any]


class Spread(NamedTuple):
    """AP of some runs in percent."""

    values: list[float]

    @property
    def mean(self) -> float:
        return float(np.mean(self.values))

    def __str__(self) -> str:
        if len(self.values) < 2:
            return f"{self.mean:.1f}"
        return f"{self.mean:.1f} ± {np.std(self.values, ddof=1):.1f}"


def renew(size: str, plan: dict[str, Any], runs: Sequence[Run]) -> None:
    """Write results/ablation_SIZE.json, the plots, and what stands between the markers."""
    if not runs:
        print("no run is finished yet")
        return
    RESULTS.mkdir(exist_ok=True)
    rows = [{key: v for key, v in run.items() if key != "objects"} for run in runs]
    content = {"name": f"ablation_{size}", "machine": machine(), "plan": plan, "runs": rows}
    path = RESULTS / f"ablation_{size}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    for picture in (ap_plot(size, runs), margin_plot(size, runs, plan["margin"])):
        print(f"wrote {picture}")
    put(size, section(size, runs))
    print(f"wrote {path}")


def put(name: str, lines: Iterable[str]) -> None:
    """Lines between the markers of that name, in the page and on the terminal."""
    page, body = DOCS / "ablation.md", "\n".join(lines)
    begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    pattern = re.escape(begin) + ".*?" + re.escape(end)
    text = page.read_text(encoding="utf-8")
    new = re.sub(pattern, lambda _: f"{begin}\n{body}\n{end}", text, flags=re.S)
    page.write_text(new, encoding="utf-8")
    print(f"{body}\nwrote {page}")


def renew_overfit(name: str = "overfit") -> None:
    """The table of ``overfit.py``, where it has run; ``overfit_lite`` with the light network."""
    path = RESULTS / f"{name}.json"
    if path.exists():
        put(name, overfit_table(json.loads(path.read_text(encoding="utf-8"))["rounds"]))


def overfit_table(rounds: Sequence[dict[str, Any]]) -> Iterator[str]:
    names = list(rounds[0]["by_class"])
    yield "AP50 from seeds, in percent, after each round:\n"
    yield f"| steps | AP50 | {' | '.join(names)} |"
    yield "|--:" * (len(names) + 2) + "|"
    for one in rounds:
        cells = [one["ap50"], *one["by_class"].values()]
        yield f"| {one['steps']} | {' | '.join(f'{100 * v:.0f}' for v in cells)} |"


# ---------------------------------------------------------------- figures


def ap(run: Run, stage: str, sampling: str, threshold: int | None = None) -> float:
    """In percent: mean over the classes that occur, and over the IoUs or at one of them."""
    table = np.array(run[stage][sampling], float)  # (C, 10)
    return 100 * float(np.nanmean(table if threshold is None else table[:, threshold]))


def spread(
    runs: Sequence[Run], name: str, stage: str, sampling: str, at: int | None = None
) -> Spread:
    return Spread([ap(r, stage, sampling, at) for r in runs if r["configuration"] == name])


def names_of(runs: Sequence[Run]) -> list[str]:
    """In the order of the runs, which is that of the table."""
    return list(dict.fromkeys(r["configuration"] for r in runs))


def section(size: str, runs: Sequence[Run]) -> Iterator[str]:
    seeds = sorted({r["seed"] for r in runs})
    yield (
        f"{len(runs)} runs, seeds {', '.join(map(str, seeds))}; mean and standard deviation over "
        f"the seeds; classes: {', '.join(runs[0]['classes'])}."
    )
    yield "\nAP in percent after the second stage, and the published one:\n"
    yield (
        "| | true centres: AP | AP50 | seeds: AP | AP50 | published (Cityscapes val, true centres)"
        " |\n|---|--:|--:|--:|--:|--:|"
    )
    for name in names_of(runs):
        cells = [spread(runs, name, "stage2", s, at) for s in ("truth", "seed") for at in (None, 0)]
        yield f"| {name} | {' | '.join(map(str, cells))} | {PUBLISHED.get(name, '')} |"
    yield "\nAP in percent before and after the second stage:\n"
    yield ("| | true centres: before | after | seeds: before | after |\n|---|--:|--:|--:|--:|")
    for name in names_of(runs):
        cells = [
            spread(runs, name, stage, s)
            for s in ("truth", "seed")
            for stage in ("stage1", "stage2")
        ]
        yield f"| {name} | {' | '.join(map(str, cells))} |"
    yield "\nThe orderings of the paper, by AP from true centres:\n"
    yield "| ahead in the paper | by | here, each seed | shown here |\n|---|--:|---|---|"
    yield from orderings(runs)
    yield f"\n![AP of the configurations](images/ablation_{size}_ap.png)"
    yield f"\n![margin against the size of the object](images/ablation_{size}_margin.png)"


def orderings(runs: Sequence[Run]) -> Iterator[str]:
    for first, second in ORDERINGS:
        of = [
            {r["seed"]: ap(r, "stage2", "truth") for r in runs if r["configuration"] == name}
            for name in (first, second)
        ]
        gains = [of[0][seed] - of[1][seed] for seed in of[0] if seed in of[1]]
        if gains:
            published = PUBLISHED[first] - PUBLISHED[second]
            each = ", ".join(f"{gain:+.1f}" for gain in gains)
            yield f"| {first} over {second} | {published:+.1f} | {each} | {verdict(gains)} |"


def verdict(gains: Sequence[float]) -> str:
    """Whether the seeds agree with the paper."""
    if len(gains) < 2:
        return "one seed tells nothing"
    if min(gains) > 0:
        return "yes, by each seed"
    return "no: the opposite, by each seed" if max(gains) < 0 else "no: the seeds disagree"


# ---------------------------------------------------------------- plots


def ap_plot(size: str, runs: Sequence[Run]) -> Path:
    """A dot a seed, a bar at the mean; the first stage pale above the second."""
    figure, panels = canvas((9.2, 3.9), 2)
    names = names_of(runs)
    for axes, sampling, title in zip(
        panels, ("truth", "seed"), ("from true centres", "from seeds"), strict=True
    ):
        for row, name in enumerate(names):
            for stage, colour, shift in (("stage1", GREY, -0.17), ("stage2", BLUE, 0.17)):
                values = spread(runs, name, stage, sampling).values
                y = row + shift
                axes.plot(values, [y] * len(values), "o", color=colour, alpha=0.55, markersize=5)
                axes.plot([np.mean(values)] * 2, [y - 0.15, y + 0.15], color=colour, linewidth=2.4)
        axes.set_yticks(range(len(names)), names)
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=0)
        axes.set_title(title, loc="left", fontsize=11)
        axes.set_xlabel("AP, percent")
    panels[1].set_yticklabels([])
    for stage, colour in (("after the first stage", GREY), ("after both stages", BLUE)):
        panels[0].plot([], [], "o", color=colour, label=stage)
    panels[0].legend(frameon=False, fontsize=9, loc="best")
    return saved(figure, f"ablation_{size}_ap.png")


def margin_plot(size: str, runs: Sequence[Run], fixed: float) -> Path:
    """Left: margin against size. Right: ratio of the two margins against that of the box."""
    figure, (left, right) = canvas((9.2, 4.1), 2)
    shown = (("circular + learnable", ORANGE), ("elliptical + learnable", BLUE))
    for name, colour in shown:
        rows = objects(runs, name)
        if not len(rows):
            continue
        size_px = np.sqrt(rows[:, 0])
        margin = np.sqrt(rows[:, 3] * rows[:, -1])  # of an ellipse, the geometric mean
        left.plot(size_px, margin, ".", color=colour, alpha=0.12, markersize=4, rasterized=True)
        left.plot(*medians(size_px, margin), "o-", color=colour, markersize=4, label=name)
        if rows.shape[1] == 5:
            box, ratio = rows[:, 1] / rows[:, 2], rows[:, 3] / rows[:, 4]
            right.plot(box, ratio, ".", color=colour, alpha=0.15, markersize=4, rasterized=True)
            right.plot(*medians(box, ratio), "o-", color=colour, markersize=4, label=name)
    left.axhline(fixed, color=GREY, linestyle="--", linewidth=1.5, label="fixed")
    right.axhline(1, color=ORANGE, linewidth=1.5, label="circular")
    left.set_xlabel("size of the object, square root of its pixels")
    left.set_ylabel("margin, px")
    right.set_xlabel("width / height of the object")
    right.set_ylabel("margin in x / margin in y")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_yscale("log")
        plain_ticks(axes)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.2)  # room for the legend above
        axes.legend(frameon=False, fontsize=9, loc="upper left")
    return saved(figure, f"ablation_{size}_margin.png")


def objects(runs: Sequence[Run], name: str) -> np.ndarray:
    """(N, 3 + S) area, width, height, margins: px, of all seeds."""
    rows = [row for r in runs if r["configuration"] == name for row in r["objects"]]
    return np.array(rows, float) if rows else np.zeros((0, 4))


def medians(x: np.ndarray, y: np.ndarray, bins: int = 8) -> tuple[np.ndarray, np.ndarray]:
    """Medians in bins of equal counts."""
    parts = np.array_split(np.argsort(x), min(bins, len(x)))
    return np.array([np.median(x[p]) for p in parts]), np.array([np.median(y[p]) for p in parts])


def canvas(size: tuple[float, float], panels: int) -> tuple[Any, Any]:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, panels, figsize=size, layout="constrained")
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(alpha=0.25)
        one.set_axisbelow(True)
    return figure, axes


def plain_ticks(axes: Any) -> None:
    """1, 1.5, 2, 3, 5, 7, 10, ... as plain numbers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
        axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        axis.set_minor_formatter(NullFormatter())


def saved(figure: Any, name: str) -> Path:
    from matplotlib import pyplot

    path = DOCS / "images" / name
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path
