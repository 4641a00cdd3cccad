"""What a Keras file may hold, checked before Keras opens it: weights that are in the file, and layers no larger than these."""

import io
import json
import math
import os
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from mnv2_keras.subprocess_job import follow_parent, limit_memory, run_subprocess_job

#: Bytes of a file's configuration, and of its weights. The largest network of this package has 60 kB and 25 MB.
MAX_CONFIG, MAX_WEIGHTS = 16 * 2**20, 2 * 2**30
#: Bytes of variables that a configuration may always ask for.
_ALWAYS = 2**30
#: Arguments of layers that set a number of channels.
_WIDTHS = {"units", "filters", "depth_multiplier", "input_dim", "output_dim"}
_WIDTHS |= {"num_heads", "key_dim", "value_dim", "max_tokens"}

#: Exit code of the subprocess.
_TOO_LARGE = 3
#: Integers that are not sizes.
_NUMBERS = ("seed", "shared_object_id")


def check_content(path: Path) -> None:
    """Check a `.keras`, `.h5` or `.weights.h5` file.

    Raises:
        ValueError: it states more weights than it holds, points to other files, or its layers ask for more memory than its weights.
    """
    import h5py

    if path.suffix == ".keras":
        with zipfile.ZipFile(path) as archive:
            limits = {"config.json": MAX_CONFIG, "model.weights.h5": MAX_WEIGHTS}
            for name, limit in limits.items():
                if archive.getinfo(name).file_size > limit:
                    raise ValueError(f"{name} has {archive.getinfo(name).file_size:,} bytes, expected at most {limit:,}")
            config, weights = json.loads(archive.read("config.json")), archive.read("model.weights.h5")
        with h5py.File(io.BytesIO(weights)) as file:
            held = _check_datasets(file, len(weights))
    else:
        with h5py.File(path) as file:
            held = _check_datasets(file, path.stat().st_size)
            config = json.loads(file.attrs.get("model_config", "null"))
    if config is not None and _largest_bytes(config) > _ALWAYS:
        _check_memory(path, max(_ALWAYS, 4 * held))


def _check_memory(path: Path, limit: int) -> None:
    """Load the file in a subprocess that may grow by `limit` bytes; what Keras refuses there it will refuse here too."""
    with tempfile.TemporaryDirectory(prefix="mnv2-keras-") as folder:
        Path(folder, "job.json").write_text(json.dumps([str(path.resolve()), limit]))
        done = run_subprocess_job("mnv2_keras.convert.sources.keras_content", Path(folder))
    if done.returncode == _TOO_LARGE or done.returncode < 0:
        raise ValueError(f"its layers ask for more than {limit / 2**30:.1f} GiB, which its weights do not have")


def _check_datasets(file, size: int) -> int:
    """Bytes of all data sets of an HDF5 file of `size` bytes."""
    import h5py

    total, groups = 0, [file]
    while groups:
        group = groups.pop()
        for name in group:
            if isinstance(group.get(name, getlink=True), h5py.ExternalLink | h5py.SoftLink):
                raise ValueError(f"{name} points to another place")
            item = group[name]
            if isinstance(item, h5py.Group):
                groups.append(item)
            elif item.external or item.is_virtual:
                raise ValueError(f"{name} lies in another file")
            else:
                total += math.prod(item.shape or ()) * item.dtype.itemsize
    if total > max(2**24, 8 * size):
        raise ValueError(f"its weights state {total:,} bytes in a file of {size:,}")
    return total


def _largest_bytes(config: dict) -> float:
    """An upper bound of the bytes of the variables of a configuration's layers; infinite if one flattens maps."""
    layers = [part["config"] for part in _parts(config) if isinstance(part.get("config"), dict)]
    if any(part.get("class_name") == "Flatten" for part in _parts(config)):
        return math.inf
    # The outer configuration holds all the others.
    layers = [{key: value for key, value in layer.items() if key != "layers"} for layer in layers]
    widest = max((number for layer in layers for number in _integers(layer)), default=1)
    total = 0
    for layer in layers:
        widths = [value for key, value in layer.items() if key in _WIDTHS and isinstance(value, int)]
        total += math.prod(_integers(layer.get("kernel_size", 1))) * max([1, *map(abs, widths)]) * widest
    return 4 * total


def _parts(config) -> Iterator[dict]:
    """The dictionaries in a configuration, at any depth."""
    if isinstance(config, dict):
        yield config
        config = list(config.values())
    for part in config if isinstance(config, list) else ():
        yield from _parts(part)


def _integers(config) -> Iterator[int]:
    """The sizes of the integers in a value, at any depth."""
    if isinstance(config, int):
        yield abs(config)
    elif isinstance(config, dict | list):
        parts = [value for key, value in config.items() if key not in _NUMBERS] if isinstance(config, dict) else config
        for part in parts:
            yield from _integers(part)


def _load(folder: Path) -> int:
    """In the subprocess: load the file, and return the exit code."""
    import keras
    import tensorflow as tf

    import mnv2_keras.layers  # noqa: F401 (registers the layers that a file may hold)

    path, limit = json.loads(Path(folder, "job.json").read_text())
    tf.zeros(1).numpy()  # TensorFlow's own memory does not count
    limit_memory(limit)
    try:
        keras.models.load_model(path, compile=False, safe_mode=True)
    except (MemoryError, tf.errors.ResourceExhaustedError):
        return _TOO_LARGE
    except Exception:
        return 0
    return 0


if __name__ == "__main__":
    _code = _load(follow_parent(sys.argv[1:]))
    os._exit(_code)
