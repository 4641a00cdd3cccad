"""The trained archives on real photos: logits, and labels at an output stride that they were not exported with."""

import keras
import numpy as np
import pytest
from deeplab_variants import ARCHIVES

from mnv2_keras import Segmenter, convert_checkpoint, endpoints, read_image
from mnv2_keras.masks import pad_photo


@pytest.fixture(scope="module")
def golden(testdata):
    with np.load(testdata / "golden" / "segmentation" / "deeplab_real.npz") as file:
        return dict(file)


@pytest.mark.parametrize("variant", ARCHIVES)
def test_logits_are_the_genuine_programs(variant, golden, testdata):
    model = convert_checkpoint(testdata / "checkpoints" / f"{ARCHIVES[variant]}.tar.gz")
    logits = keras.Model(model.input, endpoints(model)["logits/semantic"])
    photo = "bird_segmentation.bmp"
    found = logits(pad_photo(read_image(testdata / "images" / photo), (513, 513))[None])[0]
    np.testing.assert_allclose(found, golden[f"{variant}/{photo}|logits"], rtol=0, atol=2e-3)


@pytest.mark.parametrize(("variant", "archive"), [("os8", "os16"), ("dm05_os8", "dm05")])
def test_labels_at_stride_8_are_the_genuine_programs(variant, archive, golden, testdata):
    path = testdata / "checkpoints" / f"{ARCHIVES[archive]}.tar.gz"
    segmenter = Segmenter(convert_checkpoint(path, output_stride=8))
    names = [name for name in golden if name.startswith(f"{variant}/")]
    assert len(names) == 2
    for name in names:
        photo = name.split("/")[1].removesuffix("|labels")
        found = segmenter.segment(testdata / "images" / photo).labels
        assert np.mean(found == golden[name]) >= 0.999, photo
