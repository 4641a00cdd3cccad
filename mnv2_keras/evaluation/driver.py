"""The one loop under the evaluation of all three tasks; each task brings its batches, its network and its metrics."""

from collections.abc import Callable, Iterable


def accumulate(metrics, batches: Iterable[tuple], predict: Callable, progress: Callable[[int], None] | None = None):
    """Run a network over batches of (inputs, truth, number of images so far), and count its answers.

    `metrics` is what the task counts, with `update(truth, predicted)`: `Counts`, `CocoMetrics` or `ConfusionMatrix`.
    """
    for inputs, truth, done in batches:
        metrics.update(truth, predict(inputs))
        if progress:
            progress(done)
    return metrics
