"""RolloutWorker: generates a Batch of completions from prompts, with a known policy version."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from ..batch import Batch, from_sequences
from ..config import ModelConfig, RolloutConfig, resolve_dtype
from ..models.load import DTYPES, disable_dropout, is_encoder_decoder, load_pretrained
from ..models.value_heads import guide_model
from ..weights.manifest import StaleWeights, allowed_difference, mean_difference, verify_buckets, verify_probe
from ..weights.messages import Begin, Bucket, ProbeAnswer, SyncMessage, SyncResult, WeightManifest
from .chunk import Chunk, sample_seed
from .engine import PARTS, Completion, Decoding, Engine, Request, Sampling
from .seq2seq_engine import Seq2SeqEngine
from .transformers_engine import TransformersEngine
from .vllm_engine import VLLMEngine


@dataclass(frozen=True)
class EngineResources:
    """What a worker's engine has: a device, CPU threads, and room for sequences of up to ``max_length`` tokens."""

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
    buckets: list[Bucket]
    log_probs: np.ndarray
    hash_s: float
    loaded_at: float


class RolloutWorker:
    """Generates chunks with an engine. Between chunks its only state is the weights and their version."""

    def __init__(
        self, config: RolloutConfig, model: ModelConfig, eos: tuple[int, ...], resources: EngineResources
    ) -> None:
        torch.set_num_threads(resources.num_threads)
        self.config, self.model, self.resources = config, model, resources
        self.version, self.awake = -1, PARTS
        self.buckets: list[Bucket] = []  # of a sync that is not loaded yet
        self.loaded: LoadedWeights | None = None
        self.first_difference: float | None = None  # of the probe, at the first sync
        self.sampling = Sampling(config.max_new_tokens, config.temperature, eos)

    @cached_property
    def engine(self) -> Engine:
        """Built when it is first used: then a BadInput fails a call and does not kill the actor."""
        return ENGINES[self.config.engine.type](self.config.engine, self.model, self.sampling, self.resources)

    def check(self) -> Decoding:
        """Builds the engine, and says how it decodes. Raises BadInput if the engine cannot run here."""
        return self.engine.decoding

    def receive(self, message: SyncMessage) -> SyncResult | None:
        """Takes one message of a sync. The last one returns the result, and the worker then serves the new version.

        On a CPU the engine may use the memory of the buckets, so they must not change. Raises StaleWeights; the worker
        then serves no version.
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
        return LoadedWeights(
            manifest=manifest, buckets=buckets, log_probs=log_probs, hash_s=hash_s, loaded_at=loaded_at
        )

    def _confirm(self, answer: ProbeAnswer) -> SyncResult:
        """Compares the log-probs of the probe, then serves the version."""
        loaded = self.loaded
        if loaded is None or loaded.manifest.version != answer.version:
            raise StaleWeights(f"version {answer.version} was not loaded: its buckets were refused or did not arrive")
        differences = self._probe_differences(loaded, answer)
        allowed = allowed_difference(loaded.manifest.tolerance, self.first_difference)
        self.loaded = None  # frees the buckets
        verify_probe(differences, answer.version, allowed)
        if self.first_difference is None:
            self.first_difference = differences[-1]
        self.version = answer.version
        verify_s = loaded.hash_s + time.monotonic() - loaded.loaded_at
        return SyncResult(
            probe_difference=differences[-1],
            verify_s=verify_s,
            num_bytes=loaded.manifest.num_bytes,
            misses=len(differences) - 1,
        )

    def _probe_differences(self, loaded: LoadedWeights, answer: ProbeAnswer) -> list[float]:
        """Mean differences from the learner, up to the first that is allowed.

        They are those of the probe, of the second probe, and of the probe after the weights were loaded again.
        """
        manifest = loaded.manifest
        allowed = allowed_difference(manifest.tolerance, self.first_difference)
        differences = [mean_difference(loaded.log_probs, answer.log_probs)]
        if not differences[-1] <= allowed:  # nan too is a miss
            second = self.engine.log_probs(manifest.second_probe)
            differences.append(mean_difference(second, answer.second_log_probs))
        if not differences[-1] <= allowed:
            self.engine.load_weights(pair for bucket in loaded.buckets for pair in bucket.unpack())
            differences.append(mean_difference(self.engine.log_probs(manifest.probe), answer.log_probs))
        return differences

    def generate(self, version: int, chunk: Chunk, piece: int) -> Iterator[Batch]:
        """Yields the chunk's rows as they finish: Batches of at least ``piece`` rows, except for the last one.

        All rows of a prompt are in one Batch, since a reward may compare them. Raises StaleWeights if this worker does
        not hold ``version``; an actor that was restarted after a crash holds none.
        """
        if self.awake != PARTS:
            raise RuntimeError("asked to generate while asleep: the stage that asks must wake the rollout workers")
        if version != self.version:
            raise StaleWeights(f"asked for policy version {version}, holding {self.version}")
        requests = _requests(chunk)
        self.engine.add(requests)
        finished: list[Completion] = []
        completions_by_prompt: dict[int, list[Completion]] = defaultdict(list)
        while self.engine.busy:
            for completion in self.engine.step():
                completions = completions_by_prompt[completion.id // chunk.rows_per_prompt]
                completions.append(completion)
                finished.extend(completions if len(completions) == chunk.rows_per_prompt else [])
            if len(finished) >= piece or not self.engine.busy:
                yield self._batch(chunk, [requests[c.id] for c in finished], finished)
                finished = []

    def _batch(self, chunk: Chunk, requests: list[Request], completions: list[Completion]) -> Batch:
        """The Batch of finished completions of ``requests``, whose ids are their rows in the chunk."""
        pairs = list(zip(requests, completions, strict=True))
        prompt_index = [r.id // chunk.rows_per_prompt for r in requests]
        row_in_prompt = [r.id % chunk.rows_per_prompt for r in requests]
        learns = [int(not (chunk.greedy_extra and row == chunk.samples)) for row in row_in_prompt]
        return from_sequences(
            [np.concatenate([r.prompt, c.tokens]) for r, c in pairs],
            response_mask=[
                np.concatenate([np.zeros(len(r.prompt)), np.full(len(c.tokens), mask)])
                for (r, c), mask in zip(pairs, learns, strict=True)
            ],
            rollout_log_probs=[np.concatenate([np.zeros(len(r.prompt)), c.log_probs]) for r, c in pairs],
            prompt_length=[len(r.prompt) for r in requests],
            group=[chunk.group[p] for p in prompt_index],
            example_id=[chunk.example_id[p] for p in prompt_index],
            sample=[chunk.first_sample[p] + row for p, row in zip(prompt_index, row_in_prompt, strict=True)],
            seed=np.array([r.seed for r in requests], dtype=np.uint64),
            policy_version=[self.version] * len(requests),
            truncated=[c.truncated for c in completions],
        )

    def take_counters(self) -> dict[str, float]:
        """The engine's counters since the last call."""
        return self.engine.take_counters()

    def keep_awake(self, parts: Collection[str], keep_weights: bool = True) -> None:
        """Gives device memory to whoever shares it, but for that of ``parts`` of the engine, and takes theirs again.

        Weights that leave without ``keep_weights`` are gone: no version is served until the next sync.
        """
        self.engine.keep_awake(parts, keep_weights)
        self.awake = frozenset(parts)
        if "weights" not in parts and not keep_weights:
            self.version = -1


def _transformers(config: Any, model: ModelConfig, sampling: Sampling, resources: EngineResources) -> Engine:
    path = str(model.path)
    kind = "seq2seq" if is_encoder_decoder(path) else "policy"
    dtype = DTYPES[resolve_dtype(config.dtype, resources.device)]
    module = load_pretrained(kind, path, dtype=dtype, trust_remote_code=model.trust_remote_code)
    disable_dropout(module)
    device = torch.device(resources.device)
    module = module.to(device).eval()
    if kind == "seq2seq":
        return Seq2SeqEngine(module, sampling, config.max_rows, device)
    engine = TransformersEngine(module, sampling, config.max_rows, device)
    if config.guide:  # only now: beta would magnify the differences when the engine compares its cache with the model
        guide_model(module, path, config.guide)
    return engine


def _vllm(config: Any, model: ModelConfig, sampling: Sampling, resources: EngineResources) -> Engine:
    return VLLMEngine(config, model, sampling, resources.device, resources.max_length)


ENGINES: dict[str, Callable[[Any, ModelConfig, Sampling, EngineResources], Engine]] = {
    "transformers": _transformers,
    "vllm": _vllm,
}


def _requests(chunk: Chunk) -> list[Request]:
    """The chunk's requests; ids are their indices. The samples of a prompt are neighbours, the greedy one last."""
    requests: list[Request] = []
    for index, prompt in enumerate(chunk.prompts):
        for j in range(chunk.rows_per_prompt):
            seed = sample_seed(chunk.run_seed, chunk.step, chunk.example_id[index], chunk.first_sample[index] + j)
            greedy = chunk.greedy or (chunk.greedy_extra and j == chunk.samples)
            requests.append(
                Request(id=len(requests), prompt=prompt, seed=seed, group=chunk.group[index], greedy=greedy)
            )
    return requests
