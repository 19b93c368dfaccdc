"""All benchmarks in one command; their tables and plots become docs/speed.md.

    python benchmarks/run.py            (or: make bench)

Each runs in a process of its own, one after another. What they wrote into results/ goes between
the markers of docs/speed.md, so that running it again renews the figures; a benchmark that did not
run keeps its old ones.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from report import RESULTS

HERE = Path(__file__).resolve().parent
DOCS = HERE.parent / "docs"
SCRIPTS: dict[str, list[str]] = {
    "end_to_end": ["--engines", "torch:float32", "torch", "compiled"],
    "mask_rcnn": ["--engine", "compiled"],
    "engines": [],
    "clustering": ["--json", str(RESULTS / "clustering.json")],
    "sizes": [],
    "loss": ["--rounds", "2"],
    "training_step": [],
    "loader": [],
    "folder": [],
    "gpu": [],
}
"""What runs, in this order, and how. A file that is not there is left out."""
AXES = {"pixels": "pixels of the image", "instances": "objects", "area": "pixels of objects"}

SHOWN = {"sizes": "pixels", "clustering": "instances", "loss": "area"}
"""The plot below the tables of a benchmark."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", choices=SCRIPTS, default=list(SCRIPTS))
    parser.add_argument("--tables", action="store_true", help="run nothing, renew the page only")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    failed = [] if options.tables else [name for name in options.only if not ran(name)]
    page = DOCS / "speed.md"
    page.write_text(renewed(page.read_text(encoding="utf-8")), encoding="utf-8")
    for plot in plots():
        print(f"wrote {plot}")
    print(f"wrote {page}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    sys.exit(bool(failed))


def ran(name: str) -> bool:
    """Run one; True if it went well."""
    script = HERE / f"{name}.py"
    if not script.exists():
        return True
    print(f"--- {name}", flush=True)
    began = time.monotonic()
    code = subprocess.run([sys.executable, str(script), *SCRIPTS[name]], check=False).returncode
    print(f"--- {name}: {time.monotonic() - began:.0f} s, exit {code}", flush=True)
    return code == 0


# ---------------------------------------------------------------- the page


def results() -> dict[str, dict[str, Any]]:
    """What lies in results/, by name."""
    found = {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}
    if "clustering" in found:
        found["clustering"] = of_clustering(found["clustering"])
    return {name: one for name, one in found.items() if "tables" in one}


def renewed(page: str) -> str:
    """The page with what stands between the markers of each benchmark made anew."""
    for name, one in results().items():
        begin, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        if begin not in page:
            page = f"{page.rstrip()}\n\n{begin}\n{end}\n"
        body = "\n".join(markdown(one))
        pattern = re.escape(begin) + ".*?" + re.escape(end)
        page = re.sub(pattern, lambda _, b=begin, t=body, e=end: f"{b}\n{t}\n{e}", page, flags=re.S)
    return page


def markdown(one: dict[str, Any]) -> Iterator[str]:
    where = one["machine"]
    device = where["gpu"] if one["name"].endswith(("gpu", "_cuda")) else None
    packages = where.get("packages", {})
    yield f"`{one['command']}`"
    yield (
        f"on {device or where['processor']}, {where['threads']} threads, "
        f"{', '.join(where['flags'])}; torch {packages.get('torch')}."
    )
    for table in one["tables"]:
        yield f"\n**{table['title']}**\n"
        yield f"| {' | '.join(table['columns'])} |"
        yield "|---" + "|--:" * (len(table["columns"]) - 1) + "|"
        yield from (f"| {' | '.join(row)} |" for row in table["rows"])
    plot = SHOWN.get(one["name"])
    yield f"\n![{AXES[plot]}](images/speed_{plot}.png)\n" if plot else ""


def of_clustering(one: dict[str, Any]) -> dict[str, Any]:
    """The figures of clustering.py in the form of ``report.finish``."""

    def row(r: dict[str, Any]) -> list[str]:
        ratios = (r[n]["ratio"] if n in r else None for n in ("plain", "literal"))
        said = ("{1:.0f} ({0:.0f} to {2:.0f})".format(*r) if r else "" for r in ratios)
        return [f"{r['height']} x {r['width']}", str(r["instances"]), *said]

    rows = [one["street"], *one.get("sizes", ()), *one.get("counts", ())]
    table = {
        "title": "Clustering: times faster than looking at all candidates, or at all pixels",
        "columns": ["px", "objects", "than all candidates", "than all pixels"],
        "rows": [row(r) for r in rows],
    }
    epochs = {
        "title": "Clustering on maps of the network lite in training, 512 x 512 px",
        "columns": ["epoch", "share of network and clustering", "objects"],
        "rows": [
            [r["epoch"], f"{100 * r['share']:.1f} %", str(r["instances"])]
            for r in one.get("epochs", ())
        ],
    }
    slopes = {
        "title": "Growth of the time, slope on logarithmic axes",
        "columns": ["against", "clustering"],
        "rows": [
            [f"{what}", f"{one[key]:.2f}"]
            for what, key in (
                ("pixels, at one density", "slope_in_pixels"),
                ("objects, at one covered area", "slope_in_instances"),
            )
            if key in one
        ],
    }
    lines = []
    if counts := one.get("counts"):
        seconds = [r["cluster"]["median_s"] for r in counts]
        found = [r["instances"] for r in counts]
        lines = [{"plot": "instances", "label": "clustering", "x": found, "seconds": seconds}]
    return {
        "name": "clustering",
        "command": "python benchmarks/clustering.py --json benchmarks/results/clustering.json",
        "machine": one["machine"],
        "tables": [table, epochs, slopes] if epochs["rows"] else [table, slopes],
        "lines": lines,
    }


# ---------------------------------------------------------------- plots


def plots() -> Iterator[Path]:
    """One picture for each thing that time is plotted against; times by the first one."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    lines = [line for one in results().values() for line in one["lines"]]
    for plot in sorted({line["plot"] for line in lines}):
        figure, axes = pyplot.subplots(figsize=(6.4, 4.2), layout="constrained")
        here = [line for line in lines if line["plot"] == plot]
        for line in here:
            relative = [s / line["seconds"][0] for s in line["seconds"]]
            name = f"{line['label']}: slope {slope(line):.2f}"
            axes.loglog(line["x"], relative, marker="o", markersize=4, label=name)
        if plot == "pixels":
            ends = here[0]["x"][0], here[0]["x"][-1]
            axes.loglog(ends, [1, ends[1] / ends[0]], ":", color="0.5", label="in proportion")
        axes.set_xlabel(AXES[plot])
        axes.set_ylabel("time, by that of the first point")
        axes.grid(which="major", alpha=0.3)
        axes.legend(frameon=False)
        path = DOCS / "images" / f"speed_{plot}.png"
        figure.savefig(path, dpi=140)
        pyplot.close(figure)
        yield path


def slope(line: dict[str, Any]) -> float:
    """Least squares on the logarithms."""
    x, y = ([math.log(v) for v in line[key]] for key in ("x", "seconds"))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return above / sum((a - mean_x) ** 2 for a in x)


if __name__ == "__main__":
    main()
