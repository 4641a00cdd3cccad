"""What is installed with the package: the network it trained itself, its receipt, and digits to try it on."""

import json
from importlib import resources
from pathlib import Path

import numpy as np

#: The folder `weights/` of the source, under the name it is installed as.
PACKAGE = "mnv2_keras.pretrained"


def bundled_file(name: str) -> Path:
    """A file of `weights/`, such as `digits.tgz`, `digits_int8.tflite` or `digits.json`.

    Raises:
        FileNotFoundError: it is not installed; the message lists what is.
    """
    try:
        folder = Path(str(resources.files(PACKAGE)))
    except ModuleNotFoundError:
        folder = Path(__file__).parents[1] / "weights"  # a checkout that is not installed
    path = folder / name
    if not path.is_file():
        names = sorted(file.name for file in folder.glob("*") if file.is_file()) if folder.is_dir() else []
        raise FileNotFoundError(f"{name} is not installed with this package, which has {', '.join(names) or 'no such files'}.")
    return path


def digits_network() -> dict:
    """Arguments of `build_mobilenetv2` and `convert_checkpoint` for the digits network.

    A checkpoint holds no strides and no input size, so they come from its receipt.
    """
    about = json.loads(bundled_file("digits.json").read_text())
    return {"input_shape": tuple(about["input_shape"]), "table": tuple(map(tuple, about["table"]))}


def sample_digits() -> tuple[np.ndarray, np.ndarray]:
    """Twenty held-out digits, two of each class, not chosen by how the network does on them.

    Returns:
        Images uint8 (20, 28, 28, 1), and labels int64 (20,).
    """
    from mnv2_keras.images import read_image

    names = json.loads(bundled_file("digits.json").read_text())["samples"]
    images = np.stack([read_image(bundled_file(name))[..., :1] for name in names])
    return images, np.array([int(name.split("_")[1]) for name in names])
