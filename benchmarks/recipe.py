"""Which additions to the training pay: one left out at a time, two seeds each, on held-out groups.

    python benchmarks/recipe.py --data DATA/nuclei            runs that are not there yet, the table
    python benchmarks/recipe.py --data DATA/nuclei --page     the table alone, of what is there

Each run is the config ``nuclei`` with a fixed number of steps on one thread and one change. The
figure is the mean AP (IoU .50 to .90) of the validation images at thresholds that are not tuned. A
run that was stopped goes on where it was, one that is finished is not repeated; runs come seed by
seed, so that there is a whole table early. A seed parts the groups as well: compare down a column.
An addition pays where leaving it out costs in both.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from spatialembed.command.arguments import parse
from spatialembed.training.options import TrainOptions
from spatialembed.training.run_folder import has_checkpoints
from spatialembed.training.train import train

VARIANTS: dict[str, list[str]] = {
    "the whole recipe": [],
    "random encoder": ["--pretrained", "null"],
    "last weights, no average": ["--average", "0"],
    "usual zoom": ["--augment.zoom", "[0.55,1.25]"],
    "no gamma": ["--augment.gamma", "0"],
    "usual noise and blur": ["--augment.noise", "0.05", "--augment.blur", "1"],
    "no change of single objects": ["--augment.objects", "0"],
    "even light": ["--augment.uneven", "0"],
    "no compression": ["--augment.jpeg", "0"],
    "no blank fields": ["--augment.blank", "0"],
    "no noise floor, no ceiling": [
        "--normalization.noise_floor", "0", "--normalization.ceiling", "null",
    ],
    "erfnet": ["--network", "erfnet", "--pretrained", "null"],
}  # fmt: skip
SEEDS = (0, 1)
RESULT = Path(__file__).parent / "results" / "recipe.json"


def run_folder(work: Path, variant: str, seed: int) -> Path:
    return work / f"{variant.replace(' ', '_').replace(',', '')}_{seed}"


def figures(run: Path) -> dict[str, float] | None:
    """Of a finished run; None of another."""
    file = run / "model" / "model.json"
    facts: dict[str, Any] = json.loads(file.read_text())["training"] if file.is_file() else {}
    if "validation_ap_tuned" not in facts:
        return None
    return {name: facts[name] for name in ("validation_ap", "validation_ap_tuned", "hours")}


def one(data: str, work: Path, variant: str, seed: int, epochs: int) -> dict[str, float]:
    """Train a variant, or go on with it, and give its figures."""
    run = run_folder(work, variant, seed)
    if (found := figures(run)) is not None:
        return found
    if has_checkpoints(run):
        train(TrainOptions(resume=str(run), workers=0))
    else:
        words = ["--config", "nuclei", "--data", data, "--out", str(work), "--name", run.name]
        words += ["--stage1.epochs", str(epochs), "--validate_every", "1000", "--workers", "0"]
        words += ["--seed", str(seed), *VARIANTS[variant]]
        train(parse(TrainOptions, words, verb="train", help=""))
    found = figures(run)
    assert found is not None
    return found


def rows(results: dict[str, dict[str, dict[str, float]]]) -> Iterator[str]:
    """A table in Markdown: a row for each variant of which there is a run."""
    yield "| recipe | " + " | ".join(f"seed {s}" for s in SEEDS) + " | mean | against the whole |"
    yield "| --- |" + " --- |" * (len(SEEDS) + 2)
    whole = _mean(results.get("the whole recipe", {}))
    for variant, by_seed in results.items():
        values = [by_seed.get(str(s), {}).get("validation_ap") for s in SEEDS]
        said = [f"{v:.3f}" if v is not None else "" for v in values]
        mean = _mean(by_seed)
        against = "" if variant == "the whole recipe" else f"{mean - whole:+.3f}"
        yield f"| {variant} | {' | '.join(said)} | {mean:.3f} | {against} |"


def _mean(by_seed: dict[str, dict[str, float]]) -> float:
    values = [f["validation_ap"] for f in by_seed.values()]
    return float(np.mean(values)) if values else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="folder of the nuclei, with index.csv")
    parser.add_argument("--work", default="runs/recipe", type=Path)
    parser.add_argument("--epochs", default=12, type=int, help="of 100 steps")
    parser.add_argument("--page", action="store_true")
    given = parser.parse_args()
    torch.set_num_threads(1)
    results: dict[str, dict[str, dict[str, float]]] = {}
    if RESULT.is_file():
        results = json.loads(RESULT.read_text())["runs"]
    if not given.page:
        for seed in SEEDS:
            for variant in VARIANTS:
                found = one(given.data, given.work, variant, seed, given.epochs)
                results.setdefault(variant, {})[str(seed)] = found
                RESULT.write_text(json.dumps({"epochs": given.epochs, "runs": results}, indent=1))
                print("\n".join(rows(results)), flush=True)
    print("\n".join(rows(results)))


if __name__ == "__main__":
    main()
