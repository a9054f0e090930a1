"""`python -m s5.doctor`: a one-page report on whether training can work here, and what to do if not.

Packages that may be broken are imported only inside checks, and the checks run in a separate process: an
environment without PyTorch, or with one that crashes, still gets its page.
"""

import re
import socket
import sys
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

Level = Literal["ok", "warning", "error"]
ROOT = Path(__file__).resolve().parents[2]
_WIDTH, _INDENT = 110, 31
_PATH = re.compile(r"(?<![\w:/<>~])(?:/[\w.+@-]+){3,}")


class Finding(NamedTuple):
    """One line of the page.

    Attributes:
        level: `error` means that training cannot work.
        subject: What was checked.
        text: The result.
        advice: What to do; empty if nothing.
    """

    level: Level
    subject: str
    text: str
    advice: str = ""


def ok(subject: str, text: str) -> Finding:
    """Create a finding of level `ok`."""
    return Finding("ok", subject, text)


def describe(error: BaseException) -> str:
    """Type and first line of the message of an error, shortened."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:500]}" if lines else type(error).__name__


def page(findings: Iterable[Finding]) -> Iterator[str]:
    """Format findings as lines of the page."""
    for finding in findings:
        text = without_names(finding.text)
        if finding.advice:
            text += f"\n-> {without_names(finding.advice)}"
        head = f"{finding.level:<9}{finding.subject:<{_INDENT - 9}}"
        for line in text.splitlines():
            yield textwrap.fill(
                line,
                _WIDTH,
                initial_indent=head,
                subsequent_indent=" " * _INDENT,
                break_long_words=False,
                break_on_hyphens=False,
            )
            head = " " * _INDENT


def without_names(text: str) -> str:
    """Remove the names of folders and of this machine: the page is made to be published."""
    known = {
        str(ROOT): "<S5>",
        sys.prefix: "<environment>",
        sys.base_prefix: "<Python>",
        str(Path.home()): "~",
        socket.gethostname(): "<host>",
    }
    for name in sorted(known, key=len, reverse=True):
        if len(name) > 2:
            text = text.replace(name, known[name])
    return _PATH.sub(lambda match: f".../{'/'.join(match[0].split('/')[-2:])}", text)
