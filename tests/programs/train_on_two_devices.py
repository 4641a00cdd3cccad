"""Train tasks on two halves of the processor, and on all of it: `train_on_two_devices.py FOLDER TASK...`."""

import sys

import numpy as np
import pytest
import tensorflow as tf

halves = [tf.config.LogicalDeviceConfiguration()] * 2
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], halves)

from training_tasks import train_task  # noqa: E402

folder, *tasks = sys.argv[1:]
strategy = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
for task in tasks:
    with pytest.raises(ValueError, match="A batch of 7 cannot be shared by 2 devices"):
        train_task(task, f"{folder}/{task}", strategy=strategy, settings={"batch": 7})
    # Statistics of a batch norm are of a device's own part of the batch: they are frozen, and dropout is off.
    weights = [
        train_task(task, f"{folder}/{task}-{kind}", strategy=strategy if kind else None, freeze=True).model.get_weights()
        for kind in ("", "two")
    ]
    for one, two in zip(*weights, strict=True):
        np.testing.assert_allclose(two, one, rtol=0, atol=1e-5)
