"""Entry scripts in processes of their own, started in a fraction of a second.

A server process imports once what the scripts import, and forks for every start. The fork leads a session of
its own and runs the script as ``python script.py`` would, up to the exit handlers of the interpreter.
"""

import atexit
import gc
import json
import os
import resource
import runpy
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NoReturn

import torch

from tests.helpers import shallow_vit
from tests.helpers.s4p_runs import REPO, environment, script

SCRIPTS = {
    "train": REPO / "S4_Pretrain/train.py",
    "evaluate": REPO / "S4_Pretrain/evaluate.py",
    "curate": REPO / "S4_Pretrain/curate.py",
    "md_finetune": REPO / "Semantic_Segmentation/md_finetune.py",
    "detection": REPO / "Object_Detection/tools/train.py",
}
# What a process says when the main one failed, also before they were connected.
STOPPED = (
    r"error: (the main process|cannot connect to .*; if one of them) stopped[;,] its message is in the log"
)
PATIENCE = 120.0  # seconds that anything may take on a busy machine; more is a hang


class Process:
    """A started script.

    Attributes:
        pid: of the process, its group and its session.
        output: file with everything it printed.
    """

    def __init__(self, pid: int, output: Path) -> None:
        self.pid, self.output = pid, output
        self._code: int | None = None

    def poll(self) -> int | None:
        """Exit code, negative for a signal; None while it runs."""
        if self._code is None:
            self._code = _server().ask({"poll": self.pid})
        return self._code

    def wait(self, timeout: float = PATIENCE) -> int:
        """Exit code, once there is one; a process that hangs is killed and fails the test."""
        wait_until(lambda: self.poll() is not None, self, timeout)
        assert self._code is not None
        return self._code

    def send(self, number: int, group: bool = False) -> None:
        """Send a signal to the process, or to it and all its children."""
        (os.killpg if group else os.kill)(self.pid, number)

    def text(self) -> str:
        """What it has printed so far."""
        return self.output.read_text(errors="replace")

    def is_gone(self) -> bool:
        """Whether neither it nor any child that it left behind is alive."""
        if self.poll() is None:
            return False
        try:
            os.killpg(self.pid, 0)
        except ProcessLookupError:
            return True
        return False


def run_here(name: str, arguments: list[str]) -> int:
    """Run a script in this process, on one thread: more slow tiny runs down, above all on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return script(name).main(arguments)
    finally:
        torch.set_num_threads(threads)


def start(path: str | Path, arguments: list[str], folder: Path, **variables: str) -> Process:
    """Start ``train``, ``evaluate`` or the script at a path; its output goes to a new file in ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    output = folder / f"output_{len(list(folder.glob('output_*')))}.txt"
    output.touch()
    argv = [str(SCRIPTS.get(str(path), path)), *arguments]
    settings = {"environment": variables, "shallow": shallow_vit.is_installed()}
    pid = _server().ask({"argv": argv, "output": str(output), **settings})
    return Process(pid, output)


def start_ranks(path: str | Path, arguments: list[str], folder: Path, processes: int) -> list[Process]:
    """Start the processes of one distributed run, as torchrun would."""
    shared = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    return [
        start(path, arguments, folder, RANK=str(rank), LOCAL_RANK=str(rank), **shared)
        for rank in range(processes)
    ]


def wait_until(condition: Callable[[], bool], process: Process, timeout: float = PATIENCE) -> None:
    """Wait for ``condition``; if it does not come true in time, kill the process and fail with its output."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            if process.poll() is None:
                process.send(signal.SIGKILL, group=True)
            raise AssertionError(f"nothing came of it in {timeout:.0f} s:\n{process.text()}")
        time.sleep(0.01)


def free_port() -> int:
    """A port that nothing listens on."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class _Server:
    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, __file__],
            env=environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        atexit.register(self._end)

    def ask(self, request: dict) -> int | None:
        assert self._process.stdin is not None and self._process.stdout is not None
        print(json.dumps(request), file=self._process.stdin, flush=True)
        return json.loads(self._process.stdout.readline())

    def _end(self) -> None:
        self._process.stdin.close()  # the end of its requests, as when this process is killed
        self._process.wait(PATIENCE)


@cache
def _server() -> _Server:
    return _Server()


def _serve() -> list[str] | None:
    """Answer requests; returns arguments in a fork that is to run a script, None in the server at the end."""
    gc.disable()  # what is imported stays
    for path in SCRIPTS.values():
        runpy.run_path(str(path), run_name="preload")
    gc.enable()
    gc.freeze()  # what the forks share stays shared
    children: set[int] = set()
    for line in sys.stdin:
        request = json.loads(line)
        if "poll" in request:
            answer = _exit_code(request["poll"], children)
        else:
            answer = os.fork()
            if answer == 0:
                _become(**request)
                return request["argv"]
            children.add(answer)
        print(json.dumps(answer), flush=True)
    for pid in children:
        os.killpg(pid, signal.SIGKILL)
    return None


def _become(argv: list[str], output: str, environment: dict[str, str], shallow: bool) -> None:
    os.setsid()
    shallow_vit.install(shallow)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 1)
    os.dup2(1, 2)
    os.environ.update(environment)
    sys.argv = argv


def _exit_code(pid: int, children: set[int]) -> int | None:
    done, status = os.waitpid(pid, os.WNOHANG)
    if done == 0:
        return None
    children.remove(pid)
    return os.waitstatus_to_exitcode(status)


def _run(path: str) -> NoReturn:
    """Run a script and leave as the interpreter does, but for the taking apart of all modules.

    In a fork that takes a second, as every object is copied to be counted down.
    """
    code = 1
    try:
        runpy.run_path(path, run_name="__main__")
        code = 0
    except SystemExit as error:
        code = error.code
    except BaseException:
        traceback.print_exc()
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    arguments = _serve()
    if arguments is None:
        os._exit(0)
    _run(arguments[0])


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Let this process write no file beyond a size in bytes; writing more fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, handler)
