"""Hooks of the training loop, one concern a file."""

from s5.engine.hooks.checkpoints import CheckpointHook
from s5.engine.hooks.config_file import ConfigFileHook
from s5.engine.hooks.data_state import DataStateHook
from s5.engine.hooks.pictures import PicturesHook
from s5.engine.hooks.progress import ProgressHook
from s5.engine.hooks.pseudo_labels import PseudoLabelHook
from s5.engine.hooks.safety import NonFiniteLossError, SafetyHook
from s5.engine.hooks.shared_buffers import SharedBuffersHook
from s5.engine.hooks.summary import SummaryHook
from s5.engine.hooks.task_starts import TaskStartHook
from s5.engine.hooks.throughput import ThroughputHook
from s5.engine.hooks.views import ViewsHook

__all__ = [
    "CheckpointHook",
    "ConfigFileHook",
    "DataStateHook",
    "NonFiniteLossError",
    "PicturesHook",
    "ProgressHook",
    "PseudoLabelHook",
    "SafetyHook",
    "SharedBuffersHook",
    "SummaryHook",
    "TaskStartHook",
    "ThroughputHook",
    "ViewsHook",
]
