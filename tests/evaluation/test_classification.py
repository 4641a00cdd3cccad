"""The evaluation against scikit-learn, in shards, in parts, and on bad input."""

import dataclasses
import json
import shutil

import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.metrics import accuracy_score, confusion_matrix, log_loss, top_k_accuracy_score
from tfds_sets import store

from mnv2_keras.data.augmentation import evaluated
from mnv2_keras.data.classification import Examples, TfdsExamples, read_examples
from mnv2_keras.evaluation import classification
from mnv2_keras.evaluation.classification import (
    Counts,
    evaluate,
    load_evaluation,
    merge,
    output_of_label,
    parse_shard,
    weights_digest,
    wilson,
)
from mnv2_keras.evaluation.engines import open_engine, softmax
from mnv2_keras.images import ImageError
from mnv2_keras.labels import imagenet_labels
from mnv2_keras.networks.classifier import build_mobilenetv2
from mnv2_keras.networks.endpoints import endpoints
from mnv2_keras.registry import list_checkpoints

CLASSES = 7
pytestmark = pytest.mark.usefixtures("conversion_in_process")


@pytest.fixture(scope="module")
def examples():
    rng = np.random.default_rng(0)
    images = (rng.integers(0, 256, (60, 1, 1, 1)) * rng.random((60, 16, 16, 1)) ** rng.uniform(0, 3, (60, 1, 1, 1))).astype(
        np.uint8
    )
    return Examples(images, np.arange(60, dtype=np.int32) % CLASSES, tuple("abcdefg"), name="noise")


@pytest.fixture(scope="module")
def model(examples):
    """A small network whose answers depend on the image, some sure, some not."""
    keras.utils.set_random_seed(3)
    model = build_mobilenetv2(input_shape=(16, 16, 1), classes=CLASSES, table=((1, 8, 1, 1),), stem_channels=8, last_channels=16)
    images = np.stack([evaluated(tf.constant(image), (16, 16)) for image in examples.images])
    stem, last = model.get_layer("Conv"), model.get_layer("Conv_1-BatchNorm")
    stem.kernel.assign(10 * stem.kernel)
    last.beta.assign(np.linspace(0, 1, 16))
    pooled = np.reshape(keras.Model(model.input, endpoints(model)["global_pool"])(images), (len(images), -1))
    layer = model.get_layer("Logits-Conv2d_1c_1x1")
    kernel = np.random.default_rng(1).normal(0, 0.7, (16, CLASSES)) / (pooled.std(0)[:, None] + 1e-3)
    layer.kernel.assign(kernel[None, None])
    layer.bias.assign(-pooled.mean(0) @ kernel)
    return model


@pytest.fixture(scope="module")
def complete(model, examples):
    return evaluate(model, examples)


def test_the_metrics_are_scikit_learns(model, examples, complete):
    images = np.stack([evaluated(tf.constant(image), (16, 16)) for image in examples.images])
    probabilities = model.predict_on_batch(images).astype(np.float64)
    probabilities /= probabilities.sum(1, keepdims=True)
    best = probabilities.argmax(1)
    assert len(set(best)) > 2
    assert complete.images == 60
    assert complete.top1 == accuracy_score(examples.labels, best)
    assert complete.top5 == top_k_accuracy_score(examples.labels, probabilities, k=5)
    assert complete.cross_entropy == pytest.approx(log_loss(examples.labels, probabilities), rel=1e-4)
    np.testing.assert_array_equal(complete.confusion_matrix(), confusion_matrix(examples.labels, best, labels=range(CLASSES)))
    for i, (name, about) in enumerate(complete.per_class().items()):
        members = examples.labels == i
        assert (name, about["images"]) == ("abcdefg"[i], members.sum())
        assert about["top1"] == pytest.approx((best[members] == i).mean())


def test_the_old_argument_data_name_is_the_name_of_the_examples(model, examples):
    few = examples.subset([0, 1])
    with pytest.warns(DeprecationWarning, match=r"data_name of evaluate is called Examples\.name now"):
        assert evaluate(model, few, data_name="others").about["data"] == "others"
    assert evaluate(model, few).about["data"] == "noise"


def test_calibration_error_by_hand():
    counts = Counts()
    counts.update(np.array([0, 1, 1, 1]), np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.35, 0.65]]))
    about = dict.fromkeys(classification._ABOUT, "") | {"labels": ["x", "y"]}
    result = classification.Evaluation(about, [(1, 1)], counts)
    # Bins of 1/15: both 0.9 together (one right), 0.6 in the ninth, 0.65 in the tenth.
    assert result.calibration_error == pytest.approx((abs(1.8 - 1) + 0.4 + 0.35) / 4)


def test_wilson_interval_of_the_books():
    """Newcombe (1998), table I: 81 of 263, and 0 of 20."""
    assert wilson(81, 263) == pytest.approx((0.2553, 0.3662), abs=1e-4)
    assert wilson(0, 20) == pytest.approx((0.0, 0.1611), abs=1e-4)


def test_shards_add_up(model, examples, complete, tmp_path):
    paths = []
    for number in (1, 2, 3):
        part = evaluate(model, examples, shard=(number, 3))
        assert part.images == 20
        paths.append(part.save(tmp_path / f"{number}.json"))
    merged = merge(paths)
    assert merged.images == complete.images
    assert (merged.top1, merged.top5) == (complete.top1, complete.top5)
    assert merged.counts.confusion == complete.counts.confusion
    np.testing.assert_allclose(merged.counts.confidence, complete.counts.confidence, rtol=1e-6)
    with pytest.raises(ValueError, match="counted twice"):
        merge([paths[0], paths[0]])
    with pytest.raises(ValueError, match="Shards 2 of 3 are missing"):
        merge([paths[0], paths[2]])
    with pytest.raises(ValueError, match="no receipts"):
        merge([])
    other = evaluate(model, dataclasses.replace(examples, name="others"), shard=(2, 3)).save(tmp_path / "other.json")
    with pytest.raises(ValueError, match="they differ in data"):
        merge([paths[0], other])
    (tmp_path / "wrong.json").write_text("[]")
    with pytest.raises(ValueError, match="not a receipt"):
        load_evaluation(tmp_path / "wrong.json")


def test_a_shard_without_images_is_merged_all_the_same(model, examples, tmp_path):
    few = examples.subset([0, 1])
    paths = [evaluate(model, few, shard=(i, 3)).save(tmp_path / f"{i}.json") for i in (1, 2, 3)]
    about = json.loads(paths[2].read_text())
    assert (about["images"], about["accuracy"], about["accuracy_interval_95"]) == (0, 0, [0, 1])
    assert merge(paths).counts.confusion == evaluate(model, few).counts.confusion
    paths[2].write_text(json.dumps(about | {"shards": [[1, 1]]}))
    with pytest.raises(ValueError, match="None of the images can be judged"):
        merge([paths[2]])


def test_a_receipt_holds_all_that_is_needed_to_repeat_the_evaluation(complete, tmp_path):
    about = json.loads(complete.save(tmp_path / "receipt.json").read_text())
    assert about["images"] == 60
    assert about["accuracy"] == complete.top1
    assert about["accuracy_interval_95"] == list(wilson(round(complete.top1 * 60), 60))
    assert {"weights", "sha256", "engine", "data", "fingerprint", "size", "central_fraction", "versions"} <= about.keys()
    assert about["versions"].keys() >= {"mnv2_keras", "python", "tensorflow", "keras", "numpy", "pillow", "ai-edge-litert"}
    assert load_evaluation(tmp_path / "receipt.json").as_dict() == complete.as_dict()


def test_other_weights_are_another_evaluation(model, examples, tmp_path):
    """A model in memory has no file: its values tell."""
    other = keras.models.clone_model(model)
    other.set_weights(model.get_weights())
    last = other.get_layer("Logits-Conv2d_1c_1x1")
    last.kernel.assign(-last.kernel)
    counted = []
    for network, number in ((model, 1), (other, 1), (other, 2)):
        part = evaluate(network, examples, shard=(number, 2), folder=tmp_path / "parts")
        counted.append(part.counts.confusion)
        part.save(tmp_path / f"{len(counted)}.json")
    assert counted[0] != counted[1], "the parts of the other weights are not taken"
    with pytest.raises(ValueError, match="they differ in sha256"):
        merge([tmp_path / "1.json", tmp_path / "3.json"])
    assert merge([tmp_path / "2.json", tmp_path / "3.json"]).images == 60


def test_digests_of_files_folders_and_checkpoints(model, tmp_path):
    from mnv2_keras.convert.source import sha256_of
    from mnv2_keras.weights import save_checkpoint

    prefix = save_checkpoint(model, tmp_path / "first" / "model.ckpt")
    shutil.copytree(tmp_path / "first", tmp_path / "second")
    seen = {weights_digest(prefix), weights_digest(tmp_path / "second" / "model.ckpt")}
    assert len(seen) == 1, "the folder's name does not count"
    folders = [weights_digest(tmp_path / name) for name in ("first", "second")]
    assert folders[0] == folders[1]
    (data,) = (tmp_path / "second").glob("*.data-*")
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    assert weights_digest(tmp_path / "second" / "model.ckpt") not in seen
    assert weights_digest(tmp_path / "second") != folders[0]
    assert weights_digest(data) == sha256_of(data)
    published = next(record for record in list_checkpoints() if record.sha256)
    assert weights_digest(published.name) == published.sha256
    model.save(tmp_path / "model.keras")
    assert weights_digest(keras.models.load_model(tmp_path / "model.keras")) == weights_digest(model)


def test_finished_parts_are_not_judged_again(model, examples, complete, tmp_path, monkeypatch):
    monkeypatch.setattr(classification, "PART", 25)
    done = []
    evaluate(model, examples, folder=tmp_path, progress=lambda *at: done.append(at))
    assert done == [(25, 60), (50, 60), (60, 60)]
    files = sorted(tmp_path.iterdir())
    assert len(files) == 3
    files[1].write_text("cut off")
    counted = []
    count = classification._count
    monkeypatch.setattr(classification, "_count", lambda *args: counted.append(args[2]) or count(*args))
    again = evaluate(model, examples, folder=tmp_path)
    assert counted == [range(25, 50)]
    assert again.counts.confusion == complete.counts.confusion
    evaluate(model, examples, folder=tmp_path, central_fraction=1.0)
    assert len(counted) == 4  # another preprocessing is another evaluation


def stored(tmp_path, name, labels):
    """A TFDS data set of noise in one channel."""
    images = np.random.default_rng(0).integers(0, 256, (len(labels), 16, 16, 1), np.uint8)
    return read_examples(store(tmp_path, name, labels, "test", images, "abcdefg"))


def test_tfds_is_read_once(model, tmp_path, monkeypatch):
    examples = stored(tmp_path / "tfds", "noise_in_parts", np.arange(30) % CLASSES)
    reference = evaluate(model, examples)
    monkeypatch.setattr(classification, "PART", 4)
    passes, dataset = [], TfdsExamples.dataset
    monkeypatch.setattr(TfdsExamples, "dataset", lambda self: passes.append(1) or dataset(self))
    for number in (1, 2):
        evaluate(model, examples, shard=(number, 2), folder=tmp_path / "parts").save(tmp_path / f"{number}.json")
        assert len(passes) == number
    assert merge([tmp_path / "1.json", tmp_path / "2.json"]).counts.confusion == reference.counts.confusion
    for name in ("part-1-of-2-00001.json", "part-1-of-2-00003.json"):  # the last one has three images
        (tmp_path / "parts" / name).unlink()
    again = evaluate(model, examples, shard=(1, 2), folder=tmp_path / "parts")
    assert again.counts.confusion == load_evaluation(tmp_path / "1.json").counts.confusion
    assert len(passes) == 3


def test_a_broken_picture_of_tfds_is_named_and_not_counted(model, tmp_path, monkeypatch):
    examples = stored(tmp_path / "tfds", "noise_with_a_hole", np.arange(8) % CLASSES)
    rows = [(image, label) for image, label in examples.dataset().as_numpy_iterator()]
    rows[4] = rows[4][0][:20], rows[4][1]
    dataset = tf.data.Dataset.from_tensor_slices(tuple(map(list, zip(*rows, strict=True))))
    monkeypatch.setattr(TfdsExamples, "dataset", lambda _: dataset)
    result = evaluate(model, examples)
    assert result.images == 7
    assert list(result.counts.broken) == [examples.name_of(4)]


def test_images_without_labels_are_refused(model, tmp_path):
    with pytest.raises(ValueError, match="Label -1 is out of range: there are 7 classes"):
        evaluate(model, stored(tmp_path, "noise_without_labels", [-1] * 4))


def test_a_model_that_takes_pixels_is_refused(examples):
    own = build_mobilenetv2(
        input_shape=(16, 16, 1), classes=CLASSES, table=((1, 8, 1, 1),), stem_channels=8, include_preprocessing=True
    )
    with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
        evaluate(own, examples)


def test_litert_and_keras_count_the_same(model, examples, complete, tmp_path):
    from mnv2_keras.export.litert import export_litert

    path = tmp_path / "small.tflite"
    export_litert(model, path, labels=list("abcdefg"), compare=False)
    result = evaluate(path, examples)
    assert result.about["engine"] == "litert"
    assert result.about["labels"] == list("abcdefg")
    assert result.about["sha256"]
    assert result.counts.confusion == complete.counts.confusion
    assert evaluate(model, examples, engine="litert").counts.confusion == complete.counts.confusion


def test_a_keras_file_with_labels_beside_it(model, examples, complete, tmp_path):
    model.save(tmp_path / "small.keras")
    (tmp_path / "labels.txt").write_text("\n".join("gfedcba"))
    result = evaluate(tmp_path / "small.keras", examples)
    assert result.about["labels"] == list("gfedcba")
    expected = {(CLASSES - 1 - true, predicted): n for (true, predicted), n in complete.counts.confusion.items()}
    assert result.counts.confusion == expected, "as many classes as outputs, and names go before the order all the same"


def test_broken_images_are_named_and_not_counted(model, tmp_path):
    paths = []
    for i in range(4):
        path = tmp_path / f"{i}.png"
        Image.new("L", (16, 16), 60 * i).save(path)
        paths.append(path)
    paths[2].write_bytes(b"nothing")
    result = evaluate(model, Examples(paths, np.arange(4, dtype=np.int32), tuple("abcdefg")))
    assert result.images == 3
    assert list(result.counts.broken) == [str(paths[2])]
    broken = {str(paths[2]): "met in training", "another.png": "too"}
    again = evaluate(model, Examples(paths, np.arange(4, dtype=np.int32), tuple("abcdefg"), broken))
    assert list(again.counts.broken) == [str(paths[2])], "named before, and not evaluated now either"
    with pytest.raises(ImageError, match=r"2\.png is not an image"):
        evaluate(model, Examples(paths, np.arange(4, dtype=np.int32), tuple("abcdefg"), on_error="raise"))
    for path in paths:
        path.write_bytes(b"nothing")
    with pytest.raises(ValueError, match="None of the images can be judged"):
        evaluate(model, Examples(paths, np.arange(4, dtype=np.int32), tuple("abcdefg")))


def test_label_maps():
    names = [f"class {i}" for i in range(1000)]
    assert output_of_label(names, imagenet_labels(1001)).tolist() == list(range(1, 1001))
    assert output_of_label(names, imagenet_labels(1000)).tolist() == list(range(1000))
    assert output_of_label(["background", *names], imagenet_labels(1000))[:3].tolist() == [-1, 0, 1]
    assert output_of_label(["Egyptian cat", "tench"], imagenet_labels(1001)).tolist() == [286, 1]
    assert output_of_label(imagenet_labels(1000), imagenet_labels(1001)).tolist() == list(range(1, 1001))
    assert output_of_label(imagenet_labels(1001), imagenet_labels(1000)).tolist() == list(range(-1, 1000))
    flowers = ["daisy", "dandelion", "rose", "tulip"]
    assert output_of_label(["daisy", "rose", "tulip"], flowers).tolist() == [0, 2, 3], "a class that is missing moves none"
    assert output_of_label(["cat", "dog"], ["dog", "cat"]).tolist() == [1, 0]
    assert output_of_label(["cat", "dog"], ["background", "dog", "cat"]).tolist() == [2, 1]
    assert output_of_label(["Katze", "Hund"], ["cat", "dog"]).tolist() == [0, 1]
    for names in (["Tulpe", "Rose", "Nelke"], ["daisy", "rose", "lily"]):
        with pytest.raises(ValueError, match="is none of the network's 4 labels"):
            output_of_label(names, flowers)
    with pytest.raises(ValueError, match="'crane' of the data is several"):
        output_of_label(["crane", "tench"], imagenet_labels(1001))
    with pytest.raises(ValueError, match="'unicorn' of the data is none"):
        output_of_label(["unicorn", "tench"], imagenet_labels(1001))


@pytest.mark.parametrize("text", ["3", "0/4", "5/4", "a/b", "1/", "-1/2"])
def test_shards_out_of_range(text):
    with pytest.raises(ValueError, match="expected NUMBER/COUNT"):
        parse_shard(text)
    assert parse_shard("3/16") == (3, 16)


def test_bad_engines_and_labels(model, examples, tmp_path):
    with pytest.raises(ValueError, match="engine is 'onnx'"):
        open_engine(model, "onnx")
    with pytest.raises(FileNotFoundError, match="no .tflite file"):
        open_engine(tmp_path / "none.tflite")
    with pytest.raises(ValueError, match="1 labels were given for"):
        evaluate(model, examples, labels=["a"])
    few = Examples(examples.images[:2], np.array([0, 1], np.int32), ("a", "b"))
    with pytest.raises(ValueError, match="7 outputs, the data 2 classes"):
        evaluate(model, few)
    features = build_mobilenetv2(input_shape=(16, 16, 1), include_top=False, table=((1, 8, 1, 1),))
    with pytest.raises(ValueError, match="expected a classifier"):
        open_engine(features)


def test_logits_become_probabilities():
    logits = np.array([[2.0, -1.0, 0.5]], np.float32)
    result = softmax(logits)
    assert result.sum() == pytest.approx(1)
    np.testing.assert_allclose(np.log(result) - np.log(result[0, 0]), logits - logits[0, 0], atol=1e-5)


@pytest.mark.parametrize("engine", ["keras", "litert"])
def test_a_network_of_logits_gives_the_probabilities_of_its_softmax(model, engine):
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
    bare = keras.Model(model.input, endpoints(model)["Logits"])
    np.testing.assert_allclose(open_engine(bare, engine)(images), model(images), atol=1e-5)


def test_an_int8_softmax_that_rounds_its_tail_away_stays_as_it_is(model, tmp_path):
    """1001 classes, nearly all of them below half a step of 1/256: the sum is far from 1, and these are no logits."""
    from mnv2_keras.export.litert import export_litert
    from mnv2_keras.export.options import Quantization

    options = {"input_shape": (16, 16, 1), "table": ((1, 8, 1, 1),), "stem_channels": 8, "last_channels": 16}
    wide = build_mobilenetv2(classes=1001, **options)
    for layer, source in zip(wide.layers, model.layers, strict=True):
        if layer.name != "Logits-Conv2d_1c_1x1":
            layer.set_weights(source.get_weights())
    bias = np.zeros(1001, np.float32)
    bias[7] = 6.0
    wide.get_layer("Logits-Conv2d_1c_1x1").bias.assign(bias)
    images = np.random.default_rng(0).uniform(-1, 1, (8, 16, 16, 1)).astype(np.float32)
    export_litert(wide, tmp_path / "wide.tflite", "int8", quantization=Quantization(images), compare=False)
    result = open_engine(tmp_path / "wide.tflite")(images)
    assert result.sum(1).min() < 0.9
    np.testing.assert_array_equal(result * 256, np.rint(result * 256))
    np.testing.assert_allclose(result, wide(images), atol=0.05)


def test_a_file_that_takes_other_values_gets_them(model, tmp_path):
    """As its metadata say: (pixel - mean) / std."""
    from mnv2_keras.export.litert import export_litert
    from mnv2_keras.export.metadata import classifier_metadata, image_input, model_metadata
    from mnv2_keras.tflite import add_metadata

    inputs = keras.Input((16, 16, 1))
    content = {}
    for name, (mean, std) in {"ours": (127.5, 127.5), "other": (0.0, 255.0)}.items():
        net = keras.Model(inputs, model(inputs * (std / 127.5) + (mean / 127.5 - 1)))
        about = classifier_metadata().about["subgraph_metadata"][0]["output_tensor_metadata"]
        export_litert(net, tmp_path / "net.tflite", compare=False, metadata=False)
        content[name] = tmp_path / f"{name}.tflite"
        metadata = model_metadata("net", "", [image_input(mean=mean, std=std)], about)
        content[name].write_bytes(add_metadata((tmp_path / "net.tflite").read_bytes(), metadata))
    images = np.random.default_rng(0).uniform(-1, 1, (3, 16, 16, 1)).astype(np.float32)
    np.testing.assert_allclose(open_engine(content["other"])(images), open_engine(content["ours"])(images), atol=1e-5)


def test_the_confusion_matrix_is_drawn(complete, tmp_path):
    with Image.open(complete.plot(tmp_path / "confusion.png")) as picture:
        assert min(picture.size) > 300
