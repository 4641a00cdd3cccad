"""The Keras network that an engine runs for each task: the model, checked, with the outputs that the task reads."""

#: Side of the input in pixels of a segmenter that takes any size: DeepLab's own.
SEGMENTER_SIDE = 513


def task_network(model, task: str, name: str):
    """The network of a task.

    Args:
        model: a `keras.Model`.
        task: "classification", "detection" or "segmentation".
        name: what messages call the weights.

    Returns:
        A `keras.Model` with a list of outputs, and the (height, width) of its input. The outputs are: of a classifier
        probabilities (B, classes), and pooled features (B, C) where it pools; of a detector box encodings (B, A, 4) and logits
        (B, A, classes + 1); of a segmenter labels int32 (B, H, W), and the logits (B, h, w, classes) before they are enlarged
        where it is this package's.

    Raises:
        ValueError: the model is not of this task, takes images of any size, or takes pixels from 0 to 255.
    """
    import keras

    from mnv2_keras.networks.endpoints import check_input

    outputs = {"classification": _classifier, "detection": _detector, "segmentation": _segmenter}[task](model, name)
    check_input(model, name)
    size = model.input_shape[1:3]
    if task == "segmentation":
        size = tuple(side or SEGMENTER_SIDE for side in size)
    if None in size:
        remedy = "pass resolution, such as resolution=224" if task == "classification" else "build it with an input_shape"
        raise ValueError(f"{name} takes images of any size: {remedy}.")
    return keras.Model(model.input, outputs, name=model.name), size


def _classifier(model, name: str) -> list:
    if not isinstance(model.output_shape, tuple) or len(model.output_shape) != 2:
        raise ValueError(
            f"{name} gives {model.output_shape}, not scores of classes: expected a classifier, (B, H, W, C) to (B, classes)."
        )
    return [model.output, *(layer.output for layer in model.layers if layer.name == "global_pool")]


def _detector(model, name: str) -> list:
    from mnv2_keras.tasks import DETECTION
    from mnv2_keras.tasks.detection import OUTPUTS

    if not DETECTION.holds_model(model):
        raise ValueError(f"{name} holds no detector: its model does not give {' and '.join(OUTPUTS)}.")
    return [model.output[key] for key in OUTPUTS]


def _segmenter(model, name: str) -> list:
    from mnv2_keras.layers import ArgMax

    shape, output, size = model.input_shape, None, None
    if isinstance(shape, tuple) and len(shape) == 4 and shape[3] == 3 and isinstance(model.output_shape, tuple):
        size = tuple(side or SEGMENTER_SIDE for side in shape[1:3])
        output = tuple(model.compute_output_shape((1, *size, 3)))
    if output is None or len(output) != 4 or output[1:3] != size:
        raise ValueError(
            f"{name} holds no segmenter: its model gives {output or model.output_shape} for {shape}, not (B, H, W, classes) for "
            "(B, H, W, 3)."
        )
    small = [layer.output for layer in model.layers if layer.name == "logits-semantic"]
    return [ArgMax(name="labels")(model.output), *small]
