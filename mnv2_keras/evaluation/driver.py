"""The one loop under the evaluation of all three tasks; each task brings its batches, its network and its metrics."""

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar


class Metrics(Protocol):
    """What a task counts: `Counts`, `CocoMetrics` or `ConfusionMatrix`."""

    def update(self, truth, predicted) -> None:
        """Count a batch."""


M = TypeVar("M", bound=Metrics)


def accumulate(
    metrics: M, batches: Iterable[tuple], predict: Callable, progress: Callable[[int], None] | None = None
) -> M:
    """Run a network over batches of (inputs, truth, number of images so far), and count its answers."""
    for inputs, truth, done in batches:
        metrics.update(truth, predict(inputs))
        if progress:
            progress(done)
    return metrics
