"""Batch: the one value that flows between rollout, reward and learner.

B sequences of T tokens in all are held ragged: each per-token column is one flat array, and ``lengths`` says where each
sequence ends. Nothing is padded until a micro-batch meets a model. The same columns are a ``pyarrow.Table``, so a Batch
crosses the object store without a copy and is stored as it is.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

Array = np.ndarray


class MissingField(AttributeError):
    """A column was read before the stage that fills it has run."""


class Column:
    """What a column of a Batch holds: its dtype, one row for each token or sequence, and the stage that fills it.

    The column's array is an attribute of the Batch itself, which Python finds first. So ``__get__`` is called for a
    missing column only.
    """

    def __init__(self, dtype: str, per: str, stage: str) -> None:
        self.dtype, self.per, self.stage = dtype, per, stage

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, batch: object, owner: type) -> Any:
        if batch is None:
            return self
        raise MissingField(f"Batch.{self.name} is not there yet: it is filled by {self.stage}")


def _column(dtype: str, per: str, stage: str) -> Any:
    return Column(dtype, per, stage)


class Batch:
    """B ragged sequences of T tokens in all. Columns are read-only numpy arrays, and a Batch does not change.

    Per-token columns have shape (T,), per-sequence columns (B,) or (B, k). Reading a column that no stage has filled
    raises :class:`MissingField`, which names the column and the stage; :meth:`has` asks first.

    These columns mean different things in different jobs::

        job                  response_mask         prompt_length     group            labels
        RL                   sampled tokens        of the prompt     prompt           -
        RL, online DPO       sampled tokens        of the prompt     prompt           1 chosen, 0 rejected
        sft, pretrain        tokens of the loss    first of the mask row              -
        seq2seq              tokens of the target  of the source     row              -
        mlm                  masked tokens *       0                 piece of a text  -
        tag                  first token of a word 0                 row              -
        classify             none                  0                 row              class number
        qa                   tokens of the context start of context  window           first, last token of the answer
        dpo, reward (pairs)  tokens of the answer  of the prompt     pair             1 chosen or 0 rejected, margin
        kto                  tokens of the answer  of the prompt     row, mismatched  1 desirable, 0 not, -1 mismatched
        reward (labels)      tokens of the answer  of the prompt     row              label 0 or 1, or score
        reward (steps)       last token of a step  first of the mask row              -
        ilql                 tokens of the answer  of the prompt     row              -

    (*) In the dataset these are all tokens that may be masked; each step chooses among them.
    """

    tokens: Array = _column("int32", "token", "rollout or data")
    """(T,) ids of the tokenizer, without padding."""
    lengths: Array = _column("int64", "sequence", "rollout or data")
    """(B,) tokens of each sequence; they add up to T."""
    response_mask: Array = _column("uint8", "token", "rollout or data")
    """(T,) 1 at the tokens that the loss reads, 0 elsewhere; see the table. A greedy baseline's row is all 0."""
    prompt_length: Array = _column("int64", "sequence", "rollout or data")
    """(B,) tokens before the response; see the table."""
    group: Array = _column("int64", "sequence", "rollout or data")
    """(B,) equal for rows that belong together, which lie next to each other; see the table.

    RL numbers prompts over the run.
    """
    example_id: Array = _column("int64", "sequence", "rollout or data")
    """(B,) number of the row in the dataset."""
    sample: Array = _column("int32", "sequence", "rollout")
    """(B,) number of the sample among those of its example in this step."""
    seed: Array = _column("uint64", "sequence", "rollout or data")
    """(B,) seed of the row's random numbers: of its sampling in RL, of its embedding noise in sft."""
    rollout_log_probs: Array = _column("float32", "token", "rollout")
    """(T,) log-probs of the sampled tokens as the engine computed them, in nats; 0 in the prompt."""
    policy_version: Array = _column("int64", "sequence", "rollout")
    """(B,) weight version that sampled the row; -1 is the model before any sync."""
    truncated: Array = _column("uint8", "sequence", "rollout")
    """(B,) 1 if the response reached its limit without an end token."""
    rewards: Array = _column("float32", "sequence", "rewards")
    """(B,) the sum of ``reward_parts``, normalised and weighted; NaN if a part is missing."""
    reward_parts: Array = _column("float32", "sequence", "rewards")
    """(B, k) what each of k reward terms returned; NaN if it failed."""
    step_rewards: Array = _column("float32", "token", "rewards or data")
    """(T,) rewards at single tokens: of process reward models in RL, of the data in ilql."""
    targets: Array = _column("int32", "token", "data")
    """(T,) the target at response_mask: the token (mlm), the tag (tag), 1 or 0 for a right or wrong step (reward)."""
    words: Array = _column("int32", "token", "data")
    """(T,) number of the word that the token is part of; -1 for special tokens (mlm)."""
    labels: Array = _column("float32", "sequence", "data")
    """(B, k) truth about each row; see the table."""
    old_log_probs: Array = _column("float32", "token", "learner.annotate")
    """(T,) log-probs at response_mask by the policy before this step's updates, in nats."""
    ref_log_probs: Array = _column("float32", "token", "learner.annotate")
    """(T,) the same by the reference model."""
    values: Array = _column("float32", "token", "learner.annotate")
    """(T,) the critic's estimate before token i was sampled, at response_mask."""
    final_values: Array = _column("float32", "sequence", "learner.annotate")
    """(B,) the critic's estimate after the last token, for responses that were cut."""
    advantages: Array = _column("float32", "token", "driver, by algorithms")
    """(T,) at response_mask, 0 elsewhere."""
    returns: Array = _column("float32", "token", "driver, by algorithms")
    """(T,) what the critic learns to predict, at response_mask."""

    def __init__(self, **columns: Array) -> None:
        """Raises TypeError for an unknown column, ValueError for one of the wrong size."""
        unknown = sorted(columns.keys() - COLUMNS.keys())
        if unknown:
            raise TypeError(f"Batch has no column {', '.join(unknown)}")
        for name in [name for name in COLUMNS if name in columns]:
            view = np.ascontiguousarray(columns[name], dtype=COLUMNS[name].dtype).view()
            view.flags.writeable = False
            self.__dict__[name] = view
        num_tokens, num_rows = int(self.lengths.sum()), len(self.lengths)
        for name, array in self._filled().items():
            expected = num_tokens if COLUMNS[name].per == "token" else num_rows
            if len(array) != expected:
                per = COLUMNS[name].per
                raise ValueError(f"Batch.{name} has {len(array)} rows, expected {expected} (one per {per})")

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"a Batch does not change; replace({name}=...) makes another")

    def __len__(self) -> int:
        return len(self.lengths)

    def has(self, name: str) -> bool:
        """Whether the stage that fills column ``name`` has run."""
        if name not in COLUMNS:
            raise AttributeError(f"Batch has no column {name}")
        return name in self.__dict__

    def columns(self) -> list[str]:
        """Names of the filled columns, in the order above."""
        return list(self.__dict__)

    @property
    def offsets(self) -> Array:
        """(B + 1,) int64: sequence i holds the flat positions offsets[i] to offsets[i + 1]."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @property
    def response_lengths(self) -> Array:
        """(B,) int64: tokens of each sequence that are in response_mask."""
        total = np.concatenate([[0], np.cumsum(self.response_mask, dtype=np.int64)])
        return total[self.offsets[1:]] - total[self.offsets[:-1]]

    @property
    def shared_prompts(self) -> Array:
        """(B,) int64: leading tokens shared with the sequence before it: the prompt, if both are in one group."""
        same = self.group[1:] == self.group[:-1]
        return np.concatenate([[0], np.where(same, self.prompt_length[1:], 0)])[: len(self)]

    def replace(self, **columns: Array) -> Batch:
        """A new Batch with these columns set; the others are shared."""
        return Batch(**{**self._filled(), **columns})

    def take(self, rows: Sequence[int] | Array) -> Batch:
        """The sequences ``rows`` (indices or a boolean mask), in that order."""
        rows = np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows, dtype=np.int64)
        flat = self.flat_positions(rows)
        columns = self._filled().items()
        return Batch(**{name: a[flat] if COLUMNS[name].per == "token" else a[rows] for name, a in columns})

    def flat_positions(self, rows: Array) -> Array:
        """Positions in per-token columns of the sequences ``rows``, one after the other.

        Example: sequences of 3, 1 and 4 tokens; rows 2 and 0 are at the positions 4 5 6 7 and 0 1 2.
        """
        starts, lengths = self.offsets[:-1][rows], self.lengths[rows]
        within = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
        return np.repeat(starts, lengths) + within

    def sequences(self, name: str = "tokens") -> list[Array]:
        """The per-token column ``name`` as one array for each sequence."""
        return np.split(getattr(self, name), self.offsets[1:-1])

    def sorted(self) -> Batch:
        """The rows by (example_id, sample): an order that does not depend on who computed them, and when."""
        return self.take(np.lexsort((self.sample, self.example_id)))

    def to_arrow(self) -> pa.Table:
        """The filled columns as an Arrow table: list columns for per-token and (B, k) ones."""
        arrays = {}
        for name, array in self._filled().items():
            if COLUMNS[name].per == "token":
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
        return self.__dict__


COLUMNS: dict[str, Column] = {name: value for name, value in vars(Batch).items() if isinstance(value, Column)}


def cat(batches: Iterable[Batch]) -> Batch:
    """One Batch of all sequences. Raises ValueError if a column is filled in some parts only."""
    parts = list(batches)
    if not parts:
        raise ValueError("cat of no batches")
    names = parts[0].columns()
    for part in parts:
        if part.columns() != names:
            raise ValueError(f"cat of batches with different columns: {sorted(set(names) ^ set(part.columns()))}")
    return Batch(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})


def from_sequences(tokens: Sequence[Array], **columns: Array | Sequence[Any]) -> Batch:
    """A Batch from one token array for each sequence.

    Per-token columns are lists of such arrays too; per-sequence columns are given as they are.
    """
    flat = {
        name: np.concatenate([np.asarray(a) for a in value]) if COLUMNS[name].per == "token" else np.asarray(value)
        for name, value in columns.items()
    }
    lengths = np.array([len(t) for t in tokens], dtype=np.int64)
    return Batch(tokens=np.concatenate([np.asarray(t) for t in tokens]), lengths=lengths, **flat)


def micro_batches(
    lengths: Array, budget: int, world_size: int, unit: Array | None = None, width: int = 0
) -> list[list[Array]]:
    """Splits rows over ranks and into micro-batches of at most ``budget`` tokens: ``plan[rank][i]`` are row indices.

    Rows that share a ``unit`` (a preference pair) stay together; a unit above the budget is a micro-batch of its own.
    The cost of a row of s tokens is ``12 * width * s + s^2``: up to a factor the FLOPs in a model of that hidden size,
    with attention's square. All ranks get the same number of micro-batches, empty ones at the end for those with fewer,
    since uneven counts hang ZeRO-2 and 3. The plan depends on the arguments alone, so every rank computes the same one.
    """
    groups = groups_of(np.arange(len(lengths)) if unit is None else unit)
    tokens = [lengths[rows] for rows in groups]
    sizes = [int(t.sum()) for t in tokens]
    costs = [float((12.0 * width * t + t.astype(float) ** 2).sum()) for t in tokens]
    plan: list[list[Array]] = []
    for units in assign_to_ranks(costs, world_size):
        bins = first_fit([sizes[u] for u in units], budget)
        plan.append([np.sort(np.concatenate([groups[units[i]] for i in members])) for members in bins])
    count = max((len(batches) for batches in plan), default=0)
    return [batches + [np.zeros(0, np.int64)] * (count - len(batches)) for batches in plan]


def groups_of(unit: Array) -> list[Array]:
    """The rows of each unit, by the units' numbers.

    Example: rows of units 7, 5, 7 are the groups
        unit 5: row 1
        unit 7: rows 0 and 2
    """
    if not len(unit):
        return []
    order = np.argsort(unit, kind="stable")
    _, starts = np.unique(unit[order], return_index=True)
    return np.split(order, starts[1:])


def assign_to_ranks(costs: Sequence[float], world_size: int) -> list[list[int]]:
    """Items of each rank: the costliest item first, each to the rank that has the least so far (Graham 1969).

    Example: costs 4, 3, 3, 2 on two ranks
        rank 0: items 0 and 3 (4 + 2)
        rank 1: items 1 and 2 (3 + 3)
    """
    load = [0.0] * world_size
    items: list[list[int]] = [[] for _ in range(world_size)]
    for item in sorted(range(len(costs)), key=lambda i: (-costs[i], i)):
        rank = min(range(world_size), key=lambda r: (load[r], r))
        load[rank] += costs[item]
        items[rank].append(item)
    return items


def first_fit(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Items of each bin: every item, in its order, goes into the first bin that has room for it, else into a new one.

    Example: sizes 5, 4, 3, 2 and a budget of 7
        bin 0: items 0 and 3 (5 + 2)
        bin 1: items 1 and 2 (4 + 3)
    """
    free: list[int] = []
    bins: list[list[int]] = []
    for item, size in enumerate(sizes):
        target = next((b for b, room in enumerate(free) if room >= size), None)
        if target is None:
            target = len(bins)
            free.append(budget)
            bins.append([])
        free[target] -= size
        bins[target].append(item)
    return bins
