"""What single checks of the doctor find."""

from collections import namedtuple
from collections.abc import Callable

from s5.doctor import Finding

Usage = namedtuple("Usage", "total used free")


def only(check: Callable, *arguments: str) -> Finding:
    (finding,) = check(*arguments)
    return finding


def by_subject(check: Callable, chosen: str = "cpu") -> dict[str, Finding]:
    return {finding.subject: finding for finding in check(chosen)}
