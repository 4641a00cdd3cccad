"""Images with boxes: from a COCO JSON, a folder of Pascal VOC XML or TFDS, to batches a detector trains on."""

import dataclasses
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from numbers import Real
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mnv2_keras.data.tfds import open_tfds
from mnv2_keras.images import ImageError, read_image
from mnv2_keras.labels import coco_labels, voc_labels


@dataclasses.dataclass(frozen=True)
class DetectionExample:
    """One image and what is in it.

    Attributes:
        image: a file, or the pixels, uint8 (H, W, 3).
        boxes: float32 (N, 4): ymin, xmin, ymax, xmax as parts of the image.
        classes: int32 (N,), 0-based.
        crowd: bool (N,): boxes around many objects. They are not trained on, and evaluation asks nothing of them.
        number: COCO's id of the image.
        areas: float64 (N,), in pixels, by which evaluation tells small from large: COCO's are those of the objects' masks. None
            for width x height.
    """

    image: Path | np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    crowd: np.ndarray
    number: int = 0
    areas: np.ndarray | None = None

    def pixels(self) -> np.ndarray:
        """uint8 (H, W, 3); see `read_image` for its errors."""
        return self.image if isinstance(self.image, np.ndarray) else read_image(self.image)


@dataclasses.dataclass(frozen=True)
class DetectionData:
    """Labelled images.

    Attributes:
        examples: of a sequence, or anything that can be iterated over again.
        labels: name of each class, None where the numbering has a hole.
        categories: COCO's id of each class.
        skipped: what was left out, each with its reason; of TFDS it is filled as the examples are gone through.
    """

    examples: Iterable[DetectionExample]
    labels: tuple[str | None, ...]
    categories: tuple[int, ...]
    skipped: Sequence[str] = ()


def _example(image, boxes, classes, crowd, number=0, areas=None) -> DetectionExample:
    return DetectionExample(
        image,
        np.asarray(boxes, np.float32).reshape(-1, 4),
        np.asarray(classes, np.int32).reshape(-1),
        np.asarray(crowd, bool).reshape(-1),
        number,
        None if areas is None else np.asarray(areas, np.float64).reshape(-1),
    )


def coco_categories() -> tuple[tuple[str | None, ...], tuple[int, ...]]:
    """Labels and ids of COCO's 90 classes, in the order of the published detectors' outputs."""
    names, ids = coco_labels(), tuple(range(1, 91))
    return tuple(names.get(number) for number in ids), ids


def read_coco(annotations, images, categories: Sequence[int] | None = None) -> DetectionData:
    """Images and boxes of a COCO JSON.

    A box without area, or with NaN, is left out and listed in `skipped`; one that reaches over the image is cut at its border.

    Args:
        annotations: the JSON file (`instances_*.json`).
        images: folder of the images.
        categories: COCO's id of each class of the detector, in order; None takes those of the file, ascending.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the JSON is damaged or no COCO detection file; an annotation of a category or image that is not there, or
            without four numbers as its box; an image without a size.
    """
    path, folder = Path(annotations), Path(images)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of images {folder}: check the path.")
    document = coco_document(path)
    names = {each["id"]: each["name"] for each in document["categories"]}
    ids = tuple(sorted(names)) if categories is None else tuple(categories)
    class_of = {number: index for index, number in enumerate(ids)}
    found = {each["id"]: (each, []) for each in document["images"]}
    skipped = []
    for each in document["annotations"]:
        if each["image_id"] not in found:
            raise ValueError(
                f"{path}: annotation {each.get('id')} is of image {each['image_id']}, which is not in 'images'."
            )
        if each["category_id"] not in class_of:
            raise ValueError(
                f"{path}: annotation {each.get('id')} is of category {each['category_id']}, the detector's classes are "
                f"{_few(ids)}: pass categories that hold it, or a file of these classes."
            )
        image, objects = found[each["image_id"]]
        box = _corners(each["bbox"], image["height"], image["width"])
        if box is None:
            skipped.append(
                f"{path.name}: annotation {each.get('id')} has the box {each['bbox']}, which has no area inside its image"
            )
        else:
            area = each.get("area", each["bbox"][2] * each["bbox"][3])
            objects.append((box, class_of[each["category_id"]], bool(each.get("iscrowd", 0)), area))
    examples = []
    for number, (image, objects) in found.items():
        boxes, classes, crowd, areas = _columns(objects, 4)
        examples.append(_example(folder / image["file_name"], boxes, classes, crowd, number, areas))
    return DetectionData(examples, tuple(names.get(number) for number in ids), ids, tuple(skipped))


_COCO_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def read_json(path, kind: str):
    """What a JSON file holds.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is damaged or no JSON.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"There is no {kind} file {path}: check the path.")
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no whole JSON file ({error}): make, copy or download it again.") from error


def coco_document(path) -> dict:
    """A COCO detection file, checked as far as it is used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it is no JSON, or lacks something; the message says what.
    """
    document = read_json(path, "annotation")
    for part, keys in _COCO_KEYS.items():
        rows = document.get(part) if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise ValueError(
                f"{path} has no list {part!r}: expected a COCO detection file with {', '.join(_COCO_KEYS)}."
            )
        for i, row in enumerate(rows):
            missing = [key for key in keys if not isinstance(row, dict) or key not in row]
            if missing:
                raise ValueError(f"{path}: {part}[{i}] has no {missing[0]!r}: it is no COCO detection file.")
    for i, row in enumerate(document["images"]):
        if not all(isinstance(row[side], Real) and row[side] > 0 for side in ("height", "width")):
            raise ValueError(
                f"{path}: images[{i}] ({row['file_name']}) has the height {row['height']!r} and the width {row['width']!r}: "
                "expected pixels, 1 or more."
            )
    check_boxes(document["annotations"], f"{path}: annotations")
    return document


def check_boxes(rows: Iterable[dict], where: str) -> None:
    """Whether each row's `bbox` is four numbers, and its `area` one, if it has one.

    Raises:
        ValueError: the first that is not, after `where` and its number.
    """
    for i, row in enumerate(rows):
        box = row["bbox"]
        if not (isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(value, Real) for value in box)):
            raise ValueError(f"{where}[{i}] has the bbox {box!r}: expected x, y, width and height, in pixels.")
        if not isinstance(row.get("area", 0), Real):
            raise ValueError(f"{where}[{i}] has the area {row['area']!r}: expected a number of pixels.")


def _corners(bbox, height: int, width: int) -> list[float] | None:
    """COCO's x, y, width, height in pixels as corners in parts of the image, cut at its border; None without area."""
    x, y, w, h = bbox
    return inside([y / height, x / width, (y + h) / height, (x + w) / width])


def inside(box: Sequence[float]) -> list[float] | None:
    """A box cut at the image's border; None when nothing of it is left or a side is NaN."""
    cut = [min(max(side, 0.0), 1.0) for side in box]
    whole = all(math.isfinite(side) for side in box)
    return cut if whole and cut[0] < cut[2] and cut[1] < cut[3] else None


def _columns(objects: list[tuple], count: int = 3) -> tuple:
    """Boxes, classes, crowds (and areas) of the objects of one image."""
    return tuple(zip(*objects, strict=True)) or ((),) * count


def _few(values) -> str:
    values = [str(value) for value in values]
    return ", ".join(values[:10]) + (f" and {len(values) - 10} more" if len(values) > 10 else "")


def read_voc(folder, images=None, labels: Sequence[str] | None = None) -> DetectionData:
    """Images and boxes of a folder of Pascal VOC XML files (as `VOC2012/Annotations`).

    Args:
        folder: where the `.xml` files are.
        images: folder of the images; None tries `JPEGImages` beside the folder, and the folder itself.
        labels: name of each class, in order; None takes Pascal VOC's twenty. Objects marked difficult count as crowd.

    Raises:
        FileNotFoundError: no such folder, or an image that is not there.
        ValueError: no XML files; a damaged one; an object of an unknown class.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder of annotations {folder}: check the path.")
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise ValueError(f"The folder {folder} holds no .xml files: expected Pascal VOC annotations.")
    labels = tuple(voc_labels()[1:] if labels is None else labels)
    homes = [Path(images)] if images else [folder.parent / "JPEGImages", folder]
    examples, skipped = [], []
    for number, path in enumerate(files, start=1):
        try:
            root = ElementTree.parse(path).getroot()  # the standard parser loads nothing from outside the file
            width, height = (int(root.find(f"size/{side}").text) for side in ("width", "height"))
            if min(width, height) < 1:
                raise ValueError(f"its size is {width} x {height}")
            objects = [_voc_object(each) for each in root.iter("object")]
            name = Path((root.findtext("filename") or path.with_suffix(".jpg").name).strip()).name
        except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
            raise ValueError(
                f"{path} is no whole Pascal VOC annotation ({error}): copy or download it again."
            ) from error
        image = next((home / name for home in homes if (home / name).is_file()), None)
        if image is None:
            raise FileNotFoundError(
                f"{path} is about {name}, which is not in {homes[0]}: pass the folder of the images."
            )
        kept = []
        for label, (xmin, ymin, xmax, ymax), difficult in objects:
            if label not in labels:
                raise ValueError(
                    f"{path} has an object {label!r}, the detector's classes are {_few(labels)}: pass labels."
                )
            # VOC counts pixels from 1, and the last one belongs to the box.
            box = inside([(ymin - 1) / height, (xmin - 1) / width, ymax / height, xmax / width])
            if box is None:
                skipped.append(f"{path.name}: {label} has a box without area inside its image")
            else:
                kept.append((box, labels.index(label), difficult))
        examples.append(_example(image, *_columns(kept), number))
    return DetectionData(examples, labels, tuple(range(1, len(labels) + 1)), tuple(skipped))


def _voc_object(element) -> tuple[str, tuple[float, ...], bool]:
    box = tuple(float(element.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax"))
    return element.findtext("name").strip(), box, element.findtext("difficult", "0").strip() == "1"


def read_tfds(name: str, split: str, data_dir=None) -> DetectionData:
    """Images and boxes of a TFDS data set: `coco/2017`, `voc/2012`, or another with `image` and `objects` (`bbox`, `label`).

    Objects that are marked difficult count as crowd. Boxes without area are left out, and listed in `skipped` as the examples are
    gone through.

    Raises:
        ValueError: it has no boxes; TFDS is not installed.
    """
    builder = open_tfds(name, data_dir)
    info, dataset = builder.info, builder.as_dataset(split=split, shuffle_files=False)
    held = getattr(info.features, "keys", tuple)()
    objects = info.features["objects"] if "objects" in held else None
    if not {"bbox", "label"} <= set(getattr(objects, "feature", {})):  # a sequence of them
        raise ValueError(
            f"{name} has no objects with bbox and label: expected coco, voc or another detection data set."
        )
    names = objects.feature["label"].names
    ids = {label: number for number, label in coco_labels().items()}
    if name.startswith("coco") and set(names) <= ids.keys():
        labels, categories = coco_categories()
        class_of = np.array([ids[label] - 1 for label in names], np.int32)
    else:
        labels, categories = tuple(names), tuple(range(1, len(names) + 1))
        class_of = np.arange(len(names), dtype=np.int32)
    examples = _TfdsExamples(dataset, class_of, tuple(names))
    return DetectionData(examples, labels, categories, examples.skipped)


@dataclasses.dataclass(frozen=True)
class _TfdsExamples:
    """Examples read again each time they are iterated over: data sets are larger than memory."""

    dataset: object
    class_of: np.ndarray
    names: tuple[str, ...]
    skipped: list[str] = dataclasses.field(default_factory=list)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[DetectionExample]:
        for number, row in enumerate(self.dataset.as_numpy_iterator(), start=1):
            objects, number = row["objects"], int(row.get("image/id", number))
            kept = [i for i, box in enumerate(objects["bbox"].tolist()) if inside(box)]
            for i in sorted(set(range(len(objects["label"]))) - set(kept)):
                reason = f"image {number}: {self.names[objects['label'][i]]} has a box without area inside its image"
                if reason not in self.skipped:  # the examples are gone through again and again
                    self.skipped.append(reason)
            crowd = np.zeros(len(objects["label"]), bool)
            for mark in ("is_crowd", "is_difficult"):
                crowd = crowd | objects.get(mark, False)
            boxes, labels = np.clip(objects["bbox"][kept], 0, 1), self.class_of[objects["label"][kept]]
            yield _example(row["image"], boxes, labels, crowd[kept], number)


def detection_batches(
    examples,
    size: tuple[int, int],
    batch: int,
    *,
    augment=None,
    repeat: bool = True,
    seed: int = 0,
    broken: dict[str, str] | None = None,
    start: int = 0,
):
    """Batches for training: preprocessed images, and their objects padded to one length.

    Args:
        examples: anything that yields `DetectionExample`s each time it is iterated over. Crowds are left out.
        size: (height, width) of the network's input.
        batch: images in a batch; a last, smaller one is left out.
        augment: `(image, boxes, classes, seed) -> image, boxes, classes`, on TensorFlow tensors before resizing (see
            `augmentation`).
        repeat: go through the examples endlessly, shuffled, or once, in order.
        seed: of the order, and of the augmentation; an example's draws depend on its place in the stream only.
        broken: filled with the photos that cannot be read, and why; they are left out.
        start: the batch to start with, as if those before had been taken. For that, photos of a sequence are read once at most
            (to know which can be read), those of a stream as often as they were.

    Returns:
        A `tf.data.Dataset` of (float32 (B, H, W, 3) in [-1, 1], `{"boxes", "classes", "num"}`).

    Raises:
        ValueError: there are no examples.
    """
    import tensorflow as tf

    from mnv2_keras.data.batches import options
    from mnv2_keras.detection import preprocess_detection_image

    broken = {} if broken is None else broken
    if next(iter(examples), None) is None:
        raise ValueError("There are no images to train on: check the annotations and the folder.")

    def row(example):
        counted = ~example.crowd
        try:
            return example.pixels(), example.boxes[counted], example.classes[counted]
        except (ImageError, OSError) as error:
            broken[str(example.image)] = str(error)
            return None

    def mixed(dataset):
        return dataset.shuffle(256, seed=seed, reshuffle_each_iteration=True).repeat() if repeat else dataset

    def from_stream():
        yield from filter(None, map(row, examples))

    def from_sequence():
        readable, unreadable, left = set(), set(), start * batch
        for number in map(int, order.as_numpy_iterator()):
            if number in unreadable:
                continue
            content = None
            if not left or number not in readable:
                content = row(examples[number])
                (unreadable if content is None else readable).add(number)
            if len(unreadable) == len(examples):
                return
            if number in readable and left:
                left -= 1
            elif content:
                yield content

    signature = (
        tf.TensorSpec((None, None, 3), tf.uint8),
        tf.TensorSpec((None, 4), tf.float32),
        tf.TensorSpec((None,), tf.int32),
    )
    if hasattr(examples, "__getitem__"):
        order = mixed(tf.data.Dataset.range(len(examples)))
        dataset = tf.data.Dataset.from_generator(from_sequence, output_signature=signature)
    else:
        dataset = mixed(tf.data.Dataset.from_generator(from_stream, output_signature=signature)).skip(start * batch)

    def prepare(number, example):
        image, boxes, classes = example
        if augment is not None:
            place = tf.stack([tf.cast(seed, tf.int64), number + start * batch])
            image, boxes, classes = augment(image, boxes, classes, place)
        image = preprocess_detection_image(image, size)
        return tf.ensure_shape(image, (*size, 3)), {"boxes": boxes, "classes": classes, "num": tf.shape(classes)[0]}

    shapes = ((*size, 3), {"boxes": (None, 4), "classes": (None,), "num": ()})
    dataset = dataset.enumerate().map(prepare, num_parallel_calls=2, deterministic=True)
    return dataset.padded_batch(batch, shapes, drop_remainder=repeat).prefetch(2).with_options(options())
