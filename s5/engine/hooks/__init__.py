"""Hooks of the training loop, one concern a file; those of one tree are imported from theirs."""

from s5.engine.hooks.checkpoints import CheckpointHook
from s5.engine.hooks.config_file import ConfigFileHook
from s5.engine.hooks.data_state import DataStateHook
from s5.engine.hooks.pictures import PicturesHook
from s5.engine.hooks.progress import ProgressHook
from s5.engine.hooks.safety import NonFiniteLossError, SafetyHook
from s5.engine.hooks.shared_buffers import SharedBuffersHook
from s5.engine.hooks.summary import SummaryHook
from s5.engine.hooks.throughput import ThroughputHook

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
