"""Every published MobileNetV2 checkpoint, one frozen record each. The figures are published, not measured here.

Source: TF-Slim's `nets/mobilenet/README.md`, the TensorFlow detection and DeepLab model zoos, and the SHA-256 lists
named in each record's `source`.
"""

import difflib
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from numbers import Real

TASKS = ("classification", "detection", "segmentation")
#: Meaning of the classes, for the data sets whose labels this package holds.
LABELS = {"imagenet": "ImageNet, 0 is the background", "coco": "COCO label map, 1 to 90", "voc": "PASCAL VOC, 0 is the background"}


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckpointRecord:
    """One checkpoint archive: address, hash, network, published figures.

    Raises:
        ValueError: a field has an invalid value (the name is not a file name, the hash is not a SHA-256, ...).
    """

    name: str  # letters, digits and . _ + - only: it names the archive in the cache
    task: str  # one of TASKS
    url: str  # http(s):// or file:///, ends in the archive's file name
    sha256: str | None = None  # 64 lower-case hex digits; None: none is published, it is trusted on first use
    size: int | None = None  # bytes; None: not published
    alpha: float = 1.0  # width multiplier
    resolution: int | tuple[int, int] = 224  # side of the square input in pixels, or (height, width)
    classes: int = 1001  # outputs: a background class counts, but for detection, where it is one more slot
    quantized: bool = False  # trained with fake 8-bit quantisation
    labels: str = LABELS["imagenet"]  # what the classes mean
    preprocessing: str = "crop 0.875, bilinear, [-1, 1]"  # from a decoded RGB image to the network's input
    licence: str = "Apache-2.0"
    top_1: float | None = None  # published accuracy on ImageNet validation, percent
    top_5: float | None = None
    coco_ap: float | None = None  # published average precision on COCO, percent
    miou: float | None = None  # published mean intersection over union, percent
    multiply_adds_m: int | None = None  # published, million, truncated (not rounded), the logits counted
    parameters_m: float | None = None  # published, million, kernels and biases, no batch norm
    source: str = "registered by the user"  # who published the hash and the figures

    def __post_init__(self) -> None:
        hex_digits = self.sha256 is None or re.fullmatch("[0-9a-f]{64}", self.sha256)
        checks = {
            "name": (re.fullmatch(r"\w[\w.+-]*", self.name, re.ASCII), "letters, digits and . _ + -, no folder"),
            "task": (self.task in TASKS, f"one of {', '.join(TASKS)}"),
            "url": (re.fullmatch(r"(https?://|file:///)\S*[^/\s]", self.url), "http://, https:// or file:/// and a file"),
            "sha256": (hex_digits, "64 lower-case hex digits or None"),
            "size": (self.size is None or self.size > 0, "a positive number of bytes or None"),
            "alpha": (math.isfinite(self.alpha) and self.alpha > 0, "a positive number"),
        }
        for field, (valid, expected) in checks.items():
            if not valid:
                raise ValueError(f"Checkpoint record {self.name!r} has {field}={getattr(self, field)!r}: expected {expected}.")

    @property
    def file_name(self) -> str:
        """The archive's name at its publisher and in a mirror: the last part of `url`."""
        return self.url.rpartition("/")[2].partition("?")[0]

    @property
    def archive(self) -> str:
        """The archive's name in the cache: `name` with the suffix of `file_name`, so that no two records share a file."""
        suffix = re.search(r"((\.tar)?\.[A-Za-z][A-Za-z0-9]*)?$", self.file_name)
        return self.name + suffix[0]


_CLASSIFIERS = "https://storage.googleapis.com/mobilenet_v2/checkpoints"
_SLIM = "SHA-256: meta-renesas-ai, models-tensorflow-lite.bb; figures: TF-Slim nets/mobilenet/README.md"
_OMZ = "SHA-256: meta-renesas-ai and Open Model Zoo; figures: TF-Slim nets/mobilenet/README.md"

# alpha, pixels, multiply-adds (M), parameters (M), top-1, top-5, SHA-256, bytes
_FLOAT_CLASSIFIERS = (
    (1.4, 224, 582, 6.06, 75.0, 92.5, "a20d0c8d698502dc6a620528871c97a588885df7737556243a3412b39fce85e0", 135_977_516),
    (1.3, 224, 509, 5.34, 74.4, 92.1, "b04129d44a46e0eb409c1a2bc255472ebdd57f9c091812e7866d79d0cc7fecaa", None),
    (1.0, 224, 300, 3.47, 71.8, 91.0, "318084bc1b63d6d7b854553e09cdf77078b1c0168be27c59a0d44253b5ed49dc", 78_306_834),
    (1.0, 192, 221, 3.47, 70.7, 90.1, "e8d9cd7c571f375c80945b5f889705ae412db32d3419d747e796429e39132f48", None),
    (1.0, 160, 154, 3.47, 68.8, 89.0, "e374bc70066dde0c3af6cb4c98ecd8707800d71d11353c4cc359b3069415f23e", None),
    (1.0, 128, 99, 3.47, 65.3, 86.9, "f692e341cf1529df4f7e68ed13d0284ad8796ade1108f802eec135abc1fc1b83", None),
    (1.0, 96, 56, 3.47, 60.3, 83.2, "8f0377b71d79f5626c5198f248b476d2604b3e4e596ca4076e1b1f8fcd3f3844", None),
    (0.75, 224, 209, 2.61, 69.8, 89.6, "335cd22c7e1c5e80205dedd6e2ff5d1d8af5c29074496eb047fd621349e10cc5", None),
    (0.75, 192, 153, 2.61, 68.7, 88.9, "40efef9324376d47b872d1cd6e4de8ba7c9323b6203252aa66dc2b2413e0dc8d", None),
    (0.75, 160, 107, 2.61, 66.4, 87.3, "904d1a1f84c329ad766464d132f697e96814685853c45c6ee4dd21877ada36bc", None),
    (0.75, 128, 69, 2.61, 63.2, 85.3, "9ac932679a9fb1304bc1435bb7fa30e1b2fcaa7f49e0902da24d154ec83f9302", None),
    (0.75, 96, 39, 2.61, 58.8, 81.6, "bdf06eec5478dbb1bb9e01648637d8acd4cc500f72e1a3dad01ba45642e31e6f", None),
    (0.5, 224, 97, 1.95, 65.4, 86.4, "813febbdbe2a7a50055ee2f6b374938aed03e2f607f63f3479622aefc4e12b00", None),
    (0.5, 192, 71, 1.95, 63.9, 85.4, "5a344ed91cded5d420b6c65d47343ee60b43b570953b0feed4ee95451a679dd5", None),
    (0.5, 160, 50, 1.95, 61.0, 83.2, "f89c879b1a45c5d677ad7fe499f08a7854ef1772f0f5ae5d606afaaa87218e45", None),
    (0.5, 128, 32, 1.95, 57.7, 80.8, "ba078efd101c2308fb978467084f0ec12485ed8bfbb7695e477587b3272a1d66", None),
    (0.5, 96, 18, 1.95, 51.2, 75.8, "71a814047d7729bad711ae3e7db30e6c32999a1189f88d328b73939f7aa80d62", None),
    (0.35, 224, 59, 1.66, 60.3, 82.9, "efcc34277c52f7dd4b0b26c2f52686793f4ea5fdddc899ac5aac9eb8d5861550", None),
    (0.35, 192, 43, 1.66, 58.2, 81.2, "5dec603e2714a780c3cfc0656dac51bf2f4b354c4f7acda879ad5b6017f3f55b", None),
    (0.35, 160, 30, 1.66, 55.7, 79.1, "e579b5b50f47e88dc0c4390d20a396658b97457182f83905154a8a687ba15fa7", None),
    (0.35, 128, 20, 1.66, 50.8, 75.0, "c21a8f89e2e1a49e9002b1e1b871f3c92695ccb0cd64e7e7a21b71f2820beddb", None),
    (0.35, 96, 11, 1.66, 45.5, 70.4, "282996bca7d799d0172ce5d34ac59dea497c4c75f069a8b466bb944c6f843353", None),
)

_DETECTION = {
    "task": "detection",
    "resolution": 300,
    "classes": 90,
    "labels": LABELS["coco"],
    "preprocessing": "[-1, 1], then bilinear to 300x300 (TF1 sampling), aspect ratio not kept",
}
_PASCAL = {
    "task": "segmentation",
    "resolution": 513,
    "classes": 21,
    "labels": LABELS["voc"],
    "preprocessing": "pad bottom and right to 513x513 with 127.5, [-1, 1]; no resize",
}
_CITYSCAPES = _PASCAL | {
    "resolution": (1025, 2049),
    "classes": 19,
    "labels": "Cityscapes train ids",
    "preprocessing": "pad bottom and right to 1025x2049 with 127.5, [-1, 1]; no resize",
}
_ADE20K = _PASCAL | {"classes": 151, "labels": "ADE20K, 0 is unlabelled"}
_SSDLITE = {
    "sha256": "542445cce834dbfbb7df1991425d475e85a2d7ec68c60a4f262bb18aac10c8b2",
    "size": 51_025_348,
    "coco_ap": 22.0,
    "source": "COCO AP: TensorFlow detection model zoo (Open Model Zoo gives 24.3)",
}
_SSD = {
    "sha256": "b9380178b2e35333f1a735e39745928488bdabeb9ed20bc6fa07af8172cb5adc",
    "size": 187_925_923,
    "source": "TensorFlow detection model zoo",
}
_DEEPLAB = {
    "sha256": "cd506941e4f88fd053903913761df2e76ea00c01079cecfd35855304a4a5fb48",
    "size": 23_882_985,
    "miou": 75.32,
    "source": "mIoU: TensorFlow DeepLab model zoo (VOC 2012 val, output stride 16, one scale, no flip)",
}
_NO_HASH = {"source": "no hash published; TensorFlow DeepLab model zoo"}

# Archive name, task, other fields. Each is in _ZOO, the detectors in another folder.
_ZOO = "http://download.tensorflow.org/models"
_DETECTORS_AND_SEGMENTERS = (
    ("ssdlite_mobilenet_v2_coco_2018_05_09", _DETECTION, _SSDLITE),
    ("ssd_mobilenet_v2_coco_2018_03_29", _DETECTION, _SSD),
    ("deeplabv3_mnv2_pascal_train_aug_2018_01_29", _PASCAL, _DEEPLAB),
    ("deeplabv3_mnv2_pascal_trainval_2018_01_29", _PASCAL, _NO_HASH),
    ("deeplabv3_mnv2_dm05_pascal_trainaug_2018_10_01", _PASCAL, _NO_HASH | {"alpha": 0.5}),
    ("deeplabv3_mnv2_dm05_pascal_trainval_2018_10_01", _PASCAL, _NO_HASH | {"alpha": 0.5}),
    ("deeplabv3_mnv2_cityscapes_train_2018_02_05", _CITYSCAPES, _NO_HASH),
    ("deeplabv3_mnv2_ade20k_train_2018_12_03", _ADE20K, _NO_HASH),
)


def _records() -> Iterator[CheckpointRecord]:
    for alpha, pixels, multiply_adds, parameters, top_1, top_5, sha256, size in _FLOAT_CLASSIFIERS:
        name = f"mobilenet_v2_{alpha}_{pixels}"
        figures = {"top_1": top_1, "top_5": top_5, "multiply_adds_m": multiply_adds, "parameters_m": parameters}
        network = {"task": "classification", "url": f"{_CLASSIFIERS}/{name}.tgz", "alpha": alpha, "resolution": pixels}
        yield CheckpointRecord(name=name, sha256=sha256, size=size, source=_OMZ if size else _SLIM, **network, **figures)
    for alpha, pixels, *_ in _FLOAT_CLASSIFIERS:
        name = f"quantized_v2_{pixels}_{round(100 * alpha)}"
        network = {"task": "classification", "url": f"{_CLASSIFIERS}/{name}.tgz", "alpha": alpha, "resolution": pixels}
        yield CheckpointRecord(name=name, quantized=True, source="no hash published; TF-Slim", **network)
    for name, network, fields in _DETECTORS_AND_SEGMENTERS:
        folder = "/object_detection" if network is _DETECTION else ""
        yield CheckpointRecord(name=name, url=f"{_ZOO}{folder}/{name}.tar.gz", **(network | fields))


_BUNDLED = {record.name: record for record in _records()}
_REGISTERED: dict[str, CheckpointRecord] = {}  # the user's own, by name


def _same_alpha(record: CheckpointRecord, alpha: float) -> bool:
    """Whether two alphas are the same; 0.35 in float32 is 6e-9 away."""
    if not isinstance(alpha, Real):
        raise ValueError(f"alpha={alpha!r} is not a number: give the width multiplier, such as 0.75.")
    return math.isclose(record.alpha, alpha, abs_tol=1e-6)


def list_checkpoints(
    task: str | None = None, alpha: float | None = None, resolution: int | tuple[int, int] | None = None
) -> list[CheckpointRecord]:
    """The published checkpoints, then those the user registered; filtered by task, alpha and resolution.

    Args:
        task: "classification" (float and quantised), "detection" or "segmentation".
        alpha: width multiplier.
        resolution: input size in pixels, as in the record.

    Raises:
        ValueError: there is no such task, or alpha is not a number.
    """
    if task is not None and task not in TASKS:
        raise ValueError(f"There is no task {task!r}: choose one of {', '.join(TASKS)}.")
    return [
        record
        for record in (*_BUNDLED.values(), *_REGISTERED.values())
        if (task is None or record.task == task)
        and (alpha is None or _same_alpha(record, alpha))
        and (resolution is None or record.resolution == resolution)
    ]


def get_checkpoint(name: str) -> CheckpointRecord:
    """The record of that name.

    Raises:
        ValueError: there is none; the message has the closest names.
    """
    record = _BUNDLED.get(name) or _REGISTERED.get(name)
    if record is None:
        close = difflib.get_close_matches(str(name), [*_BUNDLED, *_REGISTERED], n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(close)}? " if close else ""
        raise ValueError(f"There is no checkpoint {name!r}: {hint}list_checkpoints() and `mnv2 list` show all names.")
    return record


def imagenet_checkpoint(alpha: float = 1.0, resolution: int | None = 224) -> CheckpointRecord:
    """The float classifier that `weights="imagenet"` means.

    Args:
        alpha: width multiplier.
        resolution: side of the input in pixels; another than the published ones, or None, gives 224, as in Keras Applications.

    Raises:
        ValueError: nothing was published for this alpha; the message lists the alphas.
    """
    published = [record for record in _BUNDLED.values() if record.task == "classification" and not record.quantized]
    by_size = {record.resolution: record for record in published if _same_alpha(record, alpha)}
    if not by_size:
        alphas = ", ".join(str(a) for a in sorted({record.alpha for record in published}))
        raise ValueError(
            f"No ImageNet checkpoint was published for alpha={alpha}: choose one of {alphas}, or weights=None, or "
            "the path of a checkpoint of your own."
        )
    return by_size.get(resolution, by_size[224])


def register_checkpoint(record: CheckpointRecord) -> None:
    """Register a checkpoint of your own by name in this process; a second record of the name replaces the first.

    Raises:
        ValueError: the name belongs to a checkpoint that comes with the package.
    """
    if record.name in _BUNDLED:
        raise ValueError(f"{record.name} comes with mnv2_keras and cannot be replaced: register it under another name.")
    _REGISTERED[record.name] = record
