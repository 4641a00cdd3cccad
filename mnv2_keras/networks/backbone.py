"""The paper in Keras: convolutions, inverted residuals, and the backbone, layer by layer as in Table 2.

A Keras layer is named after its TF-Slim scope, with `-` for `/`. Each convolution is followed by its normalisation
(`-BatchNorm` or `-GroupNorm`) and, where it has one, by its activation (`-activation`); `endpoints` finds every TF-Slim
endpoint by these names.
"""

import functools
from collections.abc import Iterator
from dataclasses import dataclass

import keras
from keras import layers

from mnv2_keras.architecture import Block, Convolution, Plan
from mnv2_keras.checks import one_of, real_number, whole_number
from mnv2_keras.layers import ChannelSlice


@dataclass(frozen=True)
class ConvConfig:
    """What the convolutions of one network have in common; TF-Slim's `training_scope` and `arg_scope`s."""

    normalization: str = "batch_norm"  # or "group_norm"
    groups: int = 8  # of the group norms
    momentum: float = 0.997  # decay of the batch norms' moving statistics
    epsilon: float = 1e-3  # of the batch norms; group norms have 1e-6, as in TF-Slim
    weight_decay: float = 0.0  # `weight_decay * sum(w ** 2) / 2` is added to the loss for each kernel
    decay_depthwise: bool = False  # whether depthwise kernels decay too (only in SSDLite's extra layers)
    activation: str = "relu6"  # of every layer but the linear ones
    explicit_padding: bool = False  # pad symmetrically, as PyTorch does, instead of TensorFlow's SAME

    def __post_init__(self):
        one_of("normalization", self.normalization, ("batch_norm", "group_norm"))
        whole_number("groups", self.groups)
        real_number("batch_norm_momentum", self.momentum, 0, 1)
        real_number("batch_norm_epsilon", self.epsilon, 0)
        real_number("weight_decay", self.weight_decay, 0)


def normalize(x, name: str, config: ConvConfig):
    """Batch or group norm with centre and scale (TF-Slim `batch_norm`, `group_norm`). Any (B, H, W, C) to the same."""
    if config.normalization == "batch_norm":
        norm = layers.BatchNormalization(momentum=config.momentum, epsilon=config.epsilon, name=f"{name}-BatchNorm")
        return norm(x)
    if x.shape[-1] % config.groups:
        raise ValueError(
            f"{name} has {x.shape[-1]} channels, which {config.groups} groups do not divide: choose groups, alpha or "
            "divisible_by so that every width is a multiple of groups."
        )
    return layers.GroupNormalization(groups=config.groups, epsilon=1e-6, name=f"{name}-GroupNorm")(x)


def convolution(x, layer: Convolution, config: ConvConfig, linear: bool = False):
    """A convolution with its normalisation and activation (unless `linear`), or only with its bias.

    Shapes (NHWC): B, H, W, layer.inputs to B, ceil(H/stride), ceil(W/stride), layer.outputs.
    """
    name, padding = layer.name.replace("/", "-"), "same"
    if config.explicit_padding and layer.kernel > 1:
        # TF-Slim `_fixed_padding`: k_eff - 1 in total; an odd kernel has the same on both sides.
        x = layers.ZeroPadding2D((layer.kernel - 1) * layer.rate // 2, name=f"{name}-pad")(x)
        padding = "valid"
    options = {"strides": layer.stride, "dilation_rate": layer.rate, "padding": padding, "use_bias": layer.bias}
    # Creating an initializer draws its seed, so only the one that is used is created. TF-Slim's default is Glorot's.
    glorot, normal = keras.initializers.GlorotUniform, keras.initializers.TruncatedNormal
    initializer = glorot() if layer.stddev is None else normal(stddev=layer.stddev)
    # Keras counts `l2 * sum(w ** 2)`, TF-Slim half of that.
    regularizer = keras.regularizers.L2(config.weight_decay / 2) if config.weight_decay else None
    if layer.depthwise:
        options |= {"depthwise_regularizer": regularizer if config.decay_depthwise else None}
        x = layers.DepthwiseConv2D(layer.kernel, depthwise_initializer=initializer, name=name, **options)(x)
    else:
        options |= {"kernel_initializer": initializer, "kernel_regularizer": regularizer}
        x = layers.Conv2D(layer.outputs, layer.kernel, name=name, **options)(x)
    if layer.bias:
        return x
    x = normalize(x, name, config)
    return x if linear else layers.Activation(config.activation, name=f"{name}-activation")(x)


def convolutions(x, sequence: tuple[Convolution, ...], config: ConvConfig):
    """Convolutions one after the other."""
    return functools.reduce(lambda y, layer: convolution(y, layer, config), sequence, x)


def pointwise(x, parts: tuple[Convolution, ...], name: str, config: ConvConfig, linear: bool = False):
    """A 1x1 convolution, or several of which each reads its group of the input's channels (TF-Slim `split_conv`)."""
    if len(parts) == 1:
        return convolution(x, parts[0], config, linear)
    groups, start = [], 0
    for part in parts:
        group = ChannelSlice(start, start + part.inputs, name=f"{part.name.replace('/', '-')}-slice")(x)
        groups.append(convolution(group, part, config, linear))
        start += part.inputs
    return layers.Concatenate(name=f"{name}-concat")(groups)


def inverted_residual(x, block: Block, config: ConvConfig) -> Iterator[tuple]:
    """Expand, filter, project; add the input back when nothing changed shape.

    Source: paper sections 3.2-3.4 and Table 1; TF-Slim `conv_blocks.expanded_conv`.

    Shapes (NHWC):
        x          B, H, W, block.inputs
        expand     B, H, W, block.hidden                     1x1, ReLU6; absent when t = 1
        depthwise  B, ceil(H/stride), ceil(W/stride), hidden 3x3, ReLU6
        project    B, ceil(H/stride), ceil(W/stride), outputs 1x1, linear

    Yields:
        Each endpoint with its tensor; the layers after it are built only when the next endpoint is requested.
    """
    y = x
    if block.expand:
        y = pointwise(x, block.expand, f"{block.name}-expand", config)
        yield f"{block.endpoint}/expansion_output", y
    y = convolution(y, block.depthwise, config)
    yield f"{block.endpoint}/depthwise_output", y
    y = pointwise(y, block.project, f"{block.name}-project", config, linear=True)
    if block.residual:
        y = layers.Add(name=f"{block.name}-add")([x, y])
    yield f"{block.endpoint}/output", y
    yield block.endpoint, y


def backbone(x, plan: Plan, config: ConvConfig, final_endpoint: str | None = None) -> dict:
    """Table 2 from the first convolution to the last, or to `final_endpoint`.

    Source: paper Table 2; TF-Slim `mobilenet.mobilenet_base`.

    Args:
        x: images, (B, H, W, plan.stem.inputs), float in [-1, 1].
        final_endpoint: a TF-Slim endpoint such as "layer_18" or "layer_15/expansion_output"; None for the last layer.

    Returns:
        The TF-Slim endpoints with their tensors (B, h, w, C), in network order; the last one is the output.

    Raises:
        ValueError: the plan has no such endpoint.
    """
    end, endpoints = plan.end(final_endpoint), {}
    for layer in plan.layers:
        if isinstance(layer, Block):
            steps = inverted_residual(x, layer, config)
        else:
            steps = [(layer.endpoint, convolution(x, layer, config))]
        for endpoint, x in steps:
            endpoints[endpoint] = x
            if endpoint == end:
                return endpoints
    raise AssertionError("unreachable: final_endpoint was checked against the plan")
