"""An environment whose interpreter only writes down how it is called, to test what scripts start."""

import json
import os
import shutil
import sys
from pathlib import Path

FAKE = """#!{python} -SE
import json, os, sys
arguments = sys.argv[1:]
text = " ".join(arguments)
if text.startswith("-c"):
    known = {{
        "torch.cuda": os.environ["FAKE_GPUS"],
        "socket": "23456",
        "max_expert_channels": "0" if "timm:" in text else "96",
    }}
    print(next((answer for word, answer in known.items() if word in text), "python"))
elif not text.startswith("-m pip"):
    with open(os.environ["FAKE_LOG"], "a") as log:
        log.write(json.dumps(arguments) + "\\n")
if "quickstart_plan" in text:
    print(os.environ["FAKE_PERCENT"])
failure = os.environ.get("FAKE_FAILURE")
sys.exit(bool(failure) and failure in text)
"""


class FakePython:
    """A virtual environment in `folder`.

    Attributes:
        variables: environment variables under which scripts use it; `FAKE_GPUS` GPUs seem to be there, the
            quickstart's plan is `FAKE_PERCENT`, and a call that contains `FAKE_FAILURE` fails. Networks of
            timm cannot have experts.
    """

    def __init__(self, folder: Path) -> None:
        self.log = folder / "calls"
        python = folder / "environment/bin/python"
        python.parent.mkdir(parents=True)
        python.write_text(FAKE.format(python=Path(sys.executable).resolve()))
        python.chmod(0o755)
        kept = {key: value for key, value in os.environ.items() if not key.startswith("CONDA_")}
        self.variables = kept | {
            "VIRTUAL_ENV": str(python.parents[1]),
            "FAKE_LOG": str(self.log),
            "FAKE_GPUS": "0",
            "FAKE_PERCENT": "100",
        }

    def calls(self) -> list[list[str]]:
        """The arguments of every call since the last time, of pip and of `-c` aside."""
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        self.log.unlink(missing_ok=True)
        return [json.loads(line) for line in lines]


def copy_scripts(repository: Path, target: Path) -> None:
    """The shell scripts, and the files they look at, in another place."""
    shells = [*repository.glob("scripts/*.sh"), *repository.glob("*/scripts/*.sh")]
    others = ("requirements.txt", "pyproject.toml", "scripts/opencv_headless/pyproject.toml")
    for path in (*shells, *(repository / name for name in others)):
        copy = target / path.relative_to(repository)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
