"""Arrays into a model and out of it: an exact transfer, or an exception that shows both sides, and the model untouched."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np

from mnv2_keras.convert.checkpoint import Checkpoint
from mnv2_keras.convert.infer import infer_architecture
from mnv2_keras.convert.names import AVERAGE, depth, variables


@dataclass(frozen=True)
class Transfer:
    """What went where.

    Attributes:
        taken: TF-Slim name of each weight of the model to the variable of the file its value comes from.
        left_out: variables of the file that were not used, each with the reason.
        new: weights of the model that keep their fresh values (a new head).
        background_dropped: whether class 0 of a 1001-class head was left out.
    """

    taken: dict[str, str]
    left_out: dict[str, str]
    new: tuple[str, ...] = ()
    background_dropped: bool = False

    @property
    def averaged(self) -> int:
        """How many weights are moving averages (`ExponentialMovingAverage`) rather than the raw variables."""
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
        return {
            "taken": self.taken,
            "left_out": self.left_out,
            "new": list(self.new),
            "background_dropped": self.background_dropped,
        }


def network_shapes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """The variables of the network itself: not slots, averages or counters."""
    return {name: shape for name, shape in shapes.items() if not _side(name, shapes)}


def _side(name: str, shapes: Mapping) -> str | None:
    """Why a variable is no part of the network, or None."""
    parent, _, leaf = name.rpartition("/")
    if parent in shapes:
        return "moving averages" if leaf == AVERAGE else "optimiser slots"
    if name == "global_step" or leaf.endswith(("_power", "iterations", "learning_rate")) or name == "save_counter":
        return "counters"
    if any(scope.endswith("_quant") for scope in name.split("/")):
        return "ranges of quantised training"
    return None


def _shape_error(source, model_shapes: Mapping, file_shapes: Mapping, wrong: list[str]) -> str:
    """One sentence where the cause is known, the list of shapes otherwise."""
    # The same hint for both: where several alphas have the same widths, both are called the same.
    ours, theirs = (infer_architecture(shapes, source.name) for shapes in (model_shapes, file_shapes))
    if ours and theirs:
        if ours.channels != theirs.channels:
            return (
                f"{source} takes images of {theirs.channels} channels, the model was built for {ours.channels}: build with "
                f"input_shape=(H, W, {theirs.channels})."
            )
        if ours.alpha != theirs.alpha:
            remedy = (
                f"build with alpha={theirs.alpha}" if theirs.alpha else "use convert_checkpoint, which reads the widths"
            )
            return f"{source} holds {theirs.describe()}, the model was built with {ours.describe()}: {remedy}."
        if theirs.alpha is not None and ours.options != theirs.options:
            theirs_only = {k: v for k, v in theirs.options.items() if ours.options.get(k) != v}
            return (
                f"{source} holds alpha {theirs.alpha:g} with {theirs_only}, the model was built otherwise: build it so."
            )
        if ours.classes and theirs.classes and ours.classes != theirs.classes:
            return (
                f"{source} holds {theirs.classes} classes, the model was built with {ours.classes}: build with "
                f"classes={theirs.classes}, or use convert_checkpoint(path, classes={ours.classes}) to start a new head."
            )
    lines = [f"  {name}: file {file_shapes[name]}, model {model_shapes[name]}" for name in wrong[:10]]
    more = f"\n  and {len(wrong) - 10} more" if len(wrong) > 10 else ""
    return f"{source} has {len(wrong)} variables of another shape than the model:\n" + "\n".join(lines) + more


def _listed(names) -> str:
    names = list(names)
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def load_variables(variables: Mapping, checkpoint: Checkpoint, ema: bool = True, new: Collection[str] = ()) -> Transfer:
    """Fill a model's weights from a checkpoint: every one of them, or none.

    Args:
        variables: TF-Slim name to Keras variable (`names.variables`).
        checkpoint: the opened file.
        ema: take the average where a variable has one.
        new: names of weights that are left as they are (a new head).

    Raises:
        ValueError: missing, extra, wrongly shaped or non-finite variables; the model is as it was.
    """
    source, file_shapes = checkpoint.source, network_shapes(checkpoint.shapes)
    wanted = {name: variable for name, variable in variables.items() if name not in new}
    model_shapes = {name: tuple(variable.shape) for name, variable in variables.items()}

    missing = [name for name in wanted if name not in file_shapes]
    extra, left_out = [], {}
    end = max(depth(name) for name in wanted)
    for name in checkpoint.shapes:
        if name not in file_shapes:
            left_out[name] = _side(name, checkpoint.shapes)
        elif name in new:
            left_out[name] = "variables of the old head"
        elif name not in wanted:
            if depth(name) > end:
                left_out[name] = "variables after the model's end"
            else:
                extra.append(name)
    wrong = [name for name in wanted if name in file_shapes and file_shapes[name] != model_shapes[name]]
    background = [
        name for name in wrong if "/Logits/" in name and _drops_background(file_shapes[name], model_shapes[name])
    ]
    if len(background) == len(wrong) == 2:
        wrong = []
    else:
        background = []
    if missing or extra:
        if wrong and _known_difference(source, model_shapes, file_shapes):
            raise ValueError(_shape_error(source, model_shapes, file_shapes, wrong))
        raise ValueError(
            f"{source} and the model do not hold the same variables: {len(missing)} missing from the file"
            f" ({_listed(missing) or 'none'}), {len(extra)} unknown to the model ({_listed(extra) or 'none'}). Nothing was loaded: "
            "build the model with the options the checkpoint was made with, or use convert_checkpoint, which reads them."
        )
    if wrong:
        raise ValueError(_shape_error(source, model_shapes, file_shapes, wrong))

    taken, values = {}, {}
    for name in wanted:
        average = f"{name}/{AVERAGE}"
        taken[name] = average if ema and average in checkpoint.shapes else name
        if checkpoint.shapes[taken[name]] != file_shapes[name]:
            raise ValueError(
                f"{source}: {taken[name]} has shape {checkpoint.shapes[taken[name]]}, its variable {file_shapes[name]}."
            )
        value = checkpoint.array(taken[name])
        if not np.issubdtype(value.dtype, np.floating):
            raise ValueError(f"{source}: {taken[name]} holds {value.dtype}, expected float32. Nothing was loaded.")
        if not np.isfinite(value).all():
            raise ValueError(
                f"{source}: {taken[name]} holds {np.size(value) - np.isfinite(value).sum()} values that are NaN or infinite. "
                "Nothing was loaded: the checkpoint was saved from a diverged training or is damaged."
            )
        values[name] = value[..., 1:] if name in background else value
    used = set(taken.values())
    left_out = {name: why for name, why in left_out.items() if name not in used}
    left_out |= {name: "raw variables that have an average" for name in wanted if name not in used}
    for name, value in values.items():
        variables[name].assign(value)
    return Transfer(taken, left_out, tuple(new), bool(background))


def _drops_background(file_shape: tuple, model_shape: tuple) -> bool:
    return file_shape[-1] == 1001 and model_shape[-1] == 1000 and file_shape[:-1] == model_shape[:-1]


def _known_difference(source, model_shapes: Mapping, file_shapes: Mapping) -> bool:
    ours, theirs = (infer_architecture(shapes, source.name) for shapes in (model_shapes, file_shapes))
    return bool(ours and theirs and (ours.alpha != theirs.alpha or ours.channels != theirs.channels))


def load_arrays(model, arrays: Mapping[str, np.ndarray]) -> None:
    """Give every weight of a model its array, by TF-Slim name.

    Raises:
        ValueError: the names or shapes are not the model's; nothing was changed.
    """
    ours = variables(model)
    wrong = sorted(ours.keys() ^ arrays.keys()) or [n for n in ours if tuple(ours[n].shape) != np.shape(arrays[n])]
    if wrong:
        raise ValueError(
            f"the arrays do not fit the model, first {wrong[0]}: expected exactly its {len(ours)} variables."
        )
    for name, variable in ours.items():
        variable.assign(arrays[name])
