"""A classifier measured: top-1, top-5, each class, calibration, confusions; in parts that add up, so that it can be cut short."""

import hashlib
import itertools
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from mnv2_keras.atomic import write_text
from mnv2_keras.convert.receipt import versions
from mnv2_keras.convert.source import sha256_of
from mnv2_keras.data.classification import check_labels
from mnv2_keras.figures import check_figure, draw_confusion
from mnv2_keras.labels import imagenet_labels

#: Bins of confidence in the calibration error.
BINS = 15
#: Images in a part: what a kill can cost.
PART = 512


@dataclass
class Counts:
    """What has been counted so far; the counts of two sets of images add up.

    Attributes:
        indices: of the images, in the data set.
        confusion: (true, predicted) -> images.
        top5: images whose class is among the best five, by class.
        confidence: (3, BINS): images, sum of confidences, right answers, by confidence of the best class.
        entropy: sum of the negative log of the right class' probability.
        broken: images that could not be read, and why.
    """

    indices: set[int] = field(default_factory=set)
    confusion: dict[tuple[int, int], int] = field(default_factory=dict)
    top5: dict[int, int] = field(default_factory=dict)
    confidence: np.ndarray = field(default_factory=lambda: np.zeros((3, BINS)))
    entropy: float = 0.0
    broken: dict[str, str] = field(default_factory=dict)

    def add(self, probabilities: np.ndarray, labels: np.ndarray) -> None:
        """Count a batch.

        Args:
            probabilities: (B, classes).
            labels: int (B,), indices of the outputs.
        """
        best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
        top = probabilities[np.arange(len(labels)), best[:, 0]].astype(np.float64)
        bins = np.clip(np.ceil(top * BINS).astype(int) - 1, 0, BINS - 1)
        for row, values in zip(self.confidence, (np.ones_like(top), top, best[:, 0] == labels), strict=True):
            np.add.at(row, bins, values)
        right = probabilities[np.arange(len(labels)), labels].astype(np.float64)
        self.entropy += float(-np.log(np.maximum(right, 1e-12)).sum())
        for label, row in zip(labels.tolist(), best.tolist(), strict=True):
            self.confusion[label, row[0]] = self.confusion.get((label, row[0]), 0) + 1
            self.top5[label] = self.top5.get(label, 0) + (label in row)

    def merge(self, other: "Counts") -> None:
        """Add the counts of other images.

        Raises:
            ValueError: an image is in both.
        """
        if twice := self.indices & other.indices:
            raise ValueError(f"Image {min(twice)} was counted twice: merge each shard once.")
        self.indices |= other.indices
        for mine, theirs in ((self.confusion, other.confusion), (self.top5, other.top5)):
            for key, value in theirs.items():
                mine[key] = mine.get(key, 0) + value
        self.confidence = self.confidence + other.confidence
        self.entropy += other.entropy
        self.broken |= other.broken

    def as_dict(self) -> dict:
        """As JSON holds it."""
        return {
            "indices": sorted(self.indices),
            "confusion": [[*pair, count] for pair, count in sorted(self.confusion.items())],
            "top5": sorted(self.top5.items()),
            "confidence": self.confidence.tolist(),
            "entropy": self.entropy,
            "broken": self.broken,
        }

    @classmethod
    def from_dict(cls, about: dict) -> "Counts":
        """What `as_dict` gave."""
        return cls(
            set(about["indices"]),
            {(true, predicted): count for true, predicted, count in about["confusion"]},
            dict(map(tuple, about["top5"])),
            np.array(about["confidence"]),
            about["entropy"],
            about["broken"],
        )


@dataclass
class Evaluation:
    """How good a classifier is on some images, and all that is needed to see it again.

    Attributes:
        about: of the model, the data, the preprocessing and the machine; shards of one evaluation have the same.
        shards: the shards that are in it, as (number, of how many).
        counts: what was counted.
    """

    about: dict
    shards: list[tuple[int, int]]
    counts: Counts

    @property
    def images(self) -> int:
        """How many were judged; broken ones are not. A shard may have none: its figures are 0, and add nothing to the whole."""
        return int(self.counts.confidence[0].sum())

    def _right(self) -> int:
        return sum(count for (true, predicted), count in self.counts.confusion.items() if true == predicted)

    @property
    def top1(self) -> float:
        """Part of the images whose best class is right."""
        return self._right() / max(self.images, 1)

    @property
    def top5(self) -> float:
        """Part of the images whose class is among the best five."""
        return sum(self.counts.top5.values()) / max(self.images, 1)

    @property
    def interval(self) -> tuple[float, float]:
        """The 95 % confidence interval of top-1 (Wilson)."""
        return wilson(self._right(), self.images)

    @property
    def calibration_error(self) -> float:
        """Expected calibration error, over 15 bins: mean difference of confidence and accuracy."""
        _, confidence, right = self.counts.confidence
        return float(np.abs(confidence - right).sum() / max(self.images, 1))

    @property
    def cross_entropy(self) -> float:
        """Mean negative log of the right class' probability."""
        return self.counts.entropy / max(self.images, 1)

    def per_class(self) -> dict[str, dict]:
        """`{name: {"images": n, "top1": part}}` of the classes that occur."""
        totals: dict[int, list[int]] = {}
        for (true, predicted), count in self.counts.confusion.items():
            total = totals.setdefault(true, [0, 0])
            total[0] += count
            total[1] += count * (true == predicted)
        names = self.about["labels"]
        return {names[i]: {"images": n, "top1": right / n} for i, (n, right) in sorted(totals.items())}

    def confusion_matrix(self) -> np.ndarray:
        """int64 (classes, classes): rows are the true classes, columns the predicted ones."""
        matrix = np.zeros((len(self.about["labels"]),) * 2, np.int64)
        for pair, count in self.counts.confusion.items():
            matrix[pair] = count
        return matrix

    def plot(self, path: str | os.PathLike) -> Path:
        """Draw the confusion matrix into a .png or .svg file.

        Raises:
            ValueError: see `check_figure`.
        """
        check_figure(path)
        title = f"{self.top1:.2%} of {self.images:,} right"
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
        """Write the receipt as JSON, all of it or nothing; `load_evaluation` reads it."""
        return write_text(Path(path), json.dumps(self.as_dict(), indent=1) + "\n")


def wilson(right: int, images: int) -> tuple[float, float]:
    """The 95 % interval of a proportion (Wilson, 1927); of no images, everything."""
    if not images:
        return 0.0, 1.0
    z = 1.959963984540054
    part, spread = right / images, z * z / images
    centre = (part + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(part * (1 - part) / images + spread / (4 * images))
    return max(0.0, centre - half), min(1.0, centre + half)


def load_evaluation(path: str | os.PathLike) -> Evaluation:
    """A saved receipt.

    Raises:
        ValueError: the file is something else.
    """
    try:
        about = json.loads(Path(path).read_text())
        counts = Counts.from_dict(about.pop("counts"))
        shards = [tuple(shard) for shard in about.pop("shards")]
        return Evaluation({name: about[name] for name in _ABOUT}, shards, counts)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is no receipt of `mnv2 evaluate` ({error!r}).") from error


def merge(paths: Iterable[str | os.PathLike]) -> Evaluation:
    """The shards of one evaluation, put together.

    Raises:
        ValueError: they are of different models, data or machines' software; one is there twice, or one is missing; no image
            could be read.
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
    of = {count for _, count in first.shards}
    numbers = {number for number, _ in first.shards}
    if len(of) > 1 or numbers != set(range(1, max(of) + 1)):
        missing = sorted(set(range(1, max(of) + 1)) - numbers)
        raise ValueError(
            f"Shards {', '.join(map(str, missing)) or sorted(of)} of {max(of)} are missing or of another division."
        )
    first.shards = [(1, 1)]
    _check_judged(first)
    return first


#: What shards of one evaluation have in common.
_ABOUT = (
    "weights",
    "sha256",
    "engine",
    "data",
    "fingerprint",
    "size",
    "central_fraction",
    "labels",
    "versions",
    "machine",
)


def output_of_label(class_names: Sequence[str], labels: Sequence[str]) -> np.ndarray:
    """Which output of the network each class of a data set means.

    By name: a class is the one label that equals it, or has it among its synonyms ("tench" of "tench, Tinca tinca"); of several,
    as ImageNet's two cranes, the one at its own place. Where no class has a label's name (numbers, synset ids), by order: as many
    labels as classes, or one more, the background, which stands first.

    Args:
        class_names: of the data.
        labels: of the network's outputs.

    Returns:
        int32 (len(class_names),).

    Raises:
        ValueError: a class is none of the network's, or could be several.
    """
    meanings: dict[str, set[int]] = {}
    for i, label in enumerate(labels):
        for name in (label, *label.split(",")):
            meanings.setdefault(_plain(name), set()).add(i)
    headless = (len(class_names), len(labels)) == (1001, 1000)  # a network without the background that the data count
    if headless:
        meanings["background"] = {-1}
    found = [meanings.get(_plain(name), set()) for name in class_names]
    offset = len(labels) - len(class_names)
    in_order = headless or offset == 0 or (offset == 1 and _plain(labels[0]) == "background")
    if in_order and not any(each - {-1} for each in found):
        return np.maximum(np.arange(len(class_names), dtype=np.int32) + offset, -1)
    for i, name in enumerate(class_names):
        if in_order and i + offset in found[i]:
            found[i] = {i + offset}
        if len(found[i]) != 1:
            raise ValueError(
                f"Class {name!r} of the data is {'several' if found[i] else 'none'} of the network's {len(labels)} labels: name "
                "the folders after its labels, or train a head for these classes."
            )
    return np.array([min(each) for each in found], np.int32)


def _plain(name: str) -> str:
    """A class's name without what differs between lists of the same classes."""
    return name.strip().lower().replace("_", " ")


def parse_shard(text: str) -> tuple[int, int]:
    """ "3/16" to (3, 16).

    Raises:
        ValueError: anything else.
    """
    number, _, count = text.partition("/")
    if not (number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ValueError(f"shard is {text!r}: expected NUMBER/COUNT from 1/COUNT to COUNT/COUNT, such as 3/16.")
    return int(number), int(count)


def weights_digest(weights) -> str:
    """SHA-256 of what is judged.

    Args:
        weights: a `keras.Model` (its variables' names, types, shapes and values count), a file (its content), a folder or
            checkpoint (names and contents of its files), or a registered name (the published one).
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
    data_name: str = "",
    progress: Callable[[int, int], None] | None = None,
) -> Evaluation:
    """Measure a classifier.

    Source of the preprocessing: TF-Slim `eval_image_classifier`, `preprocess_for_eval`.

    Args:
        weights: a `keras.Model`; a checkpoint, Keras file or registered name; or a `.tflite` file.
        examples: `Examples` or `TfdsExamples`.
        engine: "keras" or "litert"; a `.tflite` file always runs on LiteRT, anything else is exported to float32 for it.
        labels: of the network's outputs; by default those in the file, `labels.txt` beside it, ImageNet's, or the data's.
        shard: (number, of how many): judge every so manieth image only.
        central_fraction: part of the photo that is used; 1 for the whole.
        batch: images at once, on Keras.
        folder: keeps finished parts, from which the same evaluation goes on after a kill.
        data_name: what the receipt calls the data.
        progress: called with images done and images in all.

    Returns:
        The evaluation.

    Raises:
        ValueError: the network's outputs do not fit the data's classes, or it takes pixels from 0 to 255; the data has no labels;
            no image could be read (a shard may be without).
    """
    from mnv2_keras.evaluation.engines import open_engine

    runner = open_engine(weights, engine)
    if labels is None:
        labels = runner.labels or _default_labels(runner.classes, examples.class_names)
    if len(labels) != runner.classes:
        raise ValueError(
            f"{len(labels)} labels were given for a network of {runner.classes} outputs: give one per output."
        )
    outputs = output_of_label(examples.class_names, labels)
    about = {
        "weights": runner.name,
        "sha256": weights_digest(weights),
        "engine": runner.engine,
        "data": data_name,
        "fingerprint": examples.fingerprint(),
        "size": list(runner.size),
        "central_fraction": central_fraction,
        "labels": list(labels),
        "versions": versions(),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
    }
    number, count = shard
    total = Counts()
    mine = range(number - 1, len(examples), count)
    parts = [mine[start : start + PART] for start in range(0, len(mine), PART)]
    names = [f"part-{number}-of-{count}-{i:05d}.json" for i in range(len(parts))]
    known = [_load_part(Path(folder) / name, about) if folder else None for name in names]
    # One pass over the data for all parts that are missing, in batches that end where a part does.
    batch = max(size for size in range(1, min(batch, PART) + 1) if PART % size == 0)
    missing = [part for part, counts in zip(parts, known, strict=True) if counts is None]
    batches = iter(_batches(runner, examples, list(itertools.chain(*missing)), central_fraction, batch))
    for name, indices, counts in zip(names, parts, known, strict=True):
        if counts is None:
            own = itertools.islice(batches, -(-len(indices) // batch))
            counts = _count(runner, own, indices, outputs, examples)
            if folder:
                write_text(Path(folder) / name, json.dumps({"about": about, "counts": counts.as_dict()}))
        total.merge(counts)
        if progress:
            progress(len(total.indices), len(mine))
    evaluation = Evaluation(about, [shard], total)
    if count == 1:  # a shard without images has to be there to be merged
        _check_judged(evaluation)
    return evaluation


def _check_judged(evaluation: Evaluation) -> None:
    if not evaluation.images:
        raise ValueError(
            "None of the images can be judged: they cannot be read, or their class is none of the network's."
        )


def _load_part(path: Path, about: dict) -> Counts | None:
    """A part that was finished before; None when there is none, or when it is of another evaluation."""
    if not path.is_file():
        return None
    try:
        kept = json.loads(path.read_text())
        return Counts.from_dict(kept["counts"]) if kept["about"] == json.loads(json.dumps(about)) else None
    except (ValueError, KeyError, TypeError):
        return None  # damaged: count it again


def _batches(runner, examples, indices: list[int], central_fraction: float, batch: int) -> Iterable:
    """Images, labels and weights of these examples, as the network takes them."""
    from mnv2_keras.data.augmentation import evaluated
    from mnv2_keras.data.batches import evaluation_batches

    if not indices:
        return ()
    return evaluation_batches(
        examples,
        batch,
        lambda image: evaluated(image, runner.size, central_fraction=central_fraction),
        channels=runner.channels,
        indices=indices,
    )


def _count(runner, batches: Iterator, indices: range, outputs: np.ndarray, examples) -> Counts:
    """Count a part: its batches, the indices of its images."""
    counts = Counts(indices=set(indices))
    for images, labels, weights in batches:
        check_labels(labels, len(outputs))
        wanted = outputs[labels.numpy()]
        usable = (weights.numpy() > 0) & (wanted >= 0)
        if usable.any():
            counts.add(runner(images.numpy()[usable]), wanted[usable])
    broken = dict(examples.broken)  # a copy: the next part's photos are being read already
    if broken:  # of other parts too, and of what a training has met
        own = set(map(examples.name_of, indices))
        counts.broken = {path: why for path, why in broken.items() if path in own}
    return counts


def _default_labels(classes: int, class_names: Sequence[str]) -> Sequence[str]:
    if classes == len(class_names):
        return class_names
    if classes in (1000, 1001):
        return imagenet_labels(classes)
    if classes == len(class_names) + 1:
        return ("background", *class_names)
    raise ValueError(
        f"The network has {classes} outputs, the data {len(class_names)} classes: give the network's labels."
    )
