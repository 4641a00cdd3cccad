"""A model rewritten for quantisation-aware training, and back into a plain one with what training found."""

import keras
from keras import layers

from mnv2_keras.export.quantization import Kernel
from mnv2_keras.layers import FakeQuantAdd, FakeQuantConvolution, FakeQuantImage, FakeQuantMean, RangedLayer

#: Layers that stay as they are: they move numbers, or come after the last one that int8 computes.
_KEPT = ("Dropout", "Reshape", "Flatten", "ZeroPadding2D")


def quantization_aware(
    model: keras.Model, value_range: tuple[float, float] = (-1.0, 1.0), range_momentum: float = 0.99
) -> keras.Model:
    """A copy of a model that simulates int8: train it with `fit`, save it, and give it to `export_litert(..., "int8")`.

    Source: TF-Slim's quantised training (`tf.contrib.quantize`); arXiv:1712.05877, arXiv:1806.08342.

    Args:
        model: a classifier or backbone with batch norms; it is not changed, its weights are the copy's first. Its
            regularisers stay behind.
        value_range: of the images.
        range_momentum: of the moving ranges of the activations.

    Returns:
        A functional model of the same inputs and outputs. Compile it, and train it some epochs at a small learning rate; the
        ranges follow what flows through in training, so train at least some batches before it is judged. Freeze a layer's
        statistics by `layer.trainable = False`.

    Raises:
        ValueError: a layer that int8 training does not know.
    """
    place: dict[int, object] = {}
    done: set[str] = set()
    inputs = []
    readers: dict[int, list] = {}
    for layer in model.layers:
        for tensor in _inputs_of(layer):
            readers.setdefault(id(tensor), []).append(layer)

    def only_reader(layer):
        found = readers.get(id(_output_of(layer)), [])
        kept_out = any(_output_of(layer) is output for output in model.outputs)
        return found[0] if len(found) == 1 and not kept_out else None

    copies: list[tuple] = []
    for layer in model.layers:
        if layer.name in done:
            continue
        kind = type(layer).__name__
        if kind == "InputLayer":
            fresh = keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype, name=layer.name)
            inputs.append(fresh)
            place[id(_output_of(layer))] = FakeQuantImage(value_range, name=f"{layer.name}-pixels")(fresh)
            continue
        given = [each for tensor in _inputs_of(layer) for each in place[id(tensor)]]  # tensor, step, tensor, step ...
        end = layer
        if kind in ("Conv2D", "DepthwiseConv2D"):
            norm = only_reader(layer)
            norm = norm if norm is not None and type(norm).__name__ == "BatchNormalization" else None
            end = norm or layer
            active = only_reader(end)
            active = active if active is not None and _activation_of(active) in ("relu6", "relu") else None
            end = active or end
            own = _activation_of(layer) if active is None else _activation_of(active)
            fresh = FakeQuantConvolution(
                "full" if kind == "Conv2D" else "depthwise",
                layer.filters if kind == "Conv2D" else None,
                layer.kernel_size,
                layer.strides,
                layer.dilation_rate,
                layer.padding,
                None if norm is None else (norm.momentum, norm.epsilon),
                own if own != "linear" else None,
                range_momentum=range_momentum,
                name=layer.name,
            )
            output = fresh(given)
            copies.append((fresh, layer, norm))
            done |= {each.name for each in (norm, active) if each is not None}
        elif kind == "Add" and len(given) == 4:
            output = FakeQuantAdd(range_momentum=range_momentum, name=layer.name)(given)
        elif kind == "GlobalAveragePooling2D":
            output = FakeQuantMean(layer.keepdims, range_momentum=range_momentum, name=layer.name)(given)
        elif kind in _KEPT or (kind == "Activation" and any(_output_of(layer) is each for each in model.outputs)):
            output = type(layer).from_config(layer.get_config())(given[0]), given[1]
        else:
            raise ValueError(
                f"layer {layer.name!r} ({kind}) is none that quantisation-aware training knows: expected convolutions with batch "
                f"norm and ReLU6, sums of two, {', '.join(('GlobalAveragePooling2D', *_KEPT))}. Build the model with "
                f"include_preprocessing=False and batch norms."
            )
        place[id(_output_of(end))] = output
    outputs = [place[id(output)][0] for output in model.outputs]
    aware = keras.Model(
        inputs[0] if len(inputs) == 1 else inputs,
        outputs[0] if len(outputs) == 1 else outputs,
        name=f"{model.name}-int8",
    )
    for fresh, convolution, norm in copies:
        _copy_weights(fresh, convolution, norm)
    return aware


def _inputs_of(layer) -> list:
    return list(layer._inbound_nodes[0].input_tensors) if layer._inbound_nodes else []


def _output_of(layer):
    return layer._inbound_nodes[0].output_tensors[0]


def _activation_of(layer) -> str:
    activation = getattr(layer, "activation", None)
    if type(layer).__name__ == "ReLU":
        return "relu6" if layer.max_value == 6 else "relu" if layer.max_value is None else "other"
    return keras.activations.serialize(activation) if activation is not None else "linear"


def _copy_weights(fresh: FakeQuantConvolution, convolution, norm) -> None:
    fresh.kernel.assign(convolution.kernel)
    if norm is None:
        if convolution.use_bias:
            fresh.bias.assign(convolution.bias)
        return
    if convolution.use_bias:
        raise ValueError(f"layer {convolution.name!r} has both a bias and a batch norm: build it with use_bias=False.")
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        getattr(fresh, name).assign(getattr(norm, name))


def plain_model(model: keras.Model) -> tuple[keras.Model, dict[str, tuple[float, float]], list[Kernel]]:
    """(the same network without simulation, ranges of its tensors by layer name, its kernels in network order).

    Convolutions carry their folded batch norms as biases.
    """
    place: dict[int, object] = {}
    maker: dict[int, object] = {}  # of a step
    ranges: dict[str, tuple[float, float]] = {}
    inputs = []
    copies: list[tuple] = []
    for layer in model.layers:
        if type(layer).__name__ == "InputLayer":
            inputs.append(keras.Input(batch_shape=layer.batch_shape, name=layer.name))
            place[id(_output_of(layer))] = inputs[-1]
            continue
        given = [place[id(tensor)] for tensor in _inputs_of(layer) if id(tensor) in place]  # all but the steps
        if isinstance(layer, FakeQuantImage):
            output = given[0]
        elif isinstance(layer, FakeQuantConvolution):
            options = {
                "strides": layer.strides,
                "dilation_rate": layer.dilation_rate,
                "padding": layer.padding,
                "activation": layer.activation,
                "name": layer.name,
            }
            fresh = (
                layers.Conv2D(layer.filters, layer.kernel_size, **options)
                if layer.kind == "full"
                else layers.DepthwiseConv2D(layer.kernel_size, **options)
            )
            output = fresh(given[0])
            copies.append((fresh, layer, maker[id(_inputs_of(layer)[1])]))
        elif isinstance(layer, FakeQuantAdd):
            output = layers.Add(name=layer.name)(given)
        elif isinstance(layer, FakeQuantMean):
            output = layers.GlobalAveragePooling2D(keepdims=layer.keepdims, name=layer.name)(given[0])
        else:
            output = type(layer).from_config(layer.get_config())(given[0])
        place[id(_output_of(layer))] = output
        if isinstance(layer, (FakeQuantImage, RangedLayer)):
            maker[id(layer._inbound_nodes[0].output_tensors[1])] = layer
            ranges[layer.name.removesuffix("-pixels")] = layer.value
    outputs = [place[id(output)] for output in model.outputs]
    plain = keras.Model(
        inputs[0] if len(inputs) == 1 else inputs,
        outputs[0] if len(outputs) == 1 else outputs,
        name=model.name.removesuffix("-int8"),
    )
    for fresh, layer, _ in copies:
        fresh.set_weights(layer.folded())
    return plain, ranges, [Kernel(*layer.stored(source.step)) for _, layer, source in copies]
