"""The whole config tree, a file per section; no torch, no ray."""

from .algorithm import PPO, AdaptiveKL, AlgorithmConfig
from .data import DataConfig, PromptConfig
from .jobs import Common, Job, PipelineJob, PretrainJob, RewardJob, RLJob, SFTJob, Supervised
from .learner import CriticConfig, LearnerConfig
from .load import ConfigError, apply_overrides, load, parse
from .model import LoraConfig, ModelConfig
from .rewards import FunctionReward, ModelReward, Reward, RewardsConfig, RuleReward
from .rollout import RolloutConfig, TransformersEngine, VLLMEngine
from .run import CheckpointConfig, ClusterConfig, LogConfig, RunConfig
from .section import BadInput, Section

__all__ = [
    "PPO", "AdaptiveKL", "AlgorithmConfig", "BadInput", "CheckpointConfig", "ClusterConfig", "Common", "ConfigError",
    "CriticConfig", "DataConfig", "FunctionReward", "Job", "LearnerConfig", "LogConfig", "LoraConfig", "ModelConfig",
    "ModelReward", "PipelineJob", "PretrainJob", "PromptConfig", "RLJob", "Reward", "RewardJob", "RewardsConfig",
    "RolloutConfig", "RuleReward", "RunConfig", "SFTJob", "Section", "Supervised", "TransformersEngine",
    "VLLMEngine", "apply_overrides", "load", "parse",
]  # fmt: skip
