"""Hooks of the training loop, one concern a file; those of one tree are imported from theirs."""

from s5.training.hooks.checkpoints import CheckpointHook, ConfigFileHook, SharedBuffersHook
from s5.training.hooks.data_state import DataStateHook
from s5.training.hooks.pictures import PicturesHook
from s5.training.hooks.progress import ProgressHook, SummaryHook, ThroughputHook
from s5.training.hooks.safety import NonFiniteLossError, SafetyHook

__all__ = [
    "CheckpointHook",
    "ConfigFileHook",
    "DataStateHook",
    "NonFiniteLossError",
    "PicturesHook",
    "ProgressHook",
    "SafetyHook",
    "SharedBuffersHook",
    "SummaryHook",
    "ThroughputHook",
]
