"""Training runs of the experiments: finished runs are kept, interrupted runs are resumed."""

import argparse
import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from s5.backbones import file_name
from s5.training.reports import SUMMARY_FILE

REPO = Path(__file__).resolve().parents[1]


def experiment_parser(description: str | None, out: str) -> argparse.ArgumentParser:
    """A parser with the options that all experiments share.

    Args:
        description: The script's docstring.
        out: Default folder of the results.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--data", type=Path, required=True, help="folder with the datasets named above")
    parser.add_argument("--out", type=Path, default=Path(out))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--backbone", default="vit_t")
    parser.add_argument("--device", default="auto")
    return parser


def train_once(command: list[str], work_dir: Path, iterations: int) -> dict[str, float | None]:
    """Train one model into `work_dir`, or take the scores of a finished run.

    Args:
        command: Entry script, relative to the repository, and its arguments without folder and resume.
        work_dir: Output folder of the run.
        iterations: Length of the run in iterations.

    Returns:
        The scores of the last validation, in percent; None where undefined.
    """
    metrics = work_dir / SUMMARY_FILE
    if not metrics.exists() or json.loads(metrics.read_text())["iteration"] != iterations:
        script, *arguments = command
        arguments += ["--work-dir", str(work_dir), "--resume"]
        run_command_line([sys.executable, str(REPO / script), *arguments])
    return json.loads(metrics.read_text())


def train_s4p(
    config: Path,
    args: argparse.Namespace,
    options: Sequence[str],
    work_dir: Path,
    iterations: int,
    init: str = "none",
) -> dict[str, float | None]:
    """Train S4P, or labeled images alone; see :func:`train_once`.

    Args:
        config: Configuration.
        args: Arguments with `backbone` and `device`.
        options: `--cfg-options`.
        work_dir: Output folder of the run.
        iterations: Length of the run in iterations.
        init: Weights to start from, as `--init` takes them; by default random ones.
    """
    command = ["S4_Pretrain/train.py", "--config", str(config), "--backbone", args.backbone, "--init", init]
    return train_once([*command, "--device", args.device, "--cfg-options", *options], work_dir, iterations)


def run_key(*parts: object) -> str:
    """A short name that differs between runs of which any of these parts differs."""
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:8]


def full_model(work_dir: Path, backbone: str) -> Path:
    """The file of a run of S4P with its full model."""
    return work_dir / f"{file_name(backbone)}_s4p_upernet.pth"


def run_command_line(command: Sequence[object]) -> None:
    """Run a command; if it fails, exit with its exit code."""
    process = subprocess.Popen([str(part) for part in command])
    try:
        code = process.wait()
    except KeyboardInterrupt:  # the run receives the signal, too: it saves and exits
        code = process.wait()
    if code:
        raise SystemExit(code)
