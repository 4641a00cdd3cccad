"""Evaluation of a classifier: top-1, top-5, per class, calibration, confusions; in parts that add up, so that it can be resumed."""

import functools
import hashlib
import itertools
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from mnv2_keras.atomic import write_text
from mnv2_keras.convert.receipt import versions
from mnv2_keras.convert.source import sha256_of
from mnv2_keras.data.classification import check_labels
from mnv2_keras.deprecation import warn_renamed
from mnv2_keras.evaluation.driver import accumulate
from mnv2_keras.figures import check_figure, draw_confusion
from mnv2_keras.images import ImageError
from mnv2_keras.labels import class_labels, imagenet_labels

#: Bins of confidence in the calibration error.
BINS = 15
#: Images in a part: at most these are evaluated again after a kill.
PART = 512
#: What the shards of one evaluation have in common (but for the machine).
_ABOUT = (*("weights", "sha256", "engine", "data", "fingerprint"), *("size", "central_fraction", "labels", "versions", "machine"))


@dataclass
class Counts:
    """Counts of images; those of two sets of images add up.

    Attributes:
        indices: of the images, in the data set.
        confusion: number of images by (true, predicted) label.
        top5: images whose class is among the best five, by class.
        confidence: (3, BINS): images, sum of confidences, correct answers, by confidence of the best class.
        entropy: sum of the negative log probability of the true class.
        broken: images that could not be read, and the reasons.
    """

    indices: set[int] = field(default_factory=set)
    confusion: Counter = field(default_factory=Counter)
    top5: Counter = field(default_factory=Counter)
    confidence: np.ndarray = field(default_factory=lambda: np.zeros((3, BINS)))
    entropy: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)

    def update(self, truth: np.ndarray, predicted: np.ndarray) -> None:
        """Count a batch: indices of the true outputs, int (B,), and probabilities (B, classes)."""
        rows = np.arange(len(truth))
        best = np.argsort(-predicted, axis=1, kind="stable")[:, :5]
        top = predicted[rows, best[:, 0]].astype(np.float64)
        bins = np.clip(np.ceil(top * BINS).astype(int) - 1, 0, BINS - 1)
        for row, values in zip(self.confidence, (np.ones_like(top), top, best[:, 0] == truth), strict=True):
            np.add.at(row, bins, values)
        self.entropy += float(-np.log(np.maximum(predicted[rows, truth].astype(np.float64), 1e-12)).sum())
        for label, classes in zip(truth.tolist(), best.tolist(), strict=True):
            self.confusion[label, classes[0]] += 1
            self.top5[label] += label in classes

    def merge(self, other: "Counts") -> None:
        """Add the counts of other images; a ValueError if an image is in both."""
        if twice := self.indices & other.indices:
            raise ValueError(f"Image {min(twice)} was counted twice: merge each shard once.")
        self.indices |= other.indices
        self.confusion.update(other.confusion)
        self.top5.update(other.top5)
        self.confidence = self.confidence + other.confidence
        self.entropy += other.entropy
        self.broken |= other.broken

    def as_dict(self) -> dict:
        """The counts as JSON holds them."""
        return {
            "indices": sorted(self.indices),
            "confusion": [[*pair, count] for pair, count in sorted(self.confusion.items())],
            "top5": sorted(self.top5.items()),
            "confidence": self.confidence.tolist(),
            "entropy": self.entropy,
            "broken": self.broken,
        }

    @classmethod
    def from_dict(cls, values: dict) -> "Counts":
        """The counts that `as_dict` describes."""
        return cls(
            set(values["indices"]),
            Counter({(true, predicted): count for true, predicted, count in values["confusion"]}),
            Counter(dict(values["top5"])),
            np.array(values["confidence"]),
            values["entropy"],
            values["broken"],
        )


@dataclass
class Evaluation:
    """The metrics of a classifier on some images, and all that is needed to repeat the evaluation.

    Attributes:
        about: model, data, preprocessing and machine; equal for the shards of one evaluation, but for the machine.
        shards: the shards that are included, as (number, of how many).
        counts: the counts behind the metrics.
    """

    about: dict
    shards: list[tuple[int, int]]
    counts: Counts

    @property
    def images(self) -> int:
        """The number of images without broken ones. A shard may have none: its metrics are 0."""
        return int(self.counts.confidence[0].sum())

    @property
    def top1(self) -> float:
        """Share of the images whose best class is correct."""
        return self._correct / max(self.images, 1)

    @property
    def _correct(self) -> int:
        return int(self.counts.confidence[2].sum())

    @property
    def top5(self) -> float:
        """Share of the images whose class is among the best five."""
        return self.counts.top5.total() / max(self.images, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of top-1 (Wilson)."""
        return wilson(self._correct, self.images)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, over 15 bins: mean difference of confidence and accuracy."""
        _, confidence, correct = self.counts.confidence
        return float(np.abs(confidence - correct).sum() / max(self.images, 1))

    @property
    def cross_entropy(self) -> float:
        """Mean negative log probability of the true class."""
        return self.counts.entropy / max(self.images, 1)

    def per_class(self) -> dict[str, dict]:
        """`{name: {"images": n, "top1": share}}` of the classes that occur."""
        matrix, names = self.confusion_matrix(), self.about["labels"]
        totals, correct = matrix.sum(1).tolist(), matrix.diagonal().tolist()
        return {names[i]: {"images": n, "top1": correct[i] / n} for i, n in enumerate(totals) if n}

    def confusion_matrix(self) -> np.ndarray:
        """int64 (classes, classes): rows are the true classes, columns the predicted ones."""
        matrix = np.zeros((len(self.about["labels"]),) * 2, np.int64)
        for pair, count in self.counts.confusion.items():
            matrix[pair] = count
        return matrix

    def plot(self, path: str | os.PathLike) -> Path:
        """Draw the confusion matrix into a .png or .svg file; errors as in `check_figure`."""
        check_figure(path)
        title = f"{self.top1:.2%} of {self.images:,} correct"
        return draw_confusion(self.confusion_matrix(), self.about["labels"], title, path)

    def as_dict(self) -> dict:
        """The receipt as JSON holds it."""
        return {
            "images": self.images,
            "accuracy": self.top1,
            "top5": self.top5,
            "accuracy_interval_95": list(self.interval),
            "calibration_error": self.calibration_error,
            "cross_entropy": self.cross_entropy,
            "broken": len(self.counts.broken),
            "per_class": self.per_class(),
            "shards": [list(shard) for shard in self.shards],
            **self.about,
            "counts": self.counts.as_dict(),
        }

    def save(self, path: str | os.PathLike) -> Path:
        """Write the receipt as JSON, atomically; `load_evaluation` reads it."""
        return write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")


def wilson(correct: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927); (0, 1) without images."""
    if not images:
        return 0.0, 1.0
    z = 1.959963984540054
    part, spread = correct / images, z * z / images
    centre = (part + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(part * (1 - part) / images + spread / (4 * images))
    return max(0.0, centre - half), min(1.0, centre + half)


def load_evaluation(path: str | os.PathLike) -> Evaluation:
    """A saved receipt; a ValueError if the file is something else."""
    try:
        values = json.loads(Path(path).read_text())
        shards = [tuple(shard) for shard in values["shards"]]
        return Evaluation({name: values[name] for name in _ABOUT}, shards, Counts.from_dict(values["counts"]))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is not a receipt of `mnv2 evaluate` ({error!r}).") from error


def merge(paths: Iterable[str | os.PathLike]) -> Evaluation:
    """Merge the shards of one evaluation.

    Raises:
        ValueError: they are of different models, data or software; one is there twice or missing; no image could be read.
    """
    parts = [load_evaluation(path) for path in paths]
    if not parts:
        raise ValueError("There are no receipts to merge: give the files that the shards wrote.")
    first, *others = parts
    for other in others:
        if differing := [name for name in _ABOUT if name != "machine" and other.about[name] != first.about[name]]:
            raise ValueError(f"The receipts are of different evaluations: they differ in {', '.join(differing)}.")
        first.counts.merge(other.counts)
        first.shards += other.shards
    counts, numbers = {count for _, count in first.shards}, {number for number, _ in first.shards}
    missing = sorted(set(range(1, max(counts) + 1)) - numbers)
    if len(counts) > 1 or missing:
        raise ValueError(
            f"Shards {', '.join(map(str, missing)) or sorted(counts)} of {max(counts)} are missing or of another division."
        )
    first.shards = [(1, 1)]
    return _checked(first)


def _checked(evaluation: Evaluation) -> Evaluation:
    if not evaluation.images:
        raise ValueError("None of the images can be judged: they cannot be read, or their class is not one of the network's.")
    return evaluation


def output_of_label(class_names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """The output of the network for each class of a data set.

    By name: the one label that equals the class, or has it among its synonyms ("tench" of "tench, Tinca tinca"); among
    several, such as ImageNet's two cranes, the one at the same place. If no class has the name of a label (numbers, synset
    ids), by order: as many labels as classes, or one more, the background, which is first.

    Returns:
        int32 (len(class_names),); -1 for a background that the network does not have.

    Raises:
        ValueError: a class is not one of the network's, or could be several.
    """
    outputs: dict[str, set[int]] = {}
    for i, label in enumerate(labels):
        for name in (label, *label.split(",")):
            outputs.setdefault(_plain(name), set()).add(i)
    headless = (len(class_names), len(labels)) == (1001, 1000)  # the data have a background, the network does not
    if headless:
        outputs["background"] = {-1}
    candidates = [outputs.get(_plain(name), set()) for name in class_names]
    offset = len(labels) - len(class_names)
    in_order = headless or offset == 0 or (offset == 1 and _plain(labels[0]) == "background")
    if in_order and not any(numbers - {-1} for numbers in candidates):
        return np.maximum(np.arange(len(class_names), dtype=np.int32) + offset, -1)
    for i, (name, numbers) in enumerate(zip(class_names, candidates, strict=True)):
        if in_order and i + offset in numbers:
            candidates[i] = {i + offset}
        elif len(numbers) != 1:
            raise ValueError(
                f"Class {name!r} of the data is {'several' if numbers else 'none'} of the network's {len(labels)} labels: name "
                "the folders after its labels, or train a head for these classes."
            )
    return np.array([min(numbers) for numbers in candidates], np.int32)


def _plain(name: str) -> str:
    return name.strip().lower().replace("_", " ")  # what differs between lists of the same classes


def parse_shard(text: str) -> tuple[int, int]:
    """ "3/16" to (3, 16); a ValueError for anything else."""
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard is {text!r}: expected NUMBER/COUNT from 1/COUNT to COUNT/COUNT, such as 3/16.")
    return int(number), int(count)


def weights_digest(weights) -> str:
    """SHA-256 of a `keras.Model` (its variables' names, types, shapes and values), a file (its content), a folder or checkpoint
    (names and contents of its files), or a registered name (the published one).
    """
    if not hasattr(weights, "layers"):
        from mnv2_keras.inference.model_cache import digest_of_files, path_of

        path = path_of(weights)
        return sha256_of(path) if path.is_file() else digest_of_files(path, str(weights))
    digest = hashlib.sha256()
    for variable in weights.weights:
        digest.update(f"{variable.path} {variable.dtype} {tuple(variable.shape)}\n".encode())
        digest.update(np.ascontiguousarray(variable).tobytes())
    return digest.hexdigest()


def _data_name_of_examples(function):
    """Accept the argument `data_name` of the release before, which is `Examples.name` now."""

    @functools.wraps(function)
    def wrapper(weights, examples, *, data_name: str | None = None, **options):
        if data_name is not None:
            warn_renamed("the argument data_name of evaluate", "Examples.name")
            examples = replace(examples, name=data_name)
        return function(weights, examples, **options)

    return wrapper


@_data_name_of_examples
def evaluate(
    weights,
    examples,
    *,
    engine: str = "keras",
    labels: Sequence[str] | None = None,
    shard: tuple[int, int] = (1, 1),
    central_fraction: float = 0.875,
    batch: int = 32,
    folder: str | os.PathLike | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Evaluate a classifier.

    Source of the preprocessing: TF-Slim `eval_image_classifier`, `preprocess_for_eval`.

    Args:
        weights: a `keras.Model`; a checkpoint, Keras file or registered name; or a `.tflite` file.
        examples: `Examples` or `TfdsExamples`. Images that cannot be read are not counted, see `Readable`.
        engine: "keras" or "litert"; a `.tflite` file always runs on LiteRT, anything else is exported to float32 for it.
        labels: of the network's outputs; by default those in the file, `labels.txt` in its folder, ImageNet's, or the data's.
        shard: (number, of how many): (3, 16) takes every 16th image from the third on.
        central_fraction: part of the photo that is used; 1 for the whole photo.
        batch: images at once, on Keras.
        folder: keeps finished parts; after a kill the same evaluation continues from them.
        progress: called with images done and images in total.

    Raises:
        ValueError: the network's outputs do not fit the data's classes, or it takes pixels from 0 to 255; the data has no labels;
            no image could be read (a shard may be without).
    """
    from mnv2_keras.evaluation.engines import open_engine

    runner = open_engine(weights, engine)
    if labels is None:
        labels = runner.labels or _default_labels(runner.classes, examples.class_names)
    labels = class_labels(labels, runner.classes)
    outputs = output_of_label(examples.class_names, labels)
    about = {
        "weights": runner.name,
        "sha256": weights_digest(weights),
        "engine": runner.engine,
        "data": examples.name,
        "fingerprint": examples.fingerprint(),
        "size": list(runner.size),
        "central_fraction": central_fraction,
        "labels": list(labels),
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    number, count = shard
    total, indices = Counts(), range(number - 1, len(examples), count)
    parts = [indices[start : start + PART] for start in range(0, len(indices), PART)]
    paths = [Path(folder) / f"part-{number}-of-{count}-{i:05d}.json" if folder else None for i in range(len(parts))]
    finished = [_load_part(path, about) for path in paths]
    # One pass over the data for all parts that are missing, in batches that end where a part does.
    batch = max(size for size in range(1, min(batch, PART) + 1) if PART % size == 0)
    missing = [part for part, counts in zip(parts, finished, strict=True) if counts is None]
    batches = iter(_batches(runner, examples, list(itertools.chain(*missing)), central_fraction, batch))
    for path, part, counts in zip(paths, parts, finished, strict=True):
        if counts is None:
            counts = _count(runner, itertools.islice(batches, -(-len(part) // batch)), part, outputs, examples)
            if path:
                write_text(path, json.dumps({"about": about, "counts": counts.as_dict()}))
        total.merge(counts)
        if progress:
            progress(len(total.indices), len(indices))
    evaluation = Evaluation(about, [shard], total)
    return evaluation if count > 1 else _checked(evaluation)  # a shard without images is needed to merge


def _load_part(path: Path | None, about: dict) -> Counts | None:
    """A finished part; None if there is none, or if it is of another evaluation."""
    if path is None or not path.is_file():
        return None
    try:
        values = json.loads(path.read_text())
        return Counts.from_dict(values["counts"]) if values["about"] == json.loads(json.dumps(about)) else None
    except (ValueError, KeyError, TypeError):
        return None  # damaged: count it again


def _batches(runner, examples, indices: list[int], central_fraction: float, batch: int) -> Iterable:
    """Images, labels and weights of these examples, as the network takes them."""
    from mnv2_keras.data.augmentation import evaluated
    from mnv2_keras.data.batches import evaluation_batches

    if not indices:
        return ()

    def prepare(image):
        return evaluated(image, runner.size, central_fraction=central_fraction)

    return evaluation_batches(examples, batch, prepare, channels=runner.channels, indices=indices)


def _count(runner, batches: Iterable, indices: range, outputs: np.ndarray, examples) -> Counts:
    """Count a part: its batches, the indices of its images."""

    def usable() -> Iterator[tuple]:
        for images, labels, weights in batches:
            check_labels(labels, len(outputs))
            truth = outputs[labels.numpy()]
            counted = (weights.numpy() > 0) & (truth >= 0)
            if counted.any():
                yield images.numpy()[counted], truth[counted], None

    try:
        counts = accumulate(Counts(indices=set(indices)), usable(), runner)
    except Exception as error:  # TensorFlow's own for an image that cannot be read
        if examples.on_error == "raise" and examples.broken:
            raise ImageError(list(examples.broken.values())[-1]) from error
        raise
    broken = dict(examples.broken)  # a copy: the next part's photos are read already
    if broken:  # those of other parts too, and those of a training
        names = set(map(examples.name_of, indices))
        counts.broken = {name: reason for name, reason in broken.items() if name in names}
    return counts


def _default_labels(classes: int, class_names: Sequence[str]) -> Sequence[str]:
    if classes == len(class_names):
        return class_names
    if classes in (1000, 1001):
        return imagenet_labels(classes)
    if classes == len(class_names) + 1:
        return ("background", *class_names)
    raise ValueError(f"The network has {classes} outputs, the data {len(class_names)} classes: give the network's labels.")
