"""The methods that the paper stands beside: one network, one data pipeline, one budget, one table.

    python benchmarks/compare.py --data DATA                  ten hours on two cores
    python benchmarks/compare.py --data DATA --quick          20 minutes: a look, no result
    python benchmarks/compare.py --data DATA --methods hinge discriminative --sets nuclei
    python benchmarks/compare.py --report                     trains nothing, renews the page

DATA holds the folder ``nuclei``; streets are generated. A run that is finished is not repeated, one
that was stopped goes on; runs come seed by seed, so that there is a whole table early. Time is
processor time. Tables, plot and overlays become docs/compare.md. See ``compare_runs`` for what is
equal for all.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import compare_page
import torch
from compare_costs import costs, loaded, loss_scene, mosaic
from compare_runs import Budget, Plan, method_of, one_run
from race_data import SMALL, Trial, data_root, nuclei, streets
from race_report import write_json

from spatialembed.command.bench import machine
from spatialembed.inference.device import resolve_device

METHODS = (
    "spatial_embedding",
    "hinge",
    "regression",
    "discriminative",
    "associative",
    "metric_learning",
    "recurrent",
    "semi_convolutional",
    "affinities",
    "deep_watershed",
    "proposal_free",
    "box2pix",
    "mask_rcnn",
    "panet",
    "faster_rcnn",
)
SETS = ("nuclei", "streets")
RUNS = Path(__file__).resolve().parent.parent / "runs" / "compare"
FULL_PLAN = {"budget": "12min", "crop": 256, "batch": 2, "tuning": 12, "trials": 16, "val": 24}
QUICK_PLAN = {"budget": "10s", "crop": 128, "batch": 4, "tuning": 3, "trials": 4, "val": 6}
QUICK_BUDGETS = {"streets": "30s"}
"""In place of that of the plan: after 10 s no method finds a car."""


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=data_root(), help="folder that holds nuclei")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--sets", nargs="+", choices=SETS, default=list(SETS))
    parser.add_argument(
        "--budget", help="of each run: 12min, 90s or 300steps; quick: 10s, streets 30s"
    )
    parser.add_argument("--seeds", type=int, help="runs of each method; 3, quick: 1")
    parser.add_argument("--quick", action="store_true", help="ends in about 20 minutes")
    parser.add_argument("--network", choices=("lite", "erfnet"), default="lite")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--runs", type=Path, default=RUNS, help="folder of the runs")
    parser.add_argument("--rounds", type=int, help="of timing; 3, quick: 1")
    parser.add_argument("--report", action="store_true", help="renew the page from what is there")
    return parser.parse_args()


def plan_of(given: argparse.Namespace) -> Plan:
    """The settings of all runs; a budget on the command line goes before that of the size."""
    size = dict(QUICK_PLAN if given.quick else FULL_PLAN)
    budget = Budget.parse(given.budget or str(size.pop("budget")))
    size.pop("budget", None)
    whole = {name: int(value) for name, value in size.items()}
    return Plan(budget, given.network, device=resolve_device(given.device), **whole)


def plan_for(data: str, given: argparse.Namespace, plan: Plan) -> Plan:
    """The plan of a data set."""
    own = QUICK_BUDGETS.get(data) if given.quick and not given.budget else None
    return replace(plan, budget=Budget.parse(own)) if own else plan


def trial_of(name: str, given: argparse.Namespace, plan: Plan) -> Trial | None:
    """A data set: real nuclei or generated streets; None where it is not there."""
    size = replace(SMALL, nuclei_crop=plan.crop, street_crop=plan.crop, val=plan.val)
    if name == "nuclei":
        return nuclei(size, "none", given.data / "nuclei", given.network)
    return streets(size, given.runs, "none", given.network)


def folder_of(given: argparse.Namespace, plan: Plan) -> Path:
    folder: Path = given.runs / f"{plan.network}_{plan.budget}_{plan.crop}px_{plan.trials}trials"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def runs_of(folder: Path) -> Iterator[dict[str, Any]]:
    """Figures of all finished runs."""
    for path in sorted(folder.glob("*.json")):
        if path.stem not in {"costs"}:
            figures = json.loads(path.read_text())
            yield figures | {"state": str(path.with_suffix(".pt"))}


def run_all(given: argparse.Namespace, plan: Plan, folder: Path) -> None:
    """Every run that is not there yet."""
    trials = {name: trial_of(name, given, plan) for name in given.sets}
    for seed in range(given.seeds or (1 if given.quick else 3)):
        for name, trial in trials.items():
            if trial is None:
                print(f"no {name}: give --data the folder that holds it")
                continue
            for method in given.methods:
                file = folder / f"{name}_{method}_{seed}.json"
                if file.exists():
                    continue
                figures, _ = one_run(method, trial, plan_for(name, given, plan), seed, folder)
                write_json(file, figures)
                said = f"AP {figures['ap']:.3f}, AP50 {figures['ap50']:.3f}"
                print(
                    f"{name}, {method}, seed {seed}: {said}, {figures['steps']} steps", flush=True
                )


def measured(given: argparse.Namespace, plan: Plan, folder: Path) -> None:
    """Times and memory of each method that has a run, one after the other; in costs.json."""
    file, data = folder / "costs.json", given.sets[0]
    known = json.loads(file.read_text()) if file.exists() else {"methods": {}}
    runs = [r for r in runs_of(folder) if r["data"] == data and r["seed"] == 0]
    todo = [r for r in runs if r["method"] not in known["methods"]]
    trial = trial_of(data, given, plan) if todo else None
    if trial is None:
        return
    scene, image = loss_scene(), mosaic(trial)
    rounds = given.rounds or (1 if given.quick else 3)
    for run in todo:
        name = run["method"]
        net = loaded(name, len(trial.recipe.classes), plan.network, Path(run["state"]))
        settings = method_of(name).Settings(**run["settings"])
        known["methods"][name] = costs(method_of(name), net, settings, scene, image, rounds)
        write_json(file, known | {"data": data, "machine": machine()})
        print(f"costs of {name}: {known['methods'][name]}", flush=True)


def command(given: argparse.Namespace) -> str:
    """What makes these figures again; where files lie does not matter."""
    words = ["python benchmarks/compare.py --data DATA", *(["--quick"] if given.quick else [])]
    words += [f"--budget {given.budget}"] if given.budget else []
    words += [f"--seeds {given.seeds}"] if given.seeds else []
    words += [f"--methods {' '.join(given.methods)}"] if set(given.methods) != set(METHODS) else []
    words += [f"--sets {' '.join(given.sets)}"] if set(given.sets) != set(SETS) else []
    words += [f"--network {given.network}"] if given.network != "lite" else []
    return " ".join(words)


def main() -> None:
    given = parsed()
    torch.set_num_threads(1)
    plan = plan_of(given)
    folder = folder_of(given, plan)
    if not given.report:
        run_all(given, plan, folder)
        measured(given, plan, folder)
    runs = list(runs_of(folder))
    if not runs:
        print(f"no finished run in {folder}")
        return
    trials = {name: trial_of(name, given, plan) for name in {r["data"] for r in runs}}
    file = folder / "costs.json"
    cost = json.loads(file.read_text()) if file.exists() else None
    there = {name: trial for name, trial in trials.items() if trial}
    size = "quick" if given.quick else "full"
    compare_page.report(runs, cost, there, plan, size, command(given))


if __name__ == "__main__":
    main()
