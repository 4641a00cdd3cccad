"""Checkpoints that are refused, and writing that is cut short: one clear error each, and the model as it was."""

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
from small_checkpoints import archive_of, same_weights, small

from mnv2_keras import build_mobilenetv2, convert_checkpoint, load_checkpoint, save_checkpoint
from mnv2_keras.convert.archives import MAX_MEMBER_BYTES
from mnv2_keras.convert.sources.tf_slim import write_checkpoint
from mnv2_keras.convert.tensor_bundle import TABLE_MAGIC
from mnv2_keras.weights import save_model


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
        ({"MobilenetV2/Conv_1/BatchNorm/gamma": np.full(1280, np.nan, "f4")}, "gamma holds 1280 values that are NaN or infinite"),
        ({"MobilenetV2/Conv_1/BatchNorm/gamma": np.r_[np.inf, np.ones(1279)].astype("f4")}, "gamma holds 1 values that are NaN"),
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
    with pytest.raises(ValueError, match=r"holds alpha 0\.1 .*, the model was built with alpha 0\.75 .*: build with alpha=0\.1"):
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
        "table.ckpt": b"not a checkpoint" * 100 + TABLE_MAGIC,
        "empty.ckpt": b"",
    }
    for name, content in cases.items():
        path = tmp_path / "cases" / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(content)
        with pytest.raises(
            ValueError, match=r"is not a (complete .tgz or .tar.gz archive|TensorFlow checkpoint).*The file is damaged"
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


@pytest.mark.parametrize(
    ("name", "content", "kind"),
    [
        ("model.pth", b"PK\x03\x04" + bytes(100), "a PyTorch file or another zip archive"),
        ("model.pt", b"\x80\x02" + bytes(100), "a Python pickle, such as an old PyTorch file"),
        ("model.onnx", b"\x08\x07" + bytes(100), "an ONNX model"),
        ("model.ckpt", b"not a checkpoint" * 10, "not a file of weights"),
        ("model.ckpt", b"<!DOCTYPE html>" * 10, "a web page or XML"),
    ],
)
def test_a_file_of_another_kind_is_named(name, content, kind, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is {kind}.*: expected an archive"):
        convert_checkpoint(tmp_path / name)


def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.ckpt")
    with pytest.raises(ValueError, match=r"pipe\.ckpt is not a regular file"):
        convert_checkpoint(tmp_path / "pipe.ckpt")


def test_the_newest_checkpoint_of_a_training_folder_is_taken(network, tmp_path):
    for step in (5, 10):
        arrays = {name: array * step if name.endswith("biases") else array for name, array in network[1].items()}
        write_checkpoint(arrays, tmp_path / f"mobilenet_v2_0.1_32.ckpt-{step}")
    (tmp_path / "checkpoint").write_text(
        'model_checkpoint_path: "/other/mobilenet_v2_0.1_32.ckpt-10"\nall_model_checkpoint_paths: "x"\n'
    )
    bias = next(array for name, array in network[1].items() if name.endswith("biases"))
    for path in (tmp_path, tmp_path / "checkpoint"):
        model = convert_checkpoint(path, input_shape=(32, 32, 3))
        np.testing.assert_array_equal(model.get_layer("Logits-Conv2d_1c_1x1").bias, bias * 10)


@pytest.mark.parametrize("name", ["MobilenetV2/expanded_conv_3/attention/weights", "MobilenetV2/attention/weights", "head/weights"])
def test_a_foreign_variable_is_named_wherever_it_stands(name, network, tmp_path):
    write_checkpoint(network[1] | {name: np.ones((1, 1, 2, 2), "f4")}, tmp_path / "mobilenet_v2_0.1_32.ckpt")
    for convert in (
        convert_checkpoint,
        lambda path: build_mobilenetv2(0.1, (32, 32, 3), classes=None, include_top=False, weights=path),
    ):
        with pytest.raises(ValueError, match=rf"1 unknown to the model \({name}\)"):
            convert(tmp_path / "mobilenet_v2_0.1_32.ckpt")


def test_a_network_of_another_kind_is_not_saved_under_names_of_tf_slim(tmp_path):
    image = keras.Input((8, 8, 3))
    model = keras.Model(image, keras.layers.Conv2D(4, 3, name="conv1")(image))
    with pytest.raises(ValueError, match=r"TF-Slim has no variables MobilenetV2/conv1/weights, MobilenetV2/conv1/biases \(2 of 2"):
        save_checkpoint(model, tmp_path / "model.ckpt")
    assert not list(tmp_path.iterdir())


def test_missing_and_damaged_data_file(prefix):
    data = prefix.with_name(f"{prefix.name}.data-00000-of-00001")
    content = bytearray(data.read_bytes())
    content[len(content) // 2] ^= 0xFF
    data.write_bytes(content)
    with pytest.raises(ValueError, match="cannot be read"):
        convert_checkpoint(prefix)
    data.unlink()
    with pytest.raises(
        FileNotFoundError, match=r"no complete data file next to it \(expected mobilenet_v2_0\.1_32\.ckpt\.data-00000"
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
