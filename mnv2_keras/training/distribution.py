"""Several devices, or several machines: which strategy this process takes part in.

Every machine runs the same command. `TF_CONFIG` says who they are, as TensorFlow and Kubernetes operators set it; under SLURM
it is put together from the job's variables. Without either, all GPUs of this machine are used, or its CPU.
"""

import json
import os
import re
from collections.abc import Mapping

#: Where SLURM's tasks meet, unless `MNV2_PORT` says otherwise.
PORT = 12_345


def cluster(environment: Mapping[str, str]) -> dict | None:
    """The `TF_CONFIG` of this process, as a dictionary; None for a process by itself.

    Args:
        environment: such as `os.environ`.

    Raises:
        ValueError: `TF_CONFIG` is no JSON of the expected form, or SLURM's list of nodes cannot be read.
    """
    if text := environment.get("TF_CONFIG"):
        try:
            config = json.loads(text)
            workers, task = config["cluster"]["worker"], config["task"]
            if task["type"] != "worker" or not 0 <= int(task["index"]) < len(workers):
                raise ValueError(f"task {task}, {len(workers)} workers")
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
    each = -(-tasks // len(hosts))
    port = int(environment.get("MNV2_PORT", PORT))
    workers = [f"{hosts[i // each]}:{port + i % each}" for i in range(tasks)]
    return {"cluster": {"worker": workers}, "task": {"type": "worker", "index": int(environment["SLURM_PROCID"])}}


def expand_nodes(text: str) -> list[str]:
    """SLURM's short list of nodes: `gpu[01-03,7],login` to gpu01, gpu02, gpu03, gpu7, login.

    Raises:
        ValueError: brackets that do not close.
    """
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


def start():
    """The strategy of this process. Call it before TensorFlow does anything else.

    Returns:
        `MultiWorkerMirroredStrategy` when there are several workers, `MirroredStrategy` with several GPUs, else the default
        strategy.
    """
    config = cluster(os.environ)
    if config:
        os.environ["TF_CONFIG"] = json.dumps(config)
    import tensorflow as tf

    if config:
        return tf.distribute.MultiWorkerMirroredStrategy()
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()
