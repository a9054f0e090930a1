"""Hooks of the training loop.

Hooks act in the order of their priority, and within one in that of the list of
:meth:`s5.training.experiment.Experiment.hooks`. Those of one tree only are in its `hooks.py`.

===============  ======================  ==================================================================
priority         hook                    what it does
===============  ======================  ==================================================================
VERY_HIGH        StepScalarsHook         collects scalars of the step, sets the message hub
VERY_HIGH        SafetyHook              judges the step, stops on signals, refuses weights not finite
VERY_HIGH        SharedBuffersHook       before a validation, all processes take the main one's statistics
VERY_HIGH        TaskStartHook           fine-tuning: freezes and starts tasks
HIGH             DataStateHook           positions in the data, share of unreadable images
NORMAL           IterTimerHook           mmengine's timer
NORMAL           ConfigFileHook          writes `config.yaml` when training begins
NORMAL           ThroughputHook          images per second, wait for data, memory
NORMAL           PseudoLabelHook         S4P: classes of pseudo-labels, warns of a collapse
BELOW_NORMAL     LoggerHook              mmengine's log lines
LOW              ParamSchedulerHook      mmengine's learning rate of the next step
LOW              SummaryHook             scores of the newest validation in a file
LOW              PicturesHook            pictures of a validation (detection: BoxPicturesHook)
LOW              ViewsHook               S4P: pictures of the views of unlabeled images
VERY_LOW         CheckpointHook          checkpoints and weights, after all others have seen the step
LOWEST           ProgressHook            progress bar
===============  ======================  ==================================================================
"""

from s5.training.hooks.checkpoints import (
    CheckpointHook,
    ConfigFileHook,
    DataStateHook,
    SharedBuffersHook,
    WeightFiles,
)
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
    "WeightFiles",
]
