"""`Classifier`: right answers, every form of an image, streams, and files that are refused."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from mnv2_keras.inference.classifier import Classifier
from mnv2_keras.preprocessing import preprocess_image
from mnv2_keras.tflite import TfliteFile

PHOTOS = {
    "cat.bmp": (286, "Egyptian cat", 0.785),
    "bird.bmp": (20, "chickadee", 0.992),
    "hot_dog.jpg": (935, "hotdog, hot dog, red hot", 0.989),
    "grace_hopper.bmp": (653, "military uniform", 0.421),
    "dog_segmentation.bmp": (259, "Samoyed, Samoyede", 0.968),
}


def test_real_weights_name_the_photos_as_tf_slim_does(imagenet_file, testdata):
    genuine = np.load(testdata / "golden" / "classification" / "real.npz")
    with Classifier(imagenet_file) as classifier:
        predictions = classifier.predict([testdata / "images" / name for name in PHOTOS])
    for (name, (index, label, score)), best in zip(PHOTOS.items(), predictions, strict=True):
        logits = genuine[f"{name}|logits"].ravel().astype(np.float64)
        probabilities = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        assert [prediction.index for prediction in best] == np.argsort(-probabilities)[:5].tolist()
        np.testing.assert_allclose([prediction.score for prediction in best], np.sort(probabilities)[::-1][:5], atol=2e-5)
        assert best[0][:2] == (index, label)
        assert best[0].score == pytest.approx(score, abs=6e-4)


def test_keras_and_litert_agree(tiny, tiny_file, testdata):
    photo = testdata / "images" / "cat.bmp"
    with Classifier(tiny_file) as fast, Classifier(tiny, engine="keras") as slow:
        for a, b in zip(fast.predict(photo)[0], slow.predict(photo)[0], strict=True):
            assert a.index == b.index
            assert a.score == pytest.approx(b.score, abs=1e-5)
        np.testing.assert_allclose(fast.embed(photo), slow.embed(photo), atol=1e-4)
        assert fast.embed(photo).ndim == 2
        assert fast.size == slow.size == (32, 32)


@pytest.mark.parametrize("engine", ["litert", "keras"])
def test_a_model_that_takes_pixels_is_refused(engine):
    from mnv2_keras.networks.classifier import build_mobilenetv2

    model = build_mobilenetv2(0.35, (32, 32, 3), classes=3, include_preprocessing=True)
    with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
        Classifier(model, engine)


def test_every_form_of_an_image_is_the_same_photo(tiny_file, testdata, tmp_path):
    path = testdata / "images" / "hot_dog.jpg"
    pixels = np.asarray(Image.open(path).convert("RGB"))
    (tmp_path / "only").mkdir()
    Image.fromarray(pixels).save(tmp_path / "only" / "one.png")
    with Classifier(tiny_file, threads=1) as classifier:
        expected = classifier.predict(path)
        forms = (str(path), path.read_bytes(), pixels, pixels[None], [pixels], preprocess_image(path, 32), tmp_path / "only")
        for form in forms:
            assert classifier.predict(form) == expected
        assert classifier.predict([tmp_path / "only", path]) == expected * 2
        for form in (str(path), path, path.read_bytes(), pixels, Image.fromarray(pixels), str(tmp_path / "only")):
            assert [result.predictions for result in classifier.stream(form)] == expected
        assert len(list(classifier.stream(np.stack([pixels] * 2)))) == 2
        with pytest.raises(FileNotFoundError):
            classifier.stream("photos that are not there/")
        assert len(classifier.predict(path, top=99)[0]) == 5
        assert classifier.predict([]) == []


def test_stream_keeps_order_and_names_what_is_broken(tiny_file, tmp_path):
    """A thousand small photos, some of them broken."""
    rng = np.random.default_rng(0)
    broken = {17, 500, 501, 999}
    paths = []
    for i in range(1000):
        path = tmp_path / f"{i:04}.png"
        if i in broken:
            path.write_bytes(b"\x89PNG no picture")
        else:
            Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
        paths.append(path)
    with Classifier(tiny_file) as classifier:
        results = list(classifier.stream(paths, top=1))
        assert [result.source for result in results] == paths
        assert {i for i, result in enumerate(results) if result.error} == broken
        assert all(paths[i].name in str(results[i].error) for i in broken)
        assert all(len(result.predictions) == 1 for result in results if not result.error)
        assert results[3].predictions == classifier.predict(paths[3], top=1)[0]
        assert results[17].as_dict()["error"]
        assert results[3].as_dict()["predictions"][0]["index"] == results[3].predictions[0].index
        with pytest.raises(ValueError, match=r"0017\.png"):
            list(classifier.stream(paths, on_error="raise"))


def test_stream_reads_no_further_than_it_must(tiny_file):
    taken = []

    def endless():
        while True:
            taken.append(len(taken))
            yield np.zeros((8, 8, 3), np.uint8)

    with Classifier(tiny_file, threads=2) as classifier:
        results = classifier.stream(endless())
        for _ in range(5):
            next(results)
        results.close()
    assert len(taken) <= 5 + 3 * 2


def test_a_stream_ends_with_its_classifier(tiny_file, monkeypatch):
    """Half read or not begun: one sentence, and no thread is left."""
    photos = [np.zeros((8, 8, 3), np.uint8)] * 50
    before = threading.active_count()
    classifier = Classifier(tiny_file, threads=2)
    prepare = classifier._prepare
    monkeypatch.setattr(classifier, "_prepare", lambda image: time.sleep(0.1) or prepare(image))  # so that some still wait
    half, cut, unread = classifier.stream(photos), classifier.stream(photos[:5]), classifier.stream(photos)
    next(half), next(cut)
    classifier.close()
    for stream in (half, cut, unread):
        with pytest.raises(ValueError, match="This Classifier was closed: make another"):
            while True:
                next(stream)
    assert threading.active_count() == before


def test_several_threads_at_once(tiny_file):
    images = [np.random.default_rng(i).integers(0, 256, (40, 50, 3), dtype=np.uint8) for i in range(24)]
    with Classifier(tiny_file) as classifier, ThreadPoolExecutor(6) as pool:
        one_by_one = [classifier.predict(image)[0] for image in images]
        assert [best[0] for best in pool.map(classifier.predict, images)] == one_by_one


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "abacus"}, "engine is 'abacus'"),
        ({"threads": 0}, "threads is 0"),
        ({"resolution": 0}, "resolution is 0"),
        ({"engine": "keras", "threads": 1}, "leave threads out"),
        ({"engine": "keras", "precision": "float16"}, "engine 'keras' computes in float32, not 'float16'"),
        ({"precision": "float16"}, "with a fixed precision and resolution"),
        ({"resolution": 64}, "with a fixed precision and resolution"),
        ({"labels": ["one"]}, "1 labels were given for 5 classes"),
    ],
)
def test_wrong_arguments(tiny_file, options, message):
    with pytest.raises(ValueError, match=message):
        Classifier(tiny_file, **options)


def test_wrong_images(tiny_file, tmp_path):
    with Classifier(tiny_file) as classifier:
        with pytest.raises(ValueError, match="floats count as preprocessed"):
            classifier.predict(np.zeros((10, 10, 3), np.float32))
        with pytest.raises(FileNotFoundError, match="no image"):
            classifier.predict(tmp_path / "none.jpg")
        with pytest.raises(ValueError, match="top is 0"):
            classifier.predict(np.zeros((10, 10, 3), np.uint8), top=0)
        with pytest.raises(ValueError, match="on_error is 'stop'"):
            classifier.stream([], on_error="stop")
        with pytest.raises(ValueError, match="NaN"):
            classifier.predict(np.full((32, 32, 3), np.nan, np.float32))
    with pytest.raises(ValueError, match="was closed"):
        classifier.predict(np.zeros((10, 10, 3), np.uint8))


def test_files_without_a_classifier_are_refused(tmp_path, tiny_file, testdata):
    with pytest.raises(FileNotFoundError, match=r"no \.tflite file"):
        Classifier(tmp_path / "none.tflite")
    (tmp_path / "short.tflite").write_bytes(tiny_file.read_bytes()[:5000])
    with pytest.raises(ValueError, match="make it again"):
        Classifier(tmp_path / "short.tflite")
    file = TfliteFile(tiny_file.read_bytes())
    file.graph.tensors[int(file.graph.inputs[0])].shape = np.array([1, 32, 32, 5], np.int32)
    (tmp_path / "wrong.tflite").write_bytes(file.to_bytes())
    with pytest.raises(ValueError, match="that LiteRT can run"):
        Classifier(tmp_path / "wrong.tflite")
    with pytest.raises(ValueError, match="needs a file that makes"):
        Classifier(testdata / "models" / "deeplabv3_mnv2_pascal_quant.tflite")
    with pytest.raises(FileNotFoundError, match="no checkpoint is called so"):
        Classifier(tmp_path / "none.tgz")
    with pytest.raises(ValueError, match="expected a path"):
        Classifier(3)
    with pytest.raises(ValueError, match="needs photos to calibrate on"):
        Classifier(testdata / "checkpoints" / "mobilenet_v2_0.35_96.tgz", precision="int8")


def test_googles_quantised_file_runs_too(testdata):
    with Classifier(testdata / "models" / "mobilenet_v2_1.0_224_quant.tflite") as classifier:
        for name, (index, label, _) in PHOTOS.items():
            assert classifier.predict(testdata / "images" / name, top=1)[0][0][:2] == (index, label)
        with pytest.raises(ValueError, match="classes only"):
            classifier.embed(testdata / "images" / "cat.bmp")


def test_a_file_whose_end_was_cut_off(tiny_file, tmp_path, capsys, monkeypatch):
    """The labels lie at the end: without them every answer would be another name."""
    from command_line import mnv2

    from mnv2_keras.evaluation.engines import open_engine
    from mnv2_keras.export.metadata import classifier_metadata
    from mnv2_keras.tflite import add_metadata

    path, names = tmp_path / "named.tflite", ("a", "b", "c", "d", "e")
    content = add_metadata(tiny_file.read_bytes(), classifier_metadata(names))
    path.write_bytes(content)
    with Classifier(path) as classifier:
        assert classifier.labels == names
    assert "warning" not in mnv2(capsys, monkeypatch, "inspect", path)[2]
    path.write_bytes(content[:-10])
    with pytest.raises(ValueError, match=r"does not hold the labels.txt that its metadata names, so its end was cut off"):
        Classifier(path)
    with pytest.raises(ValueError, match="its end was cut off"):
        _ = open_engine(path).labels  # of an evaluation
    with Classifier(path, labels=names) as classifier:
        assert classifier.labels == names
    code, _, err = mnv2(capsys, monkeypatch, "inspect", path)
    assert code == 0
    assert "the metadata names labels.txt, which the file does not hold" in err


def test_labels_in_the_folder_of_the_weights(tiny, tiny_file, tmp_path, monkeypatch):
    """As training leaves them: for a Keras file, in LiteRT and in Keras, and for a .tflite that holds none."""
    from mnv2_keras.conversion import convert_checkpoint

    monkeypatch.setattr("mnv2_keras.inference.model_cache._converted", lambda *_: tiny_file.read_bytes())
    convert_checkpoint(tiny).save(tmp_path / "model.keras")
    (tmp_path / "model.tflite").write_bytes(tiny_file.read_bytes())
    for labels in ("a b c d e", "v w x y z"):  # they may change while the converted file is kept
        (tmp_path / "labels.txt").write_text(labels.replace(" ", "\n"))
        for name, engine in (("model.keras", "litert"), ("model.keras", "keras"), ("model.tflite", "litert")):
            with Classifier(tmp_path / name, engine) as classifier:
                assert classifier.labels == tuple(labels.split())
    (tmp_path / "labels.txt").write_text("of\nsomething\nelse\n")
    with Classifier(tmp_path / "model.keras") as classifier:
        assert classifier.labels[0] == "class 0"
