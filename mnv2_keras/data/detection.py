"""Images with boxes: from a COCO JSON, a folder of Pascal VOC XML files or TFDS, to batches that train a detector."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral, Real
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from mnv2_keras.data.reading import Readable, check_folder, first_few, read_json
from mnv2_keras.data.tfds import open_tfds
from mnv2_keras.images import read_image
from mnv2_keras.labels import coco_labels, voc_labels


@dataclass(frozen=True)
class DetectionExample:
    """An image and its objects.

    Attributes:
        image: a file, or the pixels, uint8 (H, W, 3).
        boxes: float32 (N, 4): ymin, xmin, ymax, xmax as parts of the image.
        classes: int32 (N,), 0-based.
        crowd: bool (N,): boxes around many objects. They are not trained on, and the evaluation ignores them.
        number: COCO's id of the image.
        areas: float64 (N,), in pixels, by which the evaluation tells small objects from large ones: in COCO those of the
            masks. None for width x height.
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


@dataclass(frozen=True)
class DetectionData(Readable):
    """Images with boxes.

    Attributes:
        examples: a sequence, or anything that can be iterated over many times.
        labels: name of each class, None for a gap in the numbering.
        categories: COCO's id of each class.
        skipped: annotations that were left out, with the reasons; for TFDS filled as the examples are read.
        broken, on_error: see `Readable`.
    """

    examples: Iterable[DetectionExample]
    labels: tuple[str | None, ...]
    categories: tuple[int, ...]
    skipped: Sequence[str] = ()
    broken: dict[str, str] = field(default_factory=dict)
    on_error: str = "skip"

    def pixels(self, example: DetectionExample) -> np.ndarray | None:
        """The pixels of an example; None if they cannot be read (see `Readable`)."""
        return self.attempt(str(example.image), example.pixels)


def _example(image, objects: Iterable[tuple], skipped: list[str], number: int, areas: bool = False) -> DetectionExample:
    """An example of objects (box, class, crowd, area, reason); boxes without area are left out, their reasons listed."""
    rows = []
    for box, *values, reason in objects:
        cut = [min(max(side, 0.0), 1.0) for side in box]
        if all(map(math.isfinite, box)) and cut[0] < cut[2] and cut[1] < cut[3]:
            rows.append((cut, *values))
        elif reason not in skipped:  # noted in an earlier pass
            skipped.append(reason)
    boxes, classes, crowd, sizes = zip(*rows, strict=True) if rows else [()] * 4
    boxes, classes = np.array(boxes, np.float32).reshape(-1, 4), np.array(classes, np.int32)
    sizes = np.array(sizes, np.float64) if areas else None
    return DetectionExample(image, boxes, classes, np.array(crowd, bool), number, sizes)


def coco_categories() -> tuple[tuple[str | None, ...], tuple[int, ...]]:
    """Labels and ids of COCO's 90 classes, in the order of the published detectors' outputs."""
    names, ids = coco_labels(), tuple(range(1, 91))
    return tuple(names.get(number) for number in ids), ids


def read_coco(annotations, images, categories: Sequence[int] | None = None, *, on_error: str = "skip") -> DetectionData:
    """Images and boxes of a COCO JSON.

    A box without area, or with NaN, is left out and listed in `skipped`; a box that extends beyond the image is cut.

    Args:
        annotations: the JSON file (`instances_*.json`).
        images: folder of the images.
        categories: COCO's id of each class of the detector, in order; None takes those of the file, ascending.
        on_error: see `Readable`.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: the JSON is damaged or not a COCO detection file; an annotation of a category or image that does not exist, or
            without four numbers as its box; an image without a size.
    """
    path, folder = Path(annotations), check_folder(images, "images")
    document, skipped = coco_document(path), []
    names = {category["id"]: category["name"] for category in document["categories"]}
    ids = tuple(sorted(names)) if categories is None else tuple(categories)
    class_of = {number: index for index, number in enumerate(ids)}
    rows = {row["id"]: (row, []) for row in document["images"]}
    for annotation in document["annotations"]:
        where, image, category = f"annotation {annotation.get('id')}", annotation["image_id"], annotation["category_id"]
        if image not in rows:
            raise ValueError(f"{path}: {where} is of image {image}, which is not in 'images'.")
        if category not in class_of:
            raise ValueError(
                f"{path}: {where} is of category {category}, the detector's classes are {first_few(ids)}: pass categories that "
                "hold it, or a file of these classes."
            )
        row, objects = rows[image]
        x, y, w, h = annotation["bbox"]
        box = y / row["height"], x / row["width"], (y + h) / row["height"], (x + w) / row["width"]
        reason = f"{path.name}: {where} has the box {annotation['bbox']}, which has no area inside its image"
        crowd, area = annotation.get("iscrowd", 0), annotation.get("area", w * h)
        objects.append((box, class_of[category], crowd, area, reason))
    examples = [_example(folder / row["file_name"], objects, skipped, i, areas=True) for i, (row, objects) in rows.items()]
    return DetectionData(examples, tuple(names.get(i) for i in ids), ids, tuple(skipped), on_error=on_error)


_COCO_KEYS = {
    "images": ("id", "file_name", "height", "width"),
    "annotations": ("image_id", "category_id", "bbox"),
    "categories": ("id", "name"),
}


def coco_document(path) -> dict:
    """A COCO detection file; a ValueError says what it lacks of what is used here."""
    document = read_json(path, "annotation")
    for part, keys in _COCO_KEYS.items():
        rows = document.get(part) if isinstance(document, dict) else None
        if not isinstance(rows, list):
            raise ValueError(f"{path} has no list {part!r}: expected a COCO detection file with {', '.join(_COCO_KEYS)}.")
        for i, row in enumerate(rows):
            if missing := [key for key in keys if not isinstance(row, dict) or key not in row]:
                raise ValueError(f"{path}: {part}[{i}] has no {missing[0]!r}: expected a COCO detection file.")
    for i, row in enumerate(document["images"]):
        if not all(isinstance(row[side], Real) and row[side] > 0 for side in ("height", "width")):
            raise ValueError(
                f"{path}: images[{i}] ({row['file_name']}) has the height {row['height']!r} and the width {row['width']!r}: "
                "expected pixels, 1 or more."
            )
    check_boxes(document["annotations"], f"{path}: annotations")
    return uniform_coco(document, str(path))


def uniform_coco(document: dict, where: str) -> dict:
    """A copy of a COCO document: ids like "7" are numbers, `iscrowd` is 0 or 1; a ValueError names other values and double ids."""
    ids = {"images": ("id",), "annotations": ("image_id", "category_id"), "categories": ("id",)}
    document = document | {part: [dict(row) for row in document[part]] for part in ids}
    for part, keys in ids.items():
        for i, row in enumerate(document[part]):
            row.update({key: coco_id(row[key], f"{where}: {part}[{i}]", key) for key in keys})
    for part, name in ("images", "file_name"), ("categories", "name"):
        rows = {}
        for i, row in enumerate(document[part]):
            if row["id"] in rows:
                raise ValueError(
                    f"{where}: {part}[{i}] ({row.get(name)}) has the id {row['id']!r}, as {part}[{rows[row['id']]}] has: expected "
                    "an id for each: number them anew where files were merged."
                )
            rows[row["id"]] = i
    for i, row in enumerate(document["annotations"]):
        crowd = row.get("iscrowd")
        if not isinstance(crowd, Real | str | None) or crowd not in (None, 0, 1, "0", "1"):
            raise ValueError(f"{where}: annotations[{i}] has the iscrowd {crowd!r}: expected 0 or 1.")
        row["iscrowd"] = int(crowd or 0)
    return document


def coco_id(value, where: str, key: str) -> int | str:
    """An id of COCO: a whole number, also where it stands as text or as a float; another text stays as it is."""
    is_number = isinstance(value, Integral) and not isinstance(value, bool)
    is_text = isinstance(value, str) and value.isascii() and value.isdigit()
    if is_number or is_text or (isinstance(value, float) and value.is_integer()):
        return int(value)
    if not isinstance(value, str) or (key == "category_id" and isinstance(value, str)):
        raise ValueError(f"{where} has the {key} {value!r}: expected a whole number.")
    return value


def check_boxes(rows: Iterable[dict], where: str) -> None:
    """Raise a ValueError unless the `bbox` of each row is four numbers, and its `area`, if it has one, a number."""
    for i, row in enumerate(rows):
        box = row["bbox"]
        if not (isinstance(box, list | tuple) and len(box) == 4 and all(isinstance(value, Real) for value in box)):
            raise ValueError(f"{where}[{i}] has the bbox {box!r}: expected x, y, width and height, in pixels.")
        if not isinstance(row.get("area", 0), Real):
            raise ValueError(f"{where}[{i}] has the area {row['area']!r}: expected a number of pixels.")


def read_voc(folder, images=None, labels: Sequence[str] | None = None, *, on_error: str = "skip") -> DetectionData:
    """Images and boxes of a folder of Pascal VOC XML files (such as `VOC2012/Annotations`).

    Args:
        folder: of the `.xml` files.
        images: folder of the images; None tries `JPEGImages` next to the folder, then the folder.
        labels: name of each class, in order; None takes Pascal VOC's twenty. Objects marked difficult count as crowd.
        on_error: see `Readable`.

    Raises:
        FileNotFoundError: no such folder, or a missing image.
        ValueError: no XML files; a damaged one; an object of an unknown class.
    """
    folder = check_folder(folder, "annotations")
    files = sorted(folder.glob("*.xml"))
    if not files:
        raise ValueError(f"The folder {folder} holds no .xml files: expected Pascal VOC annotations.")
    labels = tuple(voc_labels()[1:] if labels is None else labels)
    homes = [Path(images)] if images else [folder.parent / "JPEGImages", folder]
    examples, skipped = [], []
    for number, path in enumerate(files, start=1):
        name, (width, height), annotated = _voc_annotation(path)
        image = next((home / name for home in homes if (home / name).is_file()), None)
        if image is None:
            raise FileNotFoundError(f"{path} is about {name}, which is not in {homes[0]}: pass the folder of the images.")
        objects = []
        for label, (xmin, ymin, xmax, ymax), difficult in annotated:
            if label not in labels:
                raise ValueError(f"{path} has an object {label!r}, the detector's classes are {first_few(labels)}: pass labels.")
            # VOC counts pixels from 1, and the last one belongs to the box.
            box = (ymin - 1) / height, (xmin - 1) / width, ymax / height, xmax / width
            reason = f"{path.name}: {label} has a box without area inside its image"
            objects.append((box, labels.index(label), difficult, None, reason))
        examples.append(_example(image, objects, skipped, number))
    return DetectionData(examples, labels, tuple(range(1, len(labels) + 1)), tuple(skipped), on_error=on_error)


def _voc_annotation(path: Path) -> tuple[str, tuple[int, int], list[tuple]]:
    """The image's file name, its (width, height), and its objects (label, corners, difficult)."""
    try:
        root = ElementTree.parse(path).getroot()  # the standard parser loads nothing from outside the file
        width, height = (int(root.find(f"size/{side}").text) for side in ("width", "height"))
        if min(width, height) < 1:
            raise ValueError(f"its size is {width} x {height}")
        objects = []
        for element in root.iter("object"):
            corners = [float(element.find(f"bndbox/{side}").text) for side in ("xmin", "ymin", "xmax", "ymax")]
            difficult = element.findtext("difficult", "0").strip() == "1"
            objects.append((element.findtext("name").strip(), corners, difficult))
        name = Path((root.findtext("filename") or path.with_suffix(".jpg").name).strip()).name
    except (ElementTree.ParseError, AttributeError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a complete Pascal VOC annotation ({error}): copy or download it again.") from error
    return name, (width, height), objects


def read_tfds(name: str, split: str, data_dir=None) -> DetectionData:
    """Images and boxes of a TFDS data set: `coco/2017`, `voc/2012`, or another with `image` and `objects` (`bbox`, `label`).

    Objects that are marked difficult count as crowd. Boxes without area are left out, and listed in `skipped` as the examples
    are read.

    Raises:
        FileNotFoundError, ValueError: as `open_tfds`; or it has no boxes.
    """
    builder = open_tfds(name, data_dir)
    features = builder.info.features
    objects = features["objects"] if "objects" in getattr(features, "keys", tuple)() else None
    if not {"bbox", "label"} <= set(getattr(objects, "feature", {})):  # a sequence of objects
        raise ValueError(f"{name} has no objects with bbox and label: expected coco, voc or another detection data set.")
    names = tuple(objects.feature["label"].names)
    labels, categories, class_of = names, tuple(range(1, len(names) + 1)), np.arange(len(names))
    ids = {label: number for number, label in coco_labels().items()}
    if name.startswith("coco") and set(names) <= ids.keys():
        labels, categories = coco_categories()
        class_of = np.array([ids[label] - 1 for label in names])
    examples = _TfdsExamples(builder.as_dataset(split=split, shuffle_files=False), class_of, names)
    return DetectionData(examples, labels, categories, examples.skipped)


@dataclass(frozen=True)
class _TfdsExamples:
    """Examples that are read again in each pass: data sets are larger than memory."""

    dataset: object
    class_of: np.ndarray
    names: tuple[str, ...]
    skipped: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.dataset)

    def __iter__(self) -> Iterator[DetectionExample]:
        for number, row in enumerate(self.dataset.as_numpy_iterator(), start=1):
            number, objects = int(row.get("image/id", number)), row["objects"]
            crowd = np.zeros(len(objects["label"]), bool) | objects.get("is_crowd", False) | objects.get("is_difficult", False)
            reasons = [f"image {number}: {self.names[label]} has a box without area inside its image" for label in objects["label"]]
            classes, areas = self.class_of[objects["label"]], [None] * len(crowd)
            columns = objects["bbox"].tolist(), classes, crowd, areas, reasons
            yield _example(row["image"], zip(*columns, strict=True), self.skipped, number)


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
        examples: `DetectionData`, or anything that yields `DetectionExample`s in each pass. Crowds are left out.
        size: (height, width) of the network's input.
        batch: images in a batch; a last, smaller one is left out.
        augment: `(image, boxes, classes, seed) -> image, boxes, classes`, on TensorFlow tensors before resizing (see
            `augmentation`).
        repeat: endless passes, shuffled, or one pass in order.
        seed: of the order, and of the augmentation; an example's draws depend on its place in the stream only.
        broken: receives the images that cannot be read, and the reasons, in place of the data's own `broken`.
        start: the number of the first batch, as if those before had been taken. For that, images of a sequence are read once at
            most (to know which can be read), those of a stream as often as they were.

    Returns:
        A `tf.data.Dataset` of (float32 (B, H, W, 3) in [-1, 1], `{"boxes", "classes", "num"}`).

    Raises:
        ValueError: there are no examples.
    """
    import tensorflow as tf

    from mnv2_keras.data.batches import stream_batches
    from mnv2_keras.detection import preprocess_detection_image

    data = examples if isinstance(examples, DetectionData) else DetectionData(examples, (), ())
    data, examples = data if broken is None else replace(data, broken=broken), data.examples
    if next(iter(examples), None) is None:
        raise ValueError("There are no images to train on: check the annotations and the folder.")

    def row(example):
        pixels = data.pixels(example)
        return None if pixels is None else (pixels, example.boxes[~example.crowd], example.classes[~example.crowd])

    def shuffled(dataset):
        return dataset.shuffle(256, seed=seed, reshuffle_each_iteration=True).repeat() if repeat else dataset

    def from_sequence():
        readable, unreadable, left = set(), set(), start * batch
        for number in map(int, order.as_numpy_iterator()):
            if number in unreadable:
                continue
            if not left or number not in readable:
                content = row(examples[number])
                (unreadable if content is None else readable).add(number)
                if len(unreadable) == len(examples):
                    return
            if left:
                left -= number in readable
            elif content is not None:
                yield content

    spec = tf.TensorSpec
    signature = spec((None, None, 3), tf.uint8), spec((None, 4), tf.float32), spec((None,), tf.int32)
    if hasattr(examples, "__getitem__"):
        order = shuffled(tf.data.Dataset.range(len(examples)))
        stream = tf.data.Dataset.from_generator(from_sequence, output_signature=signature)
    else:
        rows = tf.data.Dataset.from_generator(lambda: filter(None, map(row, examples)), output_signature=signature)
        stream = shuffled(rows).skip(start * batch)

    def prepare(image, boxes, classes, place):
        if augment is not None:
            image, boxes, classes = augment(image, boxes, classes, place)
        image = tf.ensure_shape(preprocess_detection_image(image, size), (*size, 3))
        boxes, classes = tf.ensure_shape(boxes, (None, 4)), tf.ensure_shape(classes, (None,))
        return image, {"boxes": boxes, "classes": classes, "num": tf.shape(classes)[0]}

    return stream_batches(stream, prepare, batch, seed=seed, start=start, drop_remainder=repeat)
