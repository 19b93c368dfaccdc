"""StarDist, Cellpose, InstanSeg, Mask R-CNN and ours: same images and time, one evaluator.

    python benchmarks/peers.py --data DATA/nuclei                 an hour each, on one thread
    python benchmarks/peers.py --data DATA/nuclei --minutes 6 --peers lite,stardist
    python benchmarks/peers.py --report                           the page alone, of what is there

The validation groups of the data set are the test here. The other images are parted once more in
the same way, by groups: four fifths to train on, one fifth for the choices of a method (its best
epoch, thresholds). Each peer comes from its registry package, with its own training code and
the settings that its authors recommend (``peer_runs``), in an environment of its own under
``runs/peers``. Time is processor time of training on one thread; installation, thresholds and
prediction come on top. What is finished is not repeated; a run that was stopped begins anew.

Mask R-CNN comes without a training recipe for such images: it has the one of ``mask_rcnn.py``
(``contestants``, ``race_data``), where the time of making crops does not count.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import subprocess
import sys
import time
import venv
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import torch
import torchvision
from contestants import MaskRcnn, owned
from race import Schedule, race
from race_data import best_cut, nuclei_recipe
from tifffile import imread, imwrite

import spatialembed
from spatialembed.command.arguments import parse
from spatialembed.command.bench import machine
from spatialembed.data.dataset import FileDataset
from spatialembed.data.folder import open_folder
from spatialembed.data.open import open_data
from spatialembed.data.splitting import split_dataset
from spatialembed.evaluation.label_metrics import AP_THRESHOLDS, label_ap
from spatialembed.training import callbacks, step
from spatialembed.training.augment import AugmentOptions
from spatialembed.training.options import TrainOptions
from spatialembed.training.train import train

HERE = Path(__file__).resolve().parent
WORK = HERE.parent / "runs" / "peers"
RESULT = HERE / "results" / "peers.json"
PAGE = HERE.parent / "docs" / "peers.md"


class Peer(NamedTuple):
    """A method of a registry package, run by ``peer_runs/NAME_run.py``."""

    packages: tuple[str, ...]
    says: str  # what stands in the table


PEERS = {
    "stardist": Peer(("stardist==0.9.2", "tensorflow==2.21.0"), "StarDist, U-Net, from nothing"),
    "cellpose": Peer(("cellpose==3.1.1.3",), "Cellpose 3, residual U-Net, from nothing"),
    "instanseg": Peer(("instanseg-torch[full]==0.1.2",), "InstanSeg, U-Net, from nothing"),
}
OURS = {
    "lite": ([], "ours, lite, encoder from ImageNet"),
    "lite-random": (["--pretrained", "null"], "ours, lite, from nothing"),
    "erfnet": (["--network", "erfnet", "--pretrained", "null"], "ours, ERFNet, from nothing"),
}  # fmt: skip
SAYS = {
    **{name: says for name, (_, says) in OURS.items()},
    **{name: peer.says for name, peer in PEERS.items()},
    "mask-rcnn": "Mask R-CNN, ResNet-50 FPN, from nothing",
}


def exported(source: str, group_by: str, data: Path) -> Path:
    """Write train/, val/ and test/ with images/ and masks/ as grey TIFF, once; returns ``data``."""
    if (data / "done").is_file():
        return data
    dataset = open_data(source)
    rest, test = split_dataset(dataset, group_by=group_by)
    fit, val = split_dataset(rest, group_by=group_by)
    for part, images in (("train", fit), ("val", val), ("test", test)):
        write_part(images, data / part)
    (data / "done").touch()
    return data


def write_part(images: FileDataset, folder: Path) -> None:
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for i, name in enumerate(images.names):
        sample = images[i]
        image = np.asarray(sample.image)
        grey = image if image.ndim == 2 else image.mean(-1).round().astype(image.dtype)
        imwrite(folder / "images" / f"{name}.tif", grey)
        imwrite(folder / "masks" / f"{name}.tif", sample.target.labels.numpy().astype(np.uint16))


def environment(name: str, work: Path) -> Path:
    """The interpreter of a peer's own environment, which is made at first."""
    folder = work / f"venv-{name}"
    python = folder / "bin" / "python"
    if not (folder / "done").is_file():
        venv.create(folder, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "-q", *PEERS[name].packages], check=True)
        (folder / "done").touch()
    return python


def run_peer(name: str, data: Path, out: Path, seconds: float, work: Path) -> None:
    """Train a peer and let it write labels/ and facts.json."""
    (out / "labels").mkdir(parents=True, exist_ok=True)
    one = {f"{library}_NUM_THREADS": "1" for library in ("OMP", "MKL", "OPENBLAS", "NUMBA")}
    command = [environment(name, work), HERE / "peer_runs" / f"{name}_run.py", data, out, seconds]
    subprocess.run(list(map(str, command)), check=True, env=os.environ | one)


def run_ours(name: str, data: Path, out: Path, seconds: float) -> None:
    """The config ``nuclei`` with its schedule bent to the time, the clock being the processor's."""
    torch.set_num_threads(1)
    clock: Any = SimpleNamespace(monotonic=time.process_time)
    step.time = callbacks.time = clock
    words = ["--config", "nuclei", "--data", str(data), "--group-by", "null", "--out", str(out)]
    words += ["--name", "run", "--workers", "0", "--stage1.epochs", "100000"]
    words += ["--max-time", str(seconds / 60), "--validate_every", "20", *OURS[name][0]]
    run = train(parse(TrainOptions, words, verb="train", help=""))
    predictor = spatialembed.load(run / "model", threads=1)
    (out / "labels").mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "test" / "images").glob("*.tif")):
        labels = np.asarray(predictor(imread(path)).labels).astype(np.uint16)
        imwrite(out / "labels" / path.name, labels)
    with open(run / "metrics.csv", newline="", encoding="utf-8") as file:
        epochs = sum(1 for _ in csv.DictReader(file))
    (out / "facts.json").write_text(json.dumps({"epochs": epochs}))


def run_mask_rcnn(data: Path, out: Path, seconds: float) -> None:
    """torchvision's from nothing; pixels go to the better score, its threshold comes from val/."""
    torch.set_num_threads(1)
    fit, val = (open_folder(data / part) for part in ("train", "val"))
    recipe, device = nuclei_recipe(fit, "none"), torch.device("cpu")
    schedule = Schedule((seconds,), 0.75 * seconds, None, 64, 256, 2, AugmentOptions())
    contestant = MaskRcnn(recipe, device)

    def chosen(_: Any) -> dict[str, float]:
        return best_cut(contestant, val)

    state = out / "state.pt"
    now = race([contestant], fit, recipe, schedule, chosen, state, device)[contestant.name]
    (out / "labels").mkdir(parents=True, exist_ok=True)
    for path in sorted((data / "test" / "images").glob("*.tif")):
        labels = owned(contestant.find(imread(path)), now.curve[-1]["cut"])
        imwrite(out / "labels" / path.name, labels.astype(np.uint16))
    facts = {"crops": now.images, "threshold": now.curve[-1]["cut"]}
    facts["packages"] = [f"torchvision=={torchvision.__version__.split('+')[0]}"]
    (out / "facts.json").write_text(json.dumps(facts))
    state.unlink()


def scored(data: Path, out: Path) -> dict[str, Any]:
    """Mean AP over IoU .50 to .90 and its parts, per image, mean over the images of the test."""
    rows = [
        label_ap(imread(out / "labels" / path.name), imread(path), AP_THRESHOLDS)
        for path in sorted((data / "test" / "masks").glob("*.tif"))
    ]
    ap = np.array(rows)
    means = ap.mean(1)
    return {
        "ap": float(means.mean()),
        "error": float(means.std(ddof=1) / np.sqrt(len(means))),
        "by_iou": dict(zip(map(str, AP_THRESHOLDS), ap.mean(0).tolist(), strict=True)),
        "images": len(rows),
        **json.loads((out / "facts.json").read_text()),
    }


def rows(results: dict[str, Any]) -> list[str]:
    """A table in Markdown, best first."""
    lines = ["| method | AP .50 to .90 | AP .50 | AP .75 | AP .90 | trained for | packages |"]
    lines.append("| --- |" + " ---: |" * 5 + " --- |")
    for name, r in sorted(results.items(), key=lambda item: -item[1]["ap"]):
        packages = ", ".join(PEERS[name].packages if name in PEERS else r.get("packages", ()))
        at = [f"{r['by_iou'][iou]:.3f}" for iou in ("0.5", "0.75", "0.9")]
        amount = next(f"{r[unit]} {unit}" for unit in ("steps", "epochs", "crops") if unit in r)
        values = [f"{r['ap']:.3f} ± {r['error']:.3f}", *at, amount]
        lines.append(f"| {SAYS[name]} | {' | '.join(values)} | {packages} |")
    return lines


def report(stored: dict[str, Any]) -> None:
    """Write docs/peers.md from the stored results."""
    images = next(iter(stored["runs"].values()))["images"]
    minutes = f"{stored['minutes']:g}"
    missing = "; ".join(says for name, says in SAYS.items() if name not in stored["runs"])
    text = f"""# Peers on the same data

The methods of the table learned from the same images, each
for {minutes} minutes of processor time on one thread, and were scored by one evaluator on {images}
images of fields of view that none had seen. Mean AP per image over IoU .50 to .90, its mean over
the images and the standard error.

<!-- not run: it installs StarDist, Cellpose and InstanSeg, and trains each method -->
```sh
{stored["command"]}
```

{chr(10).join(rows(stored["runs"]))}

Not run: {missing or "none"}.

**{minutes} minutes show how soon a method learns on a processor, not where it ends.** The others
are made for hours on a GPU; their published figures stand in [accuracy](accuracy.md).

Each has the training code of its package and what its authors recommend, and starts from random
weights where the table does not say otherwise:

- StarDist: the settings of its example; thresholds by its own search on the validation images.
- Cellpose: version 3, the last one whose CNN can start from nothing, with the defaults of
  `train_seg`. An epoch is one batch, so that the learning rate, which rises over ten epochs, does
  so within the time; by whole epochs it would have stood at 0 until the first had gone by. The
  diameter in test images is the mean one of the training images, as Cellpose has it for models
  without a size model.
- InstanSeg: the defaults of its training function, with epochs so short that about eight fit; the
  losses of its hot start, which the authors have for the first 10,000 tiles. Thresholds by its own
  search.
- Mask R-CNN: torchvision has no recipe for such images; it is trained as in
  [Mask R-CNN](mask_rcnn.md), with group normalisation, anchors for nuclei and AdamW. A pixel goes
  to the better score; the least score is chosen on validation images. Time to make crops does not
  count here.
- Ours: the config `nuclei`, its schedule bent to the time.

One seed each, on {stored["machine"]["processor"]}. A method chose its epoch and thresholds on a
fifth of the training groups; this and prediction come on top of the time.
"""
    PAGE.write_text(text, encoding="utf-8")
    print(f"wrote {PAGE}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="", help="folder of the nuclei, with index.csv")
    parser.add_argument("--group-by", default="mosaic")
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--peers", default=",".join(SAYS))
    parser.add_argument("--work", default=WORK, type=Path, help="folder of environments and runs")
    parser.add_argument("--report", action="store_true", help="train nothing, renew the page")
    given = parser.parse_args()
    stored = json.loads(RESULT.read_text()) if RESULT.is_file() else {"runs": {}}
    if not given.report:
        data = exported(given.data, given.group_by, given.work / "data")
        stored["command"] = f"python benchmarks/peers.py --data DATA --minutes {given.minutes:g}"
        stored["machine"], stored["minutes"] = machine(), given.minutes
        for name in given.peers.split(","):
            out = given.work / f"{name}-{given.minutes:g}"
            if not (out / "facts.json").is_file():
                print(f"{name}: {given.minutes:g} minutes", file=sys.stderr)
                if name in OURS:
                    run_ours(name, data, out, 60 * given.minutes)
                elif name in PEERS:
                    run_peer(name, data, out, 60 * given.minutes, given.work)
                else:
                    run_mask_rcnn(data, out, 60 * given.minutes)
            stored["runs"][name] = scored(data, out)
            RESULT.write_text(json.dumps(stored, indent=1) + "\n")
    report(stored)
    print("\n".join(rows(stored["runs"])))


if __name__ == "__main__":
    main()
