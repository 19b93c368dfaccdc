"""A trained run as a bundled model: ``python benchmarks/bundle.py RUN NAME [--keep-settings]``.

Writes the best model of RUN, its kernels in float16, into src/spatialembed/models/NAME, and prints
how many bytes that is. The model card beside it, README.md, is written by hand.

--keep-settings: thresholds and calibration are those of the model there, for a run on all images,
which leaves none to tune on.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from spatialembed.inference import model_file

MODELS = Path(__file__).parents[1] / "src" / "spatialembed" / "models"


def main(run: Path, name: str, keep_settings: bool) -> None:
    net, info = model_file.load(run / "model")
    facts = {"licence": "Apache-2.0", **info.training}
    if (MODELS / name).exists():  # the scale by default is no matter of training
        before = model_file.load(name)[1]
        info = replace(info, diameter=before.diameter)
        if keep_settings:
            info = replace(info, thresholds=before.thresholds, calibration=before.calibration)
    folder = model_file.save(MODELS / name, net, replace(info, training=facts), half=True)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".md")
    print(f"{folder.name}: {size:,} bytes, {facts}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], "--keep-settings" in sys.argv[3:])
