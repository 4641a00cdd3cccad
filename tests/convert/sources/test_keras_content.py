"""Keras files are checked before Keras opens them: no layer asks for more than the file holds, nothing comes from elsewhere."""

import random
import zipfile

import h5py
import keras
import numpy as np
import pytest

from mnv2_keras import build_mobilenetv2, open_model
from mnv2_keras.convert.sources.keras_content import check_content


@pytest.fixture(scope="module")
def model():
    keras.utils.set_random_seed(0)
    image = keras.Input((8,))
    return keras.Model(image, keras.layers.Dense(10, name="dense")(image))


def rewritten(model, path, change):
    """The model as a .keras file whose members are changed by a function of (name, content)."""
    model.save(path.with_name("sound.keras"))
    with zipfile.ZipFile(path.with_name("sound.keras")) as sound, zipfile.ZipFile(path, "w") as out:
        for name in sound.namelist():
            out.writestr(name, change(name, sound.read(name)))
    return path


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_networks_of_this_package_pass(suffix, tmp_path):
    network = build_mobilenetv2(0.35, (32, 32, 3), classes=1001)
    network.save(tmp_path / f"network{suffix}")
    check_content(tmp_path / f"network{suffix}")
    network.save_weights(tmp_path / "network.weights.h5")
    check_content(tmp_path / "network.weights.h5")


@pytest.mark.parametrize("suffix", [".keras", ".h5"])
def test_a_network_that_flattens_its_maps_passes(suffix, tmp_path):
    """Its size cannot be told from the configuration: a subprocess loads it first."""
    image = keras.Input((16, 16, 3))
    flat = keras.Model(image, keras.layers.Dense(50)(keras.layers.Flatten()(image)))
    flat.save(tmp_path / f"flat{suffix}")
    loaded, _ = open_model(tmp_path / f"flat{suffix}")
    for ours, saved in zip(loaded.weights, flat.weights, strict=True):
        np.testing.assert_array_equal(ours, saved)


def test_a_layer_of_gigabytes_is_refused_before_it_is_built(model, tmp_path):
    old, new = b'"units": 10', b'"units": 4000000000'
    path = rewritten(model, tmp_path / "bomb.keras", lambda name, content: content.replace(old, new))
    with pytest.raises(ValueError, match=r"bomb\.keras.*its layers ask for more than 1\.0 GiB, which its weights do not have"):
        open_model(path)


@pytest.mark.slow  # TensorFlow waits 10 s before it gives up
def test_variables_of_a_refused_file_are_not_created_later(model, tmp_path):
    """Keras creates what an earlier scope left without values, at the end of the next scope."""
    old, new = b'"units": 10', b'"units": 4000000000000'
    path = rewritten(model, tmp_path / "bomb.keras", lambda name, content: content.replace(old, new))
    with pytest.raises(ValueError, match="its layers ask for"):
        open_model(path)
    with keras.StatelessScope():
        pass


@pytest.mark.slow  # TensorFlow waits 10 s before it gives up
def test_a_layer_of_gigabytes_in_an_h5_file_is_refused(model, tmp_path):
    model.save(tmp_path / "bomb.h5")
    with h5py.File(tmp_path / "bomb.h5", "r+") as file:
        config = file.attrs["model_config"].replace('"units": 10', '"units": 4000000000')
        file.attrs["model_config"] = config
    with pytest.raises(ValueError, match="its layers ask for"):
        open_model(tmp_path / "bomb.h5")


def test_weights_that_are_not_in_the_file_are_refused(model, tmp_path):
    for i, add in enumerate(
        (
            lambda file: file.create_dataset("huge", (2**33,), "f4", chunks=(1024,)),
            lambda file: file.create_dataset("other", (4,), "f4", external=[("/etc/hostname", 0, 16)]),
            lambda file: file.__setitem__("link", h5py.ExternalLink("/other.h5", "x")),
        )
    ):
        path = tmp_path / f"{i}.weights.h5"
        model.save_weights(path)
        with h5py.File(path, "r+") as file:
            add(file)
        with pytest.raises(ValueError, match="its weights state|lies in another file|points to another place"):
            check_content(path)


def test_a_member_of_gigabytes_is_refused(model, tmp_path):
    path = tmp_path / "bomb.keras"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr("config.json", b" " * (2**24 + 1))
        out.writestr("model.weights.h5", b"")
    with pytest.raises(ValueError, match=r"config\.json has 16,777,217 bytes"):
        open_model(path)


def test_code_in_a_file_does_not_run(tmp_path):
    image = keras.Input((8,))
    keras.Model(image, keras.layers.Lambda(lambda x: x * 2, output_shape=(8,))(image)).save(tmp_path / "code.keras")
    with pytest.raises(ValueError, match="not a Keras model file that can be read"):
        open_model(tmp_path / "code.keras")


def test_any_mutated_file_is_loaded_or_refused(model, tmp_path):
    model.save(tmp_path / "sound.keras")
    content = (tmp_path / "sound.keras").read_bytes()
    draw = random.Random(0)
    for _ in range(60):
        mutated = bytearray(content)
        for _ in range(draw.choice([1, 1, 2, 8])):
            mutated[draw.randrange(len(mutated))] = draw.randrange(256)
        (tmp_path / "mutated.keras").write_bytes(mutated)
        try:
            loaded, _ = open_model(tmp_path / "mutated.keras")
        except ValueError:
            continue
        assert np.shape(loaded.weights[0]) == (8, 10)
