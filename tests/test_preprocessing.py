"""Preprocessing against TF-Slim's own output and against TensorFlow's operations."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mnv2_keras.preprocessing import normalize_image, preprocess_image, resize_bilinear_v1

PHOTOS = ["cat.bmp", "bird.bmp", "hot_dog.jpg", "grace_hopper.bmp", "dog_segmentation.bmp"]
SIDES = st.integers(1, 90)


@pytest.fixture(scope="module")
def tf():
    return pytest.importorskip("tensorflow")


@pytest.fixture(scope="module")
def golden(testdata):
    with np.load(testdata / "golden" / "classification" / "real.npz") as file:
        return {photo: file[f"{photo}|input"] for photo in PHOTOS}


def decoded(path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def noise(*shape, seed=0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def tf_slim(tf, image, size, central_fraction=0.875) -> np.ndarray:
    """`inception_preprocessing.preprocess_for_eval`, call by call."""
    image = tf.image.convert_image_dtype(tf.constant(image), tf.float32)
    image = tf.image.central_crop(image, central_fraction)
    image = tf.raw_ops.ResizeBilinear(images=image[None], size=size, align_corners=False, half_pixel_centers=False)[0]
    return tf.multiply(tf.subtract(image, 0.5), 2.0).numpy()


@pytest.mark.parametrize("photo", PHOTOS)
def test_a_file_and_an_array_are_within_1e_6_of_tf_slim(testdata, golden, photo):
    path = testdata / "images" / photo
    from_file = preprocess_image(path)
    assert from_file.shape == (224, 224, 3)
    assert from_file.dtype == np.float32
    np.testing.assert_allclose(from_file[::16, ::16], golden[photo], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(preprocess_image(str(path)), from_file)
    np.testing.assert_array_equal(preprocess_image(path.read_bytes()), from_file)
    np.testing.assert_array_equal(preprocess_image(decoded(path)), from_file)


@pytest.mark.parametrize("photo", PHOTOS)
def test_a_tensor_is_tf_slim_to_the_bit(testdata, golden, photo, tf):
    pixels = decoded(testdata / "images" / photo)
    result = preprocess_image(tf.constant(pixels))
    assert result.shape == (224, 224, 3)
    np.testing.assert_array_equal(result.numpy()[::16, ::16], golden[photo])


def test_tf_data_with_unknown_height_and_width_is_tf_slim_to_the_bit(testdata, golden, tf):
    images = [decoded(testdata / "images" / photo) for photo in PHOTOS]
    spec = tf.TensorSpec((None, None, 3), tf.uint8)
    dataset = tf.data.Dataset.from_generator(lambda: iter(images), output_signature=spec).map(preprocess_image)
    assert dataset.element_spec == tf.TensorSpec((224, 224, 3), tf.float32)
    for photo, result in zip(PHOTOS, dataset, strict=True):
        np.testing.assert_array_equal(result.numpy()[::16, ::16], golden[photo])


@pytest.mark.parametrize("fraction", [0.875, 1.0, 0.5, 1 / 3, 0.0101])
def test_crop_offsets_are_those_of_central_crop(tf, fraction):
    for height in [*range(1, 60), 224, 375, 500, 1080, 4032]:
        ramp = np.broadcast_to((np.arange(height) % 251).astype(np.uint8)[:, None, None], (height, 1, 3))
        cropped = tf.image.central_crop(ramp, fraction).numpy()
        expected = cropped.astype(np.float32) * np.float32(2 / 255) - 1
        np.testing.assert_allclose(
            preprocess_image(ramp, (len(cropped), 1), central_fraction=fraction), expected, rtol=0, atol=1e-6
        )
        tall = preprocess_image(ramp.swapaxes(0, 1), (1, len(cropped)), central_fraction=fraction)
        np.testing.assert_allclose(tall, expected.swapaxes(0, 1), rtol=0, atol=1e-6)


def test_a_vanishing_crop_keeps_a_pixel():
    assert preprocess_image(noise(4, 6, 3), 8, central_fraction=1e-300).shape == (8, 8, 3)


@pytest.mark.parametrize(
    ("shape", "size"),
    [
        ((375, 500), (224, 224)),
        ((224, 224), (224, 224)),
        ((1200, 1601), (224, 192)),
        ((300, 3000), (97, 225)),
        ((3000, 260), (130, 299)),
        ((64, 48), (513, 321)),
        ((9, 7), (5, 3)),
        ((2, 1), (1, 2)),
        ((1, 1), (9, 8)),
        ((333, 444), (1, 1)),
    ],
)
@pytest.mark.parametrize("fraction", [0.875, 1.0])
def test_any_size_against_tensorflow(tf, shape, size, fraction):
    image = noise(*shape, 3)
    expected = tf_slim(tf, image, size, fraction)
    result = preprocess_image(image, size, central_fraction=fraction)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(preprocess_image(tf.constant(image), size, central_fraction=fraction), expected)


@settings(max_examples=150, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.floats(0.05, 1), st.integers(0, 99))
def test_arrays_and_tensors_agree(tf, shape, size, fraction, seed):
    image = noise(*shape, 3, seed=seed)
    expected = tf_slim(tf, image, size, fraction)
    np.testing.assert_allclose(preprocess_image(image, size, central_fraction=fraction), expected, rtol=0, atol=1e-6)
    np.testing.assert_array_equal(preprocess_image(tf.constant(image), size, central_fraction=fraction), expected)


def test_one_int_is_a_square():
    image = noise(40, 30, 3)
    np.testing.assert_array_equal(preprocess_image(image, 32), preprocess_image(image, (32, 32)))
    np.testing.assert_array_equal(preprocess_image(image, [32, np.int64(16)]), preprocess_image(image, (32, 16)))


def test_greyscale_is_widened(tf):
    grey = noise(50, 41, 1)
    wide = preprocess_image(np.repeat(grey, 3, axis=2), 32)
    for image in (grey, grey[..., 0], tf.constant(grey), tf.constant(grey[..., 0])):
        result = np.asarray(preprocess_image(image, 32))
        assert result.shape == (32, 32, 3)
        np.testing.assert_allclose(result, wide, rtol=0, atol=1e-6)


def test_views_are_read_as_they_look():
    """Flipped channels (OpenCV's BGR), turned and strided arrays are not contiguous."""
    image = noise(120, 90, 3)
    for view in (image[..., ::-1], image.swapaxes(0, 1), image[::-2, 1::3]):
        np.testing.assert_array_equal(preprocess_image(view, 32), preprocess_image(view.copy(), 32))


def test_a_pil_image_is_a_photo():
    image = noise(50, 40, 3)
    np.testing.assert_array_equal(preprocess_image(Image.fromarray(image), 32), preprocess_image(image, 32))


def test_black_and_white_are_the_ends_of_the_range():
    for value, expected in ((0, -1), (255, 1)):
        result = preprocess_image(np.full((37, 53, 3), value, np.uint8), 29)
        np.testing.assert_allclose(result, expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("image", "message"),
    [
        (np.zeros((8, 8, 3), np.float32), "float32, they should be uint8.*image \\* 255"),
        (np.zeros((8, 8, 3), np.int64), "int64, they should be uint8"),
        (np.zeros((8, 8, 4), np.uint8), "not \\(8, 8, 4\\); drop an alpha channel"),
        (np.zeros((3, 8, 8), np.uint8), "channels last, not \\(3, 8, 8\\)"),
        (np.zeros((1, 8, 8, 3), np.uint8), "One image has shape .* not \\(1, 8, 8, 3\\)"),
        (np.zeros(8, np.uint8), "not \\(8,\\)"),
        (np.zeros((0, 8, 3), np.uint8), "has no pixels"),
        (np.zeros((8, 0), np.uint8), "has no pixels"),
    ],
)
def test_bad_images_are_named(tf, image, message):
    for given_image in (image, tf.constant(image)):
        with pytest.raises(ValueError, match=message):
            preprocess_image(given_image)


@pytest.mark.parametrize("shape", [None, (None, None, None)])
def test_tensors_of_unknown_channels_are_refused(tf, shape):
    dataset = tf.data.Dataset.from_generator(list, output_signature=tf.TensorSpec(shape, tf.uint8))
    with pytest.raises(ValueError, match="decode with channels=3"):
        dataset.map(preprocess_image)


@pytest.mark.parametrize("size", [0, -3, (224, 0), (224,), (1, 2, 3), 2.5, "224", None, (32, "x")])
def test_bad_sizes_are_named(size):
    with pytest.raises(ValueError, match=r"^size is "):
        preprocess_image(noise(8, 8, 3), size)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.01, float("nan")])
def test_bad_fractions_are_named(fraction):
    with pytest.raises(ValueError, match="central_fraction is"):
        preprocess_image(noise(8, 8, 3), central_fraction=fraction)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere\.jpg"):
        preprocess_image(tmp_path / "nowhere.jpg")


def test_arrays_and_files_need_no_tensorflow(tmp_path):
    path = tmp_path / "photo.png"
    Image.fromarray(noise(40, 50, 3)).save(path)
    program = (
        "import sys; import numpy as np; from mnv2_keras.preprocessing import preprocess_image, resize_bilinear_v1\n"
        f"image = preprocess_image({str(path)!r}); resize_bilinear_v1(image, 32)\n"
        "sys.exit(any(name in sys.modules for name in ('tensorflow', 'keras')))"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def resize_by_tensorflow(tf, image, size, align_corners):
    return tf.compat.v1.image.resize_bilinear(image, size, align_corners=align_corners).numpy()


@settings(max_examples=200, deadline=None)
@given(st.tuples(SIDES, SIDES), st.tuples(SIDES, SIDES), st.sampled_from([1, 3, 4, 21]), st.booleans(), st.booleans())
def test_resize_is_tf1s_to_the_bit(tf, shape, size, channels, align_corners, floats):
    image = noise(*shape, channels)
    if floats:
        image = np.random.default_rng(1).normal(size=image.shape).astype(np.float32)
    expected = resize_by_tensorflow(tf, image[None], size, align_corners)[0]
    result = resize_bilinear_v1(image, size, align_corners)
    assert result.dtype == np.float32
    np.testing.assert_array_equal(result, expected)


@pytest.mark.parametrize("align_corners", [False, True])
def test_resize_takes_leading_axes(tf, align_corners):
    images = np.random.default_rng(2).normal(size=(2, 3, 33, 17, 5))
    result = resize_bilinear_v1(images, (65, 9), align_corners=align_corners)
    assert result.shape == (2, 3, 65, 9, 5)
    expected = resize_by_tensorflow(tf, images.reshape(6, 33, 17, 5).astype(np.float32), (65, 9), align_corners)
    np.testing.assert_array_equal(result.reshape(expected.shape), expected)


def test_resize_with_aligned_corners_keeps_the_corners():
    image = np.random.default_rng(3).normal(size=(7, 5, 2)).astype(np.float32)
    result = resize_bilinear_v1(image, (21, 33), align_corners=True)
    np.testing.assert_array_equal(result[0, 0], image[0, 0])
    np.testing.assert_allclose(result[-1, -1], image[-1, -1], rtol=1e-5)


@pytest.mark.parametrize("shape", [(8, 8), (8, 0, 3), (0, 8, 3)])
def test_resize_refuses_what_is_no_image(shape):
    with pytest.raises(ValueError, match="takes an image of shape"):
        resize_bilinear_v1(np.zeros(shape, np.float32), 4)


def test_normalize_takes_arrays_and_tensors(tf):
    image = np.arange(256, dtype=np.uint8).reshape(16, 16)
    expected = np.float32(2.0 / 255.0) * image.astype(np.float32) - np.float32(1.0)
    for given_image in (image, image.astype(np.float64), tf.constant(image), tf.constant(image, tf.float32)):
        result = np.asarray(normalize_image(given_image))
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_allclose([expected.min(), expected.max()], [-1, 1], rtol=0, atol=1e-6)
