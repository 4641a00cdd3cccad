"""DeepLab's recipe against the genuine loss and schedule; data and models that do not fit."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf
from training_tasks import short_plans, small_segmenter

from mnv2_keras import build_deeplabv3_mobilenetv2
from mnv2_keras.convert.goldens import name_rule_value
from mnv2_keras.convert.names import variables
from mnv2_keras.data.drawn_shapes import DrawnShapes
from mnv2_keras.data.segmentation import photos_and_masks, segmentation_batches
from mnv2_keras.masks import save_mask
from mnv2_keras.training.segmentation import SegmentationLoss, SegmentationRecipe, set_batch_norms, train_segmenter
from mnv2_keras.training.step import make_optimizer

TINY = SegmentationRecipe(steps=2, batch=2, crop=(33, 33), learning_rate=0.01, scales=(0.75, 1.5))


# The recipe


def test_loss_and_weight_decay_equal_the_published_programs(testdata):
    golden = np.load(testdata / "golden" / "segmentation" / "deeplab_extra_golden.npz")
    labels = np.random.Generator(np.random.PCG64(3)).integers(0, 21, (1, 513, 513, 1))
    labels[np.random.Generator(np.random.PCG64(4)).uniform(size=labels.shape) < 0.1] = 255
    np.testing.assert_array_equal(labels[:, ::64, ::64], golden["loss_os16/labels_every64"])
    assert np.sum(labels == 255) == golden["loss_os16/ignored"]
    model = build_deeplabv3_mobilenetv2(weight_decay=4e-5, include_preprocessing=True)
    for name, variable in variables(model).items():
        variable.assign(name_rule_value(name, variable.shape))
    image = np.random.Generator(np.random.PCG64(0)).uniform(0, 255, (1, 513, 513, 3)).astype(np.float32)
    loss = SegmentationLoss()(labels[..., 0], model(image))
    assert float(loss) == pytest.approx(float(golden["loss_os16/softmax_ce"]), rel=1e-4)
    assert float(sum(model.losses)) == pytest.approx(float(golden["loss_os16/l2_total_weight_decay_4e-5"]), rel=1e-4)


def test_loss_of_ignored_pixels():
    logits = np.random.default_rng(0).normal(size=(2, 5, 4, 3)).astype(np.float32)
    labels = np.random.default_rng(1).integers(0, 3, (2, 5, 4))
    labels[0, :2] = 255
    log_probability = np.log(keras.ops.softmax(logits).numpy())
    judged = labels != 255
    expected = -np.mean(np.take_along_axis(log_probability, np.where(judged, labels, 0)[..., None], -1)[..., 0][judged])
    assert float(SegmentationLoss()(labels, logits)) == pytest.approx(float(expected), rel=1e-5)
    assert float(SegmentationLoss()(np.full((1, 2, 2), 255), np.ones((1, 2, 2, 3), np.float32))) == 0
    again = keras.losses.deserialize(keras.losses.serialize(SegmentationLoss(ignored=7)))
    assert again.ignored == 7


def test_schedule_and_batch_norms():
    recipe = SegmentationRecipe(steps=100, learning_rate=0.007, fine_tune_batch_norm=False, batch_norm_momentum=0.5)
    model = small_segmenter()
    set_batch_norms(model, recipe)
    rate = recipe.learning_rates().rate
    for step in (0, 1, 50, 99, 100, 200):
        assert float(rate(step)) == pytest.approx(0.007 * (1 - min(step, 100) / 100) ** 0.9, abs=1e-9)
    assert make_optimizer(recipe).momentum == 0.9
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    assert len(norms) == 16
    assert all(not layer.trainable and layer.momentum == 0.5 for layer in norms)


@pytest.mark.parametrize(
    "change", [{"steps": 0}, {"batch": 0}, {"crop": (33,)}, {"learning_rate": 0}, {"scales": ()}, {"scales": (0,)}, {"flip": 2}]
)
def test_a_wrong_value_in_a_recipe_is_named(change):
    with pytest.raises(ValueError, match=f"^{next(iter(change))} is"):
        dataclasses.replace(TINY, **change)


# Training


def test_all_steps_are_trained(shapes_folder):
    model = small_segmenter()
    pairs = photos_and_masks(shapes_folder / "photos", shapes_folder / "masks", 4)
    seen = []
    recipe = dataclasses.replace(TINY, steps=5, batch=1, weight_decay=0.0)
    rows = train_segmenter(model, pairs, recipe, every=2, progress=seen.append)
    assert [row["step"] for row in rows] == [2, 4, 5]
    assert [at.row for at in seen] == [None, None, rows[0], None, None, rows[1], None, rows[2]]
    assert [at.done for at in seen if not at.row] == [1, 2, 3, 4, 5]
    losses = [at.loss for at in seen if not at.row]
    assert [row["loss"] for row in rows] == pytest.approx([sum(losses[:2]) / 2, sum(losses[2:4]) / 2, losses[4]])


def test_a_step_equals_the_published_programs():
    """Loss with weight decay, for a model built without any; momentum; twice the gradient for biases."""
    model = small_segmenter(weight_decay=0.0, dropout_rate=0.0)
    before = {variable.path: variable.numpy() for variable in model.trainable_variables}
    recipe = dataclasses.replace(TINY, steps=1, weight_decay=4e-3, fine_tune_batch_norm=False)
    ((images, masks),) = segmentation_batches(DrawnShapes(3, 33), 2, (33, 33), recipe.scales, recipe.flip, 0).take(1)
    for layer in model.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    with tf.GradientTape() as tape:
        loss = SegmentationLoss()(masks, model(images, training=True))
        kernels = [layer.kernel for layer in model.layers if isinstance(layer, keras.layers.Conv2D)]
        kernels = [kernel for kernel in kernels if "depthwise" not in kernel.path]
        assert len(kernels) == 12
        loss += 4e-3 * sum(tf.reduce_sum(kernel**2) / 2 for kernel in kernels)
    gradients = tape.gradient(loss, model.trainable_variables)
    expected = {v.path: before[v.path] - 0.01 * gradient for v, gradient in zip(model.trainable_variables, gradients, strict=True)}
    (bias,) = [path for path in expected if path.endswith("bias")]
    expected[bias] -= 0.01 * gradients[[v.path for v in model.trainable_variables].index(bias)]
    (row,) = train_segmenter(model, DrawnShapes(3, 33), recipe)
    assert row["loss"] == pytest.approx(float(loss), rel=1e-5)
    for variable in model.trainable_variables:
        np.testing.assert_allclose(variable.numpy(), expected[variable.path], atol=1e-6)


def test_frozen_batch_norms_stay_as_they_are(shapes_folder):
    model = small_segmenter()
    norms = [layer for layer in model.layers if isinstance(layer, keras.layers.BatchNormalization)]
    before = [norm.get_weights() for norm in norms]
    recipe = dataclasses.replace(TINY, fine_tune_batch_norm=False, batch_norm_momentum=0.5)
    train_segmenter(model, photos_and_masks(shapes_folder / "photos", shapes_folder / "masks", 4), recipe)
    for norm, values in zip(norms, before, strict=True):
        assert len(values) == 4  # gamma, beta, mean, variance
        for array, other in zip(norm.get_weights(), values, strict=True):
            np.testing.assert_array_equal(array, other)


def test_a_model_that_takes_pixels_is_not_trained():
    model = small_segmenter(include_preprocessing=True)
    with pytest.raises(ValueError, match="include_preprocessing=True and takes 0 to 255"):
        train_segmenter(model, DrawnShapes(3, 33), TINY)


def test_training_learns_and_refuses_what_does_not_fit(shapes_folder):
    model = small_segmenter()
    before = [weight.numpy() for weight in model.weights]
    pairs = photos_and_masks(shapes_folder / "photos", shapes_folder / "masks", 4)
    learned = dataclasses.replace(TINY, steps=24, batch=3, learning_rate=0.05, scales=(1.0,), flip=0.0)
    rows = train_segmenter(model, pairs, learned, every=8, folder=shapes_folder / "run")
    assert rows[2]["loss"] < 0.8 * rows[0]["loss"]
    changed = [not np.array_equal(a, b.numpy()) for a, b in zip(before, model.weights, strict=True)]
    assert np.mean(changed) > 0.95
    other = small_segmenter(plan=short_plans(output_stride=8)[1])
    with pytest.raises(ValueError, match="of a run with other network"):
        train_segmenter(other, pairs, learned, folder=shapes_folder / "run", resume=True)
    save_mask(np.zeros((40, 39)), shapes_folder / "masks" / "1.png")
    with pytest.raises(ValueError, match=r"1\.png is 40 x 40, its mask"):
        train_segmenter(model, photos_and_masks(shapes_folder / "photos", shapes_folder / "masks", 4), TINY)
    with pytest.raises(ValueError, match="the recipe crops to 65 x 65"):
        train_segmenter(model, pairs, dataclasses.replace(TINY, crop=(65, 65)))
    with pytest.raises(ValueError, match="the masks have 5 classes, the model 4"):
        train_segmenter(model, dataclasses.replace(pairs, classes=5), TINY)


def test_the_folder_is_accepted_under_its_old_name(tmp_path, shapes_folder):
    """`state=` was a file; the run's folder stands beside it, and a state of that release is refused."""
    model, shapes = small_segmenter(), DrawnShapes(3, 33)
    with pytest.warns(DeprecationWarning, match="the argument state of train_segmenter is called folder"):
        train_segmenter(model, shapes, TINY, state=tmp_path / "voc.keras.state.npz")
    assert (tmp_path / "voc" / "state.npz").is_file()
    np.savez(tmp_path / "old.keras.state.npz", about=np.array("{}"), a0=np.zeros(2))
    with pytest.warns(DeprecationWarning, match="state"), pytest.raises(ValueError, match="written by an earlier release"):
        train_segmenter(model, shapes, TINY, state=tmp_path / "old.keras.state.npz", resume=True)


def test_a_mask_that_cannot_be_read_stops_with_its_name_and_what_is_kept(tmp_path, shapes_folder):
    pairs = photos_and_masks(shapes_folder / "photos", shapes_folder / "masks", 4)

    def progress(at):
        if at.row:
            for path in (shapes_folder / "masks").iterdir():
                save_mask(np.full((40, 40), 9), path)

    recipe = dataclasses.replace(TINY, steps=40, batch=1)
    with pytest.raises(ValueError, match=r"png.* The first \d steps are kept in .* --resume continues from there"):
        train_segmenter(small_segmenter(), pairs, recipe, every=2, folder=tmp_path / "run", progress=progress)
