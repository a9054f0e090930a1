"""Check this environment and machine, and print a one-page report, for example for a bug report.

    python -m s5.doctor                   everything, on the GPU if there is one
    python -m s5.doctor --device cpu      for training with --device cpu

Each line starts with ok, warning or error; advice is below it. The exit code is 1 if training cannot work.
"""

import argparse
import faulthandler
import io
import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial

from s5 import __version__
from s5.doctor import ROOT, Finding, describe, device, environment, page, training

LIMIT = 180.0  # seconds between two findings; the first use of a GPU can take a minute
REPORT = "look for the message in the issues of S5, and report it with this page if it is new"
CRASHED = (
    "a library is incompatible with this machine or another library; bash scripts/env.sh installs tested ones"
)

Check = Callable[[str], Iterable[Finding]]
CHECKS: dict[str, Check] = {
    "python": environment.check_python,
    **{
        f"package {name}": partial(environment.check_package, line)
        for name, line in environment.required().items()
    },
    "processor": environment.check_processor,
    "memory": environment.check_memory,
    "files": environment.check_files,
    "compiler": environment.check_compiler,
    "images": training.check_images,
    "loader": training.check_loader,
    "gpu": device.check_gpus,
    "operators": device.check_operators,
    "processes": device.check_processes,
    "programs": training.check_programs,
    "step": training.check_step,
    "attention": device.check_attention,
}
"""Checks in the order of the page. Each takes the name of a device and imports what it needs."""


def main(argv: Sequence[str] | None = None) -> int:
    """Print the page; returns 1 if training cannot work, 0 otherwise."""
    parser = argparse.ArgumentParser(
        "python -m s5.doctor",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--checks", nargs="+", default=list(CHECKS), choices=CHECKS, help=argparse.SUPPRESS)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    if args.child:
        run_checks(args.checks, args.device)
        return 0
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # library messages may have any characters
    print(f"S5 {__version__}{environment.commit()}, checked by python -m s5.doctor", flush=True)
    findings: list[Finding] = []
    for finding in examine(args.checks, args.device):
        findings.append(finding)
        print(*page([finding]), sep="\n", flush=True)
    counts = {level: sum(finding.level == level for finding in findings) for level in ("error", "warning")}
    verdict = "training cannot work until the errors are fixed" if counts["error"] else "training can work"
    print(f"{counts['error']} errors, {counts['warning']} warnings: {verdict}")
    return int(counts["error"] > 0)


def run_checks(names: Iterable[str], chosen: str) -> None:
    """Run checks in this process; print a line of JSON for each finding, and null after each check.

    Output of the checks themselves goes to stderr.
    """
    faulthandler.enable()
    said: set[str] = set()
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as results:
        os.dup2(2, 1)
        for name in names:
            try:
                for finding in CHECKS[name](chosen):
                    print(json.dumps(finding), file=results, flush=True)
            except BaseException as error:  # broken packages raise anything
                text = describe(error)
                advice = f"see above; {environment.INSTALL}" if isinstance(error, ImportError) else REPORT
                finding = Finding("error", name, text, "" if text in said else advice)
                print(json.dumps(finding), file=results, flush=True)
                said.add(text)
            print("null", file=results, flush=True)


def examine(names: Sequence[str], chosen: str) -> Iterator[Finding]:
    """Run checks in another process and yield their findings; a crash or hang is a finding, too."""
    left = list(names)
    while left:
        with _Child(left, chosen) as child:
            while left:
                name = left.pop(0)
                try:
                    while finding := child.next_finding():
                        yield finding
                except _StoppedError as problem:
                    package = name.removeprefix("package ")
                    known = environment.installed_version(package)
                    yield Finding("error", package, f"{known}: {problem}" if known else str(problem), CRASHED)
                    break


class _StoppedError(Exception):
    """The process that runs the checks crashed or is not responding."""


class _Child:
    """A process that runs checks.

    Args:
        names: Names of the checks.
        chosen: Device of the command line.
    """

    def __init__(self, names: Sequence[str], chosen: str) -> None:
        self._errors = tempfile.TemporaryFile()
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "s5.doctor", "--child", "--device", chosen, "--checks", *names],
            env={**os.environ, "PYTHONPATH": path},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            encoding="utf-8",
        )
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def __enter__(self) -> "_Child":
        return self

    def __exit__(self, *error: object) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        self._errors.close()

    def next_finding(self) -> Finding | None:
        """The next finding; None at the end of a check.

        Raises:
            _StoppedError: The process ended or did not answer in time.
        """
        try:
            line = self._lines.get(timeout=LIMIT)
        except queue.Empty:
            raise _StoppedError(f"no answer within {LIMIT:.0f} s") from None
        if line:
            finding = json.loads(line)
            return None if finding is None else Finding(*finding)
        code = self._process.wait()
        ending = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()
        frame = [line for line in said if line.startswith('  File "')][:1]  # faulthandler: innermost first
        raise _StoppedError(", ".join([f"the check ended {ending}", *map(str.strip, frame or said[-1:])]))

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")  # end of output


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)
