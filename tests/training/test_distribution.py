"""Who takes part in a run: TF_CONFIG and SLURM's variables."""

import json

import pytest

from mnv2_keras.training.distribution import cluster, expand_nodes


def test_the_cluster_is_read_from_tf_config_or_slurm():
    assert cluster({}) is None
    config = {"cluster": {"worker": ["a:1", "b:1"]}, "task": {"type": "worker", "index": 1}}
    assert cluster({"TF_CONFIG": json.dumps(config)}) == config
    single = {"cluster": {"worker": ["a:1"]}, "task": {"type": "worker", "index": 0}}
    assert cluster({"TF_CONFIG": json.dumps(single)}) is None
    one = {"cluster": {"worker": "host:1"}, "task": {"type": "worker", "index": 0}}
    for wrong in ("{", "{}", json.dumps(config | {"task": {"type": "worker", "index": 2}}), json.dumps(one)):
        with pytest.raises(ValueError, match="TF_CONFIG cannot be used"):
            cluster({"TF_CONFIG": wrong})
    slurm = {"SLURM_NTASKS": "4", "SLURM_PROCID": "3", "SLURM_JOB_NODELIST": "gpu[09-10]"}
    assert cluster(slurm) == {
        "cluster": {"worker": ["gpu09:12345", "gpu09:12346", "gpu10:12345", "gpu10:12346"]},
        "task": {"type": "worker", "index": 3},
    }
    hosts = ["gpu1:12345", "gpu1:12346", "gpu2:12345", "gpu3:12345"]
    block = slurm | {"SLURM_JOB_NODELIST": "gpu[1-3]"}
    for variables in ({}, {"SLURM_TASKS_PER_NODE": "2,1(x2)"}):
        assert cluster(block | variables)["cluster"]["worker"] == hosts
    assert cluster(block | {"SLURM_TASKS_PER_NODE": "1(x2),2"})["cluster"]["worker"][-1] == "gpu3:12346"
    for wrong in ("2,1", "2,1(x3)", "2,one,1"):
        with pytest.raises(ValueError, match="SLURM_TASKS_PER_NODE is '2,.* 4 tasks .* on 3 nodes"):
            cluster(block | {"SLURM_TASKS_PER_NODE": wrong})
    assert expand_nodes("gpu[01-03,7],login") == ["gpu01", "gpu02", "gpu03", "gpu7", "login"]
    with pytest.raises(ValueError, match="SLURM_JOB_NODELIST"):
        expand_nodes("gpu[01-")
