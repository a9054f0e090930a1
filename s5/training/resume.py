"""How a run resumes: the losses of a resumed run are those of the uninterrupted one, bit for bit.

- :class:`~s5.training.hooks.CheckpointHook` writes `iter_<n>.pth` at intervals, at the end, and when a signal
  stops the run; :meth:`S5Runner.resumable_state` collects its content: weights (of the whole model, with an
  EMA teacher), optimizer, loss scaler, learning-rate schedule, message hub (means and best scores so far),
  and under a key of its own the state of every :class:`ResumableHook`, such as the positions in the data.
- Random numbers are not stored: every sample draws from its position and every step from its number.
- :func:`find_resume` turns `--resume [PATH]` into a checkpoint that all processes see.
- :meth:`S5Runner.load_checkpoint` reads it, :func:`why_not` refuses one of another model or schedule, and
  the hooks get their states back. The sampler then skips what was drawn, without reading an image.
- :class:`~s5.training.runner.TrainLoop` begins with a validation if one was due at the checkpoint.

After the same steps another number of processes goes on with the same images, in batches of another size.
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

from s5.launch import Launch, LaunchError, make_work_dir, same_everywhere, setup_logging

logger = logging.getLogger(__name__)

RESUMABLE = "iter_{}.pth"
PARTS = {"meta", "state_dict", "message_hub", "optimizer", "param_schedulers", "data"}
_PATTERN = re.compile(r"iter_(\d+)\.pth$")


class ResumableHook(Hook):
    """A hook with a state that a resumed run goes on from.

    Attributes:
        key: Name of its state in resumable checkpoints.
    """

    key: ClassVar[str]

    @abstractmethod
    def state_dict(self, runner: Runner, iteration: int) -> Any:  # noqa: ANN401 - what torch.save takes
        """The state after `iteration` steps; all processes call it, the main one's is saved."""

    @abstractmethod
    def load_state_dict(self, runner: Runner, iteration: int, state: Any) -> None:  # noqa: ANN401
        """Go on from the state after `iteration` steps."""


def open_work_dir(work_dir: Path, launch: Launch, resume: str | None) -> Path | None:
    """Create the output folder of a run, log to it, and find the checkpoint that `--resume [PATH]` means.

    Raises:
        LaunchError: As :func:`~s5.launch.make_work_dir` and :func:`find_resume`.
    """
    make_work_dir(work_dir, launch)
    setup_logging(work_dir, launch)
    return find_resume(resume, work_dir, launch)


def resumable_checkpoints(work_dir: Path) -> list[Path]:
    """The Runner's resumable checkpoints, oldest first. All are complete: they are renamed into place."""
    found = [
        (int(match[1]), path) for path in work_dir.glob("iter_*.pth") if (match := _PATTERN.match(path.name))
    ]
    return [path for _, path in sorted(found)]


def latest_checkpoint(work_dir: Path) -> Path | None:
    """The newest resumable checkpoint, or None."""
    checkpoints = resumable_checkpoints(work_dir)
    return checkpoints[-1] if checkpoints else None


def find_resume(resume: str | None, work_dir: Path, launch: Launch) -> Path | None:
    """The checkpoint that `--resume [PATH]` means, or None to start from scratch.

    Args:
        resume: None without `--resume`, `latest`, or a path.
        work_dir: Output folder of the run, the same for all nodes.
        launch: The processes, which must all see the same checkpoint.

    Raises:
        LaunchError: The path does not exist, a run would overwrite the checkpoints of another, or the nodes
            do not share the work folder.
    """
    found = _find(resume, work_dir)
    if not same_everywhere(None if found is None else found.name, launch):
        raise LaunchError(
            f"{work_dir}: the processes see different checkpoints (this one {found}); the work folder must "
            f"be on a disk that all nodes share"
        )
    return found


def _find(resume: str | None, work_dir: Path) -> Path | None:
    latest = latest_checkpoint(work_dir)
    if resume is None:
        if latest is not None:
            raise LaunchError(
                f"{work_dir} already holds a run ({latest.name}): add --resume to go on with it, or choose "
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
    return path


def why_not(
    checkpoint: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    schedulers: Iterable[dict[str, Any]],
    max_iters: int,
) -> str | None:
    """Why a run cannot resume from a checkpoint; None if it can.

    Args:
        checkpoint: Its content.
        weights: Of the model of this run.
        schedulers: State of the learning-rate schedulers of this run.
        max_iters: Length of this run.
    """
    lacking = PARTS - checkpoint.keys()
    if lacking:
        return (
            f"it has no {', '.join(sorted(lacking))}. Checkpoints to resume from are named "
            "iter_<number>.pth; from weights alone, start a new run (--init)"
        )
    theirs = checkpoint["state_dict"]
    shapes = {
        name: tuple(tuple(t[name].shape) if name in t else "absent" for t in (theirs, weights))
        for name in {**weights, **theirs}
    }
    different = [name for name, (there, here) in shapes.items() if there != here]
    if different:
        there, here = shapes[different[0]]
        return (
            f"it is of another model: {len(different)} tensors differ, the first {different[0]} "
            f"({there}, here {here}). Use the backbone, classes and options that it was written with"
        )
    if _settings(checkpoint["param_schedulers"]) != _settings(schedulers):
        return _other_schedule(checkpoint["meta"].get("max_iters"), max_iters)
    return None


def _other_schedule(theirs: int | None, ours: int) -> str:
    """What to say of a checkpoint with another learning-rate schedule."""
    if theirs not in (None, ours):
        return (
            f"its run was to end at iteration {theirs}, this one at {ours}. Set the length as it was; where "
            f"it is counted in epochs, their length depends on the images and the number of processes, and "
            f"schedule.steps_per_epoch fixes it. For another length, start a new run from its weights"
        )
    return (
        "it has another learning-rate schedule. To go on, set learning rate, layer decay and warm-up as they "
        "were; for another one, start a new run from its weights"
    )


def _settings(states: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The settings of learning-rate schedulers, without how far they have come."""
    progress = ("last_step", "_global_step", "_last_value")
    return [{key: value for key, value in state.items() if key not in progress} for state in states]
