"""Exact resuming: a resumed run has the same losses as an uninterrupted one, bit for bit.

- :class:`~s5.training.hooks.CheckpointHook` writes `iter_<n>.pth` at intervals, at the end, and when a signal
  stops the run. :meth:`S5Runner.resumable_state` collects its content: weights (of the full model, including
  an EMA teacher), optimizer, loss scaler, learning-rate schedule, message hub (running means of the log),
  and the state of every :class:`ResumableHook` under its own key, such as the positions in the data.
- Random states are not stored: samples are seeded by their position in the data, steps by their number.
- :func:`find_resume` resolves `--resume [PATH]` to a checkpoint that all processes see.
- :meth:`S5Runner.load_checkpoint` reads it, :func:`why_not` rejects one of other settings, and
  the states of the hooks are restored. The sampler skips the samples already drawn without reading images.
- :class:`~s5.training.runner.TrainLoop` starts with a validation if one was due at the checkpoint.

With a different number of processes, a run continues at the same position in the data, with another global
batch size.
"""

import logging
import re
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

from mmengine.hooks import Hook
from mmengine.runner import Runner
from torch import Tensor

from s5.backbones import LORA_SCALE
from s5.checkpoints.reading import read_checkpoint
from s5.launch import Launch, LaunchError, make_work_dir, same_everywhere, setup_logging
from s5.training.reports import SUMMARY_FILE

logger = logging.getLogger(__name__)

RESUMABLE = "iter_{}.pth"
PARTS = {"meta", "state_dict", "message_hub", "optimizer", "param_schedulers", "data"}
_PATTERN = re.compile(r"iter_(\d+)\.pth$")


class ResumableHook(Hook):
    """A hook whose state is stored in resumable checkpoints.

    Attributes:
        key: Key of the state in the checkpoint.
    """

    key: ClassVar[str]

    @abstractmethod
    def state_dict(self, runner: Runner, iteration: int) -> Any:  # noqa: ANN401 - what torch.save takes
        """Return the state after `iteration` steps; called in all processes, saved from the main one."""

    @abstractmethod
    def load_state_dict(self, runner: Runner, iteration: int, state: Any) -> None:  # noqa: ANN401
        """Restore the state after `iteration` steps."""


def open_work_dir(work_dir: Path, launch: Launch, resume: str | None) -> Path | None:
    """Create the work folder of a run, log to it, and find the checkpoint given by `--resume [PATH]`.

    Raises:
        LaunchError: As for :func:`~s5.launch.make_work_dir` and :func:`find_resume`.
    """
    make_work_dir(work_dir, launch)
    setup_logging(work_dir, launch)
    return find_resume(resume, work_dir, launch)


def resumable_checkpoints(work_dir: Path) -> list[Path]:
    """List resumable checkpoints, oldest first; all are complete, because they are written atomically."""
    checkpoints = (path for path in work_dir.glob("iter_*.pth") if _PATTERN.match(path.name))
    return sorted(checkpoints, key=_iteration)


def latest_checkpoint(work_dir: Path) -> Path | None:
    """Return the newest resumable checkpoint, or None."""
    checkpoints = resumable_checkpoints(work_dir)
    return checkpoints[-1] if checkpoints else None


def find_resume(resume: str | None, work_dir: Path, launch: Launch) -> Path | None:
    """Return the checkpoint given by `--resume [PATH]`, or None to start from scratch.

    Args:
        resume: None without `--resume`, `latest`, or a path.
        work_dir: Work folder of the run, the same on all nodes.
        launch: The processes, which must all see the same checkpoint.

    Raises:
        LaunchError: The path does not exist, the work folder has checkpoints or results of another run or
            later checkpoints, or the nodes do not share the work folder.
    """
    checkpoint = _find(resume, work_dir)
    if not same_everywhere(None if checkpoint is None else checkpoint.name, launch):
        raise LaunchError(
            f"{work_dir}: the processes see different checkpoints (this one {checkpoint}); the work folder "
            f"must be on a disk that all nodes share"
        )
    return checkpoint


def _find(resume: str | None, work_dir: Path) -> Path | None:
    latest = latest_checkpoint(work_dir)
    if latest is None and (weights := _results(work_dir)):
        raise LaunchError(
            f"{work_dir} holds the results of a run ({weights[0].name}), but none of its checkpoints: choose "
            f"another --work-dir, or move the results away"
        )
    if resume is None:
        if latest is not None:
            raise LaunchError(
                f"{work_dir} already holds a run ({latest.name}): add --resume to continue it, or choose "
                f"another --work-dir"
            )
        return None
    if resume == "latest":
        if latest is None:
            logger.info("nothing to resume in %s, starting from scratch", work_dir)
        return latest
    path = Path(resume)
    if not path.is_file():
        raise LaunchError(
            f"--resume {path}: no such file; the latest checkpoint of {work_dir} is {latest or 'none'}"
        )
    if latest is not None and path.parent.resolve() != work_dir.resolve():
        raise LaunchError(
            f"--resume {path}: {work_dir} has checkpoints of its own ({latest.name}); move them away, or "
            f"choose another --work-dir"
        )
    if latest is not None and _iteration(latest) > _iteration(path):
        raise LaunchError(
            f"--resume {path}: {work_dir} has later checkpoints ({latest.name}), which would be mistaken for "
            f"those of the resumed run; move them away, or choose another --work-dir"
        )
    return path


def _results(work_dir: Path) -> list[Path]:
    """Weights that were saved with a checkpoint and have been validated.

    A run that was killed before its first checkpoint may have validated, but has its best weights alone.
    """
    if not (work_dir / SUMMARY_FILE).exists():
        return []
    weights = (path for path in work_dir.glob("*.pth") if not _PATTERN.match(path.name))
    return sorted(path for path in weights if "_best" not in path.stem)


def _iteration(checkpoint: Path) -> int:
    """The iteration of a checkpoint, from its name if that has one."""
    if match := _PATTERN.match(checkpoint.name):
        return int(match[1])
    meta = read_checkpoint(checkpoint, lazy=True).get("meta", {})
    return int(meta.get("iter", 0))


def why_not(
    checkpoint: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    schedulers: Iterable[dict[str, Any]],
    max_iters: int,
    groups: Iterable[Mapping[str, Any]],
) -> str | None:
    """Return why a run cannot resume from a checkpoint, or None if it can.

    Args:
        checkpoint: Content of the checkpoint.
        weights: State dict of this run's model.
        schedulers: States of this run's learning-rate schedulers.
        max_iters: Length of this run in iterations.
        groups: Parameter groups of this run's optimizer.
    """
    missing = PARTS - checkpoint.keys()
    if missing:
        return (
            f"it has no {', '.join(sorted(missing))}. Checkpoints to resume from are named "
            "iter_<number>.pth; from weights alone, start a new run (--init)"
        )
    saved = checkpoint["state_dict"]
    shapes = {
        name: tuple(tuple(state[name].shape) if name in state else "absent" for state in (saved, weights))
        for name in {**weights, **saved}
    }
    different = [name for name, (there, here) in shapes.items() if there != here]
    if different:
        there, here = shapes[different[0]]
        return (
            f"it is of another model: {len(different)} tensors differ, the first is {different[0]} "
            f"({there} there, {here} here). Use the backbone, classes and options that it was written with"
        )
    scales = [name for name in weights if name.endswith(LORA_SCALE) and saved[name] != weights[name]]
    if scales:
        factors = [float(state[scales[0]]) for state in (saved, weights)]
        return (
            f"its LoRA adapters are scaled by alpha / rank = {factors[0]:g}, those of this run by "
            f"{factors[1]:g}: set the original model.lora.alpha"
        )
    if _settings(checkpoint["param_schedulers"]) != _settings(schedulers):
        return _other_schedule(checkpoint["meta"].get("max_iters"), max_iters)
    for old, new in zip(checkpoint["optimizer"]["param_groups"], groups, strict=True):
        for name in ("betas", "weight_decay"):
            if old[name] != new[name]:
                return (
                    f"optim.{name} was {old[name]}, here it is {new[name]}. Set the original value; for "
                    "another, start a new run from its weights"
                )
    return None


def _other_schedule(saved_length: int | None, length: int) -> str:
    """Message about a checkpoint with another learning-rate schedule."""
    if saved_length not in (None, length):
        return (
            f"its run was to end at iteration {saved_length}, this one at {length}. Set the original length; "
            f"the length of an epoch depends on the number of images and processes unless "
            f"schedule.steps_per_epoch fixes it. For another length, start a new run from its weights"
        )
    return (
        "it has another learning-rate schedule. To resume, set the original learning rate, layer decay, "
        "warm-up and model.finetune; for a different schedule, start a new run from its weights"
    )


def _settings(states: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Settings of learning-rate schedulers, without their progress."""
    progress = ("last_step", "_global_step", "_last_value")
    return [{key: value for key, value in state.items() if key not in progress} for state in states]
