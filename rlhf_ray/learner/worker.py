"""LearnerWorker: one rank of the learner, with actor, critic and reference or one model."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..batch import Batch, micro_batches
from ..config import LearnerConfig, ModelConfig
from ..models import load as models
from ..models import values
from ..models.log_probs import before
from ..run.metrics import Sums, merge_sums
from ..weights.manifest import fingerprint, hashes_every_byte
from ..weights.messages import Begin, ProbeAnswer, SyncMessage, WeightManifest, split_into_buckets
from . import zero
from .objectives import Columns, LossTerm, Objective, final_positions

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
HEADS = "heads."  # of a ValueModel: its other parameters are the language model's
LEAST_SHARED = 0.1  # share of the tokens that shared prompts must save before groups are kept together


@dataclass(frozen=True)
class Role:
    """A model of the learner. ``model.path`` is a local directory; ``lr`` None means frozen; ``frozen_trunk`` freezes all but heads of
    kind 'values', whose targets follow at ``target_rate`` an optimizer step."""

    name: str
    kind: str
    model: ModelConfig
    lr: float | None
    zero_head: bool = False
    num_updates: int = 1
    labels: tuple[str, ...] = ()
    frozen_trunk: bool = False
    target_rate: float | None = None


@dataclass(frozen=True)
class MicroBatch:
    """``rows`` (B,) of a rank's Batch, as ``batch``. A filler has no rows but a batch: its results must not count.

    ZeRO-2 and 3 hang if ranks run different numbers of micro-batches, so those with fewer rows run fillers.
    """

    batch: Batch
    rows: np.ndarray

    @property
    def is_real(self) -> bool:
        """False for a filler."""
        return len(self.rows) > 0


class LearnerWorker:
    """One rank. Methods are called on all ranks at once, with the same arguments."""

    def __init__(
        self, config: LearnerConfig, roles: Sequence[Role], device: str, num_threads: int, deadline_s: float
    ) -> None:
        torch.set_num_threads(num_threads)
        self.config, self.roles = config, {r.name: r for r in roles}
        self.device, self.deadline_s = torch.device(device), deadline_s
        self.engines: dict[str, Any] = {}
        self.averages: dict[str, zero.Averages] = {}
        self.widths: dict[str, int] = {}  # hidden size of each role, for the cost of its micro-batches

    def free_port(self) -> int:
        """A free port on this host, at which the ranks meet."""
        with socket.socket() as probe:
            probe.bind(("", 0))
            return int(probe.getsockname()[1])

    def start(self, rank: int, world_size: int, address: str, port: int) -> dict[str, Any]:
        """Joins the other ranks and builds the roles. Returns what the manifest records: sizes, packed or padded, peak FLOP/s."""
        self.rank, self.world_size = rank, world_size
        zero.start(rank, world_size, address, port, self.device, self.deadline_s)
        found: dict[str, Any] = {}
        for role in self.roles.values():
            self.engines[role.name], found[role.name] = self._build(role)
        dtype = DTYPES[next(iter(self.roles.values())).model.dtype]
        plain = peak_flops(self.device, torch.float32)
        self.peak = plain if dtype == torch.float32 else peak_flops(self.device, dtype)
        return {"roles": found, "peak_flops": self.peak, "float32_flops": plain}

    def _build(self, role: Role) -> tuple[Any, dict[str, Any]]:
        m, path = role.model, str(role.model.path)
        dtype = DTYPES[m.dtype]
        common: dict[str, Any] = {"dtype": dtype, "trust_remote_code": m.trust_remote_code, "labels": role.labels}
        torch.manual_seed(0)
        model: Any = zero.build(
            self.config,
            dtype,
            lambda: models.pretrained(role.kind, path, **common),
            lambda: models.skeleton(role.kind, path, **common),
            lambda: models.tensors(path),
        )
        if role.kind == "scalar" and (role.zero_head or not models.has_head(path)):
            zero.draw(model.score.weight, 0.0 if role.zero_head else 0.02)
        size = sum(_size(p) for p in model.parameters())
        width, layers = model.config.hidden_size, model.config.num_hidden_layers
        vocab = model.config.vocab_size
        wrapped = models.finish(role.kind, model, attention=m.attention, lora=m.lora if role.lr is not None else None)
        if role.kind == "values":
            wrapped.heads.restore(path)
        if role.frozen_trunk:
            wrapped.model.requires_grad_(False)
        wrapped.to(self.device)
        if m.gradient_checkpointing and role.lr is not None:
            wrapped.core.gradient_checkpointing_enable({"use_reentrant": False})
        if m.compile and role.lr is not None:
            models.fuse(wrapped)
        engine = zero.engine(wrapped, self.config, dtype, role.lr, role.num_updates)
        wrapped.train(role.lr is not None)
        if role.target_rate is not None:
            self.averages[role.name] = zero.Averages(wrapped.heads.averaged(), role.target_rate)
        info = {"num_parameters": size, "width": width, "num_layers": layers}
        if m.attention == "auto":
            info["packed_difference"] = wrapped.check(vocab)
        info["packed"] = wrapped.packed
        if wrapped.padded_reason:
            info["padded_reason"] = wrapped.padded_reason
        self.widths[role.name] = width
        return engine, info

    def annotate(self, batch: Batch, temperature: float, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """This rank's share of old_log_probs, ref_log_probs, values and final_values, without gradients.

        Returns 'rows' (indices into ``batch``) and each column for those rows, flat in that order.
        """
        names = [*columns, "final_values"] if "values" in columns else [*columns]
        parts: dict[str, list[np.ndarray]] = {name: [np.zeros(0, np.float32)] for name in names}
        rows = [np.zeros(0, np.int64)]
        for micro_batch in self._micro_batches("actor", batch, None):
            annotated = self._annotate(micro_batch.batch, temperature, columns)
            if micro_batch.is_real:
                rows.append(micro_batch.rows)
                for name, values in annotated.items():
                    parts[name].append(values)
        return {"rows": np.concatenate(rows), **{name: np.concatenate(part) for name, part in parts.items()}}

    @torch.no_grad()
    def _annotate(self, micro: Batch, temperature: float, columns: Sequence[str]) -> dict[str, np.ndarray]:
        c = Columns(micro, self.device)
        inputs = (c.tokens, c.lengths, c.sampled, temperature, False, c.shared_prompts)
        found = {}
        if "old_log_probs" in columns:
            found["old_log_probs"] = c.spread(self._run("actor", *inputs)[0])
        if "ref_log_probs" in columns:
            with self._reference() as name:
                found["ref_log_probs"] = c.spread(self._run(name, *inputs)[0])
        if "values" in columns:
            read = torch.cat([before(c.sampled), final_positions(c.lengths)])
            both = self._run("critic", c.tokens, c.lengths, read, c.shared_prompts)
            found["values"] = c.spread(both[: len(c.sampled)])
            found["final_values"] = both[len(c.sampled) :]
        return {name: tensor.float().cpu().numpy() for name, tensor in found.items()}

    def update_on(self, role: str, terms: Sequence[LossTerm], *batches: Batch) -> Sums:
        """:meth:`update` of terms whose batches are arguments of their own, in the same order."""
        return self.update(role, [replace(term, batch=batch) for term, batch in zip(terms, batches, strict=True)])

    def update(self, role: str, terms: Sequence[LossTerm]) -> Sums:
        """Optimizer steps on the sum of ``terms``: coefficient times loss over weight. Returns this rank's metric sums.

        All terms have rows for the same number of steps, and ``term.batch`` is a Batch. All ranks compute the same plan and run
        the same number of micro-batches.
        """
        engine = self.engines[role]
        zero.module(engine).train()
        sums: list[Sums] = []
        began, flops = time.monotonic(), 0.0
        for step_rows in zip(*(term.rows for term in terms), strict=True):
            for term, rows in zip(terms, step_rows, strict=True):
                step_batch = term.batch.take(np.sort(rows))  # sorted: the rows of a group are next to each other
                divisor = term.objective.weight(step_batch) / term.coef or 1.0
                for micro_batch in self._micro_batches(role, step_batch, term.objective.unit):
                    loss, loss_metrics = term.objective.loss(engine, micro_batch.batch, self.device)
                    zero.backward(engine, loss if micro_batch.is_real else loss * 0.0, divisor)
                    if micro_batch.is_real:
                        sums.append(loss_metrics)
                        flops += self._flops(role, micro_batch.batch)
            lr = engine.get_lr()[0]  # of this update: the step moves on to the next one's
            sums.append({f"{role}/grad_norm": (zero.step(engine), 1.0), f"{role}/lr": (lr, 1.0)})
            if role in self.averages:
                self.averages[role].update()
        seconds = time.monotonic() - began
        sums.append({f"{role}/mfu": (flops, seconds * self.peak)})
        return merge_sums(sums)

    @torch.no_grad()
    def evaluate(self, role: str, objective: Objective, batch: Batch) -> Sums:
        """The objective's metrics over this rank's share of ``batch``, without gradients."""
        engine, sums = self.engines[role], []
        zero.module(engine).eval()
        for micro_batch in self._micro_batches(role, batch, objective.unit):
            _, loss_metrics = objective.loss(engine, micro_batch.batch, self.device)
            if micro_batch.is_real:
                sums.append(loss_metrics)
        return merge_sums(sums)

    @torch.no_grad()
    def predict(self, role: str, objective: Any, batch: Batch) -> dict[str, Any]:
        """The predictions of this rank's share: 'rows' (n,) of ``batch``, and as many arrays in 'predictions'."""
        rows, predictions = [np.zeros(0, np.int64)], []
        zero.module(self.engines[role]).eval()
        for micro_batch in self._micro_batches(role, batch, None):
            arrays = objective.predict(self.engines[role], micro_batch.batch, self.device)
            if micro_batch.is_real:
                rows.append(micro_batch.rows)
                predictions.extend(arrays)
        return {"rows": np.concatenate(rows), "predictions": predictions}

    def probe(self, tokens: np.ndarray, temperature: float) -> np.ndarray:
        """Log-probs (T,) of one sequence by the actor, 0 for token 0; on every rank the same."""
        ids = torch.tensor(tokens, device=self.device).long()
        at = torch.arange(1, len(ids), device=self.device)
        with torch.no_grad():
            found = self._run("actor", ids, torch.tensor([len(ids)], device=self.device), at, temperature)[0]
        return np.concatenate([np.zeros(1, np.float32), found.float().cpu().numpy()])

    def sync_weights(
        self, version: int, probe: np.ndarray, temperature: float, tolerance: float
    ) -> Iterator[SyncMessage]:
        """Yields the messages of a sync of the actor; only rank 0 has buckets. All ranks must call.

        Ray seals each bucket before it asks for the next one, and starts no update before the last message. So host tensors go
        out without a copy here. The last message is made while the receivers load the weights and score the probe.
        """
        yield Begin(version)
        fingerprints, num_bytes = [], 0
        for bucket in split_into_buckets(self._tensors("actor")):
            yield bucket
            fingerprints.append(fingerprint(bucket, hashes_every_byte(version)))
            num_bytes += bucket.num_bytes
        yield WeightManifest(
            version=version, fingerprints=tuple(fingerprints), probe=probe, tolerance=tolerance, num_bytes=num_bytes
        )
        yield ProbeAnswer(version, self.probe(probe, temperature))

    def weights(self, role: str = "actor") -> dict[str, torch.Tensor] | None:
        """The whole model by transformers' names on rank 0, None elsewhere; on a CPU these are the live parameters."""
        named = dict(self._tensors(role))
        return named if self.rank == 0 else None

    def _tensors(self, role: str) -> Iterator[tuple[str, torch.Tensor]]:
        """Name and host tensor of each parameter on rank 0, one on its way at a time; adapters are merged. All ranks call."""
        model = zero.module(self.engines[role])
        prefix = "model.base_model.model." if hasattr(model.model, "peft_config") else "model."
        adapters = {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight")}
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                continue
            owner = name.removesuffix(".weight").removesuffix(".base_layer")
            layer = adapters.get(owner)
            with zero.gathered([parameter] if layer is None else list(layer.parameters())):
                if self.rank:
                    continue
                value = parameter.detach()
                if layer is not None and name.endswith("base_layer.weight"):
                    value = value + layer.get_delta_weight("default").to(value.dtype)
                value = value.to("cpu", copy=zero.partitioned(parameter))
            yield name.removeprefix(prefix).replace(".base_layer.", "."), value

    def export(self, directory: str, role: str = "actor") -> None:
        """Writes the model in Hugging Face format (safetensors), adapters merged; value heads in a folder of it."""
        named = self.weights(role)
        if named is None:
            return
        heads = {name.removeprefix(HEADS): named.pop(name) for name in list(named) if name.startswith(HEADS)}
        core = zero.module(self.engines[role]).core
        saved = core.state_dict().keys()
        buffers = {n: b.cpu() for n, b in core.named_buffers() if n in saved}
        core.save_pretrained(directory, state_dict=named | buffers)
        if heads:
            values.save_heads(heads, directory)

    def save(self, directory: str) -> None:
        """Writes this rank's shards of all trained roles, and its random state."""
        for name, role in self.roles.items():
            if role.lr is not None:
                zero.save(self.engines[name], Path(directory), name)
        for name, averages in self.averages.items():
            torch.save(averages.values, self._averages_file(directory, name))
        torch.save(torch.get_rng_state(), Path(directory) / f"rng-rank{self.rank:03d}.pt")

    def load(self, directory: str) -> None:
        """Reads back what :meth:`save` wrote."""
        for name, role in self.roles.items():
            if role.lr is not None:
                zero.load(self.engines[name], Path(directory), name)
        for name, averages in self.averages.items():
            averages.load(torch.load(self._averages_file(directory, name)))
        torch.set_rng_state(torch.load(Path(directory) / f"rng-rank{self.rank:03d}.pt"))

    def _averages_file(self, directory: str, name: str) -> Path:
        return Path(directory) / f"{name}-averages-rank{self.rank:03d}.pt"

    def ping(self) -> str:
        """Answers while the worker lives."""
        return "ok"

    def _micro_batches(self, role: str, batch: Batch, unit: str | None) -> Iterator[MicroBatch]:
        """This rank's micro-batches, as many as the other ranks have: fillers come at the end if it has fewer rows.

        The rows are balanced over ranks by their cost in this role's model. Rows with equal values in the column ``unit`` stay
        together. Without a unit, groups stay together if that leaves out enough of their prompts.
        """
        for rows in self._plan(role, batch, unit)[self.rank]:
            if len(rows):
                yield MicroBatch(batch.take(rows), rows)
            else:
                column = np.arange(len(batch)) if unit is None else getattr(batch, unit)
                yield MicroBatch(batch.take(column == column[0]), rows)

    def _plan(self, role: str, batch: Batch, unit: str | None) -> list[list[np.ndarray]]:
        """Rows of each micro-batch of each rank: ``plan[rank][i]``, empty for a filler."""
        budget, lengths, column = self.config.micro_batch_tokens, batch.lengths, getattr(batch, unit) if unit else None
        if column is None and batch.has("prompt_length"):
            unshared = lengths - batch.shared_prompts
            _, group = np.unique(batch.group, return_inverse=True)
            longest_group = np.bincount(group, unshared).max(initial=0)
            if longest_group <= budget and lengths.sum() - unshared.sum() >= LEAST_SHARED * lengths.sum():
                lengths, column = unshared, batch.group
        return micro_batches(lengths, budget, self.world_size, column, self.widths[role])

    def _run(self, role: str, *args: Any) -> Any:
        return self.engines[role](*args)

    @contextlib.contextmanager
    def _reference(self) -> Any:
        if "reference" in self.engines:
            yield "reference"
        else:
            with zero.module(self.engines["actor"]).model.disable_adapter():
                yield "actor"

    def _flops(self, role: str, micro: Batch) -> float:
        """Forward and backward FLOPs of the real tokens: 6 N T of the layers (2 where they are frozen), the heads on response
        positions only, and attention's 6 layers width s^2."""
        module, kind, frozen = zero.module(self.engines[role]), self.roles[role].kind, self.roles[role].frozen_trunk
        if kind == "seq2seq":
            return float(module.flops(*map(torch.tensor, (micro.prompt_length, micro.response_lengths))))
        core, causal = module.core, kind in ("policy", "values")
        c = core.config
        head = c.vocab_size * c.hidden_size
        tables = head * (2 if causal and not c.tie_word_embeddings else 1)
        size = sum(_size(p) for p in core.parameters()) - tables
        lengths = micro.lengths.astype(float)
        shared = micro.shared_prompts.astype(float) if micro.has("prompt_length") else np.zeros(len(micro))
        attention = c.num_hidden_layers * c.hidden_size * float((lengths**2 - shared**2).sum())
        read = float(micro.response_mask.sum()) if causal else 0.0
        trunk = size * float((lengths - shared).sum()) + attention
        heads = sum(_size(p) for n, p in module.named_parameters() if n.startswith(HEADS) and p.requires_grad) * read
        return 2.0 * trunk + 6.0 * heads if frozen else 6.0 * (trunk + head * read + heads)


def _size(parameter: Any) -> int:
    """Elements of a parameter, also of one that ZeRO-3 holds in shards."""
    return int(np.prod(getattr(parameter, "ds_shape", parameter.shape)))


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """FLOP/s of a square matrix product in ``dtype``, the best of three: what MFU is measured against."""
    n = 1024 if device.type == "cpu" else 8192
    a = torch.randn(n, n, device=device, dtype=dtype)  # constants would need less power, and run faster
    best = float("inf")
    for _ in range(3):
        began = time.monotonic()
        (a @ a)[0, 0].item()
        best = min(best, time.monotonic() - began)
    return 2.0 * n**3 / best
