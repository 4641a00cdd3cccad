"""The `.tflite` file made from weights: converted once, kept in the cache under a hash, used again without TensorFlow.

It is `<cache>/litert/<key>.tflite`; the key is the SHA-256 of everything that decides its content. `<key>.json` holds the SHA-256
of the file; a file that does not agree with it is not used. `python -m mnv2_keras.inference.model_cache FOLDER` is the subprocess
that converts, so that TensorFlow's 700 MB never enter the user's process.
"""

import glob
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mnv2_keras import __version__
from mnv2_keras.atomic import write_bytes
from mnv2_keras.bundled import bundled_file
from mnv2_keras.cache import cache_folder
from mnv2_keras.checks import one_of, user_path
from mnv2_keras.subprocess_job import follow_parent, run_subprocess_job

log = logging.getLogger("mnv2_keras")

#: Goes up when the same weights give another file.
_FORMAT = 3

#: Precisions that need nothing but the weights; int8 needs photos, so `export_litert` makes it.
PRECISIONS = ("float32", "float16", "dynamic")
_INT8 = ". For int8, which needs photos to calibrate on, write a file with export_litert (`mnv2 export`) and give it as the weights"


def litert_content(
    weights: str | os.PathLike,
    precision: str = "float32",
    resolution: int | None = None,
    on_message: Callable[[str], None] | None = None,
    task: str = "classification",
) -> bytes:
    """The `.tflite` file of some weights: the weights themselves if they are one, else from the cache, else converted now.

    Args:
        weights: what `open_model` takes, a `.tflite` file, or "digits" for the int8 network for handwritten digits that is
            installed with the package.
        precision: one of `PRECISIONS`.
        resolution: side of the input in pixels; None for the weights' own.
        on_message: called with a sentence before a conversion; None prints it on standard error.
        task: "classification", "detection" or "segmentation"; the outputs are those of `task_network`.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they cannot be converted, or another precision.
    """
    path = path_of(weights)
    if path.suffix == ".tflite":
        if not path.is_file():
            raise FileNotFoundError(f"There is no .tflite file {path}: check the path.")
        if precision != "float32" or resolution is not None:
            raise ValueError(f"{path} is a .tflite with a fixed precision and resolution: leave both out, or give its weights.")
        content = path.read_bytes()
        if str(weights) != "digits":
            from mnv2_keras.tflite.trial import check_runs  # imports the classes of the format, which a converted file never needs

            check_runs(content, path.name)
        return content
    one_of("precision", precision, PRECISIONS, _INT8)
    digest = digest_of_files(path, str(weights))
    # Without the task for a classifier: files that the release before converted are found.
    parts = [digest, precision, str(resolution), __version__, str(_FORMAT), *([task] * (task != "classification"))]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
    content = _cached(key)
    if content is not None:
        return content
    if not path.exists() and _record(str(weights)):
        from mnv2_keras.fetch import fetch_checkpoint

        fetch_checkpoint(str(weights))  # in this process, where its progress can be seen
    on_message = on_message or partial(print, file=sys.stderr, flush=True)
    on_message(f"Converting {weights} to LiteRT ({precision}); this is done once and kept in the cache.")
    content = _converted(weights, precision, resolution, task)
    about = json.dumps({"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}).encode()
    if not (_write(f"{key}.tflite", content) and _write(f"{key}.json", about)):
        log.warning("The cache folder %s cannot keep the converted model: it is converted each time.", _folder())
    return content


def _record(name: str):
    """The published checkpoint of a name, or None."""
    from mnv2_keras.registry import list_checkpoints

    return next((record for record in list_checkpoints() if record.name == name), None)


def path_of(weights: str | os.PathLike) -> Path:
    """The path of weights; "digits" is the file that is installed with the package. A registered name is not a file."""
    path = user_path(weights)
    return bundled_file("digits_int8.tflite") if str(weights) == "digits" and not path.exists() else path


def digest_of_files(path: Path, name: str) -> str:
    """SHA-256 of local weights, or the published one of a registered name."""
    if not path.exists() and not Path(f"{path}.index").exists():
        record = _record(name)
        if record is None:
            raise FileNotFoundError(
                f"weights: {path} does not exist, and no checkpoint is called so: give a file, a folder or a name of `mnv2 list`."
            )
        if record.sha256:
            return record.sha256
        from mnv2_keras.fetch import fetch_checkpoint

        path = fetch_checkpoint(name)
    if path.is_dir():
        # A folder's checkpoint may lie one folder deeper (`open_checkpoint`); links are followed, as there.
        return _digest(path, sorted(file for part in ("*", "*/*") for file in path.glob(part) if file.is_file()))
    is_prefix = not path.is_file()
    return _digest(path.parent, sorted(path.parent.glob(f"{glob.escape(path.name)}.*")) if is_prefix else [path])


def _digest(base: Path, files: list[Path]) -> str:
    """SHA-256 over contents and names below `base`; computed again only when a path, a size or a time of change differs."""
    states = [(path, path.stat()) for path in files]
    identity = repr([(str(path.resolve()), state.st_size, state.st_mtime_ns, state.st_ino) for path, state in states])
    note = f"weights-{hashlib.sha256(identity.encode()).hexdigest()[:40]}.txt"
    try:
        digest = (_folder() / note).read_text()
        if len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
            return digest
    except (OSError, UnicodeDecodeError):
        pass  # no note, or none that can be read: compute it
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(path.relative_to(base).as_posix().encode() + hashlib.file_digest(file, "sha256").digest())
    _write(note, total.hexdigest().encode())
    return total.hexdigest()


def _folder() -> Path:
    return cache_folder() / "litert"


def _cached(key: str) -> bytes | None:
    """The file in the cache; None when it is absent, cannot be read, or does not have the recorded hash."""
    try:
        content = (_folder() / f"{key}.tflite").read_bytes()
        if json.loads((_folder() / f"{key}.json").read_text())["sha256"] == hashlib.sha256(content).hexdigest():
            return content
        log.warning("%s in the cache is damaged: it is converted again.", key)
    except FileNotFoundError:
        pass
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s in the cache cannot be used (%s): it is converted again.", key, error)
    return None


def _write(name: str, data: bytes) -> bool:
    """Whether the file could be written. A cache that cannot be written costs the time of another conversion, nothing else."""
    try:
        write_bytes(_folder() / name, data)
    except OSError:
        return False
    return True


def _converted(weights: str | os.PathLike, precision: str, resolution: int | None, task: str) -> bytes:
    with tempfile.TemporaryDirectory(prefix="mnv2-litert-") as folder:
        job, result, failure = (Path(folder, name) for name in ("job.json", "model.tflite", "failure.txt"))
        arguments = {"weights": str(weights), "precision": precision, "resolution": resolution, "task": task}
        job.write_text(json.dumps(arguments))
        done = run_subprocess_job(__name__, Path(folder))
        if failure.exists():
            raise ValueError(failure.read_text())
        if done.returncode or not result.exists():
            lines = [line for line in done.stderr.splitlines() if line.strip()][-3:]
            raise ValueError(f"The conversion of {weights} failed (exit code {done.returncode}). " + " | ".join(lines))
        return result.read_bytes()


def _convert_job(folder: Path) -> None:
    """In the subprocess: convert what the job names. An error that the user can correct is written down as a sentence."""
    from mnv2_keras.conversion import open_model

    job = json.loads((folder / "job.json").read_text())
    try:
        size = None if job["resolution"] is None else (job["resolution"],) * 2
        model, _ = open_model(job["weights"], size=size)
        content = model_content(model, job["precision"], job["task"], job["weights"], here=True)
    except (ValueError, OSError) as error:
        (folder / "failure.txt").write_text(str(error))
    else:
        (folder / "model.tflite").write_bytes(content)


def model_content(
    model, precision: str = "float32", task: str = "classification", name: str | None = None, here: bool = False
) -> bytes:
    """The `.tflite` file of a Keras model, with the outputs of `task_network`; a classifier's has metadata without labels.

    Args:
        model: a `keras.Model`.
        precision, task: as in `litert_content`.
        name: what messages call the model; None for its own name.
        here: convert in this very process, which clears the model's dead channels; otherwise in a subprocess.

    Raises:
        ValueError: the model is not of this task, or as in `task_network`; another precision.
    """
    from mnv2_keras.export.conversion import convert_in_process, convert_litert
    from mnv2_keras.export.metadata import classifier_metadata, image_input
    from mnv2_keras.inference.task_networks import task_network

    one_of("precision", precision, PRECISIONS, _INT8)
    network, size = task_network(model, task, name or repr(model.name))
    channels = model.input_shape[-1]
    if here:
        file = convert_in_process(network, precision, [1, *size, channels])
    else:
        file = convert_litert(network, precision, resolution=size)
    if task == "classification":
        others = [{"name": "features", "description": "Pooled features."}][: len(network.outputs) - 1]
        file.set_metadata(classifier_metadata(name=model.name, image=image_input(channels=channels), others=others))
    return file.to_bytes()


if __name__ == "__main__":
    _convert_job(follow_parent(sys.argv[1:]))
