"""Validate the one file of a campaign; sections are in the order of the data flow.

Every default is one a careful practitioner would choose. Settings that a store or a model already has (class
names, layers, temperatures, tokenizer) are read from there and never configured twice.
"""

from ray_distill.config.campaign import Campaign, PlanConfig
from ray_distill.config.judge import CostConfig, DriftConfig, EvaluationConfig, GateConfig, Limit, TrackingConfig
from ray_distill.config.labels import (
    CheckConfig,
    HeadConfig,
    HiddenConfig,
    LabelsConfig,
    LanguageConfig,
    Resources,
    SignalConfig,
    TeacherConfig,
)
from ray_distill.config.load import load_config, parse_config
from ray_distill.config.losses import LossConfig, Schedule, Steps
from ray_distill.config.section import Dtype, Pool, Section
from ray_distill.config.sequences import SequenceFilters, SequencesConfig
from ray_distill.config.snapshot import Columns, SnapshotConfig, Splits
from ray_distill.config.student import MixedLabels, MixtureConfig, StudentConfig, StudentModel
from ray_distill.config.sweep import StopConfig, SweepConfig, TrialConfig
from ray_distill.config.training import BudgetConfig, CheckpointPolicy, SamplingConfig, TrainingConfig

__all__ = [
    "BudgetConfig",
    "Campaign",
    "CheckConfig",
    "CheckpointPolicy",
    "Columns",
    "CostConfig",
    "DriftConfig",
    "Dtype",
    "EvaluationConfig",
    "GateConfig",
    "HeadConfig",
    "HiddenConfig",
    "LabelsConfig",
    "LanguageConfig",
    "Limit",
    "LossConfig",
    "MixedLabels",
    "MixtureConfig",
    "PlanConfig",
    "Pool",
    "Resources",
    "SamplingConfig",
    "Schedule",
    "Section",
    "SequenceFilters",
    "SequencesConfig",
    "SignalConfig",
    "SnapshotConfig",
    "Splits",
    "Steps",
    "StopConfig",
    "StudentConfig",
    "StudentModel",
    "SweepConfig",
    "TeacherConfig",
    "TrackingConfig",
    "TrainingConfig",
    "TrialConfig",
    "load_config",
    "parse_config",
]
