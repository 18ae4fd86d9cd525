"""What a job's workers need, and how long its stages take: the formulas of memory.py and stages.py put to a config."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import RLJob, Supervised
from ..jobs.kind import Generation, JobNeeds
from . import memory, stages
from .hardware import Cluster
from .memory import Need
from .shape import Shape
from .simulate import StepWork

REWARD_TOKENS = 8192
PROMPT = 0.5  # of max_prompt_tokens, where no run says how long prompts are


@dataclass(frozen=True)
class Models:
    """The shapes of a job's models: the one that is trained or answers, the critic's trunk, and reward models."""

    policy: Shape
    critic: Shape | None = None
    rewards: tuple[Shape, ...] = ()


@dataclass(frozen=True)
class Lengths:
    """Tokens: the mean prompt, and responses to draw from; ``source`` says where they come from."""

    prompt: float
    responses: np.ndarray
    source: str

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Lengths of ``count`` responses."""
        return rng.choice(self.responses, count)


def guessed(longest_prompt: int, longest_response: int) -> Lengths:
    """Half-full prompts, and responses that end at an even chance for each token (geometric) so that their mean is half of the longest."""
    draw = np.random.default_rng(0)
    responses = np.clip(draw.geometric(min(1.0, 1.6 / longest_response), 4096), 1, longest_response)
    mean = responses.mean()
    return Lengths(
        PROMPT * longest_prompt,
        responses,
        f"a guess: mean {mean:.0f} of at most {longest_response}; --from RUN takes a run's",
    )


def learner(job_needs: JobNeeds, models: Models, cpu: bool) -> Need:
    """One rank: actor and critic with their optimizers, the reference, and one micro-batch's activations of whichever is larger."""
    training, m, p = job_needs.training, job_needs.model, models.policy
    assert training is not None
    assert m is not None
    c = training.learner
    sgd, stage, ranks = c.optimizer == "sgd", c.zero_stage, c.num_workers
    num = float(p.num_parameters)
    trained = num if m.lora is None else float(p.adapter_parameters(m.lora.rank))
    if m.lora is not None:
        num += trained
    actor = memory.states(num, trained, m.dtype, stage, ranks, cpu, sgd)
    resident, step = dict(actor.resident), dict(actor.step)
    tokens = float(c.micro_batch_tokens)
    tokens = min(tokens, float(training.max_tokens * -(-training.sequences // ranks)))
    scored = tokens * training.scored_share
    if training.has_reference and m.lora is None:
        resident["reference"] = memory.frozen(p.num_parameters, m.dtype, stage, ranks)
    wide = cpu and m.dtype == "bfloat16"  # of sequences that are short: the larger need
    acts = memory.activations(p, tokens, scored, m.dtype, m.gradient_checkpointing, wide, on_gpu=not cpu)
    working = {**actor.working, **acts}
    if models.critic is not None:
        critic = memory.states(
            models.critic.scalar_parameters, models.critic.scalar_parameters, m.dtype, stage, ranks, cpu, sgd
        )
        resident["critic"] = sum(critic.resident.values())
        working["critic gradients"] = critic.working["gradients"]
        step["critic step"] = 0.0 if not cpu else sum(critic.step.values())
    return Need("learner", resident, working, step)


def rollout(generation: Generation, models: Models, cluster: Cluster) -> Need:
    """One rollout worker, of each of its GPUs."""
    e, p, device = generation.rollout.engine, models.policy, cluster.device
    longest = generation.max_tokens
    reserved = e.memory_reservation
    if reserved is not None and not device.is_cpu:
        kv_cache = None if reserved.kv_cache_gib is None else reserved.kv_cache_gib * memory.GIB
        parts = memory.vllm_engine(p, e.num_gpus, e.dtype, reserved.gpu_fraction * device.memory, kv_cache)
        return Need("rollout", {}, parts, managed=True)
    parts = memory.embedded_engine(p, e.max_rows, longest, e.dtype, device.is_cpu)
    if reserved is not None:
        parts["KV cache"] = (reserved.kv_cache_gib or 1.0) * memory.GIB
    if device.is_cpu:  # nobody sleeps there
        return Need("rollout", parts)
    return Need("rollout", {}, parts)


def reward(models: Models) -> Need:
    """One reward worker: its models in float32, and the activations of one forward pass of a layer."""
    weights = sum(4.0 * s.scalar_parameters for s in models.rewards)
    passing = max((4.0 * REWARD_TOKENS * (3 * s.inner + 4 * s.hidden) for s in models.rewards), default=0.0)
    return Need("reward", {"reward models": weights}, {"activations": passing} if passing else {})


def room(generation: Generation, models: Models, need: Need) -> float:
    """How many of the longest sequences a vLLM worker's KV cache holds at once."""
    e = generation.rollout.engine
    longest = generation.max_tokens
    each = memory.kv_bytes(models.policy, memory.BYTES[e.dtype]) / e.num_gpus
    cache = {**need.resident, **need.working}["KV cache"]  # resident on a CPU, where no engine sleeps
    return cache / (longest * each)


def learning(job: RLJob | Supervised, shape: Shape, share: float, scalar: bool = False) -> stages.Learning:
    """What stages.py must know of the learner's work on one of its models, where a rank has this ``share`` of a device."""
    m = job.model
    num = float(shape.scalar_parameters if scalar else shape.num_parameters)
    trained = num if m.lora is None or scalar else float(shape.adapter_parameters(m.lora.rank))
    c = job.learner
    return stages.Learning(
        shape, num, trained, m.dtype, c.zero_stage, c.num_workers, m.gradient_checkpointing, c.micro_batch_tokens, share
    )


@dataclass(frozen=True)
class Factors:
    """Measured seconds over predicted ones, by stage; 1 before anything was measured."""

    rollout: float = 1.0
    annotate: float = 1.0
    learn: float = 1.0
    sync: float = 1.0


@dataclass(frozen=True)
class Setting:
    """What the stages of a job depend on besides its config; ``share`` is the part of a device that one worker computes with,
    ``reward_s`` what the reward of a chunk waits for (a service)."""

    models: Models
    cluster: Cluster
    lengths: Lengths
    factors: Factors = Factors()
    share: float = 1.0
    reward_s: float = 0.0


def step(job: RLJob, given: Setting, num_steps: int, seed: int = 0) -> StepWork:
    """The stages of ``num_steps`` RL steps whose response lengths are drawn from the given ones."""
    a, cluster, lengths, factors = job.algorithm, given.cluster, given.lengths, given.factors
    e, rng = stages.efficiency(cluster.device), np.random.default_rng(seed)
    chunks = [_chunks(job, given, rng) for _ in range(num_steps)]
    rows, mean = float(job.rollout.prompts_per_step * a.group_size), float(lengths.responses.mean())
    tokens = rows * (lengths.prompt / a.group_size + mean)  # a prompt that samples share is computed once
    squares = rows * float(((lengths.prompt + lengths.responses) ** 2).mean())
    read, unread = (stages.Samples(rows, tokens, squares, n) for n in (rows * mean, 0.0))
    actor, critic = learning(job, given.models.policy, given.share), given.models.critic
    value = None if critic is None else learning(job, critic, given.share, scalar=True)
    annotate = sum(
        stages.scoring(value, unread, cluster)
        if column == "values" and value is not None
        else stages.scoring(actor, read, cluster)
        for column in job.columns_to_annotate
    )
    learn = a.epochs * stages.updating(actor, read, a.num_mini_batches, cluster)
    if value is not None:
        learn += a.epochs * stages.updating(value, unread, a.num_mini_batches, cluster)
    score = sum(stages.passes(s, tokens, squares, 0.0) for s in given.models.rewards) / len(chunks[0])
    return StepWork(
        generate=chunks,
        score=factors.rollout
        * score
        / (cluster.device.float32 * e.share(e.score, given.models.policy.hidden) * given.share),
        score_wait=given.reward_s,
        annotate=factors.annotate * (annotate + e.call_s) if job.columns_to_annotate else 0.0,
        learn=factors.learn * (learn + e.call_s),
        sync=factors.sync * (stages.sync(given.models.policy, job.model.dtype, cluster.device) + e.call_s),
    )


def _chunks(job: RLJob, given: Setting, rng: np.random.Generator) -> list[float]:
    """Seconds of generation of each chunk of one step."""
    r, a, e = job.rollout, job.algorithm, job.rollout.engine
    per = a.samples_per_prompt
    devices = float(e.num_gpus) * given.share
    engine = stages.Engine(given.models.policy, e.max_rows, e.dtype, devices, e.uses_cuda_graphs)
    found, first_s = [], stages.efficiency(given.cluster.device).rollout_s
    for first in range(0, r.prompts_per_step, r.chunk_prompts):
        prompts = min(r.chunk_prompts, r.prompts_per_step - first)
        drawn = given.lengths.draw(rng, prompts * per)
        seconds = stages.generation(engine, drawn.tolist(), given.lengths.prompt, prompts, given.cluster.device)
        found.append(given.factors.rollout * (seconds + first_s / -(-r.prompts_per_step // r.chunk_prompts)))
    return found
