"""The file for DOTA's server: what speaks against it, said before the work, and writing it."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

from s5.data.errors import DataError
from s5.data.oriented.classes import CLASSES
from s5.data.oriented.submission import pack_dota, require_names
from s5.engine.config import ConfigError
from s5.engine.detection.collector import DetectionCollector
from s5.engine.detection.reports import write_texts

logger = logging.getLogger(__name__)


def require_submission(out: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse what :func:`submit` could not write, before the network has run for hours.

    Raises:
        ConfigError: the file is a folder.
        DataError: the file is not named ``.zip``, or images have names that the server cannot take.
    """
    require_names(out, names)
    if out.is_dir():
        raise ConfigError(f"--submit: {out} is a folder; give the file to be written")
    if not any(set(classes) == set(known) for name, known in CLASSES.items() if name.startswith("dota")):
        logger.warning("%s: the classes are of no version of DOTA, whose server would refuse them", out)


def submit(
    submissions: Mapping[str, Path],
    collectors: Mapping[str, DetectionCollector],
    names: Mapping[str, Sequence[str]],
    rescue: Path | None,
) -> None:
    """Write the files that DOTA's server takes, see :func:`~s5.data.oriented.submission.pack_dota`.

    Args:
        submissions: the files by task.
        collectors: the detections.
        names: of the images.
        rescue: where the detections are written as text if a file cannot be; None if they are somewhere.

    Raises:
        DataError: one cannot be made of these detections, or not written; the others are there.
    """
    problems = []
    for task, out in submissions.items():
        collector = collectors[task]
        try:
            counts = pack_dota(out, collector.detections, collector.classes, names[task])
        except (DataError, OSError) as error:
            problems.append(f"{out} is not written: {error}")
            if rescue is not None:
                write_texts(rescue, collector)
                problems.append(f"the detections are in {rescue / task}")
        else:
            logger.info(
                "%s: %d detections in %d images, ready to be uploaded", out, counts.total(), len(names[task])
            )
    if problems:
        raise DataError("; ".join(problems))
