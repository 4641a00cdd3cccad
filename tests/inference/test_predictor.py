"""What `Classifier`, `Detector` and `Segmenter` share: the same options with the same meaning, one stream, one way to close."""

import inspect

import numpy as np
import pytest
from PIL import Image
from training_tasks import small_detector

from mnv2_keras import Classifier, Detector, Segmenter, build_deeplabv3_mobilenetv2, build_mobilenetv2, predict_on_cluster
from mnv2_keras.images import ImageError
from mnv2_keras.inference.benchmark import measure

MODELS = {
    Classifier: lambda: build_mobilenetv2(0.1, (32, 32, 3), classes=3),
    Detector: small_detector,
    Segmenter: lambda: build_deeplabv3_mobilenetv2(0.1, (33, 33, 3), classes=3),
}
#: How one photo is predicted.
METHODS = {Classifier: "predict", Detector: "detect", Segmenter: "segment"}


@pytest.fixture(scope="module", params=MODELS, ids=lambda kind: kind.__name__)
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def model(kind):
    return MODELS[kind]()


@pytest.fixture(scope="module")
def predictor(kind, model):
    with kind(model, "keras") as opened:
        yield opened


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Two photos, and a file between them that is not one."""
    folder = tmp_path_factory.mktemp("photos")
    for i, name in enumerate(("a.png", "c.png")):
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (20, 30, 3), np.uint8)).save(folder / name)
    (folder / "b.png").write_bytes(b"no picture")
    return folder


@pytest.mark.parametrize("option", ["engine", "threads", "precision", "labels", "on_message"])
def test_an_option_has_one_name_place_and_default(kind, option):
    parameter, reference = (inspect.signature(predictor).parameters[option] for predictor in (kind, Detector))
    assert parameter.kind == reference.kind
    assert parameter.default == reference.default or option == "engine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "abacus"}, "engine is 'abacus': expected one of litert, openvino, keras"),
        ({"threads": 0}, "threads is 0"),
        ({"engine": "keras", "threads": 1}, "leave threads out"),
        ({"engine": "keras", "precision": "float16"}, "engine 'keras' computes in float32, not 'float16'"),
        ({"engine": "litert", "precision": "int8"}, "precision is 'int8'.*needs photos to calibrate on"),
        ({"engine": "keras", "labels": ["one"]}, "1 labels were given for 3 classes"),
    ],
)
def test_wrong_options_are_refused_with_one_message(kind, model, options, message):
    with pytest.raises(ValueError, match=message):
        kind(model, **options)
    with pytest.raises(ValueError, match="weights is int: expected a path"):
        kind(3)


def test_engine_none_runs_a_keras_model_as_it_is(kind, model):
    with kind(model, None) as opened:
        assert opened.content is None


def test_labels_are_names_or_a_file(kind, model, tmp_path):
    path = tmp_path / "names.txt"
    path.write_text("circle\nsquare\ntriangle\n")
    for labels in (path, str(path), ["circle", "square", "triangle"]):
        with kind(model, "keras", labels=labels) as opened:
            assert opened.labels == ("circle", "square", "triangle")
            assert opened.classes == 3
    with pytest.raises(FileNotFoundError, match="There is no file of labels"):
        kind(model, "keras", labels=tmp_path / "none.txt")
    with kind(model, "keras") as opened:
        assert [label[:6] for label in opened.labels] == ["class "] * 3


def test_a_stream_keeps_order_and_skips_or_raises(predictor, photos):
    good, broken, last = predictor.stream(photos, on_error="skip")
    assert [str(result.source)[-5:] for result in (good, broken, last)] == ["a.png", "b.png", "c.png"]
    assert good.error is None
    assert last.error is None
    assert isinstance(broken.error, ImageError)
    assert "b.png" in broken.as_dict()["error"]
    with pytest.raises(ImageError, match=r"b\.png"):
        list(predictor.stream(photos, on_error="raise"))
    with pytest.raises(ValueError, match="on_error is 'stop': expected one of skip, raise"):
        predictor.stream(photos, on_error="stop")
    with pytest.raises(FileNotFoundError):
        predictor.stream(photos / "nowhere")


def test_a_result_of_a_stream_is_that_of_one_photo(kind, predictor, photos):
    (streamed,) = predictor.stream(photos / "a.png", on_error="raise")
    result = getattr(predictor, METHODS[kind])(photos / "a.png")
    if kind is Classifier:
        assert streamed.predictions == result[0]
    else:
        assert streamed.as_dict() == result.as_dict()
        np.testing.assert_array_equal(streamed.photo, result.photo)


def test_closing_ends_everything_with_one_sentence(kind, model, photos):
    with kind(model, "keras") as opened:
        stream = opened.stream(photos)
    for use in (lambda: next(stream), lambda: opened.stream(photos), lambda: getattr(opened, METHODS[kind])(photos / "a.png")):
        with pytest.raises(ValueError, match=f"This {kind.__name__} was closed: make another"):
            use()


def test_old_names_of_arguments_work_and_warn(photos):
    def renamed(old, new):
        return pytest.warns(DeprecationWarning, match=f"the argument {old} of .* is called {new} now")

    with renamed("say", "on_message"):
        Classifier("digits", say=print).close()
    with renamed("say", "on_message"), pytest.raises(ValueError, match="rounds is 0"):
        measure("digits", rounds=0, say=print)
    with renamed("say", "on_message"), pytest.raises(ValueError, match="top is 0"):
        predict_on_cluster(photos, "out.parquet", "digits", top=0, say=print)
    names = ["sky", "tree", "road"]
    with renamed("names", "labels"):
        segmenter = Segmenter(MODELS[Segmenter](), names=names)
    assert segmenter.names == tuple(names)
    with renamed("skip_broken", "on_error"):
        good, broken, _ = segmenter.stream(photos, skip_broken=True)
    assert good.names == tuple(names)
    assert isinstance(broken, ImageError), "in this form the error stands in place of a result"
