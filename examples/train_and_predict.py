"""Train on a folder of images/ and masks/, then detect the objects of one of its images.

    python examples/train_and_predict.py [FOLDER]

Without a folder it makes one of generated nuclei and trains for 16 epochs, a few minutes
on two cores. On a folder it trains for 200.
"""

from __future__ import annotations

import sys
from pathlib import Path

import spatialembed
from spatialembed.generated.nuclei_and_shapes import SyntheticDataset, write_folder
from spatialembed.training.options import StageOptions

if __name__ == "__main__":  # loader processes import this file again
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path("runs/example_nuclei")
    epochs = 200 if len(sys.argv) > 1 else 16
    if len(sys.argv) == 1 and not folder.exists():
        write_folder(SyntheticDataset("nuclei", 128, 100), folder)

    stage = StageOptions(crop=128, epochs=epochs, crops=160, lr=1e-3)
    run = spatialembed.train(spatialembed.TrainOptions(data=str(folder), stage1=stage))

    predictor = spatialembed.load(run / "model")
    image = spatialembed.open_data(folder)[0].image  # (H, W) or (H, W, 3)
    found = predictor(image)
    print(f"{len(found)} objects, areas {found.areas.tolist()}")
    found.save(run / "example", image=image)
    print(run / "example")
    report = spatialembed.evaluate(predictor, spatialembed.open_data(folder))
    print(f"mean AP on all images, those of the training too: {report.mean_ap:.3f}")
