"""The classifier: pool, drop out, 1x1 convolution, softmax."""

from keras import layers

from mnv2_keras.networks.backbone import ConvConfig


def classification(x, classes: int, style: ConvConfig, dropout_rate: float = 0.2, activation: str | None = "softmax"):
    """Features to class probabilities.

    Source: TF-Slim `mobilenet.mobilenet`, scope `Logits`.

    Args:
        x: features, (B, h, w, C).
        classes: number of classes; 0 stops at the pooled features.
        dropout_rate: share of the pooled features dropped in training (TF-Slim keeps 0.8).
        activation: of the output; None for logits.

    Returns:
        (B, classes), or the pooled features (B, 1, 1, C) when `classes` is 0.
    """
    x = layers.GlobalAveragePooling2D(keepdims=True, name="global_pool")(x)
    if not classes:
        return x
    x = layers.Dropout(dropout_rate, name="Logits-Dropout")(x)
    x = layers.Conv2D(
        classes,
        1,
        kernel_initializer=style.initializer(),
        kernel_regularizer=style.regularizer(),
        name="Logits-Conv2d_1c_1x1",
    )(x)
    x = layers.Reshape((classes,), name="Logits")(x)
    # Probabilities stay in float32 under mixed precision: float16 cannot tell the small ones apart.
    return layers.Activation(activation, dtype="float32", name="Predictions")(x) if activation else x
