"""What int8 and int16x8 files need, as one object; and the keywords that it replaced."""

import functools
import warnings
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mnv2_keras.checks import one_of
from mnv2_keras.deprecation import warn_renamed

PRECISIONS = ("float32", "float16", "dynamic", "int8", "int16x8")

#: Types of an int8 file's input and output.
END_TYPES = ("uint8", "int8", "float32")

#: Steps that make int8 better than plain rounding; docs/benchmarks.md shows the effect of each.
STEPS = ("cross_layer_equalization", "gptq", "bias_correction")
_OLD_STEPS = {"equalize": "cross_layer_equalization", "round": "gptq", "correct": "bias_correction"}
#: Keywords of the release before, and the attributes that they are now.
_OLD_KEYWORDS = {name: name for name in ("calibration", "input_type", "output_type", "ranges")} | {"refine": "steps"}


@dataclass(frozen=True)
class Quantization:
    """How `export_litert`, `export_detector` and `export_segmenter` quantise a model.

    Attributes:
        calibration: photos for "int8" and "int16x8", at best a hundred like those to come; in other precisions, photos to
            compare on. A folder, a file, a list of them; a float32 batch (N, H, W, C) as the model takes it; an iterable of uint8
            photos (H, W, 3) or float32 images, of pairs (image, label) or of dicts with an "image", such as a
            `tf.data.Dataset`; or "tfds:NAME:SPLIT", a data set of TensorFlow Datasets on this machine. Files that are not
            images are skipped and reported.
        steps: of "int8": any of "cross_layer_equalization", "gptq", "bias_correction"; with none, values are rounded plainly.
        input_type: of an int8 file: "uint8" (the default, which MediaPipe takes), "int8" or "float32".
        output_type: of an int8 file; None for `input_type`. With "float32", the softmax is computed in float.
        ranges: of "int8": (low, high) of the image and of each layer, in network order, instead of those observed in
            calibration.

    Raises:
        ValueError: an unknown step or type.
    """

    calibration: object = None
    steps: Sequence[str] = STEPS
    input_type: str | None = None
    output_type: str | None = None
    ranges: Sequence[tuple[float, float]] | None = None

    def __post_init__(self):
        for step in self.steps:
            if step in _OLD_STEPS:
                warn_renamed(f"the step {step!r}", repr(_OLD_STEPS[step]), stacklevel=4)
        steps = tuple(_OLD_STEPS.get(step, step) for step in self.steps)
        if unknown := set(steps) - set(STEPS):
            raise ValueError(f"steps has {min(unknown, key=str)!r}: expected any of {', '.join(STEPS)}.")
        object.__setattr__(self, "steps", steps)
        if isinstance(self.ranges, Mapping):  # by layer name, as the release before took them; only the order counts
            object.__setattr__(self, "ranges", list(self.ranges.values()))
        for name in ("input_type", "output_type"):
            one_of(name, getattr(self, name), (None, *END_TYPES))

    def check(self, precision: str) -> None:
        """Raise ValueError for an unknown precision, or an option that this precision does not have."""
        one_of("precision", precision, PRECISIONS)
        if precision == "int8":
            return
        for name in ("input_type", "output_type"):
            if (value := getattr(self, name)) not in (None, "float32"):
                raise ValueError(f"{name}={value!r} goes with precision='int8': a {precision} file has float32 inputs and outputs.")
        if self.ranges is not None:
            raise ValueError(f"ranges go with precision='int8', not {precision!r}.")


def check_options(options: Iterable[str], names: Collection[str], reason: str) -> None:
    """Refuse keywords that `export_litert` has and another export has not.

    Raises:
        ValueError: a keyword of `names`.
        TypeError: any other keyword.
    """
    for name in options:
        if name not in names:
            raise TypeError(f"{name!r} is not a keyword of this function.")
        raise ValueError(f"{name} goes with export_litert: {reason}.")


def old_quantization_keywords(function: Callable) -> Callable:
    """A decorator: `calibration`, `input_type`, `output_type`, `ranges` and `refine` still work as keywords, and warn.

    Raises:
        TypeError: a call gives one of them and `quantization`.
    """

    @functools.wraps(function)
    def wrapper(*args, **options):
        old = [name for name in _OLD_KEYWORDS if name in options]
        if old:
            if options.get("quantization") is not None:
                raise TypeError(f"{function.__name__}() got both quantization and {old[0]}: give quantization alone.")
            attributes = {_OLD_KEYWORDS[name]: options.pop(name) for name in old}
            names = ", ".join(f"{name}=..." for name in attributes)
            warnings.warn(
                f"{', '.join(old)} of {function.__name__}: pass quantization=Quantization({names}) instead; the old keywords go "
                "away in the next release.",
                DeprecationWarning,
                stacklevel=2,
            )
            options["quantization"] = Quantization(**attributes)
        return function(*args, **options)

    return wrapper
