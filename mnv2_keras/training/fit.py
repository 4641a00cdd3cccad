"""The training loop of all tasks: rounds of steps; each round is evaluated and stored, so that a run survives any kill."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np
from tensorflow.errors import AbortedError, CancelledError, DeadlineExceededError, OpError, UnavailableError

from mnv2_keras.training.distribution import check_same_start, place
from mnv2_keras.training.recipes import Schedule
from mnv2_keras.training.state import DivergedError, RunFolder, WorkerLostError
from mnv2_keras.training.step import TrainingStep

#: What TensorFlow raises in a worker when another one is gone.
_WORKER_ERRORS = UnavailableError, AbortedError, CancelledError, DeadlineExceededError


class Progress(NamedTuple):
    """Where a run is. In a run that is counted in steps, an epoch is a round between evaluations."""

    epoch: int  # from 1
    epochs: int
    step: int  # of the epoch, from 1
    steps: int  # of the epoch
    loss: float
    images_per_second: float
    seconds_left: float
    row: dict | None  # of the history, once the epoch is over
    done: int  # steps since the start of the run
    total: int  # steps of the run


def fit(
    step: TrainingStep,
    batches: Callable[[int], Iterable],
    schedule: Schedule,
    folder: RunFolder,
    evaluate: Callable[[], dict] | None = None,
    *,
    every: int = 500,
    save: Callable[[list[dict]], None] | None = None,
    progress: Callable[[Progress], None] | None = None,
) -> list[dict]:
    """Train in rounds; after each of them everything needed to resume is on the disk.

    Stopped at any moment and resumed on the same machine, a run ends with the same bits as one that was not.

    Args:
        step: what is done with a batch.
        batches: from the number of finished steps to this worker's parts of the batches (tuples) from there on.
        schedule: learning rates, and the number of steps.
        folder: of the run.
        evaluate: called after each round, while the model holds the weights to evaluate; what it returns is added to the row. A
            resumed run repeats an interrupted evaluation.
        every: steps of a round; the last round may be shorter. With a schedule in epochs a round is an epoch.
        save: called after each evaluation with all rows, by the first worker, while the model holds the weights to save.
        progress: called after each step, and with a row after each round.

    Returns:
        A row for each round: `epoch` (if the schedule is in epochs), `step` (since the start), `loss` and the other figures of
        the step (means over the round), `learning_rate`, `images_per_second`, `seconds` (of the round's steps), and what
        `evaluate` returns. The model holds the averaged weights, if the recipe has averages.

    Raises:
        ValueError: the folder's state is of another run; the batches end too early, or cannot be read; the workers do not start
            from the same step.
        DivergedError: the loss or a weight is NaN or infinite; the message says where. The rounds before are kept.
        WorkerLostError: another worker of this run does not answer.
        OSError: no room; what was saved before is still there.
    """
    return _Loop(step, schedule, folder, schedule.epoch or every, evaluate, save, progress).run(batches)


class _Loop:
    def __init__(self, step, schedule, folder, every, evaluate, save, progress):
        self.step, self.schedule, self.folder, self.every = step, schedule, folder, every
        self.evaluate, self.save, self.progress = evaluate, save, progress
        worker, self.workers = place(step.strategy)
        folder.writes = worker == 0

    def run(self, batches: Callable[[int], Iterable]) -> list[dict]:
        """As `fit`."""
        self.rows, evaluated = self.folder.restore(self.step.variables)
        done = self.rows[-1]["step"] if self.rows else 0
        if self.workers > 1:
            check_same_start(self.step.strategy, done, self.folder.path)
        self.folder.write_texts()
        if not evaluated:
            self._end_round(self.rows.pop())
        elif self.rows:  # after a kill between the writes of state and history
            self.folder.write_history(self.rows)
        iterator = iter(batches(done))
        while done < self.schedule.steps:
            last = min((done // self.every + 1) * self.every, self.schedule.steps)
            self._train(iterator, done, last)
            done = last
        self.step.averages.assign()
        return self.rows

    def _train(self, iterator: Iterator, first: int, last: int) -> None:
        """The steps of one round, and its end."""
        start, sums, images = time.monotonic(), 0.0, 0
        for number in range(first, last):
            rate = self.schedule.rate(number)
            self.step.optimizer.learning_rate = rate
            batch = self._next(iterator, number)
            values = self._step(batch, number)
            if not math.isfinite(values[0]):
                raise DivergedError(self._where(number, rate, batch))
            sums, images = sums + values.astype(np.float64), images + len(batch[0]) * self.workers
            seconds = max(time.monotonic() - start, 1e-9)
            speed = images / seconds
            left = (self.schedule.steps - number - 1) * seconds / (number + 1 - first)
            self._report(number + 1, float(values[0]), speed, left)
        epoch = {"epoch": last // self.schedule.epoch} if self.schedule.epoch else {}
        row = epoch | {"step": last, **self.step.means(sums, last - first), "learning_rate": rate}
        row |= {"images_per_second": round(speed, 1), "seconds": round(seconds, 2)}
        self._end_round(row, batch)
        self._report(last, row["loss"], speed, left, row)

    def _end_round(self, row: dict, batch: tuple = ()) -> None:
        """Evaluate, and write everything. The loss was that of the weights before the last step: all weights are checked."""
        arrays = {name: np.asarray(variable) for name, variable in self.step.variables.items()}
        with self.step.averages.applied():
            try:
                figures = self.evaluate() if self.evaluate else {}
            except BaseException as error:
                # The round is kept, and its evaluation is repeated; but not with unusable data or weights.
                if not isinstance(error, ValueError) and _all_finite(arrays.values()):
                    self.folder.save(arrays, [*self.rows, row], evaluated=False)
                raise
            losses = [value for name, value in figures.items() if name.endswith("loss")]
            if not _all_finite([*arrays.values(), *losses]):
                raise DivergedError(self._where(row["step"] - 1, row["learning_rate"], batch))
            row |= figures
            self.rows.append(row)
            if self.save and self.folder.writes:
                self.save(self.rows)
        self.folder.save(arrays, self.rows)
        self.folder.write_history(self.rows)

    def _next(self, iterator: Iterator, number: int) -> tuple:
        try:
            return next(iterator)
        except StopIteration:
            raise ValueError(
                f"The batches end after {number} steps, the recipe has {self.schedule.steps}: repeat them, of photos that can be "
                "read."
            ) from None
        except OpError as error:
            lines = [line for line in str(error).splitlines() if "Error: " in line]  # without TensorFlow's trace
            cause = lines[-1].partition("Error: ")[2] if lines else str(error).splitlines()[0]
            raise ValueError(cause + self._rest(" Correct it; --resume continues from there.")) from error

    def _step(self, batch: tuple, number: int) -> np.ndarray:
        try:
            return self.step(batch, number + 1).numpy()
        except _WORKER_ERRORS as error:
            if self.workers == 1:
                raise
            raise WorkerLostError(
                f"Another worker does not answer any more ({self._at(number)}): this one stops too. Start the same command with "
                f"--resume on all of them.{self._rest()}"
            ) from error

    def _report(self, done: int, loss: float, speed: float, left: float, row: dict | None = None) -> None:
        if self.progress:
            total, every, finished = self.schedule.steps, self.every, (done - 1) // self.every
            place = (finished + 1, math.ceil(total / every), done - finished * every, min(every, total - finished * every))
            self.progress(Progress(*place, loss, speed, left, row, done, total))

    def _at(self, number: int) -> str:
        """Where step `number` (the first is 0) is."""
        if self.schedule.epoch:
            return f"epoch {number // self.schedule.epoch + 1}, step {number % self.schedule.epoch + 1}"
        return f"step {number + 1}"

    def _rest(self, advice: str = "") -> str:
        """A sentence about what a run that stops here leaves."""
        if not (self.rows and self.folder.path):
            return ""
        epoch, step = self.rows[-1].get("epoch"), self.rows[-1]["step"]
        count = f"{epoch} epoch{'s are' if epoch > 1 else ' is'}" if epoch else f"The first {step} steps are"
        return f" {count} kept in {self.folder.path}.{advice}"

    def _where(self, number: int, rate: float, batch: tuple) -> str:
        """Where the loss or a weight became NaN or infinite, and what to do."""
        weight = next((v.path for v in self.step.model.variables if not _all_finite([v])), None)
        cause = f"the first such weight is {weight}" if weight else "all weights are still finite"
        if batch and not _all_finite(batch[:1]):
            cause = "the images hold NaN"
        return (
            f"The loss, or a weight, is NaN or infinite at {self._at(number)}, learning rate {rate:.3g}; {cause}. Lower the "
            f"learning rate (--learning-rate) or check the data.{self._rest()}"
        )


def _all_finite(arrays: Iterable) -> bool:
    return all(np.isfinite(np.asarray(array)).all() for array in arrays)
