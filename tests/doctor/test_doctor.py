"""python -m s5.doctor: its page here, in environments and on machines broken in the usual ways."""

import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from s5.doctor import ROOT, Finding, page, without_names
from s5.doctor import __main__ as doctor
from s5.doctor import environment as machine
from s5.doctor import environment as packages
from tests.helpers.doctor_checks import Usage, by_subject, only


@pytest.fixture
def broken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder whose modules and distributions the doctor's process finds before any other."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    return tmp_path


def examine(*checks: str) -> list[Finding]:
    return list(doctor.examine(checks, "cpu"))


# As a user runs it


@pytest.mark.slow
def test_the_page_of_this_environment(repository: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "s5.doctor", "--device", "cpu"],
        cwd=repository,
        env={**os.environ, "PYTHONPATH": "", "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert not done.stderr
    first, *lines, last = done.stdout.splitlines()
    assert first.startswith("S5 ") and re.fullmatch(r"0 errors, \d+ warnings: training can work", last)
    assert all(line.startswith(("ok ", "warning ", "   ")) and len(line) <= 110 for line in lines)
    subjects = [line[9:].split("  ")[0] for line in lines if line[0] != " "]
    assert {"Python", "torch", "onedl-mmcv", "/dev/shm", "GDAL", "GPU", "training step"} <= set(subjects)
    for private in (str(Path.home()), socket.gethostname(), str(repository)):
        assert len(private) < 6 or private not in done.stdout


def test_every_requirement_is_checked() -> None:
    declared = re.findall(r'^    "([\w.-]+)[<>=]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    names = list(packages.required())
    assert names == declared[: len(names)] and {"torch", "onedl-mmrotate", "rasterio"} <= set(names)
    for name, line in packages.required().items():
        assert only(packages.check_package, line, "cpu").level == "ok", name


def test_ranges_come_from_the_installation_where_there_is_no_checkout(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setattr(packages, "ROOT", tmp_path)
    assert packages.declared()[0].startswith("<3.") or packages.declared()[0].startswith(">=3.")
    assert any(line.startswith("torch>=") for line in packages.declared()[1])
    assert "pytest" not in packages.required(), "extras are not needed"


# Packages that do not work


def test_opencv_without_its_libraries(broken: Path) -> None:
    (broken / "cv2.py").write_text("raise ImportError('libGL.so.1: cannot open shared object file')")
    (finding,) = examine("package opencv-python")
    assert finding.level == "error" and "libGL.so.1" in finding.text and "headless" in finding.advice


def test_torchvision_for_another_torch(broken: Path) -> None:
    (broken / "torchvision.py").write_text("raise RuntimeError('operator torchvision::nms does not exist')")
    (finding,) = examine("package torchvision")
    assert finding.level == "error" and "install both together" in finding.advice


def test_without_torch_every_check_still_answers(
    broken: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    (broken / "torch.py").write_text("raise ImportError('libcudnn.so.9: cannot open shared object file')")
    assert doctor.main(["--device", "cpu"]) == 1
    lines = capsys.readouterr().out.splitlines()
    subjects = {line[9:].split("  ")[0]: line.split()[0] for line in lines if line[0] != " "}
    for name in ("torch", "loader", "gpu", "pre-training", "step"):
        assert subjects[name] == "error", name
    for name in ("Python", "numpy", "processor", "memory", "C compiler"):
        assert subjects[name] in ("ok", "warning"), name
    assert "LD_LIBRARY_PATH" in "\n".join(lines)
    assert re.match(r"\d+ errors, \d+ warnings: training cannot work", lines[-1])


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "ended by SIGSEGV"),
        ("import os; print('illegal hardware', flush=True); os._exit(3)", "exit code 3, illegal hardware"),
    ],
)
def test_a_package_that_crashes(broken: Path, code: str, said: str) -> None:
    (broken / "timm.py").write_text(code)
    before, crash, after = examine("python", "package timm", "processor")
    assert before.subject == "Python" and after.subject == "processor"
    assert crash.level == "error" and crash.subject == "timm" and said in crash.text
    assert crash.text.startswith(packages.installed_version("timm") or "?")


def test_a_package_that_never_answers(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "LIMIT", 2.0)
    (broken / "timm.py").write_text("import time; time.sleep(600)")
    (finding,) = examine("package timm")
    assert finding.level == "error" and "no answer within 2 s" in finding.text


def distribution(folder: Path, name: str, version: str) -> None:
    about = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_a_version_outside_the_range(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(broken, "pydantic", "3.1")
    monkeypatch.syspath_prepend(broken)
    finding = only(packages.check_package, packages.required()["pydantic"], "cpu")
    assert finding.level == "warning" and "3.1 is outside the supported range" in finding.text
    assert "env.sh" in finding.advice


def test_a_package_that_is_not_installed() -> None:
    finding = only(packages.check_package, "onedl-nothing>=2,<3", "cpu")
    assert finding.level == "error" and "not installed; S5 needs <3,>=2" in finding.text


def test_the_original_beside_its_fork(broken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    distribution(broken, "mmcv-full", "1.7.2")
    monkeypatch.syspath_prepend(broken)
    fork, original = packages.check_package(packages.required()["onedl-mmcv"], "cpu")
    assert fork.level == "ok" and original.level == "warning"
    assert "1.7.2 is installed as well as onedl-mmcv" in original.text
    assert "pip uninstall mmcv-full" in original.advice


def test_another_python(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages.platform, "python_version", lambda: "3.14.1")
    finding = only(packages.check_python, "cpu")
    assert finding.level == "error" and finding.text.startswith("3.14.1") and "3.14" in finding.advice


# The machine


def test_limits_of_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    assert machine.cpu_quota() is None and machine.memory_limit() is None
    (tmp_path / "cpu.max").write_text("max 100000\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.cpu_quota() is None and machine.memory_limit() is None
    (tmp_path / "cpu.max").write_text("50000 100000\n")
    (tmp_path / "memory.max").write_text(f"{3 * 2**30}\n")
    finding = only(machine.check_processor, "cpu")
    assert (
        finding.level == "warning"
        and "CPU quota is 0.5" in finding.text
        and "OMP_NUM_THREADS=1" in finding.advice
    )
    memory = by_subject(machine.check_memory)["memory"]
    assert memory.level == "warning" and "limited to 3.0 GiB" in memory.text


def test_limits_of_an_old_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "CGROUP", tmp_path)
    for name, text in (
        ("cpu/cpu.cfs_quota_us", "150000"),
        ("cpu/cpu.cfs_period_us", "100000"),
        ("memory/memory.limit_in_bytes", "1000"),
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert machine.cpu_quota() == 1.5 and machine.memory_limit() == 1000
    (tmp_path / "cpu/cpu.cfs_quota_us").write_text("-1")
    assert machine.cpu_quota() is None


@pytest.mark.parametrize(("free", "level"), [(100 * 2**20, "ok"), (4096, "error")])
def test_dev_shm(free: int, level: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(machine, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**30, 0, free))
    finding = by_subject(machine.check_memory)["/dev/shm"]
    assert finding.level == level and "of 1024 MiB free" in finding.text
    assert ("--shm-size" in finding.advice) == (level == "error")


def test_little_space_and_few_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**40, 0, 2**30))
    monkeypatch.setattr(machine.resource, "getrlimit", lambda _: (256, 4096))
    found = by_subject(machine.check_files)
    assert found["disk"].level == "warning" and found["disk"].text.startswith("1.0 GiB free")
    assert found["open files"] == Finding("warning", "open files", "256 at most", "ulimit -n 4096")


def test_without_a_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", "mycc -O2")
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(machine.sysconfig, "get_path", lambda _: str(tmp_path))
    finding = by_subject(machine.check_compiler)["C compiler"]
    assert finding.level == "warning" and "mycc -O2, g++ or clang++ or c++, Python.h" in finding.text
    (tmp_path / "mycc").write_text("")
    (tmp_path / "mycc").chmod(0o755)
    assert "mycc" not in by_subject(machine.check_compiler)["C compiler"].text.replace("missing", "")


# The page


@pytest.mark.parametrize("name", ["README.md", ".github/ISSUE_TEMPLATE/bug_report.md"])
def test_users_are_pointed_to_it(name: str, repository: Path) -> None:
    assert "python -m s5.doctor" in (repository / name).read_text()


def test_names_are_left_out() -> None:
    text = f"{sys.prefix}/lib/x.so and {ROOT}/s5 and /data/users/alice/lib/y.so:3 and /dev/shm"
    assert without_names(text) == "<environment>/lib/x.so and <S5>/s5 and .../lib/y.so:3 and /dev/shm"
    assert (
        without_names("https://pytorch.org/get-started/locally/")
        == "https://pytorch.org/get-started/locally/"
    )
    assert without_names(f"cannot resolve {socket.gethostname()}") in (
        "cannot resolve <host>",
        f"cannot resolve {socket.gethostname()[:2]}",
    )


def test_long_lines_are_wrapped() -> None:
    lines = list(page([Finding("warning", "disk", "word " * 60, "advice " * 30)]))
    assert lines[0].startswith("warning  disk ") and max(map(len, "\n".join(lines).splitlines())) <= 110
    assert any(line.strip().startswith("-> advice") for line in lines)
