"""A model rewritten for quantisation-aware training, and back into a plain one with what training learned."""

import keras
from keras import layers

from mnv2_keras.export.quantization import Kernel
from mnv2_keras.layers import FakeQuantAdd, FakeQuantConvolution, FakeQuantImage, FakeQuantMean, RangedLayer

#: Layers that are copied: they move values, or come after the last layer that int8 computes.
_COPIED = ("Dropout", "Reshape", "Flatten", "ZeroPadding2D")


def quantization_aware(
    model: keras.Model, value_range: tuple[float, float] = (-1.0, 1.0), range_momentum: float = 0.99
) -> keras.Model:
    """A copy of a model that computes as int8 will: train it with `fit`, save it, and give it to `export_litert(..., "int8")`.

    Source: TF-Slim's quantised training (`tf.contrib.quantize`); arXiv:1712.05877, arXiv:1806.08342.

    Args:
        model: a classifier or backbone with batch norms; it is not changed. The copy begins with its weights, without its
            regularisers.
        value_range: of the images.
        range_momentum: of the moving ranges of the activations.

    Returns:
        A functional model of the same inputs and outputs. Compile it, and train it some epochs at a small learning rate. The
        ranges follow the values in training, so train at least some batches before you evaluate it. `layer.trainable = False`
        freezes a layer's statistics.

    Raises:
        ValueError: a layer that quantisation-aware training does not support.
    """
    readers: dict[int, list] = {}
    for layer in model.layers:
        for tensor in _inputs_of(layer):
            readers.setdefault(id(tensor), []).append(layer)

    def only_reader(layer):
        own = readers.get(id(_output_of(layer)), [])
        return own[0] if len(own) == 1 and not any(_output_of(layer) is output for output in model.outputs) else None

    inputs, tensors, fused, copies = [], {}, set(), []
    for layer in model.layers:
        if layer.name in fused:
            continue
        kind, end = type(layer).__name__, layer
        own_inputs = [part for tensor in _inputs_of(layer) for part in tensors[id(tensor)]]  # tensor, step, tensor, step ...
        options = {"range_momentum": range_momentum, "name": layer.name}
        if kind == "InputLayer":
            inputs.append(keras.Input(batch_shape=layer.batch_shape, dtype=layer.dtype, name=layer.name))
            output = FakeQuantImage(value_range, name=f"{layer.name}-pixels")(inputs[-1])
        elif kind in ("Conv2D", "DepthwiseConv2D"):
            norm = only_reader(layer)
            norm = norm if type(norm).__name__ == "BatchNormalization" else None
            activation = only_reader(norm or layer)
            activation = activation if activation is not None and _activation_of(activation) in ("relu6", "relu") else None
            end = activation or norm or layer
            fused |= {other.name for other in (norm, activation) if other is not None}
            convolution = _fake_quant_convolution(layer, norm, activation or layer, options)
            copies.append((convolution, layer, norm))
            output = convolution(own_inputs)
        elif kind == "Add" and len(own_inputs) == 4:
            output = FakeQuantAdd(**options)(own_inputs)
        elif kind == "GlobalAveragePooling2D":
            output = FakeQuantMean(layer.keepdims, **options)(own_inputs)
        elif kind in _COPIED or (kind == "Activation" and any(_output_of(layer) is other for other in model.outputs)):
            output = type(layer).from_config(layer.get_config())(own_inputs[0]), own_inputs[1]
        else:
            raise ValueError(
                f"layer {layer.name!r} ({kind}) is not supported by quantisation-aware training: expected convolutions with batch "
                f"norm and ReLU6, sums of two, {', '.join(('GlobalAveragePooling2D', *_COPIED))}. Build the model with "
                "include_preprocessing=False and batch norms."
            )
        tensors[id(_output_of(end))] = output
    aware = _model(inputs, [tensors[id(output)][0] for output in model.outputs], f"{model.name}-int8")
    for convolution, layer, norm in copies:
        _copy_weights(convolution, layer, norm)
    return aware


def _inputs_of(layer) -> list:
    return list(layer._inbound_nodes[0].input_tensors) if layer._inbound_nodes else []


def _output_of(layer):
    return layer._inbound_nodes[0].output_tensors[0]


def _model(inputs: list, outputs: list, name: str) -> keras.Model:
    """A functional model; without lists for a single input or output."""
    return keras.Model(*(tensors[0] if len(tensors) == 1 else tensors for tensors in (inputs, outputs)), name=name)


def _activation_of(layer) -> str:
    activation = getattr(layer, "activation", None)
    if type(layer).__name__ == "ReLU":
        return "relu6" if layer.max_value == 6 else "relu" if layer.max_value is None else "other"
    return keras.activations.serialize(activation) if activation is not None else "linear"


def _fake_quant_convolution(layer, norm, last, options: dict) -> FakeQuantConvolution:
    """A convolution with its batch norm (None for none) and the activation of `last`, without weights yet."""
    is_full, activation = type(layer).__name__ == "Conv2D", _activation_of(last)
    return FakeQuantConvolution(
        "full" if is_full else "depthwise",
        layer.filters if is_full else None,
        layer.kernel_size,
        layer.strides,
        layer.dilation_rate,
        layer.padding,
        None if norm is None else (norm.momentum, norm.epsilon),
        None if activation == "linear" else activation,
        **options,
    )


def _copy_weights(copy: FakeQuantConvolution, convolution, norm) -> None:
    copy.kernel.assign(convolution.kernel)
    if norm is None:
        if convolution.use_bias:
            copy.bias.assign(convolution.bias)
        return
    if convolution.use_bias:
        raise ValueError(f"layer {convolution.name!r} has both a bias and a batch norm: build it with use_bias=False.")
    for name in ("gamma", "beta", "moving_mean", "moving_variance"):
        getattr(copy, name).assign(getattr(norm, name))


def plain_model(model: keras.Model) -> tuple[keras.Model, dict[str, tuple[float, float]], list[Kernel]]:
    """(the same network without fake quantisation, ranges of its image and layers by name, its kernels); in network order.

    The biases of its convolutions contain the folded batch norms.
    """
    inputs, tensors, ranges, copies = [], {}, {}, []
    sources: dict[int, object] = {}  # of a step: the layer that gives it
    for layer in model.layers:
        own_inputs = [tensors[id(tensor)] for tensor in _inputs_of(layer) if id(tensor) in tensors]  # all but the steps
        if type(layer).__name__ == "InputLayer":
            output = keras.Input(batch_shape=layer.batch_shape, name=layer.name)
            inputs.append(output)
        elif isinstance(layer, FakeQuantImage):
            output = own_inputs[0]
        elif isinstance(layer, FakeQuantConvolution):
            names = ("kernel_size", "strides", "dilation_rate", "padding", "activation", "name")
            options = {name: getattr(layer, name) for name in names}
            is_full = layer.kind == "full"
            copy = layers.Conv2D(layer.filters, **options) if is_full else layers.DepthwiseConv2D(**options)
            output = copy(own_inputs[0])
            copies.append((copy, layer, sources[id(_inputs_of(layer)[1])]))
        elif isinstance(layer, FakeQuantAdd):
            output = layers.Add(name=layer.name)(own_inputs)
        elif isinstance(layer, FakeQuantMean):
            output = layers.GlobalAveragePooling2D(keepdims=layer.keepdims, name=layer.name)(own_inputs[0])
        else:
            output = type(layer).from_config(layer.get_config())(own_inputs[0])
        tensors[id(_output_of(layer))] = output
        if isinstance(layer, FakeQuantImage | RangedLayer):
            sources[id(layer._inbound_nodes[0].output_tensors[1])] = layer
            ranges[layer.name.removesuffix("-pixels")] = layer.value
    outputs = [tensors[id(output)] for output in model.outputs]
    plain = _model(inputs, outputs, model.name.removesuffix("-int8"))
    for copy, layer, _ in copies:
        copy.set_weights(layer.folded())
    return plain, ranges, [Kernel(*layer.stored(source.step)) for _, layer, source in copies]
