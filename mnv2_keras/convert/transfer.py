"""Arrays into a model: an exact transfer, or an error that shows the differences of both sides and leaves the model as it was."""

from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from mnv2_keras.convert.infer import infer_architecture
from mnv2_keras.convert.names import AVERAGE, depth, is_network_variable, variables
from mnv2_keras.convert.source import Source


@dataclass(frozen=True)
class Transfer:
    """Where each weight came from.

    Attributes:
        taken: TF-Slim name of each weight of the model to the file's variable.
        left_out: unused variables of the file, each with the reason.
        new: weights of the model that keep their initial values (a new head).
        background_dropped: whether class 0 of a 1001-class head was left out.
    """

    taken: dict[str, str]
    left_out: dict[str, str]
    new: tuple[str, ...] = ()
    background_dropped: bool = False

    @property
    def averaged(self) -> int:
        """Number of weights that are moving averages (`ExponentialMovingAverage`), not raw variables."""
        return sum(source.endswith(f"/{AVERAGE}") for source in self.taken.values())

    def report(self) -> str:
        """The transfer in a few lines."""
        lines = [f"{len(self.taken)} weights: {self.averaged} averaged, {len(self.taken) - self.averaged} as they are."]
        for reason in dict.fromkeys(self.left_out.values()):
            names = [name for name, why in self.left_out.items() if why == reason]
            lines.append(f"left out: {len(names)} {reason}")
        if self.background_dropped:
            lines.append("class 0 (background) dropped: 1001 to 1000 classes.")
        if self.new:
            lines.append(f"new: {len(self.new)} weights of a fresh head.")
        return "\n".join(lines)

    def as_dict(self) -> dict:
        """The transfer as JSON holds it."""
        return asdict(self) | {"new": list(self.new)}


def network_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The variables of the network, without slots, averages and counters."""
    return {name: shape for name, shape in shapes.items() if not _side(name, shapes)}


def _side(name: str, shapes: Mapping) -> str | None:
    """Why a variable is not part of the network, or None."""
    parent, _, leaf = name.rpartition("/")
    if parent in shapes:
        return "moving averages" if leaf == AVERAGE else "optimiser slots"
    if name == "global_step" or leaf.endswith(("_power", "iterations", "learning_rate")) or name == "save_counter":
        return "counters"
    if any(scope.endswith("_quant") for scope in name.split("/")):
        return "ranges of quantised training"
    return None


def _shape_error(path: Path, model_shapes: Mapping, file_shapes: Mapping, wrong: list[str]) -> str:
    """One sentence where the cause is known, the list of shapes otherwise."""
    model, file = _architectures(path, model_shapes, file_shapes)
    if model and file:
        if model.channels != file.channels:
            return (
                f"{path} takes images of {file.channels} channels, the model was built for {model.channels}: build with "
                f"input_shape=(H, W, {file.channels})."
            )
        if model.alpha != file.alpha:
            remedy = f"build with alpha={file.alpha}" if file.alpha else "use convert_checkpoint, which reads the widths"
            return f"{path} holds {file.describe()}, the model was built with {model.describe()}: {remedy}."
        if file.alpha is not None and model.options != file.options:
            differing = {k: v for k, v in file.options.items() if model.options.get(k) != v}
            return f"{path} holds alpha {file.alpha:g} with {differing}, the model was built with others: build it with these."
        if model.classes and file.classes and model.classes != file.classes:
            return (
                f"{path} holds {file.classes} classes, the model was built with {model.classes}: build with "
                f"classes={file.classes}, or use convert_checkpoint(path, classes={model.classes}) to start a new head."
            )
    lines = [f"  {name}: file {file_shapes[name]}, model {model_shapes[name]}" for name in wrong[:10]]
    more = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
    return f"{path} has {len(wrong)} variables of another shape than the model:\n" + "\n".join(lines) + more


def _listed(names) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def _architectures(path: Path, *sides: Mapping):
    """The architecture of each set of shapes (None: not MobileNetV2), with one hint for all, so that equal widths get one alpha."""
    return [infer_architecture(shapes, path.name) for shapes in sides]


def _check_names(path: Path, model_shapes: Mapping, file_shapes: Mapping, new: Collection[str]) -> dict[str, str]:
    """The file's variables that the model does not use, each with the reason; ValueError for missing and unknown ones."""
    expected = [name for name in model_shapes if name not in new]
    missing = [name for name in expected if name not in file_shapes]
    end, unknown, left_out = max(map(depth, expected)), [], {}
    for name in file_shapes.keys() - set(expected):
        if name in new:
            left_out[name] = "variables of the old head"
        elif depth(name) > end and is_network_variable(name):
            left_out[name] = "variables after the model's end"
        else:
            unknown.append(name)
    if not missing and not unknown:
        return left_out
    wrong = [name for name in expected if name in file_shapes and file_shapes[name] != model_shapes[name]]
    model, file = _architectures(path, model_shapes, file_shapes)
    if wrong and model and file and (model.alpha, model.channels) != (file.alpha, file.channels):
        raise ValueError(_shape_error(path, model_shapes, file_shapes, wrong))
    unknown = [name for name in file_shapes if name in unknown]
    raise ValueError(
        f"{path} and the model do not hold the same variables: {len(missing)} missing from the file"
        f" ({_listed(missing) or 'none'}), {len(unknown)} unknown to the model ({_listed(unknown) or 'none'}). Nothing was "
        "loaded: build the model with the options the checkpoint was made with, or use convert_checkpoint, which reads them."
    )


def _checked_array(source: Source, name: str) -> np.ndarray:
    """A variable's array; ValueError unless it holds finite floats."""
    array = source.array(name)
    if not np.issubdtype(array.dtype, np.floating):
        raise ValueError(f"{source.path}: {name} holds {array.dtype}, expected float32. Nothing was loaded.")
    if not np.isfinite(array).all():
        raise ValueError(
            f"{source.path}: {name} holds {array.size - np.isfinite(array).sum()} values that are NaN or infinite. "
            "Nothing was loaded: the checkpoint was saved from a diverged training or is damaged."
        )
    return array


def load_variables(variables: Mapping, source: Source, ema: bool = True, new: Collection[str] = ()) -> Transfer:
    """Fill a model's weights from a source: all of them, or none.

    Args:
        variables: TF-Slim name to Keras variable (`names.variables`).
        source: the opened weights.
        ema: use the moving average where a variable has one.
        new: names of weights that are not filled (a new head).

    Raises:
        ValueError: missing, extra, wrongly shaped or non-finite variables; the model is as it was.
    """
    path, file_shapes = source.path, network_shapes(source.shapes)
    model_shapes = {name: tuple(variable.shape) for name, variable in variables.items()}
    left_out = {name: _side(name, source.shapes) for name in source.shapes if name not in file_shapes}
    left_out |= _check_names(path, model_shapes, file_shapes, new)
    expected = [name for name in variables if name not in new]
    wrong = [name for name in expected if file_shapes[name] != model_shapes[name]]
    logits = [n for n in wrong if "/Logits/" in n and _drops_background(file_shapes[n], model_shapes[n])]
    background = logits if len(logits) == len(wrong) == 2 else []
    if wrong and not background:
        raise ValueError(_shape_error(path, model_shapes, file_shapes, wrong))

    taken, values = {}, {}
    for name in expected:
        average = f"{name}/{AVERAGE}"
        taken[name] = average if ema and average in source.shapes else name
        if source.shapes[taken[name]] != file_shapes[name]:
            raise ValueError(f"{path}: {taken[name]} has shape {source.shapes[taken[name]]}, its variable {file_shapes[name]}.")
        array = _checked_array(source, taken[name])
        values[name] = array[..., 1:] if name in background else array
    used = set(taken.values())
    left_out = {name: reason for name, reason in left_out.items() if name not in used}
    left_out |= {name: "raw variables that have an average" for name in expected if name not in used}
    for name, value in values.items():
        variables[name].assign(value)
    return Transfer(taken, left_out, tuple(new), bool(background))


def _drops_background(file_shape: tuple, model_shape: tuple) -> bool:
    return file_shape[-1] == 1001 and model_shape[-1] == 1000 and file_shape[:-1] == model_shape[:-1]


def load_arrays(model, arrays: Mapping[str, np.ndarray]) -> Transfer:
    """Fill every weight of a model from arrays by TF-Slim name. Errors are those of `load_variables`."""
    return load_variables(variables(model), Source.of_arrays(Path("the dictionary of arrays"), arrays))
