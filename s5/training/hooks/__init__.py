"""Hooks of the training loop.

Hooks run in the order of their priority; hooks of equal priority in the order of the list in
:meth:`s5.training.experiment.Experiment.hooks`. Hooks of a single tree are in its `hooks.py`.

===============  ======================  ==================================================================
priority         hook                    what it does
===============  ======================  ==================================================================
VERY_HIGH        StepScalarsHook         collects scalars of the step, sets the message hub
VERY_HIGH        SafetyHook              checks the step, stops on signals, rejects non-finite weights
VERY_HIGH        SharedBuffersHook       before a validation, broadcasts the main process's buffers
VERY_HIGH        TaskStartHook           fine-tuning: freezes and starts tasks
HIGH             DataStateHook           positions in the data, share of unreadable images
NORMAL           IterTimerHook           mmengine's timer
NORMAL           NormalizationHook       normalisation of the images, which initial weights may set
NORMAL           ConfigFileHook          writes `config.yaml` when training begins
NORMAL           ThroughputHook          images per second, time waiting for data, memory
NORMAL           PseudoLabelHook         S4P: classes of pseudo-labels, warns of a collapse
BELOW_NORMAL     LoggerHook              mmengine's log lines
LOW              ParamSchedulerHook      mmengine's learning rate of the next step
LOW              SummaryHook             writes the scores of the newest validation
LOW              PicturesHook            pictures of a validation (detection: BoxPicturesHook)
LOW              ViewsHook               S4P: pictures of the views of unlabeled images
VERY_LOW         CheckpointHook          checkpoints and weights, after the other hooks have run
LOWEST           ProgressHook            progress bar
===============  ======================  ==================================================================
"""

from s5.training.hooks.checkpoints import (
    CheckpointHook,
    ConfigFileHook,
    DataStateHook,
    NormalizationHook,
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
    "NormalizationHook",
    "PicturesHook",
    "ProgressHook",
    "SafetyHook",
    "SharedBuffersHook",
    "SummaryHook",
    "ThroughputHook",
    "WeightFiles",
]
