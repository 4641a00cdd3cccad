"""Int8: the scheme by hand on a small network, and what refinement brings on real weights and photos it has not seen."""

import numpy as np
import pytest
from ai_edge_litert.interpreter import Interpreter
from small_litert import trained_like

from mnv2_keras.export.calibration import load_photos, with_crops
from mnv2_keras.export.check import compare_layers, file_logits, signal_to_noise
from mnv2_keras.export.conversion import convert_litert
from mnv2_keras.export.cross_layer_equalization import equalize
from mnv2_keras.export.gptq import gptq
from mnv2_keras.export.quantization import activation_scheme, kernel_scale, quantize_int8, round_kernel
from mnv2_keras.export.runner import GraphRunner
from mnv2_keras.export.statistics import collect, input_patches
from mnv2_keras.quant_params import QuantParams
from mnv2_keras.tflite import TfliteFile

pytestmark = pytest.mark.usefixtures("conversion_in_process")
CALIBRATION = ("cat.bmp", "bird.bmp", "hot_dog.jpg", "grace_hopper.bmp", "dog_segmentation.bmp")


@pytest.fixture(scope="module")
def images(noise):
    return list(noise[:, None])


@pytest.fixture(scope="module")
def real(imagenet_file):
    return TfliteFile(imagenet_file)


def test_quant_params_hold_zero_and_cover_their_range():
    rng = np.random.default_rng(0)
    for low, high in [*rng.uniform(-9, 9, (50, 2)), (0, 6), (2, 5), (-3, -1), (0, 0)]:
        params = QuantParams.covering(min(low, high), max(low, high))
        assert params.quantize(np.float32(0)) == params.zero_point
        values = np.linspace(min(low, high), max(low, high), 999, dtype=np.float32)
        meant = params.scale * (params.quantize(values).astype(np.float32) - params.zero_point)
        assert np.abs(meant - values).max() <= params.scale * 1.001


def test_kernel_scales_reach_127_and_spare_dead_channels():
    kernel = np.random.default_rng(0).normal(size=(6, 3, 3, 4)).astype(np.float32)
    kernel[2] = 1e-21
    scale = kernel_scale(kernel, 0)
    stored = round_kernel(kernel, 0, scale)
    assert stored[2].max() == 0
    assert scale[2] > 1e-3
    assert all(np.abs(stored[i]).max() == 127 for i in (0, 1, 3, 4, 5))
    assert kernel_scale(np.zeros((2, 1, 1, 3), np.float32), 0).tolist() == [1, 1]
    # A bias that int32 could not hold asks for a coarser scale.
    huge = kernel_scale(kernel, 0, input_scale=1e-6, bias=np.full(6, 1e6, np.float32))
    assert np.all(1e6 / (1e-6 * huge) < 2**31)


def by_hand(image, file, scheme):
    """The first convolution in whole numbers, by the formula of the specification."""
    operator = file.graph.operators[1]
    x_tensor, kernel, bias = (int(t) for t in operator.inputs)
    y_tensor = int(operator.outputs[0])
    x_params, y_params = file.quantization(x_tensor), file.quantization(y_tensor)
    x = np.clip(np.rint(image / x_params.scale) + x_params.zero_point, -128, 127).astype(np.int32)
    patches = input_patches(x - x_params.zero_point, (3, 3), operator.builtinOptions)
    weights = file.stored(kernel).astype(np.int32)
    total = np.einsum("bhwijc,oijc->bhwo", patches, weights) + file.stored(bias)
    real = total * (x_params.scale * file.quantization(kernel).scale.astype(np.float64))
    return np.clip(np.rint(np.clip(real, 0, 6) / y_params.scale) + y_params.zero_point, -128, 127)


def test_the_first_layer_equals_whole_number_arithmetic(float_file, images):
    ranges = collect(float_file, images).ranges()
    file = quantize_int8(float_file, ranges, input_type="uint8")
    assert file.kinds[:2] == ["QUANTIZE", "CONV_2D"]
    value = GraphRunner(file).run(images[0]).stored(int(file.graph.operators[1].outputs[0]))
    assert np.abs(value - by_hand(images[0], file, None)).max() <= 1
    assert np.mean(value != by_hand(images[0], file, None)) < 0.001


@pytest.mark.parametrize("kind", ["uint8", "int8", "float32"])
def test_inputs_and_outputs_have_the_requested_type(float_file, images, kind):
    file = quantize_int8(float_file, collect(float_file, images).ranges(), input_type=kind)
    content = file.to_bytes()
    interpreter = Interpreter(model_content=content)
    interpreter.allocate_tensors()
    source, target = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    assert source["dtype"] == target["dtype"] == np.dtype(kind)
    assert (source["name"], target["name"]) == ("image", "Predictions")
    assert interpreter.get_signature_list()["serving_default"] == {"inputs": ["image"], "outputs": ["Predictions"]}
    signature = interpreter.get_signature_runner()
    assert signature.get_input_details()["image"]["dtype"] == np.dtype(kind)
    for operator, name in zip(file.graph.operators, file.kinds, strict=True):
        if name in ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "MEAN"):
            assert file.dtype(int(operator.inputs[0])) == file.dtype(int(operator.outputs[0])) == np.int8
            if name != "ADD" and name != "MEAN":
                assert len(file.quantization(int(operator.inputs[1])).scale) == file.shape(int(operator.outputs[0]))[-1]
    assert len(content) < 0.5 * len(float_file.to_bytes())


def test_equalised_network_is_the_same_in_float(float_file, images):
    channels = collect(float_file, images).channels
    for share in (0.0, 0.5, 1.0):
        equalized = equalize(float_file, channels, share)
        assert equalized.kinds == float_file.kinds
        before, after = file_logits(float_file, images[:3])[0], file_logits(equalized, images[:3])[0]
        np.testing.assert_allclose(after, before, atol=2e-5 * np.ptp(before))
        spread = [statistics.ranges()[t] for statistics in (collect(equalized, images),) for t in _bottlenecks(equalized)]
        assert len(spread) > 10
    # Centred: every bottleneck's channels have mean 0.
    statistics = collect(equalized, images).channels
    for t in _bottlenecks(equalized):
        reach = np.maximum(np.abs(statistics[t].low), np.abs(statistics[t].high)).max()
        assert np.abs(statistics[t].mean).max() < 1e-3 * reach


def _bottlenecks(file):
    return [
        int(o.outputs[0])
        for o, k in zip(file.graph.operators, file.kinds, strict=True)
        if k == "CONV_2D" and o.builtinOptions.fusedActivationFunction == 0 and file.shape(int(o.outputs[0]))[1] > 1
    ]


def test_patches_are_what_a_convolution_multiplies(float_file, images):
    file, run = float_file, GraphRunner(float_file).run(images[0])
    checked = set()
    for operator, kind in zip(file.graph.operators, file.kinds, strict=True):
        options = operator.builtinOptions
        if kind not in ("CONV_2D", "DEPTHWISE_CONV_2D") or (kind, options.strideH) in checked:
            continue
        checked.add((kind, options.strideH))
        x, y = run.stored(int(operator.inputs[0])), run.stored(int(operator.outputs[0]))
        kernel, bias = file.constant(int(operator.inputs[1])), file.constant(int(operator.inputs[2]))
        patches = input_patches(x, kernel.shape[1:3], options)
        formula = "bhwijc,oijc->bhwo" if kind == "CONV_2D" else "bhwijc,aijc->bhwc"
        computed = np.einsum(formula, patches, kernel) + bias
        if options.fusedActivationFunction:
            computed = np.clip(computed, 0, 6)
        np.testing.assert_allclose(computed, y, atol=2e-4)
    assert len(checked) == 4


def test_gptq_keeps_outputs_closer_than_nearest_rounding(float_file, images):
    """The rounding errors, weighted by the inputs, become smaller; no weight moves far."""
    statistics = collect(float_file, images, with_inputs=True)
    scheme = activation_scheme(float_file, statistics.ranges())
    file = float_file
    compensated = gptq(float_file, statistics, scheme, correct_bias=False)
    nearest = gptq(float_file, statistics, scheme, compensate=False, correct_bias=False)
    better = 0
    for i, operator in enumerate(file.graph.operators):
        if i not in statistics.inputs:
            continue
        source = int(operator.inputs[1])
        inputs, values = statistics.inputs[i], file.constant(source)
        depthwise = file.kinds[i] == "DEPTHWISE_CONV_2D"
        noise = []
        for kernel in (compensated[source], nearest[source]):
            sides = (1, 1, 1, -1) if depthwise else (-1, 1, 1, 1)
            error = kernel.stored * kernel.scale.reshape(sides) - values
            rows = error.reshape(-1, values.shape[-1]).T if depthwise else error.reshape(len(values), -1)
            product = np.einsum("ok,okl,ol->", rows, inputs.gram, rows) if depthwise else np.sum((rows @ inputs.gram) * rows)
            noise.append(product)
        better += noise[0] < noise[1]
        assert np.abs(compensated[source].stored.astype(int) - nearest[source].stored).max() < 40
    assert better >= 0.95 * len(statistics.inputs)


def test_operators_without_a_rule_stay_in_float(images):
    """Group norm has no int8 kernel: it is computed in float, between int8 convolutions."""
    content = convert_litert(
        trained_like(0.35, (32, 32, 3), normalization="group_norm", groups=8, table=((1, 16, 1, 1), (6, 24, 2, 2)))
    )
    inputs = [image[:, :32, :32] for image in images]
    quantized = quantize_int8(content, collect(content, inputs).ranges())
    kinds = quantized.kinds
    assert kinds.count("DEQUANTIZE") > 5
    before, after = file_logits(content, inputs[:2])[0], file_logits(quantized, inputs[:2])[0]
    assert signal_to_noise(before, after.reshape(before.shape)) > 10


@pytest.mark.slow
def test_all_steps_on_real_weights_and_unseen_photos(real, testdata):
    """At least 1.5 dB better than plain rounding on photos that were not calibrated on, at the same size; same top 1."""
    seen = load_photos([testdata / "images" / name for name in CALIBRATION], (224, 224)).images
    unseen = load_photos([testdata / "images" / name for name in ("bird_segmentation.bmp",)], (224, 224)).images
    # Other views of what was seen: mirrored, cut and lit otherwise than calibration's own.
    unseen += [np.ascontiguousarray(image[:, ::-1, ::-1]) for image in seen]
    images = with_crops(seen, count=16)
    span = {0: (-1.0, 1.0)}
    statistics = collect(real, images)
    plain = quantize_int8(real, statistics.ranges() | span)
    better = equalize(real, statistics.channels)
    statistics = collect(better, images, with_inputs=True)
    ranges = statistics.ranges() | span
    kernels = gptq(better, statistics, activation_scheme(better, ranges))
    refined = quantize_int8(better, ranges, kernels)
    assert abs(len(refined.to_bytes()) - len(plain.to_bytes())) < 64
    assert refined.kinds == plain.kinds
    exact = file_logits(real, seen + unseen)[0]
    ratios = []
    for content in (plain, refined):
        logits = file_logits(content, seen + unseen)[0]
        ratios.append([signal_to_noise(a, b) for a, b in zip(exact, logits.reshape(exact.shape), strict=True)])
        if content is refined:
            assert np.array_equal(logits.reshape(exact.shape)[:6].argmax(1), exact[:6].argmax(1))
    ratios = np.array(ratios)
    assert ratios[1, len(seen) :].mean() > ratios[0, len(seen) :].mean() + 1.5
    assert ratios[1, : len(seen)].mean() > ratios[0, : len(seen)].mean() + 1.5
    layers = compare_layers(better, refined, seen[:1])
    assert len(layers) == 36 + 17 + 10 + 1
    assert layers[0].snr_db > 30
