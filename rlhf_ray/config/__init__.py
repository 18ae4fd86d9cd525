"""The whole config tree, a file per section; no torch, no ray."""

from .algorithm import PPO, AdaptiveKL, AlgorithmConfig
from .data import DataConfig, PromptConfig, TrainingData
from .dtype import resolve_dtype, resolve_dtypes
from .inference import EvaluateJob, GenerationJob, SampleJob, ScoreJob, TokenizerJob
from .jobs import Job, PipelineJob, RLJob, SingleJob, TrainingJob
from .learner import CriticConfig, LearnerConfig, ReferenceConfig
from .load import ConfigError, apply_overrides, load_job, load_search, parse, set_values
from .model import LoraConfig, ModelConfig
from .preferences import DPO, IPO, KTO, ORPO, PreferenceConfig, SimPO
from .rewards import (
    ClassifierReward,
    Ensemble,
    FunctionReward,
    LikelihoodReward,
    ModelReward,
    NeuralReward,
    Reward,
    RewardsConfig,
    RuleReward,
)
from .rollout import RolloutConfig, TransformersEngineConfig, VLLMEngineConfig
from .run import CheckpointConfig, ClusterConfig, LogConfig, RunConfig
from .section import BadInput, Section
from .supervised import (
    AugmentConfig,
    ClassifyJob,
    Common,
    ILQLJob,
    PreferenceJob,
    PretrainJob,
    QAJob,
    RewardJob,
    Seq2SeqJob,
    SFTJob,
    Supervised,
    TagJob,
)
from .tune import ObjectiveConfig, Search, TuneConfig

__all__ = [
    "DPO",
    "IPO",
    "KTO",
    "ORPO",
    "PPO",
    "AdaptiveKL",
    "AlgorithmConfig",
    "AugmentConfig",
    "BadInput",
    "CheckpointConfig",
    "ClassifierReward",
    "ClassifyJob",
    "ClusterConfig",
    "Common",
    "ConfigError",
    "CriticConfig",
    "DataConfig",
    "Ensemble",
    "EvaluateJob",
    "FunctionReward",
    "GenerationJob",
    "ILQLJob",
    "Job",
    "LearnerConfig",
    "LikelihoodReward",
    "LogConfig",
    "LoraConfig",
    "ModelConfig",
    "ModelReward",
    "NeuralReward",
    "ObjectiveConfig",
    "PipelineJob",
    "PreferenceConfig",
    "PreferenceJob",
    "PretrainJob",
    "PromptConfig",
    "QAJob",
    "RLJob",
    "ReferenceConfig",
    "Reward",
    "RewardJob",
    "RewardsConfig",
    "RolloutConfig",
    "RuleReward",
    "RunConfig",
    "SFTJob",
    "SampleJob",
    "ScoreJob",
    "Search",
    "Section",
    "Seq2SeqJob",
    "SimPO",
    "SingleJob",
    "Supervised",
    "TagJob",
    "TokenizerJob",
    "TrainingData",
    "TrainingJob",
    "TransformersEngineConfig",
    "TuneConfig",
    "VLLMEngineConfig",
    "apply_overrides",
    "load_job",
    "load_search",
    "parse",
    "resolve_dtype",
    "resolve_dtypes",
    "set_values",
]
