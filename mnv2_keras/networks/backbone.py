"""The paper in Keras: convolutions, inverted residuals, and the backbone, layer by layer as in Table 2.

A Keras layer is named after its TF-Slim scope, with `-` for `/`. Each convolution is followed by its normalisation
(`-BatchNorm` or `-GroupNorm`) and, where it has one, by its activation (`-activation`); `taps` finds every TF-Slim
endpoint by these names.
"""

import math
from dataclasses import dataclass
from numbers import Integral, Real

import keras
from keras import layers

from mnv2_keras.architecture import Block, Convolution, Part, Plan
from mnv2_keras.layers import ChannelSlice


@dataclass(frozen=True)
class ConvConfig:
    """What the convolutions of one network have in common; TF-Slim's `training_scope` and `arg_scope`s.

    Attributes:
        normalization: "batch_norm" or "group_norm".
        groups: groups of the group norm.
        momentum: decay of the batch norms' moving statistics.
        epsilon: of the batch norms. (Group norms have 1e-6, as in TF-Slim.)
        weight_decay: as published: `weight_decay * sum(w ** 2) / 2` is added to the loss for each kernel.
        decay_depthwise: whether depthwise kernels decay too (they do in SSDLite's extra layers only).
        activation: of every layer but the linear ones.
        stddev: of the truncated normal the kernels start from; None for Glorot's uniform.
        explicit_padding: pad symmetrically and convolve without padding, as PyTorch does, instead of TensorFlow's SAME.
    """

    normalization: str = "batch_norm"
    groups: int = 8
    momentum: float = 0.997
    epsilon: float = 1e-3
    weight_decay: float = 0.0
    decay_depthwise: bool = False
    activation: str = "relu6"
    stddev: float | None = 0.09
    explicit_padding: bool = False

    def __post_init__(self):
        if self.normalization not in ("batch_norm", "group_norm"):
            raise ValueError(f"normalization is {self.normalization!r}: expected 'batch_norm' or 'group_norm'.")
        if isinstance(self.groups, bool) or not isinstance(self.groups, Integral) or self.groups < 1:
            raise ValueError(f"groups is {self.groups!r}: expected a whole number of at least 1.")
        for name, value, most in (
            ("batch_norm_momentum", self.momentum, 1),
            ("weight_decay", self.weight_decay, math.inf),
        ):
            if not isinstance(value, Real) or not 0 <= value <= most or math.isinf(value):
                raise ValueError(f"{name} is {value!r}: expected a number from 0{' to 1' if most == 1 else ' up'}.")

    def initializer(self):
        """A fresh initialiser for a kernel (TF's `truncated_normal_initializer`, or TF-Slim's default, Glorot's)."""
        if self.stddev is None:
            return keras.initializers.GlorotUniform()
        return keras.initializers.TruncatedNormal(stddev=self.stddev)

    def regularizer(self):
        """Keras counts `l2 * sum(w ** 2)`, TF-Slim half of that."""
        return keras.regularizers.L2(self.weight_decay / 2) if self.weight_decay else None


def normalize(x, name: str, style: ConvConfig):
    """Batch or group norm with centre and scale (TF-Slim `batch_norm`, `group_norm`). Any (B, H, W, C) to the same."""
    if style.normalization == "batch_norm":
        norm = layers.BatchNormalization(momentum=style.momentum, epsilon=style.epsilon, name=f"{name}-BatchNorm")
        return norm(x)
    if x.shape[-1] % style.groups:
        raise ValueError(
            f"{name} has {x.shape[-1]} channels, which {style.groups} groups do not divide: choose groups, alpha or "
            "divisible_by so that every width is a multiple of groups."
        )
    return layers.GroupNormalization(groups=style.groups, epsilon=1e-6, name=f"{name}-GroupNorm")(x)


def _finish(x, name: str, style: ConvConfig, linear: bool):
    x = normalize(x, name, style)
    return x if linear else layers.Activation(style.activation, name=f"{name}-activation")(x)


def _padding(x, kernel: int, rate: int, name: str, style: ConvConfig):
    """What the layer's `padding` must be, and its input, padded already where padding is explicit."""
    if not style.explicit_padding or kernel == 1:
        return x, "same"
    # TF-Slim `_fixed_padding`: k_eff - 1 in all; an odd kernel has the same on both sides.
    return layers.ZeroPadding2D((kernel - 1) * rate // 2, name=f"{name}-pad")(x), "valid"


def convolution(x, filters: int, kernel: int, name: str, style: ConvConfig, stride=1, rate=1, linear=False):
    """A full convolution without bias, its normalisation and activation.

    Shapes (NHWC): B, H, W, C to B, ceil(H/stride), ceil(W/stride), filters.
    """
    x, padding = _padding(x, kernel, rate, name, style)
    x = layers.Conv2D(
        filters,
        kernel,
        strides=stride,
        dilation_rate=rate,
        padding=padding,
        use_bias=False,
        kernel_initializer=style.initializer(),
        kernel_regularizer=style.regularizer(),
        name=name,
    )(x)
    return _finish(x, name, style, linear)


def depthwise(x, name: str, style: ConvConfig, stride=1, rate=1):
    """A 3x3 filter for each channel, its normalisation and activation.

    Shapes (NHWC): B, H, W, C to B, ceil(H/stride), ceil(W/stride), C.
    """
    x, padding = _padding(x, 3, rate, name, style)
    x = layers.DepthwiseConv2D(
        3,
        strides=stride,
        dilation_rate=rate,
        padding=padding,
        use_bias=False,
        depthwise_initializer=style.initializer(),
        depthwise_regularizer=style.regularizer() if style.decay_depthwise else None,
        name=name,
    )(x)
    return _finish(x, name, style, linear=False)


def pointwise(x, parts: tuple[Part, ...], scope: str, style: ConvConfig, linear=False):
    """A 1x1 convolution, whole or in groups that each see their own part of the input (TF-Slim `split_conv`)."""
    if len(parts) == 1:
        return convolution(x, parts[0].outputs, 1, f"{scope}-{parts[0].name}", style, linear=linear)
    pieces, start = [], 0
    for part in parts:
        name = f"{scope}-{part.name}"
        piece = ChannelSlice(start, start + part.inputs, name=f"{name}-slice")(x)
        pieces.append(convolution(piece, part.outputs, 1, name, style, linear=linear))
        start += part.inputs
    return layers.Concatenate(name=f"{scope}-{parts[0].name.split('_')[0]}-concat")(pieces)


def inverted_residual(x, block: Block, style: ConvConfig, until: str | None = None):
    """Expand, filter, project; add the input back when nothing changed shape.

    Source: paper sections 3.2-3.4 and Table 1; TF-Slim `conv_blocks.expanded_conv`.

    Shapes (NHWC):
        x          B, H, W, block.inputs
        expand     B, H, W, block.hidden                     1x1, ReLU6; absent when t = 1
        depthwise  B, ceil(H/stride), ceil(W/stride), hidden 3x3, ReLU6
        project    B, ceil(H/stride), ceil(W/stride), outputs 1x1, linear

    Args:
        until: stop early, at "expansion_output" or "depthwise_output".
    """
    y = pointwise(x, block.expand, block.name, style) if block.expand else x
    if until == "expansion_output":
        return y
    y = depthwise(y, f"{block.name}-depthwise", style, block.stride, block.rate)
    if until == "depthwise_output":
        return y
    y = pointwise(y, block.project, block.name, style, linear=True)
    return layers.Add(name=f"{block.name}-add")([x, y]) if block.residual else y


def plan_endpoints(plan: Plan) -> list[str]:
    """The endpoints at which a backbone of this plan can end, in network order (parts of split convolutions apart)."""
    names = []
    for layer in plan.layers:
        if isinstance(layer, Block):
            names += [f"{layer.endpoint}/expansion_output"] if layer.expand else []
            names += [f"{layer.endpoint}/depthwise_output", f"{layer.endpoint}/output"]
        names.append(layer.endpoint)
    return names


def backbone(x, plan: Plan, style: ConvConfig, final_endpoint: str | None = None):
    """Table 2 from the first convolution to the last, or to `final_endpoint`.

    Source: paper Table 2; TF-Slim `mobilenet.mobilenet_base`.

    Args:
        x: images, (B, H, W, plan.stem.inputs), float in [-1, 1].
        final_endpoint: a TF-Slim endpoint such as "layer_18" or "layer_15/expansion_output"; None for the last layer.

    Returns:
        The endpoint's tensor, (B, h, w, C).

    Raises:
        ValueError: the plan has no such endpoint.
    """
    if final_endpoint is not None and final_endpoint not in plan_endpoints(plan):
        raise ValueError(f"final_endpoint is {final_endpoint!r}: expected one of {', '.join(plan_endpoints(plan))}.")
    final_layer, _, tap = (final_endpoint or plan.last.endpoint).partition("/")
    for layer in plan.layers:
        final = layer.endpoint == final_layer
        if isinstance(layer, Convolution):
            x = convolution(x, layer.outputs, layer.kernel, layer.name, style, layer.stride, layer.rate)
        else:
            x = inverted_residual(x, layer, style, until=tap if final else None)
        if final:
            return x
    raise AssertionError("unreachable: final_endpoint was checked against the plan")
