"""What comes of the comparison: tables on the terminal and in docs/compare.md, plot, overlays."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from compare_costs import LONGEST, loaded
from compare_runs import Plan, method_of, raw, spread
from race_data import Trial
from race_report import show, write_json
from report import RESULTS, Table

from spatialembed.command.bench import machine
from spatialembed.files import atomic_write

DOCS = Path(__file__).resolve().parent.parent / "docs"
OURS = "spatial_embedding"
SHOWN = 3
"""Images of the overlays."""
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
    overlays(runs, trials, plan, images / f"compare_{size}_overlays.png")
    renew(DOCS / "compare.md", size, markdown(facts, made))


def markdown(facts: dict[str, Any], made: Sequence[Table]) -> Iterator[str]:
    where, plan = facts["machine"], facts["plan"]
    yield f"`{facts['command']}`"
    yield (
        f"on {where['gpu'] or where['processor']}, 1 thread; "
        f"torch {where['packages'].get('torch')}. "
        f"Network {plan['network']}, {plan['budget']} of training for each run, crops of "
        f"{plan['crop']} px, {plan['batch']} a step; {plan['trials']} settings of each grouping on "
        f"{plan['tuning']} training images."
    )
    for table in made:
        yield f"\n**{table.title}**\n"
        yield f"| {' | '.join(table.columns)} |"
        yield "|---" + "|--:" * (len(table.columns) - 1) + "|"
        yield from (f"| {' | '.join(row)} |" for row in table.rows)
    yield f"\n![The same images by all methods](images/compare_{facts['size']}_overlays.png)"


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
    title = f"{data}: {any_run['val_images']} validation images, {any_run['objects']} objects"
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
    runs: Sequence[dict[str, Any]], trials: Mapping[str, Trial], plan: Plan, path: Path
) -> None:
    """The same three validation images in a row for each method, below the truth."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot
    from skimage.color import label2rgb

    data = sorted({run["data"] for run in runs})[0]
    trial = trials.get(data)
    own = by_method(runs, data)
    if trial is None:
        return
    samples = spread(trial.val, SHOWN)
    rows = [("truth", [s.target.labels.numpy() for s in samples])]
    for name, found in own.items():
        run = min(found, key=lambda r: r["seed"])
        if not Path(run["state"]).exists():
            continue
        method = method_of(name)
        net = loaded(name, len(trial.recipe.classes), plan.network, Path(run["state"]))
        settings = method.Settings(**run["settings"])
        maps = (raw(method, net.to(plan.device), s, trial, plan) for s in samples)
        labels = [method.group(m, settings).numpy().labels for m in maps]
        rows.append((f"{run['title']}: AP {run['ap']:.3f}", labels))
    figure, grid = pyplot.subplots(
        len(rows), SHOWN, figsize=(2.6 * SHOWN, 2.3 * len(rows)), squeeze=False,
        layout="constrained",
    )  # fmt: skip
    for (title, labels), row in zip(rows, grid, strict=True):
        for axes, mask, sample in zip(row, labels, samples, strict=True):
            image = np.asarray(sample.image, float)
            axes.imshow(label2rgb(mask, image / max(image.max(), 1), alpha=0.45, bg_label=0))
            axes.set_axis_off()
        row[0].set_title(title, fontsize=7, loc="left")
    figure.savefig(path, dpi=60)
    pyplot.close(figure)
