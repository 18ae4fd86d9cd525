"""What a job's workers need, and how long its stages take: the formulas of memory.py and stages.py put to a config."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ..config import SingleJob, resolve_dtypes
from ..jobs.kind import Generation, JobNeeds, RLStep
from ..jobs.kinds import kind_of
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


def learner(job_needs: JobNeeds, models: Models, cpu: bool, per_node: int) -> Need:
    """One rank: actor and critic with their optimizers, the reference, and one micro-batch's activations of whichever is larger.

    ``per_node``: the devices of a node.
    """
    training, m, p = job_needs.training, job_needs.model, models.policy
    assert training is not None
    assert m is not None
    c = training.learner
    optimizer, stage, ranks = c.optimizer, c.zero_stage, c.num_workers
    num = float(p.num_parameters)
    trained = num if m.lora is None else float(p.adapter_parameters(m.lora.rank))
    if m.lora is not None:
        num += trained
    actor = memory.states(num, trained, m.dtype, stage, ranks, cpu, optimizer)
    resident, step = dict(actor.resident), dict(actor.step)
    if c.node_copies and stage == 3 and 1 < per_node < ranks:
        resident["copy for the node"] = memory.BYTES[m.dtype] * num / per_node
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
            models.critic.scalar_parameters, models.critic.scalar_parameters, m.dtype, stage, ranks, cpu, optimizer
        )
        resident["critic"] = critic.resident["weights"]
        resident["critic optimizer"] = critic.resident["optimizer"]
        working["critic gradients"] = critic.working["gradients"]
        step["critic step"] = 0.0 if not cpu else sum(critic.step.values())
    scoring = memory.scoring_activations(p, tokens, scored, m.dtype, on_gpu=not cpu)
    if "whole parameters" in working:
        scoring["whole parameters"] = working["whole parameters"]
    return Need("learner", resident, working, step, scoring)


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


def reward(models: Models, job_needs: JobNeeds) -> Need:
    """One reward worker: its models, and the activations of one forward pass of a layer."""
    bytes_and_shapes = [(memory.BYTES[d], s) for d, s in zip(job_needs.reward_dtypes, models.rewards, strict=True)]
    weights = sum(float(b) * s.scalar_parameters for b, s in bytes_and_shapes)
    passing = max((float(b) * REWARD_TOKENS * (3 * s.inner + 4 * s.hidden) for b, s in bytes_and_shapes), default=0.0)
    return Need("reward", {"reward models": weights}, {"activations": passing} if passing else {})


def kv_cache_sequences(generation: Generation, models: Models, need: Need, num_tokens: float) -> float:
    """How many sequences of ``num_tokens`` a vLLM worker's KV cache holds at once."""
    e = generation.rollout.engine
    each = memory.kv_bytes(models.policy, memory.BYTES[e.dtype]) / e.num_gpus
    cache = {**need.resident, **need.working}["KV cache"]  # resident on a CPU, where no engine sleeps
    return cache / (num_tokens * each)


def learner_work(job_needs: JobNeeds, shape: Shape, share: float, scalar: bool = False) -> stages.Learning:
    """What stages.py reads of the learner's work on one of its models, if a rank has this ``share`` of a device."""
    training, model = job_needs.training, job_needs.model
    assert training is not None
    assert model is not None
    learner_config = training.learner
    num_parameters = float(shape.scalar_parameters if scalar else shape.num_parameters)
    lora = None if scalar else model.lora
    num_trained = num_parameters if lora is None else float(shape.adapter_parameters(lora.rank))
    return stages.Learning(
        shape=shape,
        num_parameters=num_parameters,
        num_trained=num_trained,
        dtype=model.dtype,
        zero_stage=learner_config.zero_stage,
        ranks=learner_config.num_workers,
        checkpointing=model.gradient_checkpointing,
        micro_batch_tokens=learner_config.micro_batch_tokens,
        share=share,
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


def simulated_work(job: SingleJob, setting: Setting, num_steps: int, seed: int = 0) -> StepWork:
    """The stages of ``num_steps`` steps of an RL job, with response lengths drawn from those of the setting."""
    job_needs = kind_of(job).needs(resolve_dtypes(job, setting.cluster.device.kind))
    model, generation, rl_step = job_needs.model, job_needs.generation, job_needs.rl_step
    assert model is not None
    assert generation is not None
    assert rl_step is not None
    cluster, lengths, factors, models = setting.cluster, setting.lengths, setting.factors, setting.models
    efficiency, rng = stages.efficiency(cluster.device), np.random.default_rng(seed)
    chunks = [_chunk_seconds(generation, rl_step, setting, rng) for _ in range(num_steps)]
    num_samples = float(generation.rollout.prompts_per_step * rl_step.group_size)
    mean_response = float(lengths.responses.mean())
    # Samples share their prompt, which is computed once.
    tokens = num_samples * (lengths.prompt / rl_step.group_size + mean_response)
    squares = num_samples * float(((lengths.prompt + lengths.responses) ** 2).mean())
    scored, unscored = (stages.Samples(num_samples, tokens, squares, n) for n in (num_samples * mean_response, 0.0))
    actor = learner_work(job_needs, models.policy, setting.share)
    critic = None if models.critic is None else learner_work(job_needs, models.critic, setting.share, scalar=True)
    annotate = sum(
        stages.scoring(critic, unscored, cluster)
        if column == "values" and critic is not None
        else stages.scoring(actor, scored, cluster)
        for column in rl_step.columns_to_annotate
    )
    learn = rl_step.epochs * stages.updating(actor, scored, rl_step.num_mini_batches, cluster)
    if critic is not None:
        learn += rl_step.epochs * stages.updating(critic, unscored, rl_step.num_mini_batches, cluster)
    reward_peaks = [cluster.device.flops(dtype) for dtype in job_needs.reward_dtypes]
    reward_work = sum(  # seconds at peak speed
        stages.forward_pass_flops(s, tokens, squares, 0.0) / peak
        for s, peak in zip(models.rewards, reward_peaks, strict=True)
    ) / len(chunks[0])
    reward_share = efficiency.share(efficiency.score, models.policy.hidden) * setting.share
    sync = stages.sync(models.policy, model.dtype, cluster.device) + efficiency.call_s
    return StepWork(
        generate=chunks,
        score=factors.rollout * reward_work / reward_share,
        score_wait=setting.reward_s,
        annotate=factors.annotate * (annotate + efficiency.call_s) if rl_step.columns_to_annotate else 0.0,
        learn=factors.learn * (learn + efficiency.call_s),
        sync=factors.sync * sync,
    )


def _chunk_seconds(generation: Generation, rl_step: RLStep, setting: Setting, rng: np.random.Generator) -> list[float]:
    """Seconds of generation of each chunk of one step."""
    rollout_config, device = generation.rollout, setting.cluster.device
    engine_config, num_prompts = rollout_config.engine, rollout_config.prompts_per_step
    devices = float(engine_config.num_gpus) * setting.share
    engine = stages.Engine(
        setting.models.policy, engine_config.max_rows, engine_config.dtype, devices, engine_config.uses_cuda_graphs
    )
    start_s = stages.efficiency(device).rollout_s / -(-num_prompts // rollout_config.chunk_prompts)
    chunk_seconds = []
    for first in range(0, num_prompts, rollout_config.chunk_prompts):
        prompts = min(rollout_config.chunk_prompts, num_prompts - first)
        lengths = setting.lengths.draw(rng, prompts * rl_step.samples_per_prompt).tolist()
        seconds = stages.generation(engine, lengths, setting.lengths.prompt, prompts, device)
        chunk_seconds.append(setting.factors.rollout * (seconds + start_s))
    return chunk_seconds
