"""What `rlhf-ray doctor` looks at before a job fails of it: one line a check, with the remedy."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

import psutil
from packaging.requirements import Requirement

from ..actors.object_store import VERSIONS, smallest_store, store_remedy
from ..actors.placement import cluster_nodes
from ..actors.slots import Nodes
from ..config import BadInput, ClusterConfig, parse
from ..learner.zero import network_interface
from ..models.directory import fetch_config, find_local_model, num_saved_parameters
from ..run.outcome import Stopped
from .shape import shape_of

LEAST_DISK, LEAST_MEMORY, LEAST_STORE = 10e9, 4e9, 0.5e9
BANDWIDTH_ELEMENTS = 1 << 22  # of the all-reduce: 16 MB of float32
LEAST_BANDWIDTH = {"gloo": 0.05e9, "nccl": 1e9}  # byte/s
DISTRIBUTION = "rlhf-ray"


@dataclass(frozen=True)
class Finding:
    """One line: what was looked at, what was seen, and what to do about it where it is not ``well``."""

    name: str
    well: bool
    seen: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{'ok  ' if self.well else 'FAIL'} {self.name}: {self.seen}" + (
            f"; {self.remedy}" if not self.well else ""
        )


def examine(run_dir: Path, cluster: ClusterConfig, quick: bool, model: str | None = None) -> Iterator[Finding]:
    """All checks, one after the other; what needs Ray is left out if Ray cannot be reached.

    ``quick`` leaves out the agreement. ``model`` is a directory or a Hugging Face id that is to be trained. Raises
    BadInput if its size cannot be told.
    """
    num_parameters = None if model is None else model_size(model)
    yield from versions(requires(DISTRIBUTION) or [])
    yield compiler()
    yield devices()
    yield authentication(cluster, os.environ)
    yield writable(run_dir)
    yield disk(run_dir)
    yield memory()
    yield from attempt(
        "ray",
        "check cluster.address and RAY_ADDRESS, or start a cluster with `ray start --head`",
        lambda: ray_checks(cluster, num_parameters),
    )
    if not quick:
        remedy = "the engine's log-probs are not the learner's: try rollout.engine.type=transformers, and see sync/probe_difference"
        yield from attempt("agreement", remedy, lambda: [agreement(run_dir, cluster)])


def attempt(name: str, remedy: str, check: Callable[[], Iterable[Finding]]) -> Iterator[Finding]:
    """The findings of a check that may raise: what it raises is a finding too."""
    try:
        yield from check()
    except Stopped:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        yield Finding(name, False, f"{type(error).__name__}: {lines[0] if lines else ''}", remedy)


def versions(requirements: Iterable[str]) -> Iterator[Finding]:
    """Installed versions against the tested windows, which are the package's own requirements; extras are left out."""
    wrong, right = [], 0
    for requirement in map(Requirement, requirements):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        try:
            installed = version(requirement.name)
        except PackageNotFoundError:
            wrong.append(Finding(requirement.name, False, "not installed", f"pip install '{requirement}'"))
            continue
        if requirement.specifier.contains(installed, prereleases=True):
            right += 1
        else:
            seen = f"{installed} is outside the tested {requirement.specifier}"
            wrong.append(Finding(requirement.name, False, seen, f"pip install '{requirement}'"))
    yield Finding("versions", not wrong, f"{right} packages in the tested window", "see the lines below")
    yield from wrong


def compiler() -> Finding:
    """DeepSpeed compiles its operators when they are first used."""
    missing = [name for name in ("c++", "ninja") if shutil.which(name) is None]
    return Finding(
        "compiler", not missing, f"no {' and no '.join(missing)}" if missing else "c++ and ninja",
        "install a C++ compiler (apt-get install g++) and ninja (pip install ninja)",
    )  # fmt: skip


def devices() -> Finding:
    """GPUs that the driver shows and torch does not are the usual mismatch of CUDA versions."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        half = torch.cuda.is_bf16_supported()
        seen = f"{len(names)} x {names[0]}, bfloat16 {'yes' if half else 'no'}"
        return Finding("devices", half, seen, "set model.dtype and rollout.engine.dtype to float32")
    there = Path("/dev/nvidiactl").exists()
    seen = f"{os.cpu_count()} cores, torch {torch.__version__} sees no GPU" + (
        ", and the driver has one" if there else ""
    )
    return Finding(
        "devices", not there, seen, f"install a torch built for the driver's CUDA (torch has {torch.version.cuda})"
    )


def authentication(cluster: ClusterConfig, environment: Any) -> Finding:
    """A local session makes a token of its own; a cluster that is joined must be joined with its token, readable by its owner only."""
    address = cluster.address or environment.get("RAY_ADDRESS")
    if not address:
        return Finding("authentication", True, "a local session with a token of its own")
    if environment.get("RAY_AUTH_MODE") != "token":
        remedy = "start it with `ray get-auth-token --generate; export RAY_AUTH_MODE=token; ray start --head`"
        return Finding("authentication", False, f"{address} is joined without a token", remedy)
    file = Path(environment.get("RAY_AUTH_TOKEN_PATH") or Path.home() / ".ray" / "auth_token")
    if not environment.get("RAY_AUTH_TOKEN") and not file.is_file():
        return Finding("authentication", False, f"no token in {file}", "ray get-auth-token --generate")
    if file.is_file() and file.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        return Finding("authentication", False, f"{file} can be read by others", f"chmod 600 {file}")
    return Finding("authentication", True, f"a token for {address}")


def writable(run_dir: Path) -> Finding:
    """What a run does there: makes directories, writes, renames, and locks."""
    remedy = "give another run.dir, or its owner: chown, chmod; a lock needs a file system that has them"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=run_dir, prefix=".doctor-") as directory:
            part = Path(directory) / "a"
            with part.open("w") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                file.write("x")
                os.fsync(file.fileno())
            part.rename(Path(directory) / "b")
    except OSError as error:
        return Finding("run directory", False, f"{run_dir}: {error.strerror}", remedy)
    return Finding("run directory", True, f"{run_dir} can be written, renamed in and locked")


def disk(run_dir: Path, least: float = LEAST_DISK) -> Finding:
    """Checkpoints of a model take about 16 bytes a parameter, each."""
    there = next(p for p in (run_dir.absolute(), *run_dir.absolute().parents) if p.exists())
    free = float(shutil.disk_usage(there).free)
    remedy = f"free {least / 1e9:.0f} GB, or give another run.dir; a checkpoint takes about 16 bytes a parameter (checkpoint.keep)"
    return Finding("disk", free >= least, f"{free / 1e9:.1f} GB free at {there}", remedy)


def memory(least: float = LEAST_MEMORY) -> Finding:
    """Each worker takes half a GB before it holds a model; the object store lives in /dev/shm."""
    free, shared = float(psutil.virtual_memory().available), float(shutil.disk_usage("/dev/shm").free)
    seen = f"{free / 1e9:.1f} GB free, {shared / 1e9:.1f} GB of it in /dev/shm"
    remedy = "end other programs, or ask for more; in a container give it shared memory (docker run --shm-size=8g)"
    return Finding("memory", free >= least and shared >= least / 4, seen, remedy)


def model_size(model: str) -> int:
    """Parameters of a model directory or a Hugging Face id. Raises BadInput if they cannot be told from its config.json."""
    local = find_local_model(model)
    saved = None if local is None else num_saved_parameters(local)
    if saved is not None:
        return saved
    try:
        shape = shape_of(fetch_config(model), f"{model}/config.json")
    except (OSError, ValueError) as error:
        raise BadInput(f"--model {model}: no config.json to read: {error}") from None
    if shape is None:
        raise BadInput(f"--model {model}: no formula for this architecture; give a directory with *.safetensors files")
    return shape.num_parameters


def object_store(nodes: Nodes, num_parameters: int | None) -> Finding:
    """Room for the weights of two versions in bfloat16 and as much as a tenth of it for samples."""
    room = smallest_store(nodes)
    bytes_per_parameter = 1.1 * VERSIONS * 2
    seen = f"{room / 1e9:.1f} GB on the smallest node"
    if num_parameters is None:
        seen += f", enough for two versions of {room / bytes_per_parameter / 1e9:.1f} B bfloat16 parameters"
        needed = LEAST_STORE
    else:
        needed = bytes_per_parameter * num_parameters
        seen += f"; two versions of {num_parameters / 1e9:.2f} B bfloat16 parameters with samples take {needed / 1e9:.1f} GB"
    return Finding("object store", room >= needed, seen, store_remedy(needed))


def ray_checks(cluster: ClusterConfig, num_parameters: int | None) -> Iterator[Finding]:
    """Reachability, the object store, and an all-reduce over all free GPUs, or over all nodes with CPUs."""
    import ray

    from ..actors.session import ray_session, stop_on_signals

    with stop_on_signals(), ray_session(cluster):
        resources, free = ray.cluster_resources(), ray.available_resources()
        nodes = cluster_nodes()
        seen = (
            f"{len(nodes)} node(s), {resources.get('CPU', 0):g} CPUs, {resources.get('GPU', 0):g} GPUs, "
            f"Ray {ray.__version__}"
        )
        yield Finding("ray", True, seen)
        yield object_store(nodes, num_parameters)
        num_gpus, num_hosts = int(free.get("GPU", 0)), sum(node.get("CPU", 0) > 0 for node in nodes)
        backend = "nccl" if num_gpus >= 2 else "gloo"
        num_ranks = num_gpus if backend == "nccl" else max(2, num_hosts)
        yield from attempt(
            f"{backend} all-reduce",
            "look for a firewall between the nodes, and GPUs or interfaces that only some nodes have",
            lambda: [all_reduce(backend, num_ranks)],
        )


def all_reduce(backend: str, num_ranks: int) -> Finding:
    """Whether ``num_ranks`` actors can all-reduce together, and how fast: nccl on a GPU each, gloo on CPUs, spread."""
    import ray

    share = {"num_gpus": 1, "num_cpus": 0} if backend == "nccl" else {"num_cpus": 0.1}
    peer_class = ray.remote(Peer).options(scheduling_strategy="SPREAD", **share)
    peers: list[Any] = [peer_class.remote() for _ in range(num_ranks)]
    try:
        address, port = ray.get(peers[0].address.remote(), timeout=120)
        measurements = ray.get(
            [peer.measure.remote(rank, num_ranks, address, port, backend) for rank, peer in enumerate(peers)],
            timeout=180,
        )
    finally:
        for peer in peers:
            ray.kill(peer)
    slowest = min(bandwidth for _, bandwidth in measurements)
    hosts = len({host for host, _ in measurements})
    return Finding(
        f"{backend} all-reduce",
        slowest >= LEAST_BANDWIDTH[backend],
        f"{num_ranks} ranks on {hosts} node(s), {slowest / 1e9:.2f} GB/s each way of the slowest",
        f"set {'NCCL' if backend == 'nccl' else 'GLOO'}_SOCKET_IFNAME to the fast network card",
    )


class Peer:
    """One rank of a collective."""

    def address(self) -> tuple[str, int]:
        """Where the ranks meet."""
        import ray

        with socket.socket() as probe:
            probe.bind(("", 0))
            return str(ray.util.get_node_ip_address()), int(probe.getsockname()[1])

    def measure(self, rank: int, num_ranks: int, address: str, port: int, backend: str) -> tuple[str, float]:
        """This node's id, and byte/s that a rank sends in an all-reduce: 2 (n - 1) / n of the tensor, as in a ring.

        Raises RuntimeError if the sum is wrong.
        """
        import ray
        import torch
        import torch.distributed as dist

        interface = network_interface(address)
        if interface is not None:  # as the learner does
            os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
        url = f"tcp://[{address}]:{port}" if ":" in address else f"tcp://{address}:{port}"
        dist.init_process_group(backend, init_method=url, rank=rank, world_size=num_ranks)
        values = torch.ones(BANDWIDTH_ELEMENTS, device="cuda" if backend == "nccl" else "cpu")
        shortest_s = float("inf")
        for _ in range(5):
            values.fill_(rank + 1.0)
            began = time.perf_counter()
            dist.all_reduce(values)
            total = float(values[0])
            shortest_s = min(shortest_s, time.perf_counter() - began)
            if total != num_ranks * (num_ranks + 1) / 2:
                raise RuntimeError(f"rank {rank}: the sum over {num_ranks} ranks is {total:g}")
        dist.destroy_process_group()
        sent = 2 * (num_ranks - 1) / num_ranks * values.nbytes
        return str(ray.get_runtime_context().get_node_id()), sent / shortest_s


def agreement(run_dir: Path, cluster: ClusterConfig, num_steps: int = 3) -> Finding:
    """A few steps at a learning rate that changes nothing: what the engine sampled with must be what the learner computes, every time."""
    from rich.console import Console

    from ..jobs import start
    from ..models.tolerance import WEIGHT_SYNC
    from ..run.reader import read_metrics
    from ..run.trajectories import read_batch, trajectory_files

    shared = run_dir.absolute() if writable(run_dir).well else None  # all nodes of a cluster must see it
    with tempfile.TemporaryDirectory(prefix=".doctor-", dir=shared) as directory, Path(os.devnull).open("w") as quiet:
        run = Path(directory) / "run"
        job = parse(_job(run, cluster, num_steps), "doctor")
        start.run(job, Console(file=quiet, markup=False))
        worst = 0.0
        for file in trajectory_files(run):
            batch = read_batch(file)
            sampled = batch.response_mask.astype(bool)
            worst = max(worst, float(abs(batch.rollout_log_probs - batch.old_log_probs)[sampled].max()))
        lines = read_metrics(run)
        worst = max(worst, *(line["sync/probe_difference"] for line in lines))
    seen = f"engine and learner differ by at most {worst:.1e} nats over {len(lines)} steps at lr 0"
    allowed = WEIGHT_SYNC["float32"]
    return Finding("agreement", worst <= allowed, seen, f"more than {allowed:g}: try rollout.engine.type=transformers")


def _job(run: Path, cluster: ClusterConfig, num_steps: int) -> dict[str, Any]:
    """A tiny PPO run on the toy dataset, whose two epochs make the learner compute log-probs before it updates."""
    model = {
        "model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 2, "max_position_embeddings": 128,
    }  # fmt: skip
    return {
        "job": "ppo",
        "run": {"dir": str(run)},
        "cluster": {**cluster.model_dump(mode="json"), "num_threads": 1},
        "model": {"init": model, "tokenizer": "toy"},
        "data": {"path": "toy:reviews/prompts", "size": 32, "max_prompt_tokens": 32},
        "algorithm": {"type": "grpo", "group_size": 2, "epochs": 2},
        "rollout": {"prompts_per_step": 8, "chunk_prompts": 4, "max_new_tokens": 16},
        "rewards": {"terms": [{"name": "words", "type": "rule", "rule": "word_share", "options": {"words": ["the"]}}]},
        "learner": {"lr": 1e-30, "micro_batch_tokens": 512},
        "log": {"progress": False},
        "num_steps": num_steps,
    }
