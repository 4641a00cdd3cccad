"""Checkpoints in, checkpoints out: every layout, every refusal, and nothing half done."""

import io
import os
import signal
import subprocess
import sys
import tarfile
import textwrap

import keras
import numpy as np
import pytest
import tensorflow as tf

from mnv2_keras import Row, build_mobilenetv2, convert_checkpoint, load_checkpoint, save_checkpoint
from mnv2_keras.convert.assign import load_arrays
from mnv2_keras.convert.checkpoint import MAX_MEMBER_BYTES, open_checkpoint, write_checkpoint
from mnv2_keras.convert.goldens import name_rule_value, seeded_input
from mnv2_keras.convert.names import variables
from mnv2_keras.convert.recognition import recognise
from mnv2_keras.weights import save_model


def arrays_of(model):
    return {name: variable.numpy() for name, variable in variables(model).items()}


def small(**options):
    return build_mobilenetv2(**({"alpha": 0.1, "input_shape": (32, 32, 3), "classes": 4} | options))


@pytest.fixture(scope="module")
def network():
    """A small network with the goldens' weights, and its checkpoint's arrays."""
    model = small()
    load_arrays(model, {name: name_rule_value(name, variable.shape) for name, variable in variables(model).items()})
    return model, arrays_of(model)


@pytest.fixture
def prefix(network, tmp_path):
    return write_checkpoint(network[1], tmp_path / "mobilenet_v2_0.1_32.ckpt")


def archive_of(prefix, path, extra=()):
    with tarfile.open(path, "w:gz") as tar:
        for suffix in (".index", ".data-00000-of-00001"):
            tar.add(f"{prefix}{suffix}", f"./{prefix.name}{suffix}")
        for member, content in extra:
            tar.addfile(member, content)
    return path


def same_weights(a, b):
    return all(np.array_equal(x, y) for x, y in zip(a.get_weights(), b.get_weights(), strict=True))


def test_round_trip_is_exact(network, tmp_path):
    model, arrays = network
    prefix = save_checkpoint(model, tmp_path / "new" / "mobilenet_v2_0.1_32.ckpt")
    # TensorFlow's own reader finds TF-Slim's names, shapes and the same bits.
    reader = tf.train.load_checkpoint(str(prefix))
    assert reader.get_variable_to_shape_map() == {name: list(value.shape) for name, value in arrays.items()}
    for name, value in arrays.items():
        assert reader.get_tensor(name).tobytes() == value.tobytes()
    assert sorted(file.name for file in prefix.parent.iterdir()) == [
        f"{prefix.name}.data-00000-of-00001",
        f"{prefix.name}.index",
    ]
    converted = convert_checkpoint(prefix)
    assert same_weights(converted, model)
    assert converted.input_shape == model.input_shape
    assert converted.layers[-1].name == "Predictions"


def test_every_way_to_name_a_checkpoint(network, prefix, tmp_path):
    model, _ = network
    archive = archive_of(prefix, tmp_path / "mobilenet_v2_0.1_32.tgz")
    other = tmp_path / "other"
    other.mkdir()
    with tarfile.open(archive) as tar:
        tar.extractall(other, filter="data")
    for path in (prefix, str(prefix), f"{prefix}.index", f"{prefix}.data-00000-of-00001", archive, other):
        assert same_weights(convert_checkpoint(path), model), path


def test_official_archives(testdata):
    folder = testdata / "checkpoints"
    full = convert_checkpoint(folder / "mobilenet_v2_1.0_224.tgz")
    assert (full.input_shape, full.output_shape) == ((None, 224, 224, 3), (None, 1001))
    narrow = convert_checkpoint(folder / "mobilenet_v2_0.35_96.tgz")
    assert narrow.input_shape == (None, 96, 96, 3)
    for name, variable in variables(narrow).items():
        np.testing.assert_array_equal(variable, name_rule_value(name, variable.shape))
    old = convert_checkpoint(folder / "v1_format" / "mobilenet_v2_0.1_32.ckpt")
    assert (old.input_shape, old.output_shape) == ((None, 32, 32, 3), (None, 5))
    assert old.get_layer("Conv_1").filters == 128
    for name, variable in variables(old).items():
        np.testing.assert_array_equal(variable, name_rule_value(name, variable.shape))


def test_averages_or_raw(testdata):
    path = testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz"
    model = build_mobilenetv2()
    averaged = load_checkpoint(model, path)
    with open_checkpoint(path) as checkpoint:
        for name, source in averaged.taken.items():
            average = f"{name}/ExponentialMovingAverage"
            assert source == (average if average in checkpoint.shapes else name)
            np.testing.assert_array_equal(variables(model)[name], checkpoint.array(source))
        assert averaged.averaged == 158  # moving statistics have no average
        assert set(averaged.taken.values()) | set(averaged.left_out) == set(checkpoint.shapes)
    reasons = set(averaged.left_out.values())
    assert reasons == {"optimiser slots", "counters", "raw variables that have an average"}
    assert "158 averaged, 104 as they are" in averaged.report()
    raw = load_checkpoint(model, path, ema=False)
    assert raw.averaged == 0
    assert set(raw.left_out.values()) == {"optimiser slots", "counters", "moving averages"}
    assert raw.as_dict()["taken"] == raw.taken


def test_a_base_takes_a_full_checkpoint(network, prefix):
    _, arrays = network
    base = small(include_top=False)
    report = load_checkpoint(base, prefix)
    assert set(report.left_out) == {name for name in arrays if "/Logits/" in name}
    assert set(report.left_out.values()) == {"variables after the model's end"}
    stump = small(include_top=False, final_endpoint="layer_15/expansion_output")
    report = load_checkpoint(stump, prefix)
    assert "MobilenetV2/expanded_conv_13/depthwise/depthwise_weights" in report.left_out
    assert "MobilenetV2/expanded_conv_13/expand/weights" in report.taken


def test_background_is_dropped(testdata):
    path = testdata / "checkpoints" / "mobilenet_v2_0.35_96.tgz"
    full, dropped = convert_checkpoint(path), convert_checkpoint(path, classes=1000)
    images = seeded_input((1, 96, 96, 3))
    logits = [
        keras.Model(model.input, model.get_layer("Logits").output)(images, training=False) for model in (full, dropped)
    ]
    np.testing.assert_allclose(logits[1], logits[0][:, 1:], rtol=0, atol=1e-5)
    assert same_weights(build_mobilenetv2(0.35, (96, 96, 3), classes=1000, weights=path), dropped)
    model = build_mobilenetv2(0.35, (96, 96, 3), classes=1000)
    assert load_checkpoint(model, path).background_dropped


def test_a_new_head_is_announced(network, prefix, caplog):
    model, arrays = network
    fresh = convert_checkpoint(prefix, classes=7)
    assert "has 4 classes: its backbone is kept, the head of 7 classes is new" in caplog.text
    assert fresh.output_shape == (None, 7)
    for name, variable in variables(fresh).items():
        if "/Logits/" not in name:
            np.testing.assert_array_equal(variable, arrays[name])
    assert small(classes=9, weights=prefix).output_shape == (None, 9)


@pytest.mark.parametrize(
    "options",
    [
        {"alpha": 0.35},
        {"alpha": 0.56},
        {"alpha": 0.28},
        {"alpha": 1.37, "classes": 3},
        {"alpha": 0.5, "finegrain_classification_mode": False},
        {"alpha": 0.5, "divisible_by": 1, "min_depth": 1},
        {"alpha": 0.35, "min_depth": 16},
        {"alpha": 0.5, "split_expansion": 4, "split_projection": 4},
        {"alpha": 0.5, "normalization": "group_norm", "include_top": False},
        {"alpha": 0.35, "include_top": False},
        {"alpha": 0.35, "include_top": False, "final_endpoint": "layer_18"},
        {"alpha": 0.35, "include_top": False, "final_endpoint": "layer_8"},
        {"alpha": 0.35, "include_top": False, "final_endpoint": "layer_15/expansion_output"},
        {"alpha": 0.35, "include_top": False, "final_endpoint": "layer_4/depthwise_output"},
        {"alpha": 1.0, "divisible_by": 4, "min_depth": 3},
        {"alpha": 0.73, "divisible_by": 4, "min_depth": 3},
    ],
)
def test_options_are_read_from_the_shapes(options, tmp_path):
    model = build_mobilenetv2(input_shape=(32, 32, 4), **options)
    prefix = save_checkpoint(model, tmp_path / "network")
    converted = convert_checkpoint(prefix, input_shape=(32, 32, 4))
    assert same_weights(converted, model)
    images = seeded_input((1, 32, 32, 4))
    np.testing.assert_array_equal(converted(images), model(images))


def test_a_table_of_ones_own(tmp_path):
    table = [Row(1, 16, 1, 1), Row(6, 24, 2, 2), Row(6, 32, 3, 2), Row(6, 64, 4, 2)]
    options = {"table": table, "last_channels": 64, "input_shape": (28, 28, 1)}
    model = build_mobilenetv2(classes=10, **options)
    prefix = save_checkpoint(model, tmp_path / "digits")
    assert same_weights(convert_checkpoint(prefix, **options), model)
    # Strides are not in the shapes, so the table must be given; its widths are checked against the file's.
    with pytest.raises(ValueError, match="unknown to the model|another shape"):
        convert_checkpoint(prefix, **options | {"table": table[:3]})
    with pytest.raises(
        ValueError, match=r"does not tell their strides s: pass table=\[\(1, 16, 1, s\), \(6, 24, 1, s\)"
    ):
        convert_checkpoint(prefix, input_shape=(28, 28, 1))
    wider = build_mobilenetv2(classes=10, **options | {"table": [*table[:3], Row(6, 72, 4, 2)]})
    with pytest.raises(ValueError, match=r"of another shape than the model:\n .*expanded_conv_6/project"):
        load_checkpoint(wider, prefix)


def test_published_alphas_are_recognised():
    from mnv2_keras import make_plan
    from mnv2_keras.convert.names import classifier_shapes

    for alpha in (0.35, 0.5, 0.75, 1.0, 1.3, 1.4):
        found = recognise(classifier_shapes(make_plan(alpha), 1001))
        assert (found.alpha, found.classes, found.channels, found.has_last) == (alpha, 1001, 3, True)
    assert recognise({"conv/kernel": (3, 3, 3, 32)}) is None


def test_resolution_from_the_name_the_graph_or_the_caller(network, tmp_path):
    _, arrays = network
    prefix = write_checkpoint(arrays, tmp_path / "model.ckpt")
    with pytest.raises(
        ValueError, match=r"does not tell its resolution.*pass input_shape, such as input_shape=\(224, 224, 3\)"
    ):
        convert_checkpoint(prefix)
    assert convert_checkpoint(prefix, input_shape=(48, 40, 3)).input_shape == (None, 48, 40, 3)
    with tf.Graph().as_default() as graph:
        tf.compat.v1.placeholder(tf.float32, (1, 64, 96, 3), name="input")
        (tmp_path / "model_frozen.pb").write_bytes(graph.as_graph_def().SerializeToString())
    assert convert_checkpoint(prefix).input_shape == (None, 64, 96, 3)


def test_weights_argument(network, prefix, tmp_path):
    model, _ = network
    assert same_weights(small(weights=prefix), model)
    assert same_weights(small(weights=archive_of(prefix, tmp_path / "any.tgz")), model)
    with pytest.raises(ValueError, match="imagnet"):
        small(weights="imagnet")
    with pytest.raises(FileNotFoundError, match=r"nowhere/model\.ckpt does not exist"):
        small(weights="nowhere/model.ckpt")


# Bad input: one clear error each, and the model as it was.


def broken(arrays, **changes):
    return {name: value for name, value in (arrays | changes).items() if value is not None}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"MobilenetV2/Conv/weights": None}, r"1 missing from the file \(MobilenetV2/Conv/weights\), 0 unknown"),
        (
            {"MobilenetV2/expanded_conv_3/squeeze/weights": np.ones(3, "f4")},
            r"1 unknown to the model \(MobilenetV2/expanded_conv_3/sq",
        ),
        (
            {"MobilenetV2/Conv_1/BatchNorm/gamma": np.full(1280, np.nan, "f4")},
            "gamma holds 1280 values that are NaN or infinite",
        ),
        (
            {"MobilenetV2/Conv_1/BatchNorm/gamma": np.r_[np.inf, np.ones(1279)].astype("f4")},
            "gamma holds 1 values that are NaN",
        ),
        (
            {"MobilenetV2/Conv_1/BatchNorm/gamma": np.ones(1279, "f4")},
            "1 variables of another shape.*file \\(1279,\\), model \\(1280,\\)",
        ),
        ({"MobilenetV2/Conv_1/BatchNorm/gamma": np.ones(1280, "i4")}, "gamma holds int32, expected float32"),
        (
            {"MobilenetV2/Conv/weights/ExponentialMovingAverage": np.ones(3, "f4")},
            "ExponentialMovingAverage has shape \\(3,\\), its variable",
        ),
    ],
)
def test_a_transfer_is_whole_or_nothing(network, tmp_path, change, message):
    _, arrays = network
    prefix = write_checkpoint(broken(arrays, **change), tmp_path / "mobilenet_v2_0.1_32.ckpt")
    model = small()
    before = model.get_weights()
    with pytest.raises(ValueError, match=f"(?s){message}"):
        load_checkpoint(model, prefix)
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True))


def test_wrong_alpha_and_classes_and_channels(network, prefix, testdata):
    with pytest.raises(
        ValueError,
        match=r"holds alpha 1\.0 \(stem 32 .*\), the model was built with alpha 0\.75 \(stem 24 .*\): build with alpha=1\.0",
    ):
        build_mobilenetv2(0.75, weights=testdata / "checkpoints" / "mobilenet_v2_1.0_224.tgz")
    with pytest.raises(ValueError, match=r"holds 4 classes, the model was built with 5: build with classes=4"):
        load_checkpoint(small(classes=5), prefix)
    with pytest.raises(ValueError, match=r"takes images of 3 channels, the model was built for 1: .*\(H, W, 3\)"):
        load_checkpoint(small(input_shape=(32, 32, 1)), prefix)
    tap = small(alpha=0.75, include_top=False, final_endpoint="layer_15/expansion_output")
    with pytest.raises(
        ValueError, match=r"holds alpha 0\.1 .*, the model was built with alpha 0\.75 .*: build with alpha=0\.1"
    ):
        load_checkpoint(tap, prefix)
    with pytest.raises(ValueError, match="finegrain_classification_mode"):
        load_checkpoint(small(finegrain_classification_mode=False), prefix)
    with pytest.raises(ValueError, match="missing from the file"):
        load_checkpoint(small(normalization="group_norm", include_top=False), prefix)


def test_damaged_and_foreign_files(network, prefix, tmp_path):
    archive = archive_of(prefix, tmp_path / "mobilenet_v2_0.1_32.tgz")
    whole = archive.read_bytes()
    cases = {
        "half.tgz": whole[: len(whole) // 2],
        "stub.tgz": whole[:10],
        "empty.tgz": b"",
        "text.tgz": b"<html>404</html>" * 100,
        "text.ckpt": b"not a checkpoint" * 100,
        "empty.ckpt": b"",
    }
    for name, content in cases.items():
        path = tmp_path / "cases" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"is not a (whole .tgz or .tar.gz archive|TensorFlow checkpoint).*The file is damaged"
        ):
            convert_checkpoint(path)
    with pytest.raises(FileNotFoundError, match=r"does not exist"):
        convert_checkpoint(tmp_path / "none.tgz")
    with pytest.raises(ValueError, match="holds no checkpoint"):
        (tmp_path / "bare").mkdir()
        convert_checkpoint(tmp_path / "bare")
    write_checkpoint({"w": np.ones(2, "f4")}, tmp_path / "other" / "other.ckpt")
    with pytest.raises(ValueError, match="holds no MobileNetV2 of TF-Slim: 1 variables"):
        convert_checkpoint(tmp_path / "other")
    write_checkpoint({"w": np.ones(2, "f4")}, tmp_path / "other" / "second.ckpt")
    with pytest.raises(ValueError, match="holds 2 checkpoints"):
        convert_checkpoint(tmp_path / "other")


def test_missing_and_damaged_data_file(prefix):
    data = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        convert_checkpoint(prefix)
    data.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no complete data file beside it \(expected mobilenet_v2_0\.1_32\.ckpt\.data-00000"
    ):
        convert_checkpoint(prefix)


def member(name, size=0, kind=tarfile.REGTYPE, link=""):
    info = tarfile.TarInfo(name)
    info.size, info.type, info.linkname = size, kind, link
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (member("../evil.ckpt"), r"member '\.\./evil\.ckpt' points outside"),
        (member("a/../../evil"), "points outside"),
        (member("/tmp/evil"), "points outside"),
        (member("C:\\evil"), "points outside"),
        (member("link.index", kind=tarfile.SYMTYPE, link="/etc/passwd"), "is a link or a device"),
        (member("link.index", kind=tarfile.LNKTYPE, link="../x"), "is a link or a device"),
        (member("pipe", kind=tarfile.FIFOTYPE), "is a link or a device"),
        (member("mobilenet_v2_0.1_32.ckpt.index"), "two members are named"),
    ],
)
def test_hostile_archives(prefix, tmp_path, info, message):
    archive = archive_of(prefix, tmp_path / "a.tgz", [(info, io.BytesIO())])
    before = set(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=message):
        convert_checkpoint(archive)
    assert set(tmp_path.rglob("*")) == before


def test_gigabyte_member(prefix, tmp_path):
    class Zeros(io.RawIOBase):
        def read(self, n=-1):
            return bytes(n)

    archive = archive_of(prefix, tmp_path / "a.tgz", [(member("big", MAX_MEMBER_BYTES + 1), Zeros())])
    assert archive.stat().st_size < 2**22
    with pytest.raises(ValueError, match="member 'big' brings 512 MiB, expected at most 512 MiB a member"):
        convert_checkpoint(archive)


def child(code, **environment):
    """Run a snippet in a process of its own; its exit code and what it wrote to stderr."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        env=os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"} | environment,
        check=False,
    )
    return done.returncode, done.stderr


def test_full_disk_keeps_what_was_there(network, tmp_path):
    """RLIMIT_FSIZE stands for a full disk: the write fails half way, the earlier files stay."""
    model, _ = network
    before = save_checkpoint(model, tmp_path / "model.ckpt")
    saved = save_model(model, tmp_path / "model.keras")
    kept = {path: path.read_bytes() for path in tmp_path.iterdir()}
    code, stderr = child(
        f"""
        import resource, signal
        from mnv2_keras import build_mobilenetv2
        from mnv2_keras.weights import save_model
        model = build_mobilenetv2(0.1, (32, 32, 3), classes=4)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
        for path in ({str(before)!r}, {str(saved)!r}):
            try:
                save_model(model, path)
            except OSError as error:
                assert "model." in str(error), error
            else:
                raise SystemExit(path + " was written")
        """
    )
    assert code == 0, stderr
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == kept


def test_kill_in_the_middle_of_convert(network, prefix, tmp_path):
    """A killed conversion leaves no output; the next one succeeds."""
    output = tmp_path / "out" / "model.keras"
    code, stderr = child(
        f"""
        import os, signal, sys
        import keras
        real = keras.Model.save
        def killed(self, path, **options):
            real(self, path, **options)
            os.kill(os.getpid(), signal.SIGKILL)  # the draft is written, the rename has not come
        keras.Model.save = killed
        sys.argv = ["mnv2", "convert", {str(prefix)!r}, "-o", {str(output)!r}]
        from mnv2_keras.cli.main import main
        main()
        """
    )
    assert code == -signal.SIGKILL, stderr
    assert not output.exists()
    code, stderr = child(
        f"""
        import sys
        sys.argv = ["mnv2", "convert", {str(prefix)!r}, "-o", {str(output)!r}]
        from mnv2_keras.cli.main import main
        main()
        """
    )
    assert code == 0, stderr
    assert same_weights(keras.models.load_model(output), network[0])


def test_no_permission(network, prefix, tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    for parent in [tmp_path, *list(tmp_path.parents)[:-2]]:
        if parent.stat().st_uid == os.getuid():
            parent.chmod(parent.stat().st_mode | 0o055)
    code, stderr = child(
        f"""
        import os, sys
        from mnv2_keras import build_mobilenetv2, save_checkpoint
        model = build_mobilenetv2(0.1, (32, 32, 3), classes=4)
        if os.getuid() == 0:
            os.setuid(65534)
        try:
            save_checkpoint(model, {str(folder / "model.ckpt")!r})
        except OSError as error:
            assert "locked" in str(error), error
        else:
            raise SystemExit("written")
        """
    )
    assert code == 0, stderr
    assert not list(folder.iterdir())


def test_save_model_formats(network, tmp_path):
    model, _ = network
    for name in ("a.keras", "a.h5", "a.weights.h5", "a.ckpt", "plain"):
        path = save_model(model, tmp_path / "deep" / name)
        assert same_weights(small(weights=path), model), name
    with pytest.raises(ValueError, match=r"a\.txt: expected \.keras, \.h5, \.weights\.h5 or \.ckpt"):
        save_model(model, tmp_path / "a.txt")


def test_load_arrays_refuses_a_misfit(network):
    model, arrays = network
    with pytest.raises(ValueError, match="first MobilenetV2/Conv/weights: expected exactly its 262"):
        load_arrays(model, {name: value for name, value in arrays.items() if name != "MobilenetV2/Conv/weights"})


def test_names_that_are_none(network, prefix):
    model, _ = network
    for weights in ("", 5, None):
        with pytest.raises(ValueError, match=r"expected a path, or a name from list_checkpoints\(\)"):
            load_checkpoint(model, weights)
    with pytest.raises(ValueError, match="goes with build_mobilenetv2"):
        load_checkpoint(model, "imagenet")


def test_a_backbone_cut_on_request(network, prefix):
    model, arrays = network
    base = convert_checkpoint(prefix, final_endpoint="layer_7")
    assert base.output_shape == (None, 4, 4, 8)
    for name, variable in variables(base).items():
        np.testing.assert_array_equal(variable, arrays[name])
