"""MobileNetV2, the classifier and the bare backbone."""

from numbers import Integral

import keras

from mnv2_keras.architecture import TABLE_2, Plan, make_plan
from mnv2_keras.networks.backbone import ConvConfig, backbone
from mnv2_keras.networks.classification_head import classification
from mnv2_keras.weights import fill


def build_mobilenetv2(
    alpha: float = 1.0,
    input_shape=(224, 224, 3),
    *,
    include_top: bool = True,
    weights=None,
    classes: int = 1001,
    classifier_activation: str | None = "softmax",
    pooling: str | None = None,
    dropout_rate: float = 0.2,
    output_stride: int | None = None,
    explicit_padding: bool = False,
    finegrain_classification_mode: bool = True,
    min_depth: int = 8,
    divisible_by: int = 8,
    normalization: str = "batch_norm",
    groups: int = 8,
    batch_norm_momentum: float = 0.997,
    weight_decay: float = 0.0,
    activation: str = "relu6",
    split_expansion: int = 1,
    split_projection: int = 1,
    include_preprocessing: bool = False,
    table=TABLE_2,
    stem_channels: int = 32,
    last_channels: int = 1280,
    final_endpoint: str | None = None,
    input_tensor=None,
    name: str = "MobilenetV2",
) -> keras.Model:
    """Build MobileNetV2, every option as in TF-Slim.

    Source: arXiv:1801.04381, Table 2; TF-Slim `mobilenet_v2.mobilenet`.

    Args:
        alpha: width multiplier (TF-Slim's `depth_multiplier`), any number above 0.
        input_shape: (H, W, C); H and W may be None. Values in [-1, 1], or 0 to 255 with `include_preprocessing`.
        include_top: whether to pool and classify.
        weights: None (fresh), "imagenet", a name from `list_checkpoints()`, or a local archive, folder, checkpoint, `.keras`,
            `.h5` or `.weights.h5`.
        classes: number of classes; 1001 has the background at 0; 0 gives the pooled features, (B, 1, 1, C).
        classifier_activation: of the output; None for logits.
        pooling: without the top: None for the feature map, "avg" or "max" for (B, C).
        dropout_rate: before the classifier, in training (TF-Slim keeps 0.8).
        output_stride: None, 1 or even: once reached, strides become dilation.
        explicit_padding: pad symmetrically as PyTorch does; what weights trained in PyTorch need.
        finegrain_classification_mode: keep the last convolution at 1280 for alpha below 1, as all published classifiers do
            (TF-Slim's bare function does not).
        min_depth: least number of channels of a layer.
        divisible_by: what widths are multiples of.
        normalization: "batch_norm" or "group_norm".
        groups: groups of the group norm.
        batch_norm_momentum: decay of the moving statistics.
        weight_decay: 4e-5 as published: TF-Slim's L2, on all kernels but the depthwise ones.
        activation: name of a Keras activation.
        split_expansion, split_projection: groups to cut the 1x1 convolutions into (paper section 5).
        include_preprocessing: take 0 to 255 and scale to [-1, 1] inside.
        table: rows of (t, c, n, s) in place of Table 2.
        stem_channels, last_channels: widths of the first and last convolution at alpha 1.
        final_endpoint: end the backbone at this TF-Slim endpoint.
        input_tensor: a Keras tensor to build on.
        name: of the model.

    Returns:
        A functional model: float32 images (B, H, W, C) to probabilities (B, classes), logits, features or a feature map.

    Raises:
        ValueError: an argument out of its range, or weights that do not fit; the message says what to do.
    """
    if keras.config.image_data_format() != "channels_last":
        raise ValueError(
            "keras.config.image_data_format() is 'channels_first': MobileNetV2 here is NHWC as in TF-Slim. Call "
            "keras.config.set_image_data_format('channels_last') and give images as (B, H, W, C)."
        )
    if input_tensor is not None:
        if not keras.utils.is_keras_tensor(input_tensor):
            raise ValueError(
                f"input_tensor is a {type(input_tensor).__name__}: expected a Keras tensor such as keras.Input((224, 224, 3)); "
                "call the finished model on arrays."
            )
        input_shape = tuple(input_tensor.shape[1:])
    height, width, channels = _checked_input_shape(input_shape)
    if isinstance(classes, bool) or not isinstance(classes, Integral | None) or (classes or 0) < 0:
        raise ValueError(
            f"classes is {classes!r}: expected a whole number; 0 for pooled features without a classifier."
        )
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"pooling is {pooling!r}: expected None, 'avg' or 'max'.")
    if pooling and include_top:
        raise ValueError("pooling goes with include_top=False: the classifier pools by itself.")
    plan = make_plan(
        alpha,
        channels=channels,
        table=table,
        stem_channels=stem_channels,
        last_channels=last_channels,
        output_stride=output_stride,
        finegrain_classification_mode=finegrain_classification_mode,
        min_depth=min_depth,
        divisible_by=divisible_by,
        split_expansion=split_expansion,
        split_projection=split_projection,
    )
    _check_size(height, width, plan, final_endpoint)
    style = ConvConfig(
        normalization=normalization,
        groups=groups,
        momentum=batch_norm_momentum,
        weight_decay=weight_decay,
        activation=activation,
        explicit_padding=explicit_padding,
    )
    image = keras.Input((height, width, channels), name="input") if input_tensor is None else input_tensor
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="preprocessing")(image) if include_preprocessing else image
    x = backbone(x, plan, style, final_endpoint)
    if include_top:
        x = classification(x, int(classes or 0), style, dropout_rate, classifier_activation)
    elif pooling == "avg":
        x = keras.layers.GlobalAveragePooling2D(name="average_pooling")(x)
    elif pooling == "max":
        x = keras.layers.GlobalMaxPooling2D(name="max_pooling")(x)
    sources = [image] if input_tensor is None else keras.utils.get_source_inputs(input_tensor)
    model = keras.Model(sources[0] if len(sources) == 1 else sources, x, name=name)
    if weights is not None:
        fill(model, weights, alpha, height)
    return model


def _checked_input_shape(input_shape) -> tuple[int | None, int | None, int]:
    sides = tuple(input_shape) if isinstance(input_shape, tuple | list) else ()
    if (
        len(sides) != 3
        or not all(
            side is None or (isinstance(side, Integral) and not isinstance(side, bool) and side > 0) for side in sides
        )
        or sides[2] is None
    ):
        raise ValueError(
            f"input_shape is {input_shape!r}: expected (height, width, channels), height and width whole numbers or None, such as "
            "(224, 224, 3)."
        )
    return tuple(None if side is None else int(side) for side in sides)


def _check_size(height: int | None, width: int | None, plan: Plan, final_endpoint: str | None) -> None:
    """A side shorter than the network's stride would be all padding by the end."""
    final_layer, _, tap = str(final_endpoint or plan.last.endpoint).partition("/")
    stride = 1
    for layer in plan.layers:
        if layer.endpoint == final_layer and tap == "expansion_output":
            break  # the expansion comes before the stride
        stride *= layer.stride
        if layer.endpoint == final_layer:
            break
    if min(height or stride, width or stride) < stride:
        raise ValueError(
            f"input_shape {height} x {width} is too small: this network has a stride of {stride}, so both sides need at least "
            f"{stride} pixels. Use larger images, a smaller output_stride, an earlier final_endpoint or a table with fewer strides."
        )
