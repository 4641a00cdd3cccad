"""Millions of photos on many machines: Ray Data runs the same `Classifier`, and finished parts are never lost.

An actor computes each part of the photos as a Parquet file, which this process writes at once; when all parts are there, they
become one file. Ray gives the part of a killed worker to another one; a killed driver loses nothing that was written.
"""

import contextlib
import hashlib
import io
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from mnv2_keras import __version__
from mnv2_keras.atomic import replacing, write_bytes
from mnv2_keras.checks import user_path, whole_number
from mnv2_keras.deprecation import renamed_arguments
from mnv2_keras.images import IMAGE_SUFFIXES, ImageError, find_images
from mnv2_keras.inference.classifier import Classification, Classifier
from mnv2_keras.inference.results import rows_of, schema, write_parquet

#: Bytes of Ray's shared memory where it is started here: a part's results are small.
OBJECT_STORE = 256 * 2**20


class ClusterRun(NamedTuple):
    """Summary of a run on a cluster.

    Attributes:
        images: number of photos.
        broken: photo that could not be read to the reason.
        parts: number of parts.
        resumed: parts that an earlier run had finished.
    """

    images: int
    broken: dict[str, str]
    parts: int
    resumed: int


class _Photo(NamedTuple):
    """A photo, and what shows whether it is still the same."""

    name: str  # in the results
    root: str  # the URI it was found under; "" for a local file
    path: str  # within the root's file system
    size: int
    changed: int  # nanoseconds


@renamed_arguments(say="on_message")
def predict_on_cluster(
    images,
    output: str | os.PathLike,
    weights="mobilenet_v2_1.0_224",
    *,
    top: int = 5,
    workers: int | None = None,
    part: int | None = None,
    progress: Callable[[int, int], None] | None = None,
    on_message: Callable[[str], None] | None = None,
    **options,
) -> ClusterRun:
    """Classify photos with Ray Data, on this machine or on a cluster, into one Parquet file.

    The rows are `results.rows_of` of `Classifier.stream`, in the order of the photos. Finished parts lie in `<output>.parts` until
    the file is written. The same call after a kill continues from them; with other photos, weights or options it refuses to. Ray
    starts on this machine, or joins the cluster that `RAY_ADDRESS` names, whose machines need this package and access to the
    photos.

    Args:
        images: a path or URI (`s3://bucket/folder`, `gs://`, `hdfs://`, `file://`: what pyarrow opens) of a photo or a folder,
            or several.
        output: the Parquet file.
        weights: as in `Classifier`; its engine is LiteRT, on one thread of each worker.
        top: how many classes to name.
        workers: actors, each on one processor; None for all processors of the cluster.
        part: photos in a part; None for a 64th of them, but from 16 to 1024.
        progress: called with photos done and photos in total, after each part.
        on_message, options: `on_message`, `precision`, `resolution` and `labels` of `Classifier`.

    Returns:
        The summary of the run, with the photos that were left out.

    Raises:
        FileNotFoundError: there are no such photos or weights.
        ValueError: Ray is not installed, an argument is out of its range, or the parts are those of another run.
        OSError: the cluster failed, or a file cannot be written; finished parts stay.
    """
    output = user_path(output)
    if output.suffix != ".parquet":
        raise ValueError(f"{output}: a cluster writes Parquet; choose a name that ends in .parquet.")
    for name, value in {"top": top, "workers": workers, "part": part}.items():
        if value is not None:
            whole_number(name, value)
    ray, photos = _ray(), _find(images)
    with Classifier(weights, threads=1, on_message=on_message, **options) as classifier:
        # The workers get the converted file, without the labels next to the weights.
        work = {"content": classifier.content, "labels": list(classifier.labels), "top": top, "folder": str(Path.cwd())}
    size = part or min(max(len(photos) // 64, 16), 1024)
    parts = [photos[i : i + size] for i in range(0, len(photos), size)]
    folder = output.with_name(f"{output.name}.parts")
    files = [folder / f"{i:06d}.parquet" for i in range(len(parts))]
    _claim(folder, photos, size, work)
    missing = {i: part for i, part in enumerate(parts) if not _is_complete(files[i])}
    done = len(photos) - sum(map(len, missing.values()))
    if missing:
        with _connected(ray, workers, folder):
            for i, content in _computed(ray, missing, workers, work):
                write_bytes(files[i], content)
                done += len(parts[i])
                if progress:
                    progress(done, len(photos))
    broken = _join(files, output)
    shutil.rmtree(folder)
    return ClusterRun(len(photos), broken, len(parts), len(parts) - len(missing))


def _ray():
    try:
        import ray
        import ray.data
    except ImportError as error:
        raise ValueError(
            "A cluster needs Ray: pip install 'mnv2-keras[ray]', or classify in one process, which uses all cores of this machine."
        ) from error
    return ray


def _find(images) -> list[_Photo]:
    """All photos of paths and URIs, in their order; folders sorted, as `find_images` does."""
    photos = []
    for source in [images] if isinstance(images, str | os.PathLike) else images:
        if "://" in str(source):
            photos += _find_remote(str(source))
            continue
        for path in find_images(source):
            state = path.stat()
            photos.append(_Photo(str(path), "", "", state.st_size, state.st_mtime_ns))
    if not photos:
        raise ValueError("There are no photos: give at least one.")
    return photos


def _find_remote(uri: str) -> list[_Photo]:
    """The photos under a URI, each named by its own URI."""
    from pyarrow import fs

    files, base = _file_system(uri)
    try:
        about = files.get_file_info(base)
        is_folder = about.type == fs.FileType.Directory
        entries = files.get_file_info(fs.FileSelector(base, recursive=True)) if is_folder else [about]
    except OSError as error:
        raise OSError(f"{uri} cannot be listed ({error}): check the address and your access to it.") from error
    if about.type == fs.FileType.NotFound:
        raise FileNotFoundError(f"There is no image or folder {uri}: check the address.")
    address, _, query = uri.partition("?")
    photos = []
    for entry in entries:
        below = entry.path[len(base) :]
        hidden = any(name.startswith(".") for name in below.split("/"))
        if entry.is_file and (not below or (Path(below).suffix.lower() in IMAGE_SUFFIXES and not hidden)):
            name = address.rstrip("/") + quote(below) + (query and f"?{query}")
            photos.append(_Photo(name, uri, entry.path, entry.size, entry.mtime_ns or 0))
    if not photos:
        raise ImageError(f"The folder {uri} holds no images: files ending in {', '.join(sorted(IMAGE_SUFFIXES))} count.")
    return sorted(photos, key=lambda photo: photo.path)


@lru_cache(maxsize=64)
def _file_system(uri: str):
    """(pyarrow's file system, path within it) of a URI."""
    from pyarrow import fs

    try:
        files, path = fs.FileSystem.from_uri(uri)
    except (ValueError, OSError, NotImplementedError) as error:
        raise ValueError(f"{uri} cannot be opened ({error}): expected a folder, or a URI such as s3://bucket/folder.") from error
    return files, path.rstrip("/")


def _claim(folder: Path, photos: list[_Photo], size: int, work: dict) -> None:
    """Create the folder of the parts, or check that they are of the same photos, weights and options."""
    digest = hashlib.sha256()
    for photo in photos:
        digest.update(json.dumps(photo).encode())
    identity = {
        "photos": digest.hexdigest(),
        "weights": hashlib.sha256(work["content"]).hexdigest(),
        "labels": work["labels"],
        "top": work["top"],
        "part": size,
        "version": __version__,
    }
    about = folder / "about.json"
    try:
        earlier = json.loads(about.read_text())
    except FileNotFoundError:
        write_bytes(about, json.dumps(identity, indent=1).encode())
        return
    except ValueError:
        earlier = None
    earlier = earlier if isinstance(earlier, dict) else {}
    if differing := [name for name in identity if earlier.get(name) != identity[name]]:
        raise ValueError(
            f"{folder} holds parts of a run with other {', '.join(differing)}: choose another output, or delete that folder."
        )


def _is_complete(path: Path) -> bool:
    """Whether a part exists and can be read to its end."""
    from pyarrow import ArrowException, parquet

    try:
        return parquet.read_schema(path).equals(schema())
    except (OSError, ArrowException):
        return False


@contextlib.contextmanager
def _connected(ray, workers: int | None, folder: Path) -> Iterator[None]:
    """A connection to Ray: the caller's own, that of `RAY_ADDRESS`, or one to processes that run until the block ends."""
    own = not ray.is_initialized()
    if own:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        logging.getLogger("ray.data").setLevel(logging.WARNING)
        here = {"address": "local", "include_dashboard": False, "object_store_memory": OBJECT_STORE}
        here["num_cpus"] = max(workers or 1, os.cpu_count() or 1)
        ray.init(**({} if os.environ.get("RAY_ADDRESS") else here), log_to_driver=False, logging_level="error")
    try:
        yield
    except ray.exceptions.RayError as error:
        cause = str(getattr(error, "cause", None) or error).strip().splitlines()[-1]
        raise OSError(
            f"Ray stopped ({cause}): finished parts are kept in {folder}, and the same command continues from them."
        ) from error
    finally:
        if own:
            ray.shutdown()


def _computed(ray, missing: dict[int, list[_Photo]], workers: int | None, work: dict) -> Iterator[tuple[int, bytes]]:
    """(number, Parquet file) of each part, as they are finished."""
    ray.data.DataContext.get_current().enable_progress_bars = False
    rows = [{"part": i, "photos": [photo._asdict() for photo in part]} for i, part in missing.items()]
    # One block for each part: a task is a part then, and its result comes back as soon as it is computed.
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _Worker,
        fn_constructor_kwargs=work,
        batch_size=1,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.ActorPoolStrategy(size=workers or max(1, int(ray.cluster_resources().get("CPU", 1)))),
    )
    for row in dataset.iter_rows():
        yield row["part"], row["content"]


class _Worker:
    """One actor: a `Classifier` on one thread."""

    def __init__(self, content: bytes, labels: list[str], top: int, folder: str):
        with contextlib.suppress(OSError):  # names of photos may be relative to the driver's folder
            os.chdir(folder)
        with tempfile.TemporaryDirectory() as home:
            path = Path(home, "model.tflite")
            path.write_bytes(content)
            self.classifier = Classifier(path, threads=1, labels=labels)
        self.top = top

    def __call__(self, batch):
        """From a table of parts to a table of their numbers and Parquet files."""
        import pyarrow

        content = []
        for row in batch.to_pylist():
            part = io.BytesIO()
            write_parquet(rows_of(self._results([_Photo(**photo) for photo in row["photos"]])), part)
            content.append(part.getvalue())
        return pyarrow.table({"part": batch["part"], "content": pyarrow.array(content, pyarrow.binary())})

    def _results(self, photos: list[_Photo]) -> Iterator[Classification]:
        """In the order of the photos; remote ones are read here while others are computed."""
        unread: dict[str, OSError] = {}

        def source(photo: _Photo):
            if not photo.root:
                return photo.name
            try:
                with _file_system(photo.root)[0].open_input_stream(photo.path) as file:
                    return file.read()
            except OSError as error:
                unread[photo.name] = error
                return b""

        for photo, result in zip(photos, self.classifier.stream(map(source, photos), self.top), strict=True):
            yield Classification(photo.name, result.predictions, unread.get(photo.name, result.error))


def _join(files: list[Path], output: Path) -> dict[str, str]:
    """Write the parts as one file, atomically. Returns broken photo to reason."""
    from pyarrow import compute, parquet

    broken: dict[str, str] = {}
    try:
        with replacing(output) as file, parquet.ParquetWriter(file, schema()) as writer:
            for part in files:
                table = parquet.read_table(part)
                writer.write_table(table)
                unread = table.filter(compute.is_valid(table["error"])).to_pylist()
                broken |= {row["photo"]: row["error"] for row in unread}
    except OSError as error:
        raise OSError(
            f"{output} cannot be written ({error.strerror or error}): its parts are kept in {files[0].parent}."
        ) from error
    return broken
