"""Names of the checkpoint files in a work folder, and which of them is the latest."""

import logging
import re
from pathlib import Path

from s5.engine.launch import Launch, LaunchError, same_everywhere

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


def backbone_file(work_dir: Path, backbone: str) -> Path:
    """``<name>_s4p.pth``: the pre-trained backbone."""
    return work_dir / f"{backbone}_s4p.pth"


def whole_file(work_dir: Path, backbone: str) -> Path:
    """``<name>_s4p_upernet.pth``: backbone, decoder and classifier."""
    return work_dir / f"{backbone}_s4p_upernet.pth"


def best_file(work_dir: Path, backbone: str) -> Path:
    """``<name>_s4p_upernet_best.pth``: the same, of the best validation."""
    return work_dir / f"{backbone}_s4p_upernet_best.pth"


def find_resume(resume: str | None, work_dir: Path, launch: Launch) -> Path | None:
    """The checkpoint that ``--resume [PATH]`` means, or None to start anew.

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
            logger.info("nothing to resume in %s, starting anew", work_dir)
        return latest
    path = Path(resume)
    if not path.is_file():
        raise LaunchError(
            f"--resume {path}: no such file; the latest checkpoint of {work_dir} is {latest or 'none'}"
        )
    return path
