"""Every custom Keras layer of the package, registered: importing this module is enough to load any `.keras` file of it."""

import keras
import numpy as np
from keras import layers, ops

from mnv2_keras.quant_params import QuantParams

_PACKAGE = "mnv2_keras"


def registered(*old_names: str):
    """A class decorator: register a layer for Keras files, and a subclass for each name that files of earlier releases hold.

    A file names the group of a layer's weights after its class, so the old name has to be that of a class.
    """
    register = keras.saving.register_keras_serializable(_PACKAGE)

    def decorate(cls):
        for name in old_names:
            register(type(name, (cls,), {"__module__": cls.__module__}))
        return register(cls)

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
        rows, columns = (_blend(x.shape[1 + i] or ops.shape(x)[1 + i], n, x.dtype) for i, n in enumerate((height, width)))
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


# Fake quantisation: what a model of `quantization_aware` computes.
#
# Each layer takes and gives (tensor, step): the values, and the size of the step they lie on, a scalar.
#
# In training, kernels are rounded per output channel and activations per tensor by `fake_quant_with_min_max_vars`; gradients
# pass straight through. Batch norms are folded into the kernels in the forward pass, with the correction of TF-Slim's quantised
# training (arXiv:1806.08342, section 3.2.2): the kernel is folded with the moving statistics and rounded as in inference, then
# the output is rescaled to the batch's statistics.
#
# In inference the layers compute in whole numbers, step for step as LiteRT's XNNPACK delegate does with the exported file.
# Float32 holds these numbers exactly (sums stay below 2^24), so both give the same stored values. Divisions by constants and by
# square roots are written as products, because TensorFlow's graphs make them such and its eager mode does not: a difference in
# the last bit can change a stored value.

_LOWEST, _HIGHEST = -128, 127  # of int8
_LARGEST = 127  # of an int8 kernel
#: A channel this far below the largest of its kernel is dead: some published stems have such, near 1e-21.
_DEAD = 1e-8


def _fake_quantized(x, low, high, narrow: bool = False, axis: int | None = None):
    return keras.quantizers.fake_quant_with_min_max_vars(x, low, high, num_bits=8, narrow_range=narrow, axis=axis)


def _steps_of(x, step):
    """Values on steps to numbers of steps: whole numbers, float32."""
    return ops.round(x / step)


@registered("SimulatedImage")
class FakeQuantImage(layers.Layer):
    """An image as the int8 file sees it: pixels from 0 to 255, zero being one of the steps.

    Args:
        value_range: (low, high) of the image; pixel 0 is low, pixel 255 is high.
    """

    def __init__(self, value_range=(-1.0, 1.0), **options):
        super().__init__(**options)
        self.value_range = tuple(value_range)
        # The file takes a pixel p unchanged and reads it as (p - zero point) * scale. For [-1, 1] that differs from
        # p / 127.5 - 1 by half a step.
        self.params = QuantParams.covering(*value_range)
        self.step = self.params.scale
        #: (low, high) of the pixels as the file reads them.
        self.value = tuple((pixel - self.params.zero_point) * self.step for pixel in (_LOWEST, _HIGHEST))

    def call(self, inputs):
        """(B, H, W, C) to (the same in steps, step)."""
        low, high = self.value_range
        pixels = ops.clip(ops.round((inputs - low) * (255 / (high - low))), 0, 255)
        return (pixels + (_LOWEST - self.params.zero_point)) * self.step, ops.convert_to_tensor(self.step, "float32")

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return super().get_config() | {"value_range": self.value_range}


class RangedLayer(layers.Layer):
    """A layer that follows the range of its output: moving averages of its lowest and highest value.

    Args:
        range_momentum: of the averages; the first batches have larger weights.
    """

    def __init__(self, range_momentum: float = 0.99, **options):
        super().__init__(**options)
        self.range_momentum = range_momentum
        # XLA rearranges the arithmetic, and is slow on CPUs; Keras then compiles without it.
        self.supports_jit = False

    def build(self, input_shape):
        """Create the range's variables."""
        self._create_range(-6.0, 6.0)

    def _create_range(self, low: float, high: float) -> None:
        """Create the variables of a range that is (low, high) before any batch."""
        for name, value in (("low", low), ("high", high), ("count", 0.0)):
            initializer = keras.initializers.Constant(value)
            setattr(self, name, self.add_weight(name=name, shape=(), initializer=initializer, trainable=False))

    @property
    def step(self):
        """Size of a step of the output, a scalar tensor."""
        return (self.high - self.low) * (1 / (_HIGHEST - _LOWEST))  # a product, as TensorFlow's graphs divide

    def limits(self):
        """(lowest, highest) number of steps that int8 holds; zero lies between them."""
        zero_point = ops.clip(ops.round(_LOWEST - self.low / self.step), _LOWEST, _HIGHEST)
        return _LOWEST - zero_point, _HIGHEST - zero_point

    def follow(self, x):
        """Update the range with an output; return (the output rounded to steps, as training sees it; step)."""
        self.count.assign(self.count + 1)
        rate = ops.maximum(1 / self.count, 1 - self.range_momentum)
        self.low.assign(self.low + rate * (ops.minimum(ops.min(ops.stop_gradient(x)), 0.0) - self.low))
        self.high.assign(self.high + rate * (ops.maximum(ops.max(ops.stop_gradient(x)), 1e-3) - self.high))
        lowest, highest = self.limits()
        return _fake_quantized(x, lowest * self.step, highest * self.step), self.step

    def round(self, steps):
        """Numbers of steps, with fractions, to (the real values that int8 holds, step)."""
        return ops.clip(ops.round(steps), *self.limits()) * self.step, self.step

    @property
    def value(self) -> tuple[float, float]:
        """(low, high) of the output that the steps reach exactly."""
        step = float(self.step)
        lowest, highest = self.limits()
        return float(lowest) * step, float(highest) * step

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return super().get_config() | {"range_momentum": self.range_momentum}


#: Powers of two that the larger ratio of steps in a sum may have in XNNPACK.
_POWERS = 2.0 ** np.arange(-9, 8, dtype=np.float32)


@registered("SimulatedAdd")
class FakeQuantAdd(RangedLayer):
    """Sum of two int8 tensors, in XNNPACK's fixed-point arithmetic (`qs8-vadd`)."""

    def call(self, inputs, training=False):
        """[x, its step, y, its step] to (sum, step)."""
        x, x_step, y, y_step = inputs
        if training:
            return self.follow(x + y)
        step = self.step
        ratios = ops.stack([x_step / step, y_step / step])
        # The larger ratio becomes a whole number of 21 bits: its shift is 20 minus its binary exponent, which comparisons give.
        shift = 30 - ops.sum(ops.cast(ops.max(ratios) >= _POWERS, "int32"))
        unit = ops.left_shift(ops.ones_like(shift), shift)
        factors = ops.cast(ops.round(ratios * ops.cast(unit, "float32")), "int32")
        x, y = (ops.cast(_steps_of(*term), "int32") for term in ((x, x_step), (y, y_step)))
        total = ops.right_shift(x * factors[0] + y * factors[1] + unit // 2, shift)
        return self.round(ops.cast(total, "float32"))


@registered("SimulatedMean")
class FakeQuantMean(RangedLayer):
    """Mean over height and width of an int8 tensor.

    Args:
        keepdims: whether the output is (B, 1, 1, C) instead of (B, C).
    """

    def __init__(self, keepdims: bool = False, **options):
        super().__init__(**options)
        self.keepdims = keepdims

    def call(self, inputs, training=False):
        """[x, its step] to (mean, step)."""
        x, x_step = inputs
        if training:
            return self.follow(ops.mean(x, axis=(1, 2), keepdims=self.keepdims))
        total = ops.sum(_steps_of(x, x_step), axis=(1, 2), keepdims=self.keepdims)
        height, width = ops.shape(x)[1:3]
        ratio = x_step / self.step * (1 / ops.cast(height * width, "float32"))
        return self.round(total * ratio)

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return super().get_config() | {"keepdims": self.keepdims}


_ARGUMENTS = ("kind", "filters", "kernel_size", "strides", "dilation_rate", "padding", "batch_norm", "activation")


@registered("SimulatedConvolution")
class FakeQuantConvolution(RangedLayer):
    """Convolution, batch norm and activation as one int8 layer.

    Args:
        kind: "full" or "depthwise".
        filters: output channels of a full convolution; None for a depthwise one.
        kernel_size, strides, dilation_rate: pairs of whole numbers.
        padding: "same" or "valid".
        batch_norm: (momentum, epsilon); None for a convolution with a bias instead.
        activation: "relu6", "relu" or None.
        options: those of `RangedLayer` and of a layer.
    """

    def __init__(self, kind, filters, kernel_size, strides, dilation_rate, padding, batch_norm, activation, **options):
        super().__init__(**options)
        self.kind, self.filters, self.padding, self.activation = kind, filters, padding, activation
        self.kernel_size, self.strides, self.dilation_rate = tuple(kernel_size), tuple(strides), tuple(dilation_rate)
        self.batch_norm = None if batch_norm is None else tuple(batch_norm)

    def build(self, input_shape):
        """Create the weights."""
        channels = input_shape[0][-1]
        self.kernel = self.add_weight(name="kernel", shape=(*self.kernel_size, channels, self.filters or 1))
        weights = {"gamma": "ones", "beta": "zeros", "moving_mean": "zeros", "moving_variance": "ones"}
        for name, initializer in ({"bias": "zeros"} if self.batch_norm is None else weights).items():
            options = {"initializer": initializer, "trainable": not name.startswith("moving")}
            setattr(self, name, self.add_weight(name=name, shape=(self.filters or channels,), **options))
        self._create_range(0.0 if self.activation else -6.0, 6.0)

    def _convolve(self, x, kernel):
        compute = ops.conv if self.kind == "full" else ops.depthwise_conv
        return compute(x, kernel, self.strides, self.padding, "channels_last", self.dilation_rate)

    def _per_channel(self, factor):
        """One number per output channel, shaped to be multiplied with the kernel."""
        return ops.reshape(factor, (1, 1, 1, -1) if self.kind == "full" else (1, 1, -1, 1))

    def _largest(self, kernel):
        """Largest absolute weight of each output channel."""
        return ops.max(ops.abs(kernel), axis=(0, 1, 2) if self.kind == "full" else (0, 1, 3))

    def _folded(self):
        """(kernel, bias) with the moving statistics in them."""
        if self.batch_norm is None:
            return ops.convert_to_tensor(self.kernel), ops.convert_to_tensor(self.bias)
        factor = self.gamma * ops.rsqrt(self.moving_variance + self.batch_norm[1])
        return self.kernel * self._per_channel(factor), self.beta - self.moving_mean * factor

    def _stored(self, x_step):
        """(kernel and bias in whole numbers, step of each output channel's kernel)."""
        kernel, bias = self._folded()
        largest = self._largest(kernel)
        # At a dead channel's own scale its bias would overflow int32.
        alive = ops.maximum(ops.where(largest > _DEAD * ops.max(largest), largest, ops.max(largest)), 1e-6)
        steps = ops.maximum(alive * (1 / _LARGEST), ops.abs(bias) / (x_step * 2.0**30))
        stored = ops.clip(ops.round(kernel / self._per_channel(steps)), -_LARGEST, _LARGEST)
        return stored, ops.round(bias / (x_step * steps)), steps

    def _trained(self, x):
        """The output as training sees it, before rounding: float, with gradients."""
        kernel, bias = self._folded()
        largest = ops.maximum(self._largest(ops.stop_gradient(kernel)), 1e-9)
        rounded = _fake_quantized(kernel, -largest, largest, narrow=True, axis=3 if self.kind == "full" else 2)
        if self.batch_norm is None or not self.trainable:
            y = self._convolve(x, rounded) + bias
        else:
            momentum, epsilon = self.batch_norm
            deviation = ops.sqrt(self.moving_variance + epsilon)
            mean, variance = ops.moments(self._convolve(x, self.kernel), axes=(0, 1, 2))
            now = ops.sqrt(variance + epsilon)
            y = self._convolve(x, rounded) * (deviation / now) + (self.beta - self.gamma * mean / now)
            for moving, batch in ((self.moving_mean, mean), (self.moving_variance, variance)):
                moving.assign(moving * momentum + ops.stop_gradient(batch) * (1 - momentum))
        return keras.activations.get(self.activation)(y) if self.activation else y

    def call(self, inputs, training=False):
        """[(B, H, W, C), its step] to ((B, h, w, outputs), step)."""
        x, x_step = inputs
        if training:
            return self.follow(self._trained(x))
        kernel, bias, steps = self._stored(x_step)
        total = ops.cast(self._convolve(_steps_of(x, x_step), kernel), "int32") + ops.cast(bias, "int32")
        y = ops.cast(total, "float32") * (x_step * steps / self.step)
        if self.activation:
            y = ops.maximum(y, 0)
        if self.activation == "relu6":
            y = ops.minimum(y, ops.round(6 / self.step))
        return self.round(y)

    def folded(self) -> list:
        """[kernel, bias] with the moving statistics in them, before rounding; arrays."""
        return [ops.convert_to_numpy(values) for values in self._folded()]

    def stored(self, x_step) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(kernel, its scales, bias) that inference uses, in a .tflite file's layout: int8, float32 (C,), float32 (C,).

        Args:
            x_step: step of the input.
        """
        kernel, bias, steps = map(ops.convert_to_numpy, self._stored(x_step))
        return kernel.transpose(3, 0, 1, 2).astype(np.int8), steps, bias * np.float32(x_step) * steps

    def get_config(self) -> dict:
        """The constructor's arguments."""
        return super().get_config() | {name: getattr(self, name) for name in _ARGUMENTS}
