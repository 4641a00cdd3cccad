"""Several devices, or several machines: which strategy this process takes part in.

Every machine runs the same command. `TF_CONFIG` says who they are, as TensorFlow and Kubernetes operators set it; under SLURM
it is made of the job's variables. Without either, all GPUs of this machine are used, or its CPU.
"""

import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping

#: Default of `MNV2_PORT`: where SLURM's tasks meet.
PORT = 12_345


def cluster(environment: Mapping[str, str]) -> dict | None:
    """The `TF_CONFIG` of this process, given `os.environ`; None for a single process.

    Raises:
        ValueError: `TF_CONFIG` is not JSON of the expected form, or SLURM's lists of nodes or of their tasks cannot be read.
    """
    if text := environment.get("TF_CONFIG"):
        try:
            config = json.loads(text)
            workers, task = config["cluster"]["worker"], config["task"]
            listed = isinstance(workers, list)  # a string has a length too
            if not listed or task["type"] != "worker" or not 0 <= int(task["index"]) < len(workers):
                raise ValueError(f"task {task}, workers {workers}")
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(
                f"TF_CONFIG cannot be used ({error!r}): expected "
                '{"cluster": {"worker": ["HOST:PORT", ...]}, "task": {"type": "worker", "index": 0}}.'
            ) from error
        return config if len(workers) > 1 else None
    tasks = int(environment.get("SLURM_NTASKS", "1"))
    if tasks < 2 or "SLURM_PROCID" not in environment:
        return None
    hosts = expand_nodes(environment["SLURM_JOB_NODELIST"])
    counts = tasks_per_node(environment.get("SLURM_TASKS_PER_NODE"), tasks, len(hosts))
    port = int(environment.get("MNV2_PORT", PORT))
    workers = [f"{host}:{port + i}" for host, count in zip(hosts, counts, strict=True) for i in range(count)]
    return {"cluster": {"worker": workers}, "task": {"type": "worker", "index": int(environment["SLURM_PROCID"])}}


def tasks_per_node(text: str | None, tasks: int, nodes: int) -> list[int]:
    """SLURM's tasks of each node: `2,1(x2)` to 2, 1, 1; a ValueError names a list of other tasks or nodes.

    Without the list, SLURM's block layout, which fills the first nodes first.
    """
    if not text:
        share, rest = divmod(tasks, nodes)
        return [share + (i < rest) for i in range(nodes)]
    matches = [re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", item) for item in text.split(",")]
    counts = [int(match[1]) for match in matches if match for _ in range(int(match[2] or 1))]
    if not all(matches) or (sum(counts), len(counts)) != (tasks, nodes):
        raise ValueError(
            f"SLURM_TASKS_PER_NODE is {text!r}: expected such as 2,1(x2), for {tasks} tasks (SLURM_NTASKS) on {nodes} nodes "
            "(SLURM_JOB_NODELIST). Start all tasks of the job with one srun."
        )
    return counts


def expand_nodes(text: str) -> list[str]:
    """SLURM's short list of nodes: `gpu[01-03,7],login` to gpu01, gpu02, gpu03, gpu7, login; a ValueError names another list."""
    hosts = []
    for item in re.findall(r"[^,\[]+(?:\[[^\]]*\])?", text):
        match = re.fullmatch(r"([^,\[]+)(?:\[([\d,-]+)\])?", item)
        if not match or text.count("[") != text.count("]"):
            raise ValueError(f"SLURM_JOB_NODELIST is {text!r}: expected a list such as node[01-04].")
        if match[2] is None:
            hosts.append(match[1])
            continue
        for part in match[2].split(","):
            first, _, last = part.partition("-")
            hosts += [f"{match[1]}{i:0{len(first)}d}" for i in range(int(first), int(last or first) + 1)]
    return hosts


def start(deterministic: bool = False):
    """The strategy of this process, of several workers, several GPUs or neither. Call it before TensorFlow does anything else.

    With `deterministic` a resumed run ends with the same bits on GPUs too; some random numbers are other ones then.
    """
    config = cluster(os.environ)
    if config:
        os.environ["TF_CONFIG"] = json.dumps(config)
    import tensorflow as tf

    if deterministic:
        tf.config.experimental.enable_op_determinism()
    if config:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def place(strategy) -> tuple[int, int]:
    """This worker's number, from 0, and the number of workers."""
    resolver, workers = strategy.cluster_resolver, getattr(strategy.extended, "_num_workers", 1)
    return (resolver.task_id or 0, workers) if resolver and workers > 1 else (0, 1)


def own_part(batches: Iterable, strategy) -> Iterator:
    """This worker's part of each batch: nested structures of tensors or arrays."""
    import tensorflow as tf

    worker, workers = place(strategy)
    for batch in batches:
        yield tf.nest.map_structure(lambda array: tf.split(array, workers)[worker], batch) if workers > 1 else batch


def check_same_start(strategy, steps: int, folder) -> None:
    """Raise a ValueError unless all workers begin with the same step: gradients of different weights would be added up."""
    import tensorflow as tf

    own = tf.function(lambda: tf.constant([steps]))
    starts = strategy.gather(strategy.run(own), axis=0).numpy()
    if len(set(starts.tolist())) > 1:
        raise ValueError(
            f"The workers have {', '.join(map(str, starts))} finished steps: all of them have to see the same {folder}. Choose "
            "a folder that they share."
        )
