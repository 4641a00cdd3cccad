"""Every custom Keras layer of the package, registered: importing this module is enough to load any `.keras` file of it."""

import keras
from keras import layers, ops

_PACKAGE = "mnv2_keras"


def registered(*old_names: str):
    """A class decorator: register a layer for Keras files, also under the names that files of earlier releases hold.

    Args:
        old_names: earlier names of the class.
    """

    def decorate(cls):
        keras.saving.get_custom_objects().update({f"{_PACKAGE}>{name}": cls for name in old_names})
        return keras.saving.register_keras_serializable(_PACKAGE)(cls)

    return decorate


@registered()
class ChannelSlice(layers.Layer):
    """Channels `start` to `stop` of a (B, H, W, C) map. (A bare Keras operation cannot be loaded from an `.h5` file.)"""

    def __init__(self, start: int, stop: int, **options):
        super().__init__(**options)
        self.start, self.stop = start, stop

    def call(self, x):
        """(B, H, W, C) to (B, H, W, stop - start)."""
        return x[..., self.start : self.stop]

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return super().get_config() | {"start": self.start, "stop": self.stop}


@registered()
class ResizeLike(layers.Layer):
    """Resize a map to the height and width of another one: bilinear with aligned corners.

    Source: TF1 `resize_bilinear(align_corners=True)`, which no Keras layer offers. With TensorFlow it is that operation
    (LiteRT has it built in), with other backends two small matrix products.

    Shapes (NHWC): [(B, h, w, C), (B, H, W, any)] to (B, H, W, C); sides may be unknown.
    """

    def call(self, inputs):
        """[map, map of the wanted size] to the resized map."""
        x, like = inputs
        height, width = ops.shape(like)[1:3]
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            # `size` is a constant where the sides are known, which makes the resize of a .tflite file a static one.
            x = tf.raw_ops.ResizeBilinear(images=x, size=tf.stack([height, width]), align_corners=True)
            return tf.cast(x, self.compute_dtype)
        rows, columns = (
            _blend(x.shape[1 + i] or ops.shape(x)[1 + i], n, x.dtype) for i, n in enumerate((height, width))
        )
        return ops.einsum("Hh,Ww,bhwc->bHWc", rows, columns, x)

    def compute_output_shape(self, input_shape):
        """[(B, h, w, C), (B, H, W, any)] to (B, H, W, C)."""
        x, like = input_shape
        return (x[0], *like[1:3], x[3])


def _blend(samples, outputs, dtype):
    """(outputs, samples) weights of a linear interpolation between the two nearest samples."""
    place = ops.arange(outputs, dtype=dtype) * ((samples - 1) / max(outputs - 1, 1))
    return ops.maximum(0.0, 1.0 - ops.abs(place[:, None] - ops.arange(samples, dtype=dtype)[None]))


@registered("LargestClass")
class ArgMax(layers.Layer):
    """Logits (B, H, W, classes) to labels (B, H, W), int32.

    With TensorFlow it is the plain operation, which LiteRT has built in; `keras.ops.argmax` handles negative zeros with
    operators that LiteRT does not have.
    """

    def call(self, x):
        """(B, H, W, classes) to (B, H, W)."""
        if keras.config.backend() == "tensorflow":
            import tensorflow as tf

            return tf.argmax(x, axis=-1, output_type=tf.int32)
        return ops.cast(ops.argmax(x, axis=-1), "int32")

    def compute_output_spec(self, x):
        """(B, H, W), int32."""
        return keras.KerasTensor(x.shape[:-1], dtype="int32")
