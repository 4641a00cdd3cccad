"""MobileNetV2: the classifier and the bare backbone."""

import keras
from keras import layers

from mnv2_keras.architecture import TABLE_2, Plan, classifier_logits, make_plan
from mnv2_keras.checks import whole_number
from mnv2_keras.networks.backbone import ConvConfig, backbone, convolution
from mnv2_keras.networks.builder import image_input, plan_for
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
    batch_norm_epsilon: float = 1e-3,
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
    plan: Plan | None = None,
    name: str = "MobilenetV2",
) -> keras.Model:
    """Build MobileNetV2, every option as in TF-Slim.

    Source: arXiv:1801.04381, Table 2; TF-Slim `mobilenet_v2.mobilenet`.

    Args:
        alpha: width multiplier (TF-Slim's `depth_multiplier`), any finite number above 0.
        input_shape: (H, W, C); H and W may be None. Values in [-1, 1], or 0 to 255 with `include_preprocessing`.
        include_top: whether to pool and classify.
        weights: None (fresh), "imagenet", a name from `list_checkpoints()`, or a local archive, folder, checkpoint, `.keras`,
            `.h5` or `.weights.h5`.
        classes: number of classes; 1001 has the background at 0; 0 gives the pooled features, (B, 1, 1, C).
        classifier_activation: of the output; None for logits.
        pooling: without the top: None for the feature map, "avg" or "max" for (B, C).
        dropout_rate: before the classifier, in training (TF-Slim keeps 0.8).
        output_stride: None, 1 or even. After the network's stride has reached it, strides become dilation.
        explicit_padding: pad symmetrically as PyTorch does; weights trained in PyTorch need it, and `batch_norm_epsilon=1e-5`.
        finegrain_classification_mode: keep the last convolution at 1280 for alpha below 1, as all published classifiers do
            (TF-Slim's bare function does not).
        min_depth: least number of channels of a layer, expansions excepted.
        divisible_by: widths are multiples of it; expansions are always multiples of 8.
        normalization: "batch_norm" or "group_norm".
        groups: groups of the group norm.
        batch_norm_momentum: decay of the moving statistics.
        batch_norm_epsilon: added to the variance; weights trained in PyTorch need 1e-5.
        weight_decay: 4e-5 as published: TF-Slim's L2, on all kernels but the depthwise ones.
        activation: name of a Keras activation.
        split_expansion, split_projection: groups to cut the 1x1 convolutions into (paper section 5).
        include_preprocessing: take 0 to 255 and scale to [-1, 1] inside.
        table: rows of (t, c, n, s) in place of Table 2.
        stem_channels, last_channels: widths of the first and last convolution at alpha 1.
        final_endpoint: end the backbone at this TF-Slim endpoint.
        input_tensor: a Keras tensor to build on.
        plan: a plan of `make_plan`, in place of the arguments that describe one.
        name: of the model.

    Returns:
        A functional model: float32 images (B, H, W, C) to probabilities (B, classes), logits, features or a feature map.

    Raises:
        ValueError: an argument out of its range, or weights that do not fit; the message says what to do.
    """
    image, x = image_input(input_shape, (224, 224, 3), include_preprocessing, input_tensor=input_tensor)
    note = "; 0 for pooled features without a classifier"
    classes = 0 if classes is None else whole_number("classes", classes, 0, note)
    if pooling not in (None, "avg", "max"):
        raise ValueError(f"pooling is {pooling!r}: expected None, 'avg' or 'max'.")
    if pooling and include_top:
        raise ValueError("pooling goes with include_top=False: the classifier always pools by the mean.")
    plan = plan_for(
        build_mobilenetv2,
        make_plan,
        plan,
        image.shape[3],
        alpha=alpha,
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
    _check_size(image, plan.endpoints[plan.end(final_endpoint)].stride)
    options = {"weight_decay": weight_decay, "activation": activation, "explicit_padding": explicit_padding}
    config = ConvConfig(normalization, groups, batch_norm_momentum, batch_norm_epsilon, **options)
    *_, x = backbone(x, plan, config, final_endpoint).values()
    if include_top:
        x = classification(x, classes, config, dropout_rate, classifier_activation)
    elif pooling == "avg":
        x = layers.GlobalAveragePooling2D(name="average_pooling")(x)
    elif pooling == "max":
        x = layers.GlobalMaxPooling2D(name="max_pooling")(x)
    sources = [image] if input_tensor is None else keras.utils.get_source_inputs(input_tensor)
    model = keras.Model(sources[0] if len(sources) == 1 else sources, x, name=name)
    if weights is not None:
        fill(model, weights, plan.alpha, image.shape[1])
    return model


def classification(x, classes: int, config: ConvConfig, dropout_rate: float = 0.2, activation: str | None = "softmax"):
    """Features to class probabilities.

    Source: TF-Slim `mobilenet.mobilenet`, scope `Logits`.

    Args:
        x: features, (B, h, w, C).
        classes: number of classes; 0 gives the pooled features, (B, 1, 1, C).
        dropout_rate, activation: as in `build_mobilenetv2`.
    """
    x = layers.GlobalAveragePooling2D(keepdims=True, name="global_pool")(x)
    if not classes:
        return x
    x = layers.Dropout(dropout_rate, name="Logits-Dropout")(x)
    x = convolution(x, classifier_logits(x.shape[3], classes), config)
    x = layers.Reshape((classes,), name="Logits")(x)
    # Probabilities stay in float32 under mixed precision: float16 cannot tell the small ones apart.
    return layers.Activation(activation, dtype="float32", name="Predictions")(x) if activation else x


def _check_size(image, stride: int) -> None:
    """A side shorter than the network's stride would be only padding at the end."""
    height, width = image.shape[1:3]
    if min(height or stride, width or stride) < stride:
        raise ValueError(
            f"input_shape {height} x {width} is too small: this network has a stride of {stride}, so both sides need at least "
            f"{stride} pixels. Use larger images, a smaller output_stride, an earlier final_endpoint or a table with fewer strides."
        )
