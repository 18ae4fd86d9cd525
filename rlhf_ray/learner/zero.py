"""DeepSpeed ZeRO: ranks, engines, gathered parameters, shards on disk. Only this file imports deepspeed."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ..config import BadInput, LearnerConfig
from ..models.token_head import ScoringHead
from .optimizers import make_optimizer, muon_groups

PERSISTENT = 100_000  # elements; smaller parameters stay whole at ZeRO-3 on a GPU: DeepSpeed's default
PREFETCHED = 100_000_000  # elements that ZeRO-3 gathers ahead of their use on a GPU


def join_ranks(*, rank: int, world_size: int, address: str, port: int, device: torch.device, timeout_s: float) -> None:
    """Joins this process to the other ranks: gloo on the CPU, nccl on GPUs.

    Collectives that hang raise after ``timeout_s``.
    """
    os.environ.update({"RANK": str(rank), "WORLD_SIZE": str(world_size), "LOCAL_RANK": "0"})
    os.environ.update({"LOCAL_SIZE": str(world_size), "MASTER_ADDR": address, "MASTER_PORT": str(port)})
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    interface = network_interface(address)
    if interface is not None:  # by default gloo takes that of the host's name, which is often 127.0.0.1
        os.environ.setdefault("GLOO_SOCKET_IFNAME", interface)
    import deepspeed

    # DeepSpeed would compile its shared-memory all-reduce here, which only inference uses. A killed process never
    # releases the file lock of that compilation, and each rank leaves 69 MB in /dev/shm.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="gloo" if device.type == "cpu" else "nccl",
        timeout=timedelta(seconds=timeout_s),
        verbose=False,
        dist_init_required=True,
    )


def network_interface(address: str) -> str | None:
    """The network interface by which this host reaches an address, or that has it itself; None if there is none."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing
        except OSError:
            return None
        local_address = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(a.address.split("%")[0] == local_address for a in addresses):
            return name
    return None


def deepspeed_config(
    config: LearnerConfig, dtype: torch.dtype, device_type: str = "cpu", ranks_per_node: int = 1
) -> dict[str, Any]:
    """DeepSpeed's config. It neither accumulates nor scales gradients: :func:`backward` does.

    On a GPU, gathers and reductions overlap with computation (DeepSpeed allows it at stages 2 and 3 here), and small
    parameters stay whole. ``ranks_per_node``: ranks of one node if they follow each other, else 1.
    """
    stage = config.zero_stage
    zero: dict[str, Any] = {"stage": stage, "overlap_comm": False, "stage3_param_persistence_threshold": 0}
    if device_type == "cuda":
        zero["overlap_comm"] = stage >= 2
        if stage == 3:
            zero |= {"stage3_param_persistence_threshold": PERSISTENT, "stage3_prefetch_bucket_size": PREFETCHED}
    if stage == 3 and config.node_copies and 1 < ranks_per_node < config.num_workers:
        zero["zero_hpz_partition_size"] = ranks_per_node
    if stage == 3 and config.optimizer == "muon":
        zero["reduce_scatter"] = False  # Muon needs whole gradients
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": 0.0
        if config.optimizer == "muon"
        else config.max_grad_norm,  # it would clip Muon's updates
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
        "zero_optimization": zero,
    }
    if dtype == torch.bfloat16 and stage >= 2:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}  # below stage 2: GradientSums
    return settings


def gather_host_names() -> list[str]:
    """The host of each rank. All ranks must call."""
    hosts = [""] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(hosts, socket.gethostname())
    return hosts


def ranks_on_each_node(hosts: Sequence[str]) -> int:
    """Ranks of a node if all nodes have equally many and each node's ranks follow each other, else 1.

    ``hosts`` names the node of each rank: [a, a, b, b] gives 2, and [a, b, a, b] or [a, a, b] gives 1.
    """
    size = hosts.count(hosts[0])
    blocks = [set(hosts[start : start + size]) for start in range(0, len(hosts), size)]
    return size if all(len(b) == 1 for b in blocks) and len(set().union(*blocks)) * size == len(hosts) else 1


def build_model(
    config: LearnerConfig,
    settings: dict[str, Any],
    pretrained: Callable[[], Any],
    skeleton: Callable[[], Any],
    tensors: Callable[[Any], Iterator[tuple[str, Tensor]]],
) -> Any:
    """A model with its weights.

    At ZeRO-3 the skeleton is partitioned when it is built, and gets one of its ``tensors`` at a time, so no rank holds
    the whole model. Raises BadInput if a parameter has no saved tensor, or one of another shape; only a scalar head may
    have none (:func:`fill_normal` sets it). ``settings`` are those of :func:`deepspeed_config`.
    """
    if config.zero_stage < 3:
        return pretrained()
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path=settings):
        model = skeleton()
    parameters = dict(model.named_parameters())
    buffers, missing = dict(model.named_buffers()), set(parameters)
    rank = torch.distributed.get_rank()
    for name, tensor in tensors(model):
        parameter = parameters.get(name)
        if parameter is None:
            if name in buffers:
                buffers[name].copy_(tensor)
            continue
        if tensor.shape != parameter.ds_shape:
            raise BadInput(
                f"model.path: the saved tensor of {name} has shape {tuple(tensor.shape)}, the model's has "
                f"{tuple(parameter.ds_shape)}"
            )
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if rank == 0:
                parameter.data.copy_(tensor)
        missing.discard(name)
    missing = {n for n in missing if not n.startswith("score.")}
    if missing:
        raise BadInput(
            f"model.path: no saved tensor for {', '.join(sorted(missing)[:3])} ({len(missing)} in all); "
            "learner.zero_stage: 3 reads every parameter from the model's files; use stage 2 or less for a new head or "
            "for Marian's positions"
        )
    return model


def fill_normal(parameter: Tensor, std: float) -> None:
    """Sets a parameter to normal values from a fixed seed: the same at every ZeRO stage and on every rank."""
    with gathered([parameter], write=True), torch.no_grad():
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        parameter.copy_(values.mul_(std))


def make_engine(
    model: nn.Module, config: LearnerConfig, settings: dict[str, Any], lr: float | None, num_updates: int
) -> Any:
    """A DeepSpeed engine around ``model``, with the ``settings`` of :func:`deepspeed_config`.

    Without ``lr`` the model is frozen, and gets an engine only if ZeRO-3 shards it.
    """
    import deepspeed

    for module in model.modules():
        if isinstance(module, ScoringHead) and any(True for _ in module.children()):  # an adapter's layers
            deepspeed.utils.set_z3_leaf_module(module, True)  # gathered as one, however often its parts are called
    if lr is None:
        model.requires_grad_(False)
        if config.zero_stage < 3:
            return model
        return deepspeed.initialize(model=model, config=settings)[0]
    optimizer = make_muon(model, config, lr) if config.optimizer == "muon" else make_optimizer(model, config, lr)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lr_schedule(config, num_updates))
    engine = deepspeed.initialize(model=model, optimizer=optimizer, lr_scheduler=scheduler, config=settings)[0]
    if _has_no_gradient_norm(engine):
        engine.enable_backward_allreduce = False  # optimizer_step() reduces, so that it sees the norm
    if engine.bfloat16_enabled() and config.zero_stage < 2:
        engine.gradient_sums = GradientSums(p for p in engine.module.parameters() if p.requires_grad)
    return engine


def make_muon(model: nn.Module, config: LearnerConfig, lr: float) -> Any:
    """DeepSpeed's Muon for the groups of :func:`muon_groups`."""
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam  # importing it compiles kernels

    return MuonWithAuxAdam(muon_groups(model, config, lr), adam_w_mode=True)


def lr_schedule(config: LearnerConfig, num_updates: int) -> Callable[[int], float]:
    """Factor of the learning rate at an update: linear warm-up, then constant, linear or cosine to zero.

    This is a function because LambdaLR saves a callable object's attributes, and would load an old num_updates.
    """
    warmup, kind = config.warmup_steps, config.schedule

    def factor(update: int) -> float:
        if update < warmup:
            return (update + 1) / (warmup + 1)
        done = min(1.0, (update - warmup) / max(1, num_updates - warmup))
        if kind == "linear":
            return 1.0 - done
        return 0.5 * (1.0 + math.cos(math.pi * done)) if kind == "cosine" else 1.0

    return factor


def backward(engine: Any, loss_sum: Tensor, divisor: float) -> None:
    """Accumulates the gradient of loss_sum / divisor, summed over ranks.

    DeepSpeed averages over ranks, which is undone here.
    """
    world_size = torch.distributed.get_world_size()
    engine.backward(loss_sum * (world_size / divisor), scale_wrt_gas=False)


def optimizer_step(engine: Any) -> float | None:
    """Clips, updates, and returns the global gradient norm before clipping.

    None: the gradient is not finite, and all ranks skip the step. Weights, moments and schedule are as before.
    """
    if hasattr(engine, "gradient_sums"):
        engine.gradient_sums.release()
    if not _has_no_gradient_norm(engine):
        engine.step()
        return float(engine.get_global_grad_norm()) if engine.was_step_applied() else None
    engine.buffered_allreduce_fallback()
    norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
    if not norm.isfinite():
        engine.zero_grad()
        return None
    engine.step()
    return float(norm)


class GradientSums:
    """Float32 sums of a bfloat16 model's gradients over micro-batches, at ZeRO 0 and 1.

    DeepSpeed adds up ``grad`` in the parameter's dtype there. In bfloat16 the sum of equal addends stops at 256 of
    them: 256 + 1 = 256. From stage 2 on DeepSpeed sums in float32 (grad_accum_dtype). It takes that at stage 1 too, but
    by its BF16_Optimizer, whose states cannot be offloaded.
    """

    def __init__(self, parameters: Iterable[Any]) -> None:
        self.sums: dict[Any, Tensor] = {}
        for parameter in parameters:
            parameter.register_post_accumulate_grad_hook(self._add)

    def _add(self, parameter: Any) -> None:
        if parameter in self.sums:
            self.sums[parameter].add_(parameter.grad)
        else:
            self.sums[parameter] = parameter.grad.float()
        parameter.grad = None

    def release(self) -> None:
        """Puts each sum, rounded once, in its parameter's ``grad``, and forgets it."""
        for parameter in [*self.sums]:
            parameter.grad = self.sums.pop(parameter).to(parameter.dtype)


def _has_no_gradient_norm(engine: Any) -> bool:
    """Whether DeepSpeed does not compute the norm itself: at ZeRO-0 in float32."""
    return engine.zero_optimization_stage() == 0 and not engine.bfloat16_enabled()


def module_of(engine: Any) -> Any:
    """The module inside an engine. A frozen module without an engine is returned as it is."""
    return getattr(engine, "module", engine)


def is_partitioned(parameter: Any) -> bool:
    """Whether ZeRO-3 holds this parameter in shards; its values exist only inside of :func:`gathered`."""
    return hasattr(parameter, "ds_id")


@contextlib.contextmanager
def gathered(parameters: list[Any], write: bool = False) -> Iterator[None]:
    """ZeRO-3 partitioned parameters have all their values while the block runs. All ranks must enter."""
    if any(is_partitioned(p) for p in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None):
            yield
    else:
        yield


class PolyakAverages:
    """Parameters that follow others: target += rate * (source - target), for ``pairs`` of (source, target).

    The averages are in float32 because bfloat16 would round small rates away. Each rank averages its own shards,
    without communication.
    """

    def __init__(self, pairs: list[tuple[Any, Any]], rate: float) -> None:
        self.pairs, self.rate = pairs, rate
        self.values = [_local(target).float() for _, target in pairs]

    def update(self) -> None:
        """After an optimizer step."""
        for (source, target), value in zip(self.pairs, self.values, strict=True):
            _local(target).copy_(value.lerp_(_local(source).float(), self.rate))

    def load(self, values: list[Tensor]) -> None:
        """Takes the ``values`` that were saved by this rank of the same number of ranks."""
        for (_, target), value, saved in zip(self.pairs, self.values, values, strict=True):
            _local(target).copy_(value.copy_(saved))


def _local(parameter: Any) -> Tensor:
    """This rank's shard of a parameter, or all of it, without its gradient."""
    values: Tensor = parameter.ds_tensor if is_partitioned(parameter) else parameter
    return values.detach()


def save_shards(engine: Any, directory: Path, name: str) -> None:
    """Every rank writes its shard of weights, optimizer and schedule to directory/name; no 'latest' file."""
    engine.save_checkpoint(str(directory), tag=name, save_latest=False)


def load_shards(engine: Any, directory: Path, name: str) -> None:
    """Every rank reads its shard of directory/name back.

    Learning rate, betas and weight decay stay those of the present job: it may be longer than the job that was saved,
    or a search may have changed them. Raises ValueError if DeepSpeed finds nothing to load.
    """
    scheduler = engine.lr_scheduler
    groups, base_lrs = scheduler.optimizer.param_groups, [*scheduler.base_lrs]
    options = [{key: group[key] for key in ("betas", "weight_decay") if key in group} for group in groups]
    path, _ = engine.load_checkpoint(str(directory), tag=name)
    if path is None:
        raise ValueError(f"{directory}/{name}: DeepSpeed found no checkpoint to load there")
    scheduler.base_lrs = base_lrs
    groups = scheduler.optimizer.param_groups
    for group, group_options, base_lr, factor in zip(groups, options, base_lrs, scheduler.lr_lambdas, strict=True):
        group.update(group_options)
        group["lr"] = base_lr * factor(scheduler.last_epoch)
