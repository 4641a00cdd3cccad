"""The .tflite made from some weights: converted once, kept in the cache under a hash, found again without TensorFlow.

`<cache>/litert/<key>.tflite`, the key being the SHA-256 of all that decides what is in it; beside it `<key>.json` with the
file's own SHA-256, without which it is not believed. `python -m mnv2_keras.inference.model_cache JOB` is the child process
that converts, so that TensorFlow's 700 MB never enter the user's.
"""

import glob
import hashlib
import json
import logging
import os
import sys
from pathlib import Path

from mnv2_keras import __version__
from mnv2_keras.atomic import write_bytes
from mnv2_keras.bundled import bundled_file
from mnv2_keras.cache import cache_folder

log = logging.getLogger("mnv2_keras")

#: Goes up when what is made from the same weights changes.
_FORMAT = 3

#: What is made from weights alone; int8 needs photos, so it is `export_litert`'s.
PRECISIONS = ("float32", "float16", "dynamic")


def litert_content(weights: str | os.PathLike, precision: str, resolution: int | None, say=None) -> bytes:
    """The .tflite file of some weights: a file that is one already, else from the cache, else converted now.

    It has the class probabilities as first output and the pooled features as second.

    Args:
        weights: what `convert_checkpoint` takes, a Keras file, a .tflite, or "digits" for the int8 file of handwritten digits
            that is installed with the package.
        precision: "float32", "float16" or "dynamic".
        resolution: side of the input in pixels; None for the weights' own.
        say: called with a sentence before something that takes long; None writes it to standard error.

    Raises:
        FileNotFoundError: there are no such weights.
        ValueError: they cannot be converted, or another precision.
    """
    path = path_of(weights)
    if path.suffix == ".tflite":
        return _own_file(path, precision, resolution)
    _check_precision(precision)
    digest = digest_of_files(path, str(weights))
    parts = [digest, precision, str(resolution), __version__, str(_FORMAT)]
    key = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:40]
    kept = _kept(key)
    if kept is not None:
        return kept
    if not path.exists() and str(weights) in (record.name for record in _registered()):
        from mnv2_keras.fetch import fetch_checkpoint

        fetch_checkpoint(str(weights))  # here, where its progress can be seen
    (say or _to_stderr)(f"Converting {weights} to LiteRT ({precision}); this is done once and kept in the cache.")
    content = _converted(weights, precision, resolution)
    _keep(key, content)
    return content


def _to_stderr(sentence: str) -> None:
    print(sentence, file=sys.stderr, flush=True)


def _registered():
    from mnv2_keras.registry import list_checkpoints

    return list_checkpoints()


def _check_precision(precision: str) -> None:
    if precision not in PRECISIONS:
        raise ValueError(
            f"precision is {precision!r}: expected {', '.join(PRECISIONS)}. For int8, which needs photos to calibrate on, write a "
            "file with export_litert (`mnv2 export`) and give it as the weights."
        )


def _own_file(path: Path, precision: str, resolution: int | None) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"There is no .tflite file {path}: check the path.")
    if precision != "float32" or resolution is not None:
        raise ValueError(
            f"{path} is a .tflite with a precision and a resolution of its own: leave both out, or give its weights."
        )
    return path.read_bytes()


def path_of(weights: str | os.PathLike) -> Path:
    """Where weights lie, "digits" being the file that is installed with the package; a registered name lies nowhere."""
    path = Path(weights).expanduser()
    return bundled_file("digits_int8.tflite") if str(weights) == "digits" and not path.exists() else path


def digest_of_files(path: Path, name: str) -> str:
    """SHA-256 of local weights, or the published one of a registered name."""
    if not path.exists() and not Path(f"{path}.index").exists():
        record = next((each for each in _registered() if each.name == name), None)
        if record is None:
            raise FileNotFoundError(
                f"weights: {path} does not exist, and no checkpoint is called so: give a file, a folder or a name of `mnv2 list`."
            )
        if record.sha256:
            return record.sha256
        from mnv2_keras.fetch import fetch_checkpoint

        path = fetch_checkpoint(name)
    if path.is_file():
        base, files = path.parent, [path]
    elif path.is_dir():
        # A folder's checkpoint may lie one folder deeper (`open_checkpoint`); links are followed, as there.
        base, files = path, sorted(each for part in ("*", "*/*") for each in path.glob(part) if each.is_file())
    else:
        base, files = path.parent, sorted(path.parent.glob(f"{glob.escape(path.name)}.*"))
    return _remembered_digest(base, files)


def _remembered_digest(base: Path, files: list[Path]) -> str:
    """SHA-256 over contents and names below `base`; not computed again while paths, sizes and times of change stay the same."""
    states = [(each, each.stat()) for each in files]
    known = repr([(str(each.resolve()), state.st_size, state.st_mtime_ns, state.st_ino) for each, state in states])
    note = cache_folder() / "litert" / f"weights-{hashlib.sha256(known.encode()).hexdigest()[:40]}.txt"
    try:
        digest = note.read_text()
        if len(digest) == 64 and set(digest) <= set("0123456789abcdef"):
            return digest
    except (OSError, UnicodeDecodeError):
        pass  # no note, or none that can be read: compute it
    total = hashlib.sha256()
    for each in files:
        with each.open("rb") as file:
            total.update(each.relative_to(base).as_posix().encode() + hashlib.file_digest(file, "sha256").digest())
    _write(note, total.hexdigest().encode())
    return total.hexdigest()


def _kept(key: str) -> bytes | None:
    """The file in the cache; None when it is not there, cannot be read, or is not what was put there."""
    folder = cache_folder() / "litert"
    try:
        content = (folder / f"{key}.tflite").read_bytes()
        record = json.loads((folder / f"{key}.json").read_text())
        if record["sha256"] == hashlib.sha256(content).hexdigest():
            return content
        log.warning("%s in the cache is damaged: it is made anew.", key)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        log.warning("%s in the cache cannot be used (%s): it is made anew.", key, error)
    return None


def _keep(key: str, content: bytes) -> None:
    """Put a file into the cache."""
    folder = cache_folder() / "litert"
    record = json.dumps({"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}).encode()
    if not (_write(folder / f"{key}.tflite", content) and _write(folder / f"{key}.json", record)):
        log.warning("The cache folder %s cannot keep the converted model: it is made anew each time.", folder)


def _write(path: Path, data: bytes) -> bool:
    """Whether the file could be written; a cache that cannot be costs time the next time, and nothing else."""
    try:
        write_bytes(path, data)
    except OSError:
        return False
    return True


def _converted(weights: str | os.PathLike, precision: str, resolution: int | None) -> bytes:
    import tempfile

    from mnv2_keras.subprocess_job import run_child

    with tempfile.TemporaryDirectory(prefix="mnv2-litert-") as folder:
        job, made, failure = (Path(folder, name) for name in ("job.json", "model.tflite", "failure.txt"))
        job.write_text(json.dumps({"weights": str(weights), "precision": precision, "resolution": resolution}))
        done = run_child(__name__, Path(folder))
        if failure.exists():
            raise ValueError(failure.read_text())
        if done.returncode or not made.exists():
            said = [line for line in done.stderr.splitlines() if line.strip()][-3:]
            raise ValueError(f"The conversion of {weights} failed (exit code {done.returncode}). " + " | ".join(said))
        return made.read_bytes()


# The child


def _convert_job(folder: Path) -> None:
    """Convert what the job names; what the user can mend is written down as a sentence."""
    job = json.loads(Path(folder, "job.json").read_text())
    try:
        content = _make(job["weights"], job["precision"], job["resolution"])
    except (ValueError, OSError) as error:
        Path(folder, "failure.txt").write_text(str(error))
        return
    Path(folder, "model.tflite").write_bytes(content)


def _make(weights: str, precision: str, resolution: int | None) -> bytes:
    from mnv2_keras.conversion import open_model

    model, _ = open_model(weights, size=None if resolution is None else (resolution, resolution))
    return make_classifier_file(model, precision, here=True)


def check_classifier(model) -> None:
    """Refuse a Keras model that a Classifier cannot feed or understand.

    Raises:
        ValueError: it puts out no classes, or takes 0 to 255.
    """
    from mnv2_keras.networks.endpoints import check_input

    if not isinstance(model.output_shape, tuple) or len(model.output_shape) != 2:
        raise ValueError(
            f"{model.name!r} gives {model.output_shape}, no probabilities of classes: a Classifier needs weights with a classifier."
        )
    check_input(model)


def make_classifier_file(model, precision: str, here: bool = False) -> bytes:
    """A classifier's file: probabilities, then pooled features where the model pools. Labels are found without it.

    Args:
        model: a classifier.
        precision: "float32", "float16" or "dynamic".
        here: convert in this very process, which clears the model's dead channels; otherwise in a child.

    Raises:
        ValueError: the model is no classifier, takes any size or 0 to 255; or another precision.
    """
    import keras

    from mnv2_keras.export.conversion import check_operators, convert_here, convert_litert, with_signature
    from mnv2_keras.export.metadata import classifier_metadata, image_input
    from mnv2_keras.tflite import add_metadata

    _check_precision(precision)
    check_classifier(model)
    if None in model.input_shape[1:]:
        raise ValueError(f"{model.name!r} takes images of any size: pass resolution, such as resolution=224.")
    layers = {layer.name: layer for layer in model.layers}
    outputs = [model.output]
    if "global_pool" in layers:
        outputs.append(layers["global_pool"].output)
    tapped = keras.Model(model.input, outputs, name=model.name)
    if here:
        content = with_signature(*convert_here(tapped, precision, [1, *model.input_shape[1:]]))
        check_operators(content, model.name)
    else:
        content = convert_litert(tapped, precision)
    metadata = classifier_metadata(name=model.name, image=image_input(channels=model.input_shape[-1]))
    if len(outputs) > 1:
        described = metadata.about["subgraph_metadata"][0]["output_tensor_metadata"]
        described.append({"name": "features", "description": "Pooled features."})
    return add_metadata(content, metadata)


if __name__ == "__main__":
    from mnv2_keras.subprocess_job import follow_parent

    _convert_job(follow_parent(sys.argv[1:]))
