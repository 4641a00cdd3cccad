"""The paper's three tasks: what differs between classifier, detector and segmenter, behind one protocol."""

from collections.abc import Mapping

from mnv2_keras.tasks.classification import Classification
from mnv2_keras.tasks.detection import Detection
from mnv2_keras.tasks.protocol import Task
from mnv2_keras.tasks.segmentation import Segmentation

CLASSIFICATION, DETECTION, SEGMENTATION = Classification(), Detection(), Segmentation()
#: The first that holds the variables, or a model, is taken; the classifier holds everything that no other task does.
TASKS: tuple[Task, ...] = (SEGMENTATION, DETECTION, CLASSIFICATION)


def task_of(shapes: Mapping[str, tuple[int, ...]]) -> Task:
    """The task of a network, by the names and shapes of its variables."""
    return next(task for task in TASKS if task.holds(shapes))


def task_of_model(model) -> Task:
    """The task of a Keras model, by its outputs: two named ones, a map as large as the image, or anything else."""
    return next(task for task in TASKS if task.holds_model(model))
