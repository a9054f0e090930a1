"""scripts/env.sh: which environment is used, and when something is installed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

FILES = ("scripts/env.sh", "scripts/opencv_headless/pyproject.toml")
LISTS = ("requirements.txt", "requirements-dev.txt", "pyproject.toml")


@pytest.fixture
def checkout(repository: Path, tmp_path: Path) -> Path:
    """A copy of what env.sh needs, in a folder with a space in its name."""
    root = tmp_path / "my S5"
    for name in (*FILES, *LISTS):
        target = root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text((repository / name).read_text())
    return root


@pytest.fixture
def prefix(tmp_path: Path) -> Path:
    """An environment whose pip only notes what it was asked for."""
    python = tmp_path / "environment" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/sh\n"
        f'[ "$1 $2" != "-m pip" ] || {{ echo "$@" >>"{tmp_path}/pip.log"; exit "${{PIP_STATUS:-0}}"; }}\n'
        f'exec "{sys.executable}" "$@"\n'
    )
    python.chmod(0o755)
    return python.parents[1]


def install(
    checkout: Path, prefix: Path | None, *arguments: str, **variables: str
) -> subprocess.CompletedProcess:
    env = {"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | variables
    if prefix is not None:
        env["VIRTUAL_ENV"] = str(prefix)
    command = ["bash", str(checkout / "scripts/env.sh"), *arguments]
    return subprocess.run(command, env=env, cwd="/", capture_output=True, text=True, timeout=60)


def calls(prefix: Path) -> list[str]:
    log = prefix.parent / "pip.log"
    return log.read_text().splitlines() if log.exists() else []


def test_installs_once_and_again_after_a_change(checkout: Path, prefix: Path) -> None:
    for _ in range(2):
        done = install(checkout, prefix)
        assert done.returncode == 0, done.stderr
        assert str(prefix / "bin/python") in done.stdout
    assert calls(prefix) == ["-m pip install --no-compile -r requirements.txt -e ."]

    with (checkout / "requirements.txt").open("a") as file:
        file.write("# changed\n")
    install(checkout, prefix)
    assert len(calls(prefix)) == 2


def test_the_tools_are_added_when_asked_for(checkout: Path, prefix: Path) -> None:
    install(checkout, prefix)
    install(checkout, prefix, "dev")
    install(checkout, prefix, "dev")
    install(checkout, prefix)
    assert calls(prefix)[1:] == [
        "-m pip install --no-compile -r requirements.txt -r requirements-dev.txt -e .[dev]"
    ]


def test_a_failed_installation_is_said_and_tried_again(checkout: Path, prefix: Path) -> None:
    failed = install(checkout, prefix, PIP_STATUS="1")
    assert failed.returncode == 1 and "the installation failed" in failed.stderr
    assert install(checkout, prefix).returncode == 0
    assert len(calls(prefix)) == 2


def test_another_checkout_in_the_same_environment_is_installed(checkout: Path, prefix: Path) -> None:
    install(checkout, prefix)
    moved = checkout.rename(checkout.with_name("moved"))
    install(moved, prefix)
    assert len(calls(prefix)) == 2


def test_an_active_environment_with_an_old_python(checkout: Path, prefix: Path) -> None:
    (prefix / "bin/python").write_text('#!/bin/sh\n[ "$1" != --version ] || echo Python 3.8.18\nexit 1\n')
    done = install(checkout, prefix)
    assert done.returncode == 1
    assert f"{prefix} has Python 3.8.18" in done.stderr and "Python 3.10 to 3.13" in done.stderr
    assert not calls(prefix)


def test_no_python_at_all(checkout: Path, tmp_path: Path) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "cat", "flock"):
        found = subprocess.run(["which", tool], capture_output=True, text=True).stdout.strip()
        if found:
            (tools / tool).symlink_to(found)
    done = install(checkout, None, PATH=str(tools))
    assert done.returncode == 1
    assert "no Python 3.10 to 3.13 found" in done.stderr
    assert not (checkout / ".venv").exists()
