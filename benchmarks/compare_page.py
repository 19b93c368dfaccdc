"""What comes of the comparison: tables on the terminal and in docs/compare.md, plot, overlays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from compare_costs import LONGEST, loaded
from compare_runs import Plan, grouped, method_of, raw, spread
from race_data import Trial
from race_report import show, write_json
from report import RESULTS, Table

from spatialembed.command.bench import machine
from spatialembed.files import atomic_write
from spatialembed.types import Sample

DOCS = Path(__file__).resolve().parent.parent / "docs"
OURS = "spatial_embedding"
SHOWN = 3
"""Images of the overlays."""
WINDOW_PX = 192
"""Side of what is shown of them, cut out before the network sees it."""
COLORS = ("red", "gold", "limegreen", "cyan", "dodgerblue", "violet", "orange", "deeppink")
"""Of instances, one after the other."""
MARKERS = "osD^v"
"""Of the other methods in the plot."""


def report(
    runs: Sequence[dict[str, Any]],
    cost: dict[str, Any] | None,
    trials: Mapping[str, Trial],
    plan: Plan,
    size: str,
    command: str,
) -> None:
    """Print the tables; write benchmarks/results/compare_SIZE.json, plot, overlays and the page."""
    made = tables(runs, cost)
    show(made)
    facts = {
        "size": size,
        "command": command,
        "machine": cost["machine"] if cost else machine(),
        "plan": {k: str(v) for k, v in vars(plan).items()},
        "runs": [{k: v for k, v in run.items() if k != "state"} for run in runs],
        "costs": cost,
    }
    write_json(RESULTS / f"compare_{size}.json", facts)
    images = DOCS / "images"
    images.mkdir(exist_ok=True)
    plot(runs, cost, images / f"compare_{size}.png")
    for data, trial in trials.items():
        overlays(runs, trial, plan, data, images / f"compare_{size}_{data}.png")
    renew(DOCS / "compare.md", size, markdown(facts, made))


def markdown(facts: dict[str, Any], made: Sequence[Table]) -> Iterator[str]:
    where, plan = facts["machine"], facts["plan"]
    yield f"`{facts['command']}`"
    yield (
        f"on {where['gpu'] or where['processor']}, 1 thread; "
        f"torch {where['packages'].get('torch')}. "
        f"Network {plan['network']}, training counted in processor time, crops of "
        f"{plan['crop']} px, {plan['batch']} a step; {plan['trials']} settings of each grouping on "
        f"{plan['tuning']} training images."
    )
    for table in made:
        yield f"\n**{table.title}**\n"
        yield f"| {' | '.join(table.columns)} |"
        yield "|---" + "|--:" * (len(table.columns) - 1) + "|"
        yield from (f"| {' | '.join(row)} |" for row in table.rows)
    for data in sorted({run["data"] for run in facts["runs"]}):
        name = f"compare_{facts['size']}_{data}.png"
        yield f"\n![The same windows of three images of {data} by all methods](images/{name})"


def renew(page: Path, size: str, lines: Iterator[str]) -> None:
    """Put the lines between the markers of this size on the page; the rest of it stays."""
    begin, end = f"<!-- {size} -->", f"<!-- /{size} -->"
    before, _, rest = page.read_text(encoding="utf-8").partition(begin)
    body = "\n".join(lines)
    with atomic_write(page) as temporary:
        text = f"{before}{begin}\n{body}\n{end}{rest.partition(end)[2]}"
        temporary.write_text(text, encoding="utf-8")


def by_method(runs: Sequence[dict[str, Any]], data: str) -> dict[str, list[dict[str, Any]]]:
    """Runs of a data set by method, the highest mean AP first."""
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for run in runs:
        if run["data"] == data:
            found[run["method"]].append(run)
    return dict(sorted(found.items(), key=lambda item: -_mean(item[1], "ap")))


def _mean(runs: Sequence[dict[str, Any]], key: str) -> float:
    return float(np.mean([run[key] for run in runs]))


def _spread(runs: Sequence[dict[str, Any]], key: str) -> str:
    """Mean, and the lowest and highest where there are several."""
    values = [run[key] for run in runs]
    several = f" ({min(values):.3f} to {max(values):.3f})" if len(values) > 1 else ""
    return f"{np.mean(values):.3f}{several}"


def tables(runs: Sequence[dict[str, Any]], cost: dict[str, Any] | None) -> list[Table]:
    """AP of each data set, and the costs."""
    made = [accuracy(runs, data) for data in sorted({run["data"] for run in runs})]
    return [*made, costs_table(runs, cost)] if cost else made


def accuracy(runs: Sequence[dict[str, Any]], data: str) -> Table:
    rows = []
    for own in by_method(runs, data).values():
        tuned = ", ".join(f"{name} {own[0]['settings'][name]:.3g}" for name in own[0]["tuned"])
        figures = [_spread(own, "ap"), _spread(own, "ap50"), f"{_mean(own, 'steps'):.0f}"]
        rows.append([own[0]["title"], *figures, str(len(own)), tuned])
    any_run = next(run for run in runs if run["data"] == data)
    title = (
        f"{data}: {any_run['budget']} of training each, {any_run['val_images']} validation images "
        f"with {any_run['objects']} objects"
    )
    columns = ["method", "AP", "AP50", "steps", "seeds", "tuned on training images (seed 0)"]
    return Table(title, columns, rows)


def costs_table(runs: Sequence[dict[str, Any]], cost: dict[str, Any]) -> Table:
    """Seconds and memory of each method, the quickest prediction first."""
    of = {run["method"]: run for run in runs}
    rows = []
    for name, own in sorted(cost["methods"].items(), key=lambda item: prediction(item[1])):
        seconds = [f"{own[part]:.2f}" for part in ("loss", "network")]
        seconds.append(f"{own['grouping']:.2f}" if own["grouping"] < LONGEST else f"> {LONGEST:g}")
        memory = f"{own['memory'] / 2**20:,.0f}"
        parameters = f"{of[name]['parameters'] / 1e6:.2f}"
        rows.append([of[name]["title"], *seconds, f"{prediction(own):.2f}", memory, parameters])
    columns = [
        "method",
        "loss, s",
        "network, s",
        "grouping, s",
        "prediction, s",
        "memory of the loss, MiB",
        "parameters, M",
    ]
    return Table(
        "Costs: loss at 1024 x 1024 px with 60 objects, prediction at 1024 x 2048", columns, rows
    )


def prediction(own: Mapping[str, float]) -> float:
    return own["network"] + own["grouping"]


# ---------------------------------------------------------------- pictures


def plot(runs: Sequence[dict[str, Any]], cost: dict[str, Any] | None, path: Path) -> None:
    """AP against the time of prediction at 1024 x 2048, a panel for each data set."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    sets = sorted({run["data"] for run in runs})
    known = cost["methods"] if cost else {}
    # A legend in place of labels: where several find nothing these would lie over each other.
    styles = {
        name: (MARKERS[(i + i // 10) % 5], f"C{i % 10}") for i, name in enumerate(sorted(known))
    }
    styles[OURS] = ("*", "black")
    figure, panels = pyplot.subplots(
        1, len(sets), figsize=(4.2 * len(sets) + 2.6, 4.4), layout="constrained", squeeze=False
    )
    entries: dict[str, Any] = {}
    for axes, data in zip(panels[0], sets, strict=True):
        for name, own in by_method(runs, data).items():
            if name not in known:
                continue
            x, values = prediction(known[name]), [run["ap"] for run in own]
            mean, (marker, color) = float(np.mean(values)), styles[name]
            away = [[mean - min(values)], [max(values) - mean]]
            point = axes.errorbar(
                x, mean, yerr=away, fmt=marker, color=color, capsize=2, alpha=0.8,
                markersize=13 if name == OURS else 7, clip_on=False,
            )  # fmt: skip
            entries.setdefault(own[0]["title"], point)
        axes.set_title(data)
        axes.set_xlim(left=0)
        axes.set_xlabel("prediction at 1024 x 2048, processor seconds")
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    panels[0][0].set_ylabel("AP, IoU .50 to .90")
    if entries:
        figure.legend(
            entries.values(), entries, loc="outside right upper", fontsize=7, frameon=False,
            title="by descending AP", title_fontsize=7,
        )  # fmt: skip
    figure.savefig(path, dpi=140)
    pyplot.close(figure)


def overlays(
    runs: Sequence[dict[str, Any]], trial: Trial, plan: Plan, title: str, path: Path
) -> None:
    """The same windows of three validation images for the truth and each method, in two columns."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    windows = [window(sample) for sample in spread(trial.val, SHOWN)]
    rows = [(f"truth, {title}", [labels for _, labels in windows])]
    for name, found in by_method(runs, trial.name).items():
        run = min(found, key=lambda r: r["seed"])
        if not Path(run["state"]).exists():
            continue
        method = method_of(name)
        net = loaded(name, len(trial.recipe.classes), plan.network, Path(run["state"]))
        net, settings = net.to(plan.device), method.Settings(**run["settings"])
        masks = [
            grouped(method, raw(method, net, sample, trial, plan), settings, sample).labels
            for sample, _ in windows
        ]
        rows.append((f"{run['title']}: AP {run['ap']:.3f}", masks))
    half = -(-len(rows) // 2)
    figure, grid = pyplot.subplots(
        half, 2 * SHOWN, figsize=(2 * SHOWN * 1.3, 1.45 * half), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for axes in grid.flat:
        axes.set_axis_off()
    for n, (said, masks) in enumerate(rows):
        left = SHOWN * (n // half)
        for k, (mask, (sample, _)) in enumerate(zip(masks, windows, strict=True)):
            grid[n % half, left + k].imshow(coloured(sample, mask), interpolation="nearest")
        grid[n % half, left].set_title(said, fontsize=7, loc="left", pad=2)
    save_small(figure, path)


def window(sample: Sample) -> tuple[Sample, np.ndarray]:
    """The part of an image with the most pixels of objects, and its truth (H, W)."""
    labels = sample.target.labels.numpy()
    y, x, best = 0, 0, -1
    for top in range(0, max(1, labels.shape[0] - WINDOW_PX + 1), WINDOW_PX // 4):
        for left in range(0, max(1, labels.shape[1] - WINDOW_PX + 1), WINDOW_PX // 4):
            inside = np.count_nonzero(labels[top : top + WINDOW_PX, left : left + WINDOW_PX])
            if inside > best:
                y, x, best = top, left, inside
    part = (slice(y, y + WINDOW_PX), slice(x, x + WINDOW_PX))
    target = replace(sample.target, labels=sample.target.labels[part].clone())
    return replace(sample, image=sample.image[part], target=target), labels[part]


def coloured(sample: Sample, labels: np.ndarray) -> np.ndarray:
    """(H, W, 3) in [0, 1]: the image in grey, brightened, each instance in a colour."""
    from skimage.color import label2rgb

    grey = np.asarray(sample.image, float)
    grey = (grey.mean(-1) if grey.ndim == 3 else grey) / max(np.percentile(grey, 99.5), 1)
    picture: np.ndarray = label2rgb(
        labels, grey.clip(0, 1) ** 0.7, colors=COLORS, alpha=0.5, bg_label=0
    )
    return picture


def save_small(figure: Any, path: Path) -> None:
    """As a PNG of 64 colours, a quarter of the size."""
    import io

    from matplotlib import pyplot
    from PIL import Image

    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100, format="png")
    pyplot.close(figure)
    Image.open(buffer).convert("RGB").quantize(64).save(path, optimize=True)
