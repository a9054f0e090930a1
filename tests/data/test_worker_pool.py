"""Batches from loader workers: whole, without /dev/shm, and never awaited in vain."""

import io
import logging
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing.synchronize import SemLock
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import Dataset

from s5.command import run_command
from s5.data import worker_pool as loader_module
from s5.data import worker_pool as transport
from s5.data.loaders import stop_workers
from s5.data.worker_pool import Loader, explain_death
from s5.errors import LoaderError
from s5.training.hooks import safety
from s5.training.hooks.safety import REPEAT_AFTER
from tests.helpers.processes import start, wait_until
from tests.helpers.s4p_runs import REPO, arguments, environment, write_dataset

IN_MEMORY = pytest.mark.skipif(not transport.memfd_works(), reason="the kernel has no memfd_create")


class Calls(Dataset):
    """One sample, made by a function in the worker."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> Any:
        return self.make()


def first(samples: list) -> Any:
    return samples[0]


def load(make: Callable[[], Any], **options: Any) -> Any:
    """What a worker makes, as it arrives here."""
    loader = Loader(Calls(make), collate_fn=first, num_workers=1, persistent_workers=True, **options)
    try:
        return next(iter(loader))
    finally:
        stop_workers(loader)


def various() -> dict[str, Any]:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (3, 5, 7, 3), dtype=torch.uint8, generator=generator)
    return {
        "images": images.permute(0, 3, 1, 2),
        "labels": [torch.randn(4, 5, dtype=dtype) for dtype in (torch.float32, torch.bfloat16)],
        "mask": torch.rand(3, 4, generator=generator) > 0.5,
        "part": images[1, ::2, 1:],
        "turned": torch.arange(24).view(2, 3, 4).permute(2, 0, 1),
        "expanded": torch.tensor([1.5, 2.5]).expand(3, 2),
        "none": torch.zeros(0, 5),
        "one": torch.tensor(7),
        "names": ["a.png", "ä.png"],
        "nested": {"skipped": [("b.png", "gone")], "counts": (1, 2)},
    }


def assert_equal(ours: Any, theirs: Any) -> None:
    assert type(ours) is type(theirs)
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        ours, theirs = list(ours.values()), list(theirs.values())
    if isinstance(ours, list | tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_equal(one, other)
    elif isinstance(ours, torch.Tensor):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)
    else:
        assert ours == theirs


@pytest.mark.parametrize("start_method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)])
def test_batch_arrives_as_it_was(start_method: str) -> None:
    torch.manual_seed(3)
    batch = load(various, multiprocessing_context=start_method)
    expected = various()
    batch["labels"] = [torch.where(part.isnan(), 0, part) for part in batch["labels"]]
    assert [part.dtype for part in batch.pop("labels")] == [part.dtype for part in expected.pop("labels")]
    assert_equal(batch, expected)
    for name in ("images", "turned"):
        assert batch[name].stride() == expected[name].stride()
    batch["images"] += 1  # as writable as any


@pytest.mark.parametrize("shape", [(0,), (1,), (1, 1), (0, 5)])
def test_tensors_of_no_or_one_element_are_packed_whatever_their_strides(shape: tuple[int, ...]) -> None:
    """As the labels of an image with one object may be: a stride of 0 is contiguous there."""
    value = torch.as_strided(torch.tensor([7]), shape, (0,) * len(shape))
    assert value.is_contiguous() and value.stride(-1) == 0
    received = multiprocessing.SimpleQueue()
    received.put(transport.PackedBatch({"labels": value}))
    assert torch.equal(received.get()["labels"], value)


def test_without_workers_nothing_is_packed() -> None:
    (batch,) = Loader(Calls(various), collate_fn=first)
    assert batch["images"].stride() == various()["images"].stride()


@IN_MEMORY
def test_no_batch_is_in_dev_shm() -> None:
    batch = load(various)
    maps = Path("/proc/self/maps").read_text()
    assert "/memfd:s5_batch" in maps and "/dev/shm/torch" not in maps
    del batch
    assert "/memfd:s5_batch" not in Path("/proc/self/maps").read_text(), "the memory is given back"


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
def test_a_batch_keeps_one_file_open_while_it_lives() -> None:
    def pairs(samples: list) -> list:
        return samples * 50  # of a hundred tensors

    batches = iter(Loader(Numbers(40), collate_fn=pairs, num_workers=1, batch_size=2))
    kept = [next(batches)]
    before = open_files()
    kept += [next(batches) for _ in range(10)]
    assert open_files() <= before + 10
    assert [batch[-1].item() for batch in kept] == list(range(1, 22, 2))
    del kept
    assert open_files() < before


class Numbers(Dataset):
    """A tensor for each number."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.tensor(index)


# What does not fit


def test_what_does_not_fit_is_an_error_that_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "memfd_works", lambda: False)
    monkeypatch.setattr(transport, "_memory_file", lambda: io.FileIO("/dev/full", "w"))
    monkeypatch.setattr(transport, "SHARED_MEMORY", Path("/"))
    with pytest.raises(LoaderError, match=r"No space left[\s\S]* MiB are free.*--shm-size.*data.workers"):
        load(various)


def test_no_memory_left_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "memfd_works", lambda: True)
    monkeypatch.setattr(transport, "_memory_file", lambda: io.FileIO("/dev/full", "w"))
    with pytest.raises(LoaderError, match=r"out of memory or open files .*; use fewer loader workers"):
        load(various)


def test_unnamed_file_where_there_is_no_memfd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delattr(os, "memfd_create", raising=False)
    transport.memfd_works.cache_clear()
    monkeypatch.setattr(transport, "SHARED_MEMORY", tmp_path)
    try:
        assert not transport.memfd_works()
        batch = load(various)
        assert str(tmp_path) in Path("/proc/self/maps").read_text()
    finally:
        transport.memfd_works.cache_clear()
    assert torch.equal(batch["turned"], various()["turned"])
    assert not list(tmp_path.iterdir())


def test_a_batch_that_cannot_be_received_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread that pins memory unpickles it, and would end without a word by an exception."""
    packed = pickle.dumps(transport.PackedBatch([torch.ones(3)]))
    monkeypatch.setattr(transport.mmap, "mmap", lambda *_: raise_error(OSError(12, "Cannot allocate memory")))
    received = pickle.loads(packed)
    with pytest.raises(LoaderError, match=r"did not arrive .*Cannot allocate memory"):
        received.reraise()


def raise_error(error: Exception) -> None:
    raise error


def test_workers_that_cannot_start(monkeypatch: pytest.MonkeyPatch) -> None:
    error = OSError(28, "No space left on device")
    monkeypatch.setattr(SemLock, "__init__", lambda *_, **__: raise_error(error))
    with pytest.raises(LoaderError, match=r"cannot start \(No space left on device\).*--shm-size"):
        iter(Loader(Calls(various), collate_fn=first, num_workers=1))


# Workers that die or do not answer


def die(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (signal.SIGBUS, "--shm-size"),
        (signal.SIGKILL, "memory runs out"),
        (signal.SIGSEGV, "without loader workers"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_worker_that_dies_ends_the_command(
    number: signal.Signals, advice: str, capfd: pytest.CaptureFixture
) -> None:
    def main() -> int:
        load(lambda: die(number))
        return 0

    assert run_command(main) == 1
    message = capfd.readouterr().err.splitlines()[-1].lstrip("\0")
    assert message.startswith("error: ") and advice in message


def test_other_errors_are_not_explained() -> None:
    assert explain_death(RuntimeError("mat1 and mat2 shapes cannot be multiplied")) is None
    with pytest.raises(RuntimeError, match="shapes"):
        run_command(lambda: raise_error(RuntimeError("shapes")))


def test_waiting_long_is_said_and_goes_on(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The worker answers only once the main process has warned."""
    monkeypatch.setattr(loader_module, "PATIENCE", 0.1)
    warned = multiprocessing.get_context("fork").Event()

    class Notice(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "no batch for" in record.getMessage():
                warned.set()

    handler = Notice()
    loader_module.logger.addHandler(handler)
    try:
        assert load(lambda: warned.wait(60)) is True
    finally:
        loader_module.logger.removeHandler(handler)
    assert "1 loader workers are alive" in caplog.text


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="sees in /proc that the workers have started")
def test_ctrl_c_ends_a_run_whose_workers_never_answer(tmp_path: Path) -> None:
    """Reading a pipe that nobody writes to never ends, as on storage that is gone."""
    root = write_dataset(tmp_path / "data")
    for image in (root / "unlabeled/pool/images").iterdir():
        image.unlink()
        os.mkfifo(image)
    process = start("train", arguments(root, tmp_path / "run", **{"data.workers": 2}), tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2, process)
    process.send(signal.SIGINT, group=True)
    wait_until(lambda: "again to stop immediately" in process.text(), process)
    time.sleep(REPEAT_AFTER + 0.5)
    process.send(signal.SIGINT, group=True)
    assert process.wait() == 128 + signal.SIGINT, process.text()
    wait_until(process.is_gone, process, 15)


IMPATIENT = """
import runpy, sys
from s5.training.hooks import safety

safety.BATCH_GRACE = 0.5
runpy.run_path({!r}, run_name="__main__")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="sees in /proc that the workers have started")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_one_signal_ends_a_run_that_waits_in_vain(tmp_path: Path, number: signal.Signals) -> None:
    root = write_dataset(tmp_path / "data")
    for image in (root / "unlabeled/pool/images").iterdir():
        image.unlink()
        os.mkfifo(image)
    script = tmp_path / "train.py"
    script.write_text(IMPATIENT.format(str(REPO / "S4_Pretrain/train.py")))
    process = start(script, arguments(root, tmp_path / "run", **{"data.workers": 2}), tmp_path)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    wait_until(lambda: len(children.read_text().split()) == 2, process)
    process.send(number)
    assert process.wait() == 128 + number, process.text()
    log = (tmp_path / "run/train.log").read_text()
    assert f"{number.name}: finishing this step" in log
    assert f"{number.name}: stopped, because no batch arrived within" in log and "--resume continues" in log
    assert "Traceback" not in process.text()
    wait_until(process.is_gone, process, 15)


def test_a_batch_that_comes_in_time_does_not_end_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time that it may take counts from the signal, also if it was awaited for long before."""
    now = [1000.0]
    monkeypatch.setattr(safety.time, "monotonic", lambda: now[0])
    hook = safety.SafetyHook()

    def alarm() -> None:
        hook._on_alarm(signal.SIGALRM, None)

    watched = loader_module._Watched(iter(["batch"]), 1)
    watched._watch.since = 0.0
    alarm()  # no signal
    hook._on_signal(signal.SIGTERM, None)
    now[0] += safety.BATCH_GRACE
    alarm()
    assert next(watched) == "batch" and loader_module.waiting_since() is None
    now[0] += 1
    alarm()
    watched._watch.since = now[0]
    now[0] += safety.BATCH_GRACE
    alarm()
    now[0] += 1
    with pytest.raises(safety.SignalInterrupt, match="SIGTERM"):
        alarm()


# A real small /dev/shm

SMALL = """
import os, runpy, sys
_, kind, *sys.argv = sys.argv
if kind == "file":
    del os.memfd_create
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="module")
def unshare() -> list[str]:
    """A command that runs a shell command where /dev/shm has 256 KB."""
    options = ["-m"] if os.geteuid() == 0 else ["-m", "--map-root-user"]
    mount = "mount -t tmpfs -o size=256k tmpfs /dev/shm"
    try:
        subprocess.run(["unshare", *options, "sh", "-c", mount], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a small /dev/shm is not permitted here")
    return ["unshare", *options, "sh", "-c", f'{mount} && exec "$@"', "sh"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", "file"])
def test_training_with_a_tiny_dev_shm(tmp_path: Path, unshare: list[str], kind: str) -> None:
    root = write_dataset(tmp_path / "data")
    listed = root / "splits/unlabeled/pool.txt"
    listed.write_text(listed.read_text() * 3000)  # 0.7 MB
    options = {"data.workers": 2, "data.crop": 128, "schedule.total_iters": 1, "schedule.val_interval": 1}
    train = str(REPO / "S4_Pretrain/train.py")
    command = [sys.executable, "-c", SMALL, kind, train, *arguments(root, tmp_path / "run", **options)]
    done = subprocess.run(
        [*unshare, *command], env=environment(), capture_output=True, text=True, timeout=200
    )
    if kind == "memory" and transport.memfd_works():
        assert done.returncode == 0, done.stdout + done.stderr
        assert (tmp_path / "run/final_metrics.json").exists(), "validated, too"
    else:
        assert done.returncode == 1, done.stdout + done.stderr
        assert "error: a batch of at least" in done.stderr and "--shm-size" in done.stderr
    assert "Traceback" not in done.stderr
