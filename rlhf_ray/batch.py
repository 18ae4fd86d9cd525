"""Batch: the one value that flows between rollout, reward and learner.

B sequences are held ragged: every per-token column is one flat array aligned with ``tokens``, and ``lengths`` says
where each sequence ends. Nothing is padded until a micro-batch meets a model. The same columns are a
``pyarrow.Table``, so a Batch crosses the object store without a copy and is stored as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray


class MissingField(AttributeError):
    """A column was read before the stage that fills it has run."""


def _column(dtype: str, per: str, stage: str) -> Any:
    return dataclasses.field(default=None, metadata={"dtype": dtype, "per": per, "stage": stage})


@dataclass(frozen=True, eq=False)
class Batch:
    """B ragged sequences of T tokens in all. Columns are read-only numpy arrays.

    Per-token columns have shape (T,), per-sequence columns (B,) or (B, k). Reading a column that no stage has filled
    raises :class:`MissingField`, which names the column and the stage; ``has`` asks first.
    """

    tokens: Array = _column("int32", "token", "rollout or data")
    lengths: Array = _column("int64", "sequence", "rollout or data")
    response_mask: Array = _column("uint8", "token", "rollout or data")
    prompt_length: Array = _column("int64", "sequence", "rollout or data")
    group: Array = _column("int64", "sequence", "rollout or data")
    example_id: Array = _column("int64", "sequence", "rollout or data")
    sample: Array = _column("int32", "sequence", "rollout")
    seed: Array = _column("uint64", "sequence", "rollout or data")
    rollout_log_probs: Array = _column("float32", "token", "rollout")
    policy_version: Array = _column("int64", "sequence", "rollout")
    truncated: Array = _column("uint8", "sequence", "rollout")
    rewards: Array = _column("float32", "sequence", "rewards")
    reward_parts: Array = _column("float32", "sequence", "rewards")
    step_rewards: Array = _column("float32", "token", "rewards or data")
    targets: Array = _column("int32", "token", "data")
    words: Array = _column("int32", "token", "data")
    labels: Array = _column("float32", "sequence", "data")
    old_log_probs: Array = _column("float32", "token", "learner.annotate")
    ref_log_probs: Array = _column("float32", "token", "learner.annotate")
    values: Array = _column("float32", "token", "learner.annotate")
    final_values: Array = _column("float32", "sequence", "learner.annotate")
    advantages: Array = _column("float32", "token", "driver, by algorithms")
    returns: Array = _column("float32", "token", "driver, by algorithms")

    def __post_init__(self) -> None:
        for name in self.columns():
            array = np.ascontiguousarray(object.__getattribute__(self, name), dtype=COLUMNS[name]["dtype"])
            view = array.view()
            view.flags.writeable = False
            object.__setattr__(self, name, view)
        total, rows = int(self.lengths.sum()), len(self.lengths)
        for name in self.columns():
            want = total if COLUMNS[name]["per"] == "token" else rows
            if len(object.__getattribute__(self, name)) != want:
                raise ValueError(
                    f"Batch.{name} has {len(object.__getattribute__(self, name))} rows, expected {want} "
                    f"(one per {COLUMNS[name]['per']})"
                )

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if value is None and name in COLUMNS:
            raise MissingField(f"Batch.{name} is not there yet: it is filled by {COLUMNS[name]['stage']}")
        return value

    def __len__(self) -> int:
        return len(self.lengths)

    def has(self, name: str) -> bool:
        """Whether the stage that fills column ``name`` has run."""
        return object.__getattribute__(self, name) is not None

    def columns(self) -> list[str]:
        """Names of the filled columns, in the order of the fields."""
        return [name for name in COLUMNS if object.__getattribute__(self, name) is not None]

    @property
    def offsets(self) -> Array:
        """(B + 1,) int64: sequence i holds the flat positions offsets[i] to offsets[i + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def response_lengths(self) -> Array:
        """(B,) int64: sampled tokens of each sequence."""
        total = np.concatenate([[0], np.cumsum(self.response_mask, dtype=np.int64)])
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    @property
    def shared_prompts(self) -> Array:
        """(B,) int64: leading tokens a sequence has in common with the one before it: its prompt, where both are of a group."""
        same = self.group[1:] == self.group[:-1]
        return np.concatenate([[0], np.where(same, self.prompt_length[1:], 0)])[: len(self)]

    def replace(self, **columns: Array) -> Batch:
        """A new Batch with these columns set; the others are shared."""
        return Batch(**{**self._filled(), **columns})

    def take(self, rows: Sequence[int] | Array) -> Batch:
        """The sequences ``rows`` (indices or a boolean mask), in that order."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows, dtype=np.int64)
        starts = self.offsets[:-1][rows]
        lengths = self.lengths[rows]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        flat = np.repeat(starts, lengths) + within
        picked = {name: a[flat] if COLUMNS[name]["per"] == "token" else a[rows] for name, a in self._filled().items()}
        return Batch(**picked)

    def sequences(self, name: str = "tokens") -> list[Array]:
        """Column ``name`` as one array for each sequence."""
        return np.split(getattr(self, name), self.offsets[1:-1])

    def sorted(self) -> Batch:
        """Canonical order (example_id, sample): what depends on order depends on nothing else."""
        return self.take(np.lexsort((self.sample, self.example_id)))

    def to_arrow(self) -> pa.Table:
        """The filled columns as an Arrow table: list columns for per-token and (B, k) ones."""
        arrays = {}
        for name, array in self._filled().items():
            if COLUMNS[name]["per"] == "token":
                arrays[name] = pa.ListArray.from_arrays(pa.array(self.offsets, pa.int32()), pa.array(array))
            elif array.ndim == 2:
                arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(array.reshape(-1)), array.shape[1])
            else:
                arrays[name] = pa.array(array)
        return pa.table(arrays)

    @staticmethod
    def from_arrow(table: pa.Table) -> Batch:
        """The inverse of :meth:`to_arrow`; columns that are not a Batch's are left out."""
        columns: dict[str, Array] = {}
        for name in [n for n in COLUMNS if n in table.column_names]:
            column = table[name].combine_chunks()
            if pa.types.is_fixed_size_list(column.type):
                columns[name] = column.flatten().to_numpy(zero_copy_only=False).reshape(-1, column.type.list_size)
            elif pa.types.is_list(column.type):
                columns[name] = column.flatten().to_numpy(zero_copy_only=False)
            else:
                columns[name] = column.to_numpy(zero_copy_only=False)
        return Batch(**columns)

    def _filled(self) -> dict[str, Array]:
        return {name: object.__getattribute__(self, name) for name in self.columns()}


COLUMNS: dict[str, dict[str, str]] = {f.name: dict(f.metadata) for f in dataclasses.fields(Batch)}


def cat(batches: Iterable[Batch]) -> Batch:
    """One Batch of all sequences. Every part must have the same columns.

    Raises ValueError where a column is filled in some parts only.
    """
    parts = list(batches)
    if not parts:
        raise ValueError("cat of no batches")
    names = parts[0].columns()
    for part in parts:
        if part.columns() != names:
            raise ValueError(f"cat of batches with different columns: {sorted(set(names) ^ set(part.columns()))}")
    return Batch(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def from_sequences(tokens: Sequence[Array], **columns: Array | Sequence[Any]) -> Batch:
    """A Batch from one token array a sequence; per-token columns as lists of arrays too, per-sequence ones as they are."""
    flat = {
        name: np.concatenate([np.asarray(a) for a in value]) if COLUMNS[name]["per"] == "token" else np.asarray(value)
        for name, value in columns.items()
    }
    lengths = np.array([len(t) for t in tokens], dtype=np.int64)
    return Batch(tokens=np.concatenate([np.asarray(t) for t in tokens]), lengths=lengths, **flat)


def micro_batches(
    lengths: Array, budget: int, world_size: int, unit: Array | None = None, width: int = 0
) -> list[list[Array]]:
    """Splits rows over ranks and into micro-batches of at most ``budget`` tokens: ``plan[rank][i]`` are row indices.

    Rows that share a ``unit`` (a preference pair) stay together. The cost of a row is ``12 * width * s + s^2``, up to a
    factor the FLOPs of s tokens in a model of that hidden size, attention's square counted. Units go, costliest first,
    to the rank that has the least so far; each rank then fills micro-batches first-fit. All ranks get the same number
    of micro-batches, empty ones at the end where they must wait for the others (uneven counts hang ZeRO-2 and 3).
    The plan depends on the arguments alone, so every rank computes the same one without talking.
    """
    unit = np.arange(len(lengths)) if unit is None else unit
    _, inverse = np.unique(unit, return_inverse=True)
    members = np.split(np.argsort(inverse, kind="stable"), np.cumsum(np.bincount(inverse))[:-1]) if len(lengths) else []
    cost = [float((12.0 * width * lengths[m] + lengths[m].astype(float) ** 2).sum()) for m in members]
    size = [int(lengths[m].sum()) for m in members]
    load = [0.0] * world_size
    plan: list[list[list[int]]] = [[] for _ in range(world_size)]
    room: list[list[int]] = [[] for _ in range(world_size)]
    for u in sorted(range(len(members)), key=lambda u: (-cost[u], u)):
        rank = min(range(world_size), key=lambda r: (load[r], r))
        load[rank] += cost[u]
        at = next((i for i, free in enumerate(room[rank]) if free >= size[u]), None)
        if at is None:
            at = len(room[rank])
            room[rank].append(budget)
            plan[rank].append([])
        room[rank][at] -= size[u]
        plan[rank][at].extend(members[u].tolist())
    count = max((len(p) for p in plan), default=0)
    return [[np.array(sorted(rows), dtype=np.int64) for rows in p + [[]] * (count - len(p))] for p in plan]
