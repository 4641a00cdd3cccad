"""A segmenter as a .tflite: what it computes, what it says about itself, and what MediaPipe makes of it."""

import dataclasses
import functools

import numpy as np
import pytest
from small_checkpoints import fill_by_name

from mnv2_keras import Segmenter, build_deeplabv3_mobilenetv2, convert_checkpoint
from mnv2_keras.data.drawn_shapes import DrawnShapes
from mnv2_keras.export import segmentation
from mnv2_keras.export.options import Quantization
from mnv2_keras.export.segmentation import export_segmenter
from mnv2_keras.images import read_image
from mnv2_keras.labels import voc_labels
from mnv2_keras.tflite import read_metadata

ARCHIVE = "deeplabv3_mnv2_pascal_train_aug_2018_01_29.tar.gz"

pytestmark = pytest.mark.usefixtures("shared_conversions")


@pytest.fixture(scope="module")
def small():
    return fill_by_name(build_deeplabv3_mobilenetv2(0.1, (65, 65, 3)))


@pytest.fixture(scope="module")
def pictures():
    return [picture for picture, _ in DrawnShapes(3, 60)]


def test_float_file(small, pictures, tmp_path):
    report = export_segmenter(small, tmp_path / "small.tflite", photos=pictures)
    assert list(report.agreement) == ["array 0", "array 1", "array 2"]
    assert min(report.agreement.values()) >= 0.999
    assert report.export.operators["RESIZE_BILINEAR"] == 2
    assert report.as_dict()["export"]["precision"] == "float32"
    metadata = read_metadata(tmp_path / "small.tflite")
    assert metadata.labels == list(voc_labels())
    assert metadata.normalization == (127.5, 127.5)
    custom = metadata.about["subgraph_metadata"][0]["custom_metadata"]
    assert [table["name"] for table in custom] == ["SEGMENTER_METADATA"]
    segmenter = Segmenter(tmp_path / "small.tflite")
    assert segmenter.names == voc_labels()
    for picture in (*pictures, np.zeros((100, 150, 3), np.uint8)):
        ours, keras_own = segmenter.segment(picture).labels, Segmenter(small).segment(picture).labels
        assert np.mean(ours == keras_own) >= 0.999


def test_int8_file_that_ends_in_labels(small, pictures, tmp_path):
    (tmp_path / "broken.jpg").write_bytes(b"broken")
    calibration = [*pictures, tmp_path / "broken.jpg"]
    path = tmp_path / "labels.tflite"
    report = export_segmenter(small, path, "int8", output="labels", quantization=Quantization(calibration, steps=()))
    assert list(report.skipped) == [str(tmp_path / "broken.jpg")]
    assert report.export.operators["ARG_MAX"] == 1
    # Arg max reads the int8 logits themselves: nothing is turned back into float.
    assert "DEQUANTIZE" not in report.export.operators
    # The rule's weights leave 21 labels close to each other; trained ones are judged in the slow test.
    assert min(report.agreement.values()) > 0.5
    segmented = Segmenter(path).segment(pictures[0])
    assert segmented.labels.shape == (60, 60)
    assert np.mean(segmented.labels == Segmenter(small).segment(pictures[0]).labels) > 0.5


def test_many_photos_are_subsampled_evenly(small, tmp_path, monkeypatch):
    monkeypatch.setattr(segmentation, "read_photos", functools.partial(segmentation.read_photos, limit=4))
    photos = [picture for picture, _ in DrawnShapes(8, 60)]
    path = tmp_path / "int8.tflite"
    report = export_segmenter(small, path, "int8", quantization=Quantization(photos, (), "int8"))
    assert report.export.calibration_images == 4
    assert list(report.agreement) == ["array 0", "array 2", "array 4", "array 6"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"output": "masks"}, "output is 'masks'"),
        ({"labels": ["a"]}, "1 labels were given for 21 classes"),
        ({"precision": "int8"}, "needs photos to calibrate on"),
        ({"precision": "int4"}, "precision is 'int4'"),
        ({"batch": 4}, "batch goes with export_litert"),
        ({"resolution": (33, 33)}, "is built for 65 x 65 pixels, not 33 x 33"),
    ],
)
def test_bad_arguments(small, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        export_segmenter(small, tmp_path / "small.tflite", **options)
    assert not list(tmp_path.iterdir())


def test_labels_of_other_classes_are_in_the_file(tmp_path):
    """A file contains its class names; a file without them, such as Google's, gets Pascal VOC's names for the first classes."""
    model = build_deeplabv3_mobilenetv2(0.1, (33, 33, 3), classes=4)
    path = tmp_path / "labels.tflite"
    export_segmenter(model, path, output="labels")
    assert Segmenter(path).names == ("class 0", "class 1", "class 2", "class 3")
    from mnv2_keras.tflite import Metadata, add_metadata

    path.write_bytes(add_metadata(path.read_bytes(), Metadata({})))
    nameless = Segmenter(path)
    assert nameless.names == voc_labels()
    segmented = dataclasses.replace(nameless.segment(np.zeros((33, 33, 3), np.uint8)), labels=np.full((33, 33), 57, np.uint8))
    assert segmented.areas == {"class 57": 1.0}
    assert segmented.picture().size[0] == 144  # room for the legend


def test_calibration_from_tfds(small, tmp_path, monkeypatch):
    photos = [{"image": picture} for picture, _ in DrawnShapes(2, 60)]
    monkeypatch.setattr("mnv2_keras.export.calibration.tensorflow_dataset", lambda name: iter(photos))
    report = export_segmenter(small, tmp_path / "float.tflite", photos="tfds:drawn:train", output="labels")
    assert list(report.agreement) == ["array 0", "array 1"]
    assert min(report.agreement.values()) >= 0.999


def test_no_photo_to_calibrate_on(small, tmp_path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"broken")
    with pytest.raises(ValueError, match="none of 1 files can be read"):
        export_segmenter(small, tmp_path / "small.tflite", "int8", quantization=Quantization(tmp_path / "photos"))
    with (
        pytest.warns(DeprecationWarning, match="pass quantization=Quantization"),
        pytest.raises(ValueError, match="none of 1 files can be read"),
    ):
        export_segmenter(small, tmp_path / "small.tflite", "int8", calibration=tmp_path / "photos")


def test_models_that_are_not_segmenters_are_refused(tmp_path):
    import keras

    with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
        model = build_deeplabv3_mobilenetv2(0.1, (33, 33, 3), include_preprocessing=True)
        export_segmenter(model, tmp_path / "pixels.tflite")

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)], name="other")
    with pytest.raises(ValueError, match="expected a segmenter's logits"):
        export_segmenter(model, tmp_path / "other.tflite")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "int8"])
def test_mediapipe_finds_the_bird_and_the_dog(testdata, tmp_path, precision):
    mediapipe = pytest.importorskip("mediapipe")
    from mediapipe.tasks.python import BaseOptions, vision

    images = testdata / "images"
    names = ("bird_segmentation", "dog_segmentation_256", "cat", "dog_segmentation", "grace_hopper", "bird")
    photos = [*(images / f"{name}.bmp" for name in names), images / "hot_dog.jpg"]
    model = convert_checkpoint(testdata / "checkpoints" / ARCHIVE)
    path = tmp_path / "deeplab.tflite"
    report = export_segmenter(
        model, path, precision, photos=photos, quantization=Quantization(photos if precision == "int8" else None)
    )
    assert min(report.agreement.values()) >= (0.999 if precision == "float32" else 0.97)
    options = vision.ImageSegmenterOptions(
        base_options=BaseOptions(model_asset_path=str(path)), output_category_mask=True, output_confidence_masks=True
    )
    with vision.ImageSegmenter.create_from_options(options) as segmenter:
        assert segmenter.labels == list(voc_labels())
        for photo, mask, label, yes, ignored in (
            ("bird_segmentation.bmp", "bird_segmentation_mask.bmp", 3, 3, (1, 2)),
            ("dog_segmentation_256.bmp", "dog_segmentation_mask_256.bmp", 12, 0, (2,)),
        ):
            pixels = np.ascontiguousarray(read_image(images / photo))
            result = segmenter.segment(mediapipe.Image(image_format=mediapipe.ImageFormat.SRGB, data=pixels))
            labels, truth = result.category_mask.numpy_view().squeeze(), read_image(images / mask)[..., 0]
            judged = ~np.isin(truth, ignored)
            predicted, genuine = (labels == label)[judged], (truth == yes)[judged]
            assert (predicted & genuine).sum() / (predicted | genuine).sum() >= 0.9
            assert 0.9 < result.confidence_masks[label].numpy_view().max() <= 1
