"""RolloutWorker: prompts in, a Batch of completions out; it knows which policy version it holds."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..batch import Batch, from_sequences
from ..config import ModelConfig, RolloutConfig
from ..models.load import DTYPES, disable_dropout, is_encoder_decoder, load_pretrained
from ..models.value_heads import guide_model
from ..weights.manifest import StaleWeights, verify_buckets, verify_probe
from ..weights.messages import Begin, Bucket, ProbeAnswer, SyncMessage, SyncResult, WeightManifest
from .chunk import Chunk, sample_seed
from .engine import Completion, Decoding, Engine, Request, Sampling
from .seq2seq_engine import Seq2SeqEngine
from .transformers_engine import TransformersEngine
from .vllm_engine import VLLMEngine


@dataclass(frozen=True)
class Place:
    """Where a worker's engine runs: on ``device``, with ``num_threads``, for sequences of up to ``max_length`` tokens."""

    device: str
    num_threads: int
    max_length: int


@dataclass(frozen=True, kw_only=True)
class LoadedWeights:
    """Weights that the engine holds and the learner has not confirmed yet.

    ``log_probs`` (T,) are the engine's of the probe, ``hash_s`` the seconds that the fingerprints took, and
    ``loaded_at`` is the monotonic time at which the engine had loaded.
    """

    manifest: WeightManifest
    log_probs: np.ndarray
    hash_s: float
    loaded_at: float


class RolloutWorker:
    """Generates chunks with an engine. Stateless but for the weights it holds and their version."""

    def __init__(self, config: RolloutConfig, model: ModelConfig, eos: tuple[int, ...], place: Place) -> None:
        torch.set_num_threads(place.num_threads)
        self.config, self.model, self.place = config, model, place
        self.version, self.awake = -1, True
        self.buckets: list[Bucket] = []  # of a sync that is not loaded yet
        self.loaded: LoadedWeights | None = None
        self.sampling = Sampling(config.max_new_tokens, config.temperature, eos)

    @cached_property
    def engine(self) -> Engine:
        """Built when first used, so that its BadInput is a call's and not the death of an actor."""
        return ENGINES[self.config.engine.type](self.config.engine, self.model, self.sampling, self.place)

    def check(self) -> Decoding:
        """Builds the engine, and says how it decodes. Raises BadInput if the engine cannot run here."""
        return self.engine.decoding

    def receive(self, message: SyncMessage) -> SyncResult | None:
        """Takes one message of a sync; the last one returns the result, and from then on the new version is served.

        On a CPU the engine may go on reading the buckets themselves, so they must not change. Raises StaleWeights, and
        then no version is served.
        """
        match message:
            case Begin():
                self.version, self.buckets, self.loaded = -1, [], None
            case Bucket():
                self.buckets.append(message)
            case WeightManifest():
                self.loaded = self._load(message)
            case ProbeAnswer():
                return self._confirm(message)
        return None

    def _load(self, manifest: WeightManifest) -> LoadedWeights:
        """Checks the buckets, loads them and scores the probe."""
        received_at, buckets = time.monotonic(), self.buckets
        self.buckets = []
        verify_buckets(buckets, manifest)
        hash_s = time.monotonic() - received_at
        self.engine.load_weights(pair for bucket in buckets for pair in bucket.unpack())
        loaded_at = time.monotonic()
        log_probs = self.engine.log_probs(manifest.probe)
        return LoadedWeights(manifest=manifest, log_probs=log_probs, hash_s=hash_s, loaded_at=loaded_at)

    def _confirm(self, answer: ProbeAnswer) -> SyncResult:
        """Compares the probe's log-probs, and begins to serve the version."""
        loaded = self.loaded
        if loaded is None or loaded.manifest.version != answer.version:
            raise StaleWeights(f"version {answer.version} was not loaded: its buckets were refused or never came")
        difference = verify_probe(loaded.log_probs, loaded.manifest, answer)
        self.version = answer.version
        verify_s = loaded.hash_s + time.monotonic() - loaded.loaded_at
        return SyncResult(probe_difference=difference, verify_s=verify_s, num_bytes=loaded.manifest.num_bytes)

    def generate(self, version: int, chunk: Chunk, piece: int) -> Iterator[Batch]:
        """Yields the chunk's rows as they finish, at least ``piece`` at a time but for the last; all samples of a prompt together,
        since a reward may compare them.

        Raises StaleWeights where this worker does not hold ``version`` (an actor restarted after a crash holds none).
        """
        if not self.awake:
            raise RuntimeError("asked to generate while asleep: the stage that asks must wake the rollout workers")
        if version != self.version:
            raise StaleWeights(f"asked for policy version {version}, holding {self.version}")
        rows = _rows(chunk)
        self.engine.add([request for request, _ in rows])
        per, finished = chunk.samples + chunk.greedy_extra, []
        groups: dict[int, list[Completion]] = defaultdict(list)
        while self.engine.busy:
            for completion in self.engine.step():
                group = groups[completion.id // per]
                group.append(completion)
                finished.extend(group if len(group) == per else [])
            if len(finished) >= piece or not self.engine.busy:
                yield self._batch(chunk, [rows[c.id] for c in finished], finished)
                finished = []

    def _batch(self, chunk: Chunk, rows: list[tuple[Request, int]], completions: list[Completion]) -> Batch:
        """The Batch of finished completions; ``rows`` are their requests and places in the chunk."""
        per = chunk.samples + chunk.greedy_extra
        prompt_of = [place // per for _, place in rows]
        sample = [chunk.first_sample[p] + place % per for p, (_, place) in zip(prompt_of, rows, strict=True)]
        baseline = [chunk.greedy_extra and place % per == chunk.samples for _, place in rows]
        return from_sequences(
            [np.concatenate([r.prompt, c.tokens]) for (r, _), c in zip(rows, completions, strict=True)],
            response_mask=[
                np.concatenate([np.zeros(len(r.prompt)), np.full(len(c.tokens), 0 if b else 1)])
                for (r, _), c, b in zip(rows, completions, baseline, strict=True)
            ],
            rollout_log_probs=[
                np.concatenate([np.zeros(len(r.prompt)), c.log_probs])
                for (r, _), c in zip(rows, completions, strict=True)
            ],
            prompt_length=[len(r.prompt) for r, _ in rows],
            group=[chunk.group[p] for p in prompt_of],
            example_id=[chunk.example_id[p] for p in prompt_of],
            sample=sample,
            seed=np.array([r.seed for r, _ in rows], dtype=np.uint64),
            policy_version=[self.version] * len(rows),
            truncated=[c.truncated for c in completions],
        )

    def take_counters(self) -> dict[str, float]:
        """The engine's counters since the last call."""
        return self.engine.take_counters()

    def sleep(self) -> None:
        """Gives device memory to whoever shares it."""
        self.engine.sleep()
        self.awake = False

    def wake(self) -> None:
        """Takes it back."""
        self.engine.wake()
        self.awake = True


def _transformers(config: Any, model: ModelConfig, sampling: Sampling, place: Place) -> Engine:
    path, sides = str(model.path), is_encoder_decoder(str(model.path))
    loaded = load_pretrained(
        "seq2seq" if sides else "policy", path, dtype=DTYPES[config.dtype], trust_remote_code=model.trust_remote_code
    )
    disable_dropout(loaded)
    device = torch.device(place.device)
    loaded = loaded.to(device).eval()
    if sides:
        return Seq2SeqEngine(loaded, sampling, config.max_rows, device)
    engine = TransformersEngine(loaded, sampling, config.max_rows, device)
    if config.guide:  # after the engine has compared its cache with the model: beta would magnify what they differ by
        guide_model(loaded, path, config.guide)
    return engine


def _vllm(config: Any, model: ModelConfig, sampling: Sampling, place: Place) -> Engine:
    return VLLMEngine(config, model, sampling, place.device, place.max_length)


ENGINES: dict[str, Callable[[Any, ModelConfig, Sampling, Place], Engine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
}


def _rows(chunk: Chunk) -> list[tuple[Request, int]]:
    """The chunk's requests with their places: the samples of a prompt side by side, a greedy one last."""
    rows = []
    per = chunk.samples + chunk.greedy_extra
    for index, prompt in enumerate(chunk.prompts):
        for j in range(per):
            seed = sample_seed(chunk.run_seed, chunk.step, chunk.example_id[index], chunk.first_sample[index] + j)
            greedy = chunk.greedy or (chunk.greedy_extra and j == chunk.samples)
            place = index * per + j
            rows.append((Request(id=place, prompt=prompt, seed=seed, group=chunk.group[index], greedy=greedy), place))
    return rows
