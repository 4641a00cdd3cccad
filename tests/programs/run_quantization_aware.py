"""Open `aware.keras` in a folder as users do, and write what it computes of `images.npy` to `logits.npy`."""

import sys
from pathlib import Path

import numpy as np

from mnv2_keras import open_model

folder = Path(sys.argv[1])
model, _ = open_model(folder / "aware.keras")
np.save(folder / "logits.npy", model(np.load(folder / "images.npy"), training=False))
