"""The file for DOTA's server: what speaks against it, said before the work, and writing it."""

import logging
from collections.abc import Sequence
from pathlib import Path

from s5.data.oriented.classes import CLASSES
from s5.data.oriented.submission import pack_dota, require_names
from s5.engine.config import ConfigError
from s5.engine.detection.collector import DetectionCollector

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


def submit(out: Path, collector: DetectionCollector, names: Sequence[str]) -> None:
    """Write the file that DOTA's server takes, see :func:`~s5.data.oriented.submission.pack_dota`.

    Raises:
        DataError: it cannot be made of these detections.
    """
    counts = pack_dota(out, collector.detections, collector.classes, names)
    logger.info("%s: %d detections in %d images, ready to be uploaded", out, counts.total(), len(names))
