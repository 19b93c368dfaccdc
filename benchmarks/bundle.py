"""A trained run as a bundled model: ``python benchmarks/bundle.py RUN NAME``.

Writes the best model of RUN, its kernels in float16, into src/spatialembed/models/NAME, and prints
how many bytes that is. The model card beside it, README.md, is written by hand.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

from spatialembed.inference import model_file

MODELS = Path(__file__).parents[1] / "src" / "spatialembed" / "models"


def main(run: Path, name: str) -> None:
    net, info = model_file.load(run / "model")
    facts = {"licence": "Apache-2.0", **info.training}
    if (MODELS / name).exists():  # the scale by default is no matter of training
        info = replace(info, diameter=model_file.load(name)[1].diameter)
    folder = model_file.save(MODELS / name, net, replace(info, training=facts), half=True)
    size = sum(file.stat().st_size for file in folder.iterdir() if file.suffix != ".md")
    print(f"{folder.name}: {size:,} bytes, {facts}")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
