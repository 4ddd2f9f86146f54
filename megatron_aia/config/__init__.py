"""The configuration of a run: the tree, its files, its checks. Imports no torch."""

from megatron_aia.config.files import dump
from megatron_aia.config.layout import data_parallel_size, fit_layout
from megatron_aia.config.tree import (
    AIAConfig,
    CheckpointConfig,
    Config,
    DataConfig,
    LoggingConfig,
    ModelConfig,
    ParallelConfig,
    RunConfig,
    TrainingConfig,
)
from megatron_aia.config.validate import validate

__all__ = [
    "AIAConfig",
    "CheckpointConfig",
    "Config",
    "DataConfig",
    "LoggingConfig",
    "ModelConfig",
    "ParallelConfig",
    "RunConfig",
    "TrainingConfig",
    "data_parallel_size",
    "dump",
    "fit_layout",
    "validate",
]
