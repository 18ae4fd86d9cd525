"""LearnerWorker: one rank of the learner, with actor, critic and reference or one model."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..batch import Batch
from ..config import LearnerConfig, ModelConfig, resolve_dtypes
from ..models.checkpoint_format import read_parameters
from ..models.load import (
    DTYPES,
    build_skeleton,
    compile_layers,
    has_reward_head,
    load_pretrained,
    wrap_model,
)
from ..models.positions import predicting_positions
from ..run.metrics import Sums, merge_sums
from ..weights.manifest import fingerprint, hashes_every_byte
from ..weights.messages import Begin, ProbeAnswer, SyncMessage, WeightManifest, split_into_buckets
from . import zero
from .memory_errors import explains_memory
from .mfu import num_elements, peak_flops, training_flops
from .micro_batch import MicroBatch, plan_micro_batches
from .objectives import Columns, LossTerm, Objective, final_positions
from .residency import Residency
from .weights import export_model, gather_checkpoint, gather_parameters

COLLECTIVE_MARGIN_S = 120.0  # a collective fails so much later than the driver gives a stage up, and names its stacks


@dataclass(frozen=True, kw_only=True)
class Role:
    """A model of the learner.

    ``kind`` is one of models/load.py, ``model.path`` a local directory. ``lr`` None means frozen. ``zero_head``: a
    scalar head starts at zero. ``num_updates``: optimizer steps of the whole job, for the schedule. ``labels``: classes
    of a task head. ``frozen_trunk``: of kind 'values' only the heads are trained. ``target_rate``: by how much their
    targets follow them at each optimizer step.
    """

    name: str
    kind: str
    model: ModelConfig
    lr: float | None
    zero_head: bool = False
    num_updates: int = 1
    labels: tuple[str, ...] = ()
    frozen_trunk: bool = False
    target_rate: float | None = None


class LearnerWorker:
    """One rank. Methods are called on all ranks at once, with the same arguments."""

    def __init__(
        self, *, config: LearnerConfig, roles: Sequence[Role], device: str, num_threads: int, deadline_s: float
    ) -> None:
        self.device, self.deadline_s = torch.device(device), deadline_s
        self.config, self.num_threads = config, num_threads
        self.roles = {role.name: replace(role, model=resolve_dtypes(role.model, device)) for role in roles}
        self.rank, self.world_size, self.peak_flops = 0, 1, 0.0  # known after start()
        self.ranks_per_node = 1  # as zero.ranks_on_each_node() counts them; known if config.node_copies
        self.engines: dict[str, Any] = {}
        self.averages: dict[str, zero.PolyakAverages] = {}
        self.residency = Residency({}, self.device)  # start() has the engines
        self.widths: dict[str, int] = {}  # hidden size of each role, for the cost of its micro-batches
        self.micro_batch: Batch | None = None  # the one that is computed
        self.num_begun = 0

    def free_port(self) -> int:
        """A free port on this host, at which the ranks meet."""
        with socket.socket() as listener:
            listener.bind(("", 0))
            return int(listener.getsockname()[1])

    def progress(self) -> int:
        """How many pieces of work this rank has begun: models, micro-batches, gathered parameters. For the deadline."""
        return self.num_begun

    @explains_memory
    def start(self, rank: int, world_size: int, address: str, port: int) -> dict[str, Any]:
        """Joins the other ranks and builds the roles.

        Returns 'roles' (of each: 'num_parameters', 'width', 'num_layers', 'packed', 'packed_difference' if it was
        measured, and 'padded_reason' if packed passes are impossible), and the device's 'peak_flops' in the model's
        dtype and 'float32_flops'.
        """
        torch.set_num_threads(self.num_threads)  # here: Ray calls the constructor in another thread than the methods
        self.rank, self.world_size = rank, world_size
        zero.join_ranks(
            rank=rank,
            world_size=world_size,
            address=address,
            port=port,
            device=self.device,
            timeout_s=self.deadline_s + COLLECTIVE_MARGIN_S,
        )
        self.ranks_per_node = zero.ranks_on_each_node(zero.gather_host_names()) if self.config.node_copies else 1
        info = {role.name: self._build(role) for role in self.roles.values()}
        self.residency = Residency(
            self.engines, self.device, [v for averages in self.averages.values() for v in averages.values]
        )
        dtype = DTYPES[next(iter(self.roles.values())).model.dtype]
        float32_flops = peak_flops(self.device, torch.float32)
        self.peak_flops = float32_flops if dtype == torch.float32 else peak_flops(self.device, dtype)
        return {"roles": info, "peak_flops": self.peak_flops, "float32_flops": float32_flops}

    def _build(self, role: Role) -> dict[str, Any]:
        """Fills ``engines``, ``widths`` and ``averages`` for a role; returns its sizes."""
        self.num_begun += 1
        config, path = role.model, str(role.model.path)
        dtype, is_trained = DTYPES[config.dtype], role.lr is not None
        common: dict[str, Any] = {"dtype": dtype, "trust_remote_code": config.trust_remote_code, "labels": role.labels}
        torch.manual_seed(0)
        settings = zero.deepspeed_config(self.config, dtype, self.device.type, self.ranks_per_node)
        model: Any = zero.build_model(
            self.config,
            settings,
            lambda: load_pretrained(role.kind, path, **common),
            lambda: build_skeleton(role.kind, path, **common),
            lambda skeleton: read_parameters(skeleton, path),
        )
        if role.kind == "scalar" and (role.zero_head or not has_reward_head(path)):
            zero.fill_normal(model.score.weight, 0.0 if role.zero_head else 0.02)
        num_parameters, vocab_size = num_elements(model), model.config.vocab_size
        width, num_layers = model.config.hidden_size, model.config.num_hidden_layers
        module = wrap_model(role.kind, model, attention=config.attention, lora=config.lora if is_trained else None)
        if role.kind == "values":
            module.heads.restore(path)
        if role.frozen_trunk:
            module.model.requires_grad_(False)
        module.to(self.device)
        if config.gradient_checkpointing and is_trained:
            module.core.gradient_checkpointing_enable({"use_reentrant": False})
        if config.compile and is_trained:
            compile_layers(module)
        self.engines[role.name] = zero.make_engine(module, self.config, settings, role.lr, role.num_updates)
        self.widths[role.name] = width
        module.train(is_trained)
        if role.target_rate is not None:
            self.averages[role.name] = zero.PolyakAverages(module.heads.parameter_pairs(), role.target_rate)
        info = {"num_parameters": num_parameters, "width": width, "num_layers": num_layers}
        if config.attention == "auto":
            info["packed_difference"] = module.check(vocab_size)
        info["packed"] = module.packed
        if module.padded_reason:
            info["padded_reason"] = module.padded_reason
        return info

    @explains_memory
    def keep_awake(self, parts: Collection[str]) -> dict[str, int]:
        """Puts the other parts of :class:`Residency` to sleep and wakes these. Returns the bytes each gave or took."""
        return self.residency.keep_awake(parts)

    @explains_memory
    def annotate(self, batch: Batch, temperature: float, columns: Sequence[str]) -> dict[str, np.ndarray]:
        """``columns`` of this rank's share of the rows: old_log_probs, ref_log_probs, values (with final_values).

        Returns 'rows' (n,), indices into ``batch``, and each column for those rows in that order, float32: flat over
        tokens, but final_values (n,).
        """
        self.residency.require("weights", *(["reference"] if "ref_log_probs" in columns else []))
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
    def _annotate(self, batch: Batch, temperature: float, columns: Sequence[str]) -> dict[str, np.ndarray]:
        c = Columns(batch, self.device)
        inputs = (c.tokens, c.lengths, c.sampled, temperature, False, c.shared_prompts)
        annotated = {}
        if "old_log_probs" in columns:
            annotated["old_log_probs"] = c.spread(self.engines["actor"](*inputs)[0])
        if "ref_log_probs" in columns:
            with self._reference() as reference:
                annotated["ref_log_probs"] = c.spread(reference(*inputs)[0])
        if "values" in columns:
            positions = torch.cat([predicting_positions(c.sampled), final_positions(c.lengths)])
            values = self.engines["critic"](c.tokens, c.lengths, positions, c.shared_prompts)
            annotated["values"] = c.spread(values[: len(c.sampled)])
            annotated["final_values"] = values[len(c.sampled) :]
        return {name: tensor.float().cpu().numpy() for name, tensor in annotated.items()}

    def update_on(self, role: str, terms: Sequence[LossTerm], *batches: Batch) -> Sums:
        """:meth:`update` of terms whose batches are arguments of their own, in the same order."""
        return self.update(role, [replace(term, batch=batch) for term, batch in zip(terms, batches, strict=True)])

    @explains_memory
    def update(self, role: str, terms: Sequence[LossTerm]) -> Sums:
        """Optimizer steps on the sum of ``terms``: coefficient times loss over weight. Returns this rank's metric sums.

        A step whose gradient is not finite is skipped, and counted in 'ROLE/skipped_steps' (absent if none was).
        All terms have rows for the same number of steps, and ``term.batch`` is a Batch. All ranks compute the same plan
        and run the same number of micro-batches.
        """
        self.residency.require("weights", "optimizer")
        engine, kind, frozen_trunk = self.engines[role], self.roles[role].kind, self.roles[role].frozen_trunk
        module = zero.module_of(engine)
        module.train()
        sums: list[Sums] = []
        began, flops, num_skipped = time.monotonic(), 0.0, 0
        for step_rows in zip(*(term.rows for term in terms), strict=True):
            for term, rows in zip(terms, step_rows, strict=True):
                step_batch = term.batch.take(np.sort(rows))  # sorted: the rows of a group are next to each other
                divisor = term.objective.weight(step_batch) / term.coef or 1.0
                for micro_batch in self._micro_batches(role, step_batch, term.objective.unit):
                    loss, loss_metrics = term.objective.loss(engine, micro_batch.batch, self.device)
                    zero.backward(engine, loss if micro_batch.is_real else loss * 0.0, divisor)
                    if micro_batch.is_real:
                        sums.append(loss_metrics)
                        flops += training_flops(module, kind, frozen_trunk, micro_batch.batch)
            lr = engine.get_lr()[0]  # of this update: the step moves on to the next one's
            norm = zero.optimizer_step(engine)
            if norm is None:
                num_skipped += 1
                continue
            sums.append({f"{role}/grad_norm": (norm, 1.0), f"{role}/lr": (lr, 1.0)})
            if role in self.averages:
                self.averages[role].update()
        if num_skipped:
            sums.append({f"{role}/skipped_steps": (float(num_skipped), 1.0)})
        seconds = time.monotonic() - began
        sums.append({f"{role}/mfu": (flops, seconds * self.peak_flops)})
        return merge_sums(sums)

    @explains_memory
    @torch.no_grad()
    def evaluate(self, role: str, objective: Objective, batch: Batch) -> Sums:
        """The objective's metrics over this rank's share of ``batch``, without gradients."""
        self.residency.require("weights")
        engine, sums = self.engines[role], []
        zero.module_of(engine).eval()
        for micro_batch in self._micro_batches(role, batch, objective.unit):
            _, loss_metrics = objective.loss(engine, micro_batch.batch, self.device)
            if micro_batch.is_real:
                sums.append(loss_metrics)
        return merge_sums(sums)

    @explains_memory
    @torch.no_grad()
    def predict(self, role: str, objective: Any, batch: Batch) -> dict[str, Any]:
        """The predictions of this rank's share: 'rows' (n,) of ``batch``, and as many arrays in 'predictions'."""
        self.residency.require("weights")
        rows, predictions = [np.zeros(0, np.int64)], []
        zero.module_of(self.engines[role]).eval()
        for micro_batch in self._micro_batches(role, batch, None):
            arrays = objective.predict(self.engines[role], micro_batch.batch, self.device)
            if micro_batch.is_real:
                rows.append(micro_batch.rows)
                predictions.extend(arrays)
        return {"rows": np.concatenate(rows), "predictions": predictions}

    @torch.no_grad()
    def log_probs(self, tokens: np.ndarray, temperature: float) -> np.ndarray:
        """Log-probs (T,) float32 of one sequence by the actor, 0 for token 0; on every rank the same."""
        ids = torch.tensor(tokens, device=self.device).long()
        positions = torch.arange(1, len(ids), device=self.device)
        lengths = torch.tensor([len(ids)], device=self.device)
        log_probs, _ = self.engines["actor"](ids, lengths, positions, temperature)
        return np.concatenate([np.zeros(1, np.float32), log_probs.float().cpu().numpy()])

    def sync_weights(
        self,
        version: int,
        probes: tuple[np.ndarray, np.ndarray],
        temperature: float,
        tolerance: float,
        weight_names: str = "transformers",
    ) -> Iterator[SyncMessage]:
        """Yields the messages of a sync of the actor; only rank 0 has buckets. All ranks must call.

        ``weight_names``: what the engine knows (see the configs of engines), 'transformers' or 'checkpoint' names.

        Ray seals each bucket before it asks for the next one, and starts no update before the last message. So host
        tensors go out without a copy here. The last message is made while the receivers load the weights and score the
        probe.
        """
        self.residency.require("weights")
        yield Begin(version)
        fingerprints, num_bytes = [], 0
        gather = gather_checkpoint if weight_names == "checkpoint" else gather_parameters
        named = gather(zero.module_of(self.engines["actor"]), self.rank == 0, self._count_progress)
        for bucket in split_into_buckets(named):
            yield bucket
            fingerprints.append(fingerprint(bucket, hashes_every_byte(version)))
            num_bytes += bucket.num_bytes
        probe, second_probe = probes
        yield WeightManifest(
            version=version,
            fingerprints=tuple(fingerprints),
            probe=probe,
            second_probe=second_probe,
            tolerance=tolerance,
            num_bytes=num_bytes,
        )
        yield ProbeAnswer(version, self.log_probs(probe, temperature), self.log_probs(second_probe, temperature))

    def weights(self, role: str = "actor") -> dict[str, torch.Tensor] | None:
        """All tensors by transformers' names on rank 0, None elsewhere.

        On a CPU they are the live parameters, not copies.
        """
        self.residency.require("weights")
        module = zero.module_of(self.engines[role])
        tensors = dict(gather_parameters(module, self.rank == 0, self._count_progress))
        return tensors if self.rank == 0 else None

    def _count_progress(self) -> None:
        self.num_begun += 1

    def export(self, directory: str, role: str = "actor") -> None:
        """Writes the model in Hugging Face format (safetensors), adapters merged.

        Value heads go into a folder of it.
        """
        tensors = self.weights(role)
        if tensors is not None:
            export_model(zero.module_of(self.engines[role]), tensors, directory)

    def save(self, directory: str) -> None:
        """Writes this rank's shards of all trained roles, and its random state."""
        self.residency.require("weights", "optimizer")
        for name, role in self.roles.items():
            if role.lr is not None:
                zero.save_shards(self.engines[name], Path(directory), name)
        for name, averages in self.averages.items():
            torch.save(averages.values, self._averages_file(directory, name))
        torch.save(torch.get_rng_state(), Path(directory) / f"rng-rank{self.rank:03d}.pt")

    @explains_memory
    def load(self, directory: str) -> None:
        """Reads back what :meth:`save` wrote."""
        self.residency.require("weights", "optimizer")
        for name, role in self.roles.items():
            if role.lr is not None:
                zero.load_shards(self.engines[name], Path(directory), name)
        for name, averages in self.averages.items():
            averages.load(torch.load(self._averages_file(directory, name)))
        torch.set_rng_state(torch.load(Path(directory) / f"rng-rank{self.rank:03d}.pt"))

    def _averages_file(self, directory: str, name: str) -> Path:
        return Path(directory) / f"{name}-averages-rank{self.rank:03d}.pt"

    def _micro_batches(self, role: str, batch: Batch, unit: str | None) -> Iterator[MicroBatch]:
        """This rank's micro-batches, as many as the other ranks have: fillers come at the end if it has fewer rows."""
        plan = plan_micro_batches(
            batch,
            unit,
            budget=self.config.micro_batch_tokens,
            world_size=self.world_size,
            width=self.widths[role],
        )
        for rows in plan[self.rank]:
            column = np.arange(len(batch)) if unit is None else getattr(batch, unit)
            self.num_begun += 1
            self.micro_batch = batch.take(rows if len(rows) else column == column[0])
            yield MicroBatch(self.micro_batch, rows)
        self.micro_batch = None

    @contextlib.contextmanager
    def _reference(self) -> Iterator[Any]:
        """The reference's engine; without one, the actor with its adapter off."""
        if "reference" in self.engines:
            yield self.engines["reference"]
        else:
            with zero.module_of(self.engines["actor"]).model.disable_adapter():
                yield self.engines["actor"]
