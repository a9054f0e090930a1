"""Names of the checkpoint files in a work folder, and which of them is the latest."""

import logging
import re
from dataclasses import dataclass
from pathlib import Path

from s5.launch import Launch, LaunchError, same_everywhere

logger = logging.getLogger(__name__)

RESUMABLE = "iter_{}.pth"
_PATTERN = re.compile(r"iter_(\d+)\.pth$")


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


@dataclass(frozen=True)
class WeightFiles:
    """Names of the weight files of a run, without folder.

    Attributes:
        whole: the whole model, newest; the best ones have ``_best`` or ``_best_<task>`` after it.
        backbone: the backbone alone, where other runs start from it.
    """

    whole: str
    backbone: str | None = None

    def best(self, which: str) -> str:
        """The file of the best weights: ``which`` is ``best`` or ``best_<task>``."""
        return f"{self.whole.removesuffix('.pth')}_{which}.pth"


def s4p_files(backbone: str) -> WeightFiles:
    """``<name>_s4p_upernet.pth`` and ``<name>_s4p.pth``."""
    return WeightFiles(f"{backbone}_s4p_upernet.pth", f"{backbone}_s4p.pth")


def mdf_files(backbone: str) -> WeightFiles:
    """``<name>_mdf.pth``."""
    return WeightFiles(f"{backbone}_mdf.pth")


def det_files(backbone: str) -> WeightFiles:
    """``<name>_det.pth``."""
    return WeightFiles(f"{backbone}_det.pth")


def find_resume(resume: str | None, work_dir: Path, launch: Launch) -> Path | None:
    """The checkpoint that ``--resume [PATH]`` means, or None to start from scratch.

    Args:
        resume: None without ``--resume``, ``latest``, or a path.
        work_dir: output folder of the run, the same for all nodes.
        launch: the processes, which must all see the same checkpoint.

    Raises:
        LaunchError: the path does not exist, a run would overwrite the checkpoints of another, or the nodes
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
