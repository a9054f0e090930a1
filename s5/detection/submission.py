"""The file that DOTA's evaluation server takes for task 1: a flat zip with a text file for each class.

`Task1_<class>.txt` has a line `image score x1 y1 x2 y2 x3 y3 x4 y4` for each detection in whole images,
the image without extension. Files of classes without detections are there, too.
"""

import logging
import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from s5.data.datasets import CLASS_LISTS as CLASSES
from s5.data.files import atomic_path
from s5.data.oriented.detections import Detections, corners_text
from s5.data.oriented.geometry import to_polygons
from s5.detection.evaluation import DetectionCollector, write_texts
from s5.errors import ConfigError, DataError, is_utf8, shorten

logger = logging.getLogger(__name__)

EPOCH = (1980, 1, 1, 0, 0, 0)  # the same detections give the same file
FIELDS = 10


def pack_dota(
    out: Path, detections: Mapping[str, Detections], classes: Sequence[str], images: Sequence[str]
) -> Counter[str]:
    """Write the submission, read it back and put it in its place: whole and right, or not at all.

    Scores keep all their digits, as the server sorts by them; corners have two decimals.

    Args:
        out: The zip.
        detections: Of the whole images, by name.
        classes: The server's names of the classes, by label.
        images: Names of all test images.

    Returns:
        Number of detections of each class.

    Raises:
        DataError: Images are missing, unknown or have unusable names, a detection has values that cannot be,
            or the file is not named `.zip`.
    """
    require_names(out, images)
    _require_all(detections, images)
    for name, found in detections.items():
        _require_sound(name, found, classes)
    with atomic_path(out) as temporary:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
            for label, name in enumerate(classes):
                member = zipfile.ZipInfo(_member(name), EPOCH)
                member.compress_type = zipfile.ZIP_DEFLATED
                archive.writestr(member, _text(detections, label))
        counts = check_submission(temporary, classes, images)
    if not counts.total():
        logger.warning("%s: there are no detections in it", out)
    return counts


def require_names(out: Path, images: Sequence[str]) -> None:
    """Refuse names that a submission cannot have.

    Raises:
        DataError: The file is not named `.zip`, or names of images have a '/' or white space or are not
            UTF-8.
    """
    if out.suffix.lower() != ".zip":
        raise DataError(f"{out}: the server takes a .zip; name it so")
    _require_none(
        [name for name in images if "/" in name or any(c.isspace() for c in name)],
        "have '/' or white space",
        len(images),
    )
    _require_none(
        [name for name in images if not is_utf8(name)], "have names that are not UTF-8", len(images)
    )


def check_submission(path: Path, classes: Sequence[str], images: Sequence[str]) -> Counter[str]:
    """Check a submission as the server would.

    Args:
        path: The zip.
        classes: Names of the classes.
        images: Names of the test images.

    Returns:
        Number of detections of each class.

    Raises:
        DataError: It is no zip, lacks a class or has other files, or a line that cannot be; names file and
            line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_members(path, archive.namelist(), classes)
            texts = {name: archive.read(_member(name)).decode() for name in classes}
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a zip of texts ({error})") from error
    known = set(images)
    counts: Counter[str] = Counter(dict.fromkeys(classes, 0))
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            if problem := _problem(line, known):
                raise DataError(f"{path}, {_member(name)}, line {number}: {problem}: {line!r}")
            counts[name] += 1
    return counts


def _member(name: str) -> str:
    return f"Task1_{name}.txt"


def _text(detections: Mapping[str, Detections], label: int) -> str:
    lines = []
    for image in sorted(detections):
        found = detections[image]
        own = found.select(found.labels == label)
        for score, corners in zip(own.scores, to_polygons(own.boxes).reshape(-1, 8), strict=True):
            lines.append(f"{image} {score} {corners_text(corners)}\n")
    return "".join(lines)


def _require_all(detections: Mapping[str, Detections], images: Sequence[str]) -> None:
    missing = [name for name in images if name not in detections]
    _require_none(missing, "have not been predicted", len(images))
    _require_none(sorted(detections.keys() - set(images)), "are no test images", len(images))


def _require_none(names: Sequence[str], what: str, count: int) -> None:
    """Refuse images of which something is said that must be said of none."""
    if names:
        raise DataError(
            f"{len(names)} of {count} images {what}: {shorten(names)}. A submission has "
            "every test image, by its name without extension"
        )


def _require_sound(name: str, found: Detections, classes: Sequence[str]) -> None:
    scores, labels = found.scores, found.labels
    sound = np.isfinite(found.boxes).all(1) & (found.boxes[:, 2:4] > 0).all(1)
    sound &= (scores >= 0) & (scores <= 1) & (labels >= 0) & (labels < len(classes))
    if not sound.all():
        index = int(sound.argmin())
        raise DataError(
            f"{name}: detection {index} cannot be: box {found.boxes[index].tolist()}, score {scores[index]}, "
            f"label {labels[index]} of {len(classes)} classes"
        )


def _require_members(path: Path, members: Sequence[str], classes: Sequence[str]) -> None:
    expected = {_member(name) for name in classes}
    for names, what in ((expected - set(members), "lacks"), (set(members) - expected, "should not hold")):
        if names:
            raise DataError(f"{path}: {what} {', '.join(sorted(names))}; it is a flat zip of all classes")


def _problem(line: str, images: set[str]) -> str:
    """What is wrong with a line; empty if nothing."""
    fields = line.split(" ")
    if len(fields) != FIELDS:
        return f"{len(fields)} fields instead of {FIELDS}"
    if fields[0] not in images:
        return "no such image"
    try:
        score, *corners = map(float, fields[1:])
    except ValueError as error:
        return str(error)
    if not 0 <= score <= 1:
        return "the score is not in 0..1"
    return "" if all(map(math.isfinite, corners)) else "a coordinate is not finite"


def require_submission(out: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    """Refuse what :func:`submit` could not write, before the network has run for hours.

    Raises:
        ConfigError: The file is a folder.
        DataError: The file is not named `.zip`, or images have names that the server cannot take.
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
    """Write the files that DOTA's server takes, see :func:`~s5.detection.submission.pack_dota`.

    Args:
        submissions: The files by task.
        collectors: The detections.
        names: Of the images.
        rescue: Where the detections are written as text if a file cannot be; None if they are somewhere.

    Raises:
        DataError: One cannot be made of these detections, or not written; the others are there.
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
