"""DeepSpeed ZeRO: start, engines, gathering, saving. The only file that imports deepspeed."""

from __future__ import annotations

import contextlib
import math
import os
import socket
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import psutil
import torch
from torch import Tensor, nn

from ..config import BadInput, LearnerConfig


def start(rank: int, world_size: int, address: str, port: int, device: torch.device, timeout_s: float) -> None:
    """Joins this process to the other ranks: gloo on the CPU, nccl on GPUs. Collectives that hang raise after ``timeout_s``."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(world_size), LOCAL_RANK="0", LOCAL_SIZE=str(world_size),
        MASTER_ADDR=address, MASTER_PORT=str(port),
    )  # fmt: skip
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    if (name := interface(address)) is not None:  # gloo would take the one of the host's name, which is often 127.0.0.1
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    import deepspeed

    # Its shared-memory all-reduce (inference only) would be compiled here under a file lock that a killed process never
    # gives back, and leave 69 MB per rank in /dev/shm for good.
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(
        dist_backend="gloo" if device.type == "cpu" else "nccl",
        timeout=timedelta(seconds=timeout_s),
        verbose=False,
        dist_init_required=True,
    )


def interface(address: str) -> str | None:
    """The network interface by which this host reaches an address (its own: the one that has it); None where none is found."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # sends nothing
        except OSError:
            return None
        own = probe.getsockname()[0]
    there = psutil.net_if_addrs().items()
    return next((name for name, found in there if any(a.address.split("%")[0] == own for a in found)), None)


def settings(config: LearnerConfig, dtype: torch.dtype, stage: int) -> dict[str, Any]:
    """DeepSpeed's config. Accumulation and its scaling are ours: see :func:`backward`."""
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": dtype == torch.bfloat16},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1 << 60,
        "zero_optimization": {"stage": stage, "overlap_comm": False, "stage3_param_persistence_threshold": 0},
    }


def build(
    config: LearnerConfig,
    dtype: torch.dtype,
    pretrained: Callable[[], Any],
    skeleton: Callable[[], Any],
    tensors: Callable[[], Iterator[tuple[str, Tensor]]],
) -> Any:
    """A model with its weights. At ZeRO-3 the skeleton is built partitioned and filled one tensor at a time, read by rank
    0 only, so that no rank ever holds the whole model. Raises BadInput where a parameter has no saved tensor; a scalar
    head may be without one (:func:`draw` sets it).
    """
    if config.zero_stage < 3:
        return pretrained()
    import deepspeed

    with deepspeed.zero.Init(config_dict_or_path=settings(config, dtype, 3)):
        model = skeleton()
    parameters = dict(model.named_parameters())
    buffers, missing = dict(model.named_buffers()), set(parameters)
    rank = torch.distributed.get_rank()
    for name, tensor in tensors():
        parameter = parameters.get(name)
        if parameter is None:
            if name in buffers:
                buffers[name].copy_(tensor)
            continue
        with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0):
            if rank == 0:
                parameter.data.copy_(tensor)
        missing.discard(name)
    missing = {n for n in missing if not n.startswith("score.")}
    if missing:
        raise BadInput(
            f"no saved tensor for {', '.join(sorted(missing)[:3])} ({len(missing)} in all); learner.zero_stage: 3 fills a model "
            "from its files, so a new head (or Marian's positions, which are in none) needs stage 2 or less"
        )
    return model


def draw(parameter: Tensor, std: float) -> None:
    """Sets a parameter to normal values of its own seed: the same at every ZeRO stage and on every rank."""
    with gathered([parameter], write=True), torch.no_grad():
        values = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
        parameter.copy_(values.mul_(std))


def engine(model: nn.Module, config: LearnerConfig, dtype: torch.dtype, lr: float | None, num_updates: int) -> Any:
    """A DeepSpeed engine around ``model``; without ``lr`` it is frozen, and an engine only where ZeRO-3 shards it."""
    import deepspeed

    stage = config.zero_stage
    if lr is None:
        model.requires_grad_(False)
        if stage < 3:
            return model
        return deepspeed.initialize(model=model, config=settings(config, dtype, 3))[0]
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trainable if _shape(p) > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in trainable if _shape(p) <= 1], "weight_decay": 0.0},
    ]
    groups = [g for g in groups if g["params"]]
    if config.optimizer == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(groups, lr=lr)
    else:
        optimizer = torch.optim.AdamW(groups, lr=lr, betas=config.betas)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, schedule(config, num_updates))
    made = deepspeed.initialize(
        model=model, optimizer=optimizer, lr_scheduler=scheduler, config=settings(config, dtype, stage)
    )[0]
    if _plain(made):
        made.enable_backward_allreduce = False  # step() reduces, so that it can see the norm
    return made


def schedule(config: LearnerConfig, num_updates: int) -> Callable[[int], float]:
    """Factor of the learning rate at an update: linear warm-up, then constant, linear or cosine to zero.

    A function: LambdaLR would save a callable object's attributes and bring an old num_updates back.
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
    """Accumulates the gradient of loss_sum / divisor; DeepSpeed averages over ranks, which is undone here."""
    world = torch.distributed.get_world_size()
    engine.backward(loss_sum * (world / divisor), scale_wrt_gas=False)


def step(engine: Any) -> float:
    """Clips, updates, and returns the global gradient norm before clipping."""
    if _plain(engine):
        engine.buffered_allreduce_fallback()
        norm = torch.nn.utils.get_total_norm([p.grad for p in engine.module.parameters() if p.grad is not None])
        engine.step()
    else:
        engine.step()
        norm = engine.get_global_grad_norm()
    return float(norm)


def _plain(engine: Any) -> bool:
    """ZeRO-0 in float32: DeepSpeed then keeps no gradient norm."""
    return engine.zero_optimization_stage() == 0 and not engine.bfloat16_enabled()


def module(engine: Any) -> Any:
    """The module inside an engine, or the module itself."""
    return getattr(engine, "module", engine)


def partitioned(parameter: Any) -> bool:
    """Whether ZeRO-3 holds this parameter in shards: what :func:`gathered` shows of it is gone after the block."""
    return hasattr(parameter, "ds_id")


@contextlib.contextmanager
def gathered(parameters: list[Any], write: bool = False) -> Iterator[None]:
    """The whole values of ZeRO-3 partitioned parameters while the block runs (all ranks must enter)."""
    if any(partitioned(p) for p in parameters):
        import deepspeed

        with deepspeed.zero.GatheredParameters(parameters, modifier_rank=0 if write else None):
            yield
    else:
        yield


class Averages:
    """Parameters that follow others as Polyak averages: target += rate (source - target), in float32 whatever their dtype,
    since bfloat16 would round small rates away. Each rank averages the shards that it holds; nobody talks.
    """

    def __init__(self, pairs: list[tuple[Any, Any]], rate: float) -> None:
        self.pairs, self.rate = pairs, rate
        self.values = [_local(target).float() for _, target in pairs]

    def update(self) -> None:
        """After an optimizer step."""
        for (source, target), value in zip(self.pairs, self.values, strict=True):
            _local(target).copy_(value.lerp_(_local(source).float(), self.rate))

    def load(self, values: list[Tensor]) -> None:
        """Takes ``values`` that were saved by this rank of as many."""
        for (_, target), value, saved in zip(self.pairs, self.values, values, strict=True):
            _local(target).copy_(value.copy_(saved))


def _local(parameter: Any) -> Tensor:
    """What this rank holds of a parameter, without its gradient."""
    held: Tensor = parameter.ds_tensor if partitioned(parameter) else parameter
    return held.detach()


def save(engine: Any, directory: Path, name: str) -> None:
    """Every rank writes its shard of weights, optimizer and schedule to directory/name; no 'latest' file."""
    engine.save_checkpoint(str(directory), tag=name, save_latest=False)


def load(engine: Any, directory: Path, name: str) -> None:
    """Every rank reads its shard back; learning rate, betas and weight decay are the present job's, which is longer than the one that
    was saved or (a clone in a search) has other ones.

    Raises ValueError where DeepSpeed finds nothing to load.
    """
    plan = engine.lr_scheduler
    rates = [*plan.base_lrs]
    options = [{k: group[k] for k in ("betas", "weight_decay") if k in group} for group in plan.optimizer.param_groups]
    path, _ = engine.load_checkpoint(str(directory), tag=name)
    if path is None:
        raise ValueError(f"{directory}/{name}: DeepSpeed found no checkpoint to load there")
    plan.base_lrs = rates
    for group, own in zip(plan.optimizer.param_groups, options, strict=True):
        group.update(own)
    for group, base, factor in zip(plan.optimizer.param_groups, plan.base_lrs, plan.lr_lambdas, strict=True):
        group["lr"] = base * factor(plan.last_epoch)


def _shape(parameter: Any) -> int:
    return len(getattr(parameter, "ds_shape", parameter.shape))
