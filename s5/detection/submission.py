"""Submission for task 1 of DOTA's evaluation server: a flat zip with a text file for each class.

`Task1_<class>.txt` has a line `image score x1 y1 x2 y2 x3 y3 x4 y4` for each detection in full images, with
image names without extension. Classes without detections have an empty file.
"""

import logging
import math
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from s5.data.datasets import CLASS_LISTS as CLASSES
from s5.data.files import atomic_path, require_zip_name, write_zip
from s5.data.oriented.detections import Detections, corners_text
from s5.data.oriented.geometry import to_polygons
from s5.detection.evaluation import DetectionCollector, write_texts
from s5.errors import ConfigError, DataError, is_utf8, shorten

logger = logging.getLogger(__name__)

FIELDS = 10


def pack_dota(
    out: Path, detections: Mapping[str, Detections], classes: Sequence[str], images: Sequence[str]
) -> Counter[str]:
    """Write the submission atomically, after reading it back and checking it.

    Scores keep all digits because the server sorts by them; corners have two decimals.

    Args:
        out: The zip file.
        detections: Detections in the full images, by image name.
        classes: Class names of the server, by label.
        images: Names of all test images.

    Returns:
        Number of detections of each class.

    Raises:
        DataError: Images are missing, unknown or have unusable names, a detection is invalid, or the file
            name does not end in `.zip`.
    """
    require_names(out, images)
    _require_all(detections, images)
    for name, found in detections.items():
        _require_sound(name, found, classes)
    with atomic_path(out) as temporary:
        texts = ((_member(name), _text(detections, label)) for label, name in enumerate(classes))
        write_zip(temporary, texts, zipfile.ZIP_DEFLATED)
        counts = check_submission(temporary, classes, images)
    if not counts.total():
        logger.warning("%s contains no detections", out)
    return counts


def require_names(out: Path, images: Sequence[str]) -> None:
    """Reject names that the server would not accept.

    Raises:
        DataError: The file name does not end in `.zip`, or image names contain a '/' or white space or are
            not UTF-8.
    """
    require_zip_name(out)
    _require_none(
        [name for name in images if "/" in name or any(c.isspace() for c in name)],
        "have '/' or white space in their names",
        len(images),
    )
    _require_none(
        [name for name in images if not is_utf8(name)], "have names that are not UTF-8", len(images)
    )


def check_submission(path: Path, classes: Sequence[str], images: Sequence[str]) -> Counter[str]:
    """Check a submission the way the server would.

    Args:
        path: The zip file.
        classes: Class names.
        images: Names of the test images.

    Returns:
        Number of detections of each class.

    Raises:
        DataError: The file is not a zip, a class is missing, or there is a superfluous file or an invalid
            line; names file and line.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            _require_members(path, archive.namelist(), classes)
            texts = {name: archive.read(_member(name)).decode() for name in classes}
    except (OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:
        raise DataError(f"{path}: cannot be read as a zip of text files ({error})") from error
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


def _text(detections: Mapping[str, Detections], label: int) -> bytes:
    lines = []
    for image in sorted(detections):
        found = detections[image]
        own = found.select(found.labels == label)
        for score, corners in zip(own.scores, to_polygons(own.boxes).reshape(-1, 8), strict=True):
            lines.append(f"{image} {score} {corners_text(corners)}\n")
    return "".join(lines).encode()


def _require_all(detections: Mapping[str, Detections], images: Sequence[str]) -> None:
    missing = [name for name in images if name not in detections]
    _require_none(missing, "have not been predicted", len(images))
    _require_none(sorted(detections.keys() - set(images)), "are no test images", len(images))


def _require_none(names: Sequence[str], what: str, count: int) -> None:
    """Raise an error about the named images, if there are any."""
    if names:
        raise DataError(
            f"{len(names)} of {count} images {what}: {shorten(names)}. A submission must cover every test "
            "image, by its name without extension"
        )


def _require_sound(name: str, found: Detections, classes: Sequence[str]) -> None:
    scores, labels = found.scores, found.labels
    sound = np.isfinite(found.boxes).all(1) & (found.boxes[:, 2:4] > 0).all(1)
    sound &= (scores >= 0) & (scores <= 1) & (labels >= 0) & (labels < len(classes))
    if not sound.all():
        index = int(sound.argmin())
        raise DataError(
            f"{name}: invalid detection {index}: box {found.boxes[index].tolist()}, score {scores[index]}, "
            f"label {labels[index]} of {len(classes)} classes"
        )


def _require_members(path: Path, members: Sequence[str], classes: Sequence[str]) -> None:
    expected = {_member(name) for name in classes}
    for names, what in ((expected - set(members), "lacks"), (set(members) - expected, "should not contain")):
        if names:
            raise DataError(
                f"{path}: {what} {', '.join(sorted(names))}; a submission has one file per class, no folders"
            )


def _problem(line: str, images: set[str]) -> str:
    """Describe what is wrong with a line; empty if it is valid."""
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
        return "the score is not between 0 and 1"
    return "" if all(map(math.isfinite, corners)) else "a coordinate is not finite"


def require_submission(out: Path, names: Sequence[str], classes: Sequence[str]) -> None:
    """Reject what :func:`submit` could not write, before the network runs for hours.

    Raises:
        ConfigError: The file is a folder.
        DataError: The file name does not end in `.zip`, or the server would not accept names of images.
    """
    require_names(out, names)
    if out.is_dir():
        raise ConfigError(f"--submit: {out} is a folder; give the file to be written")
    if not any(set(classes) == set(known) for name, known in CLASSES.items() if name.startswith("dota")):
        logger.warning(
            "%s: DOTA's server would reject these classes, which belong to no version of DOTA", out
        )


def submit(
    submissions: Mapping[str, Path],
    collectors: Mapping[str, DetectionCollector],
    names: Mapping[str, Sequence[str]],
    rescue: Path | None,
) -> None:
    """Write submissions to DOTA's server, see :func:`~s5.detection.submission.pack_dota`.

    Args:
        submissions: Output files by task.
        collectors: Detections by task.
        names: Names of the images by task.
        rescue: Folder for the detections as text if a submission fails; None if they are saved elsewhere.

    Raises:
        DataError: A submission is invalid or cannot be written; the other submissions have been written.
    """
    problems = []
    for task, out in submissions.items():
        collector = collectors[task]
        try:
            counts = pack_dota(out, collector.detections, collector.classes, names[task])
        except (DataError, OSError) as error:
            problems.append(f"{out} was not written: {error}")
            if rescue is not None:
                write_texts(rescue, collector)
                problems.append(f"the detections are in {rescue / task}")
        else:
            logger.info(
                "%s: %d detections in %d images, ready for upload", out, counts.total(), len(names[task])
            )
    if problems:
        raise DataError("; ".join(problems))
