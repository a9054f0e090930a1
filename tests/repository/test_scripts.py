"""Shell scripts, launcher and dependency lists."""

import ast
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from s5.segmentation.segmentor import build_segmentor
from tests.helpers import mdf_runs
from tests.helpers.fake_python import FakePython
from tests.helpers.s4p_runs import load_script

SCRIPTS = ["scripts/env.sh", "scripts/launch.sh", "scripts/quickstart.sh", "scripts/test.sh", ".ci/run"]
SCRIPTS += [f"S4_Pretrain/scripts/{name}" for name in ("train.sh", "train.slurm", "curate.sh")]
SCRIPTS += ["Semantic_Segmentation/scripts/md_finetune.sh"]
TRAIN = "S4_Pretrain/scripts/train.sh"
FINETUNE = "Semantic_Segmentation/scripts/md_finetune.sh"
NODES = ("NNODES", "NODE_RANK", "MASTER_ADDR", "CPU_PROCESSES", "CONFIG", "WORK_DIR")


@pytest.fixture
def environment() -> dict[str, str]:
    """Variables under which the scripts use the interpreter that runs this test."""
    kept = {key: value for key, value in os.environ.items() if key not in NODES}
    return kept | {"VIRTUAL_ENV": sys.prefix, "OMP_NUM_THREADS": "1"}


@pytest.fixture
def bash(environment, tmp_path):
    """Run ``bash *arguments`` in another folder, with further variables."""

    def run(*arguments: object, **variables: str) -> subprocess.CompletedProcess:
        command = ["bash", *map(str, arguments)]
        env = environment | variables
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=120)

    return run


def given_to(python: FakePython) -> dict[str, str]:
    """Variables under which the scripts use the interpreter that only writes down how it is called."""
    return {key: value for key, value in python.variables.items() if key not in NODES}


@pytest.fixture
def launcher(repository: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A launcher like the trees', and the script it starts, which writes down what it was given."""
    folder = tmp_path / "my tree"
    folder.mkdir()
    script = folder / "entry.py"
    script.write_text(
        "import json, os, sys\n"
        "keys = ('RANK', 'WORLD_SIZE', 'MASTER_PORT', 'CUDA_VISIBLE_DEVICES')\n"
        "told = {key: os.environ.get(key) for key in keys}\n"
        "path = os.path.join(os.path.dirname(__file__), 'told' + os.environ.get('RANK', ''))\n"
        "json.dump(told | {'arguments': sys.argv[1:]}, open(path, 'w'))\n"
    )
    start = folder / "start.sh"
    start.write_text(
        f'set -euo pipefail\nUSAGE="usage text"\nsource "{repository}/scripts/launch.sh"\n'
        f'gpus=$1 port=$2\nshift 2\ns5_launch "$gpus" "$port" "{script}" "$@"\n'
    )
    return start, script


def free_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return str(server.getsockname()[1])


@pytest.mark.parametrize("script", SCRIPTS)
def test_bash_syntax(repository: Path, script: str) -> None:
    done = subprocess.run(["bash", "-n", repository / script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_script_is_checked(repository: Path) -> None:
    folders = (".ci", "scripts", "*/scripts")
    found = {
        p
        for f in folders
        for p in repository.glob(f"{f}/*")
        if p.suffix in (".sh", ".slurm") or p.name == "run"
    }
    assert {str(p.relative_to(repository)) for p in found} == set(SCRIPTS)


# -- train.sh and launch.sh


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "expected GPUS PORT BACKBONE INIT, got 0"),
        (["8", "12345", "vit_b"], "expected GPUS PORT BACKBONE INIT, got 3"),
        (["two", "12345", "vit_b", "mae"], "GPUS must be a whole number from 0 to 1024, got 'two'"),
        (["-1", "12345", "vit_b", "mae"], "GPUS must be a whole number from 0 to 1024, got '-1'"),
        (["1", "70000", "vit_b", "mae"], "PORT must be a whole number from 1 to 65535, got '70000'"),
        (["1", "vit_b", "12345", "mae"], "PORT must be a whole number from 1 to 65535, got 'vit_b'"),
    ],
)
def test_wrong_arguments_give_the_usage(bash, repository: Path, arguments: list[str], message: str) -> None:
    done = bash(repository / TRAIN, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert "usage: bash train.sh GPUS PORT BACKBONE INIT" in done.stderr
    assert not done.stdout


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"NNODES": "2"}, "NNODES=2 also needs NODE_RANK"),
        (
            {"NNODES": "2", "NODE_RANK": "2", "MASTER_ADDR": "a"},
            "NODE_RANK must be a whole number from 0 to 1",
        ),
        ({"NNODES": "some"}, "NNODES must be a whole number"),
        ({"CPU_PROCESSES": "0"}, "CPU_PROCESSES must be a whole number from 1"),
    ],
)
def test_wrong_variables_give_the_usage(
    bash, repository: Path, variables: dict[str, str], message: str
) -> None:
    done = bash(repository / TRAIN, "0", "12345", "vit_t", "none", **variables)
    assert done.returncode == 2
    assert message in done.stderr


def test_curate_needs_a_configuration_and_passes_the_rest_on(
    bash, repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script = repository / "S4_Pretrain/scripts/curate.sh"
    done = bash(script)
    assert done.returncode == 2 and "usage: bash curate.sh CONFIG" in done.stderr
    python = FakePython(tmp_path)
    given = [str(tmp_path / "no.yaml"), "--cfg-options", "select.count=3"]
    assert bash(script, *given, **given_to(python), GPUS="0").returncode == 0
    *_, (entry, *arguments) = python.calls()
    assert entry == str(repository / "S4_Pretrain/curate.py") and arguments == ["--device", "cpu", *given]
    assert load_script(Path(entry)).main(arguments) == 1
    assert "no.yaml: no such configuration file" in capsys.readouterr().err


def test_port_in_use_on_the_first_machine_only(bash, repository: Path, launcher) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = str(server.getsockname()[1])
        done = bash(repository / TRAIN, "0", port, "vit_t", "none")
        assert done.returncode == 1
        assert re.search(rf"port {port} on \S+ is in use.* choose another, for example \d+", done.stderr)
        told = [sys.executable, repository / "scripts" / "launch_check.py", "--gpus", "0"]
        assert subprocess.run(told, timeout=60).returncode == 0


def test_more_gpus_than_there_are(bash, repository: Path) -> None:
    done = bash(repository / TRAIN, "8", free_port(), "vit_b", "mae", CUDA_VISIBLE_DEVICES="")
    assert done.returncode == 1
    assert "GPUS=8" in done.stderr and "use GPUS=0 to run on the CPU" in done.stderr


def test_one_process_on_the_cpu(bash, launcher) -> None:
    start, script = launcher
    done = bash(start, "0", free_port(), "--name", "two words")
    assert done.returncode == 0, done.stderr
    told = json.loads((script.parent / "told").read_text())
    assert told["arguments"] == ["--device", "cpu", "--name", "two words"]
    assert told["CUDA_VISIBLE_DEVICES"] == ""
    assert told["RANK"] is None  # no process group for one process


def test_several_processes_on_the_cpu(bash, launcher) -> None:
    start, script = launcher
    port = free_port()
    done = bash(start, "0", port, "--name", "two words", CPU_PROCESSES="2")
    assert done.returncode == 0, done.stderr
    for rank in ("0", "1"):
        told = json.loads((script.parent / f"told{rank}").read_text())
        assert (told["RANK"], told["WORLD_SIZE"], told["MASTER_PORT"]) == (rank, "2", port)
        assert told["arguments"] == ["--device", "cpu", "--name", "two words"]


def test_two_machines(environment, launcher, tmp_path: Path) -> None:
    start, script = launcher
    nodes = {"NNODES": "2", "MASTER_ADDR": "127.0.0.1"}
    command = ["bash", start, "0", free_port()]
    runs = [
        subprocess.Popen(command, env=environment | nodes | {"NODE_RANK": str(rank)}) for rank in range(2)
    ]
    assert [run.wait(timeout=120) for run in runs] == [0, 0]
    assert [json.loads((script.parent / f"told{r}").read_text())["WORLD_SIZE"] for r in range(2)] == [
        "2",
        "2",
    ]


@pytest.mark.parametrize("processes", ["1", "2"])
def test_signals_arrive(environment, launcher, processes: str) -> None:
    start, script = launcher
    script.write_text(
        "import os, pathlib, signal, sys, time\n"
        "mark = pathlib.Path(__file__).parent / ('state' + os.environ.get('RANK', '0'))\n"
        "def leave(*_):\n"
        "    mark.write_text('stopped')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, leave)\n"
        "mark.write_text('started')\n"
        "time.sleep(60)\n"
    )
    marks = [script.parent / f"state{rank}" for rank in range(int(processes))]
    run = subprocess.Popen(["bash", start, "0", free_port()], env=environment | {"CPU_PROCESSES": processes})
    try:
        deadline = time.monotonic() + 60
        while not all(mark.exists() and mark.read_text() == "started" for mark in marks):
            assert run.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        run.send_signal(signal.SIGTERM)
        run.wait(timeout=60)
    finally:
        run.kill()
    assert [mark.read_text() for mark in marks] == ["stopped"] * len(marks)


def test_no_environment_says_how_to_make_one(repository: Path, tmp_path: Path) -> None:
    # A copy of the scripts, so that no .venv stands beside them, and a PATH without any python.
    for name in ("env.sh", "launch.sh"):
        target = tmp_path / "scripts" / name
        target.parent.mkdir(exist_ok=True)
        target.write_text((repository / "scripts" / name).read_text())
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in ("dirname", "cat"):
        (tools / tool).symlink_to(subprocess.check_output(["which", tool], text=True).strip())
    command = f'source "{tmp_path}/scripts/launch.sh"; USAGE=; s5_launch 0 12345 x.py'
    bash = subprocess.check_output(["which", "bash"], text=True).strip()
    done = subprocess.run([bash, "-c", command], env={"PATH": str(tools)}, capture_output=True, text=True)
    assert done.returncode == 1
    assert "no Python environment" in done.stderr and f'bash "{tmp_path}/scripts/env.sh"' in done.stderr


# -- requirements and pyproject


def pins(path: Path) -> list[str]:
    return [
        line for line in path.read_text().splitlines() if line.strip() and not line.startswith(("#", "--"))
    ]


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-dev.txt"])
def test_every_requirement_is_pinned_with_a_reason(repository: Path, name: str) -> None:
    for line in pins(repository / name):
        assert re.fullmatch(
            r"([\w.-]+==[\w.]+(; python_version [<>=]+ \"3\.\d+\")?|\./\S+) +# .{8,}", line
        ), line


def test_ranges_admit_the_pins(repository: Path) -> None:
    tomllib = pytest.importorskip(
        "tomllib" if sys.version_info >= (3, 11) else "tomli"
    )  # tomli comes with pytest
    from packaging.requirements import Requirement

    project = tomllib.loads((repository / "pyproject.toml").read_text())["project"]
    ranges = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    pinned = pins(repository / "requirements.txt") + pins(repository / "requirements-dev.txt")
    versions: dict[str, list[str]] = {}
    for line in pinned:
        requirement = Requirement(line.split(" #")[0].strip()) if "==" in line else None
        if requirement:
            versions.setdefault(requirement.name, []).append(str(requirement.specifier).removeprefix("=="))
    versions["opencv-python"] = versions["opencv-python-headless"]
    for wanted in ranges:
        assert wanted.name in versions, f"{wanted.name} is not pinned in the requirements"
        for version in versions[wanted.name]:
            assert wanted.specifier.contains(version), f"{wanted} does not admit the pinned {version}"


def test_the_opencv_stand_in_has_the_pinned_version(repository: Path) -> None:
    version = re.search(
        r"^opencv-python-headless==(\S+)", (repository / "requirements.txt").read_text(), re.M
    )[1]
    stand_in = (repository / "scripts/opencv_headless/pyproject.toml").read_text()
    assert f'version = "{version}+headless"' in stand_in
    assert f'"opencv-python-headless=={version}"' in stand_in


# -- md_finetune.sh


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["1", "1156", "vit_b_moe"], "expected GPUS PORT BACKBONE LOAD, got 3"),
        (["1", "1156", "vit_b_moe", "yes"], "LOAD must be True or False, got 'yes'"),
        (["1", "1156", "vit_b_moe", "True"], "LOAD is True: expected a CHECKPOINT after it"),
        (["1", "1156", "vit_b_moe", "True", "--resume"], "LOAD is True: expected a CHECKPOINT after it"),
    ],
)
def test_fine_tuning_with_wrong_arguments(bash, repository: Path, arguments: list[str], message: str) -> None:
    done = bash(repository / FINETUNE, *arguments)
    assert done.returncode == 2 and message in done.stderr
    assert "usage: bash md_finetune.sh GPUS PORT BACKBONE LOAD [CHECKPOINT]" in done.stderr


@pytest.mark.slow
@pytest.mark.usefixtures("real_vit_t")
def test_fine_tuning_starts_from_the_checkpoint(bash, repository: Path, tmp_path: Path) -> None:
    """The launcher's own command, from another folder, with a relative checkpoint without .pth."""
    dense = build_segmentor("vit_t", {"s4p": 5}, mdf_runs.SIZE, channels=8)
    torch.save({"state_dict": dense.state_dict()}, tmp_path / "vit_t_s4p_upernet.pth")
    (tmp_path / "my.yaml").write_text(
        yaml.safe_dump(mdf_runs.configuration(mdf_runs.write_datasets(tmp_path)))
    )
    command = ["0", free_port(), "vit_t_moe", "True", "vit_t_s4p_upernet"]
    command += ["--cfg-options", "schedule.epochs=1"]
    done = bash(repository / FINETUNE, *command, CONFIG="my.yaml", WORK_DIR="run")
    assert done.returncode == 0, done.stderr
    log = (tmp_path / "run/train.log").read_text()
    assert "weights from vit_t_s4p_upernet" in log and "initial weights: random" not in log
    assert (tmp_path / "run/vit_t_moe_mdf.pth").is_file()


@pytest.mark.parametrize(
    ("given", "options"),
    [
        (["True", "a.pth", "--resume"], "--load-network True --init a.pth --resume"),
        (["False", "a.pth", "--resume"], "--load-network False --resume"),
        (["False", "--tasks", "a"], "--load-network False --tasks a"),
    ],
)
def test_what_fine_tuning_is_given(repository: Path, tmp_path: Path, given: list[str], options: str) -> None:
    python = FakePython(tmp_path)
    command = ["bash", repository / FINETUNE, "0", free_port(), "vit_t_moe", *given]
    assert subprocess.run(command, env=given_to(python), timeout=60).returncode == 0
    *_, (script, *arguments) = python.calls()
    assert Path(script).name == "md_finetune.py"
    assert " ".join(arguments).partition("--backbone ")[2] == f"vit_t_moe {options}"


def test_no_command_accepts_abbreviated_options(repository):
    """`--init none` must not become `--init-bands none`: argparse completes abbreviations by default."""
    makers = ("ArgumentParser", "add_parser")
    folders = [path for path in repository.iterdir() if path.name not in (".venv", "work_dirs", "build")]
    paths = [*repository.glob("*.py"), *(path for folder in folders for path in folder.rglob("*.py"))]
    calls = [
        (path.name, node)
        for path in paths
        if any(maker in path.read_text(encoding="utf-8") for maker in makers)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in makers
    ]
    assert len(calls) > 10
    lax = [
        f"{name}:{call.lineno}"
        for name, call in calls
        if "allow_abbrev" not in [k.arg for k in call.keywords]
    ]
    assert not lax
