"""What the three builders share: the input of the network, and its plan."""

import inspect

import keras

from mnv2_keras.architecture import Plan
from mnv2_keras.checks import image_shape


def image_input(input_shape, example, include_preprocessing: bool = False, minimum: int = 1, input_tensor=None):
    """The images of a network, and the same in [-1, 1].

    Args:
        example: the shape that an error message offers.
        minimum: the smallest side in pixels.
        input_tensor: a Keras tensor (B, H, W, C) in place of a new input of `input_shape`.

    Raises:
        ValueError: Keras is set to channels first, or an argument is out of its range.
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "keras.config.image_data_format() is 'channels_first': the networks here are channels_last (NHWC) as in TF-Slim. "
            "Call keras.config.set_image_data_format('channels_last') and give images as (B, H, W, C)."
        )
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise ValueError(
                f"input_tensor is a {type(input_tensor).__name__}: expected a Keras tensor such as keras.Input((224, 224, 3)); "
                "call the finished model on arrays."
            )
        input_shape = tuple(input_tensor.shape[1:])
    shape = image_shape("input_shape", input_shape, example, minimum)
    image = keras.Input(shape, name="input") if input_tensor is None else input_tensor
    if not include_preprocessing:
        return image, image
    return image, keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocessing")(image)


def plan_for(builder, make, plan, channels: int, **arguments):
    """`plan`, checked against the arguments of `builder`; for None, the plan that `make` returns for them.

    Raises:
        ValueError: an argument is out of its range or contradicts the plan.
    """
    if plan is None:
        return make(channels=channels, **arguments)
    kind = inspect.signature(make).return_annotation
    if not isinstance(plan, kind):
        raise ValueError(f"plan is a {type(plan).__name__}: expected a {kind.__name__} as {make.__name__} returns it.")
    backbone: Plan = getattr(plan, "backbone", plan)
    if channels != backbone.stem.inputs:
        raise ValueError(
            f"input_shape has {channels} channels, the plan was made for {backbone.stem.inputs}: pass input_shape=(height, width, "
            f"{backbone.stem.inputs})."
        )
    defaults = inspect.signature(builder).parameters
    chosen = [f"{name}={value!r}" for name, value in arguments.items() if value != defaults[name].default]
    if chosen and make(channels=channels, **arguments) != plan:
        raise ValueError(
            f"plan does not agree with {', '.join(chosen)}: leave these arguments out (the plan sets them), or leave out plan."
        )
    return plan
