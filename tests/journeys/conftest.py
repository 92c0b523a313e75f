"""What a person has: an empty folder and a shell."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

SUPPORT = Path(__file__).parent.parent / "support"
QUICK = {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


class Command:
    """A command that runs in a process of its own, ``python -m sslmodules args`` or a fork that behaves like it."""

    def __init__(self, folder: Path, args: tuple[str, ...], pid: int, out: Path, wait: Callable[[], int]) -> None:
        self.folder = folder
        self.args = args
        self.pid = pid
        self._out = out
        self._wait = wait
        self._code: int | None = None

    @property
    def out(self) -> str:
        """All that it has printed so far, on either stream."""
        return self._out.read_text(errors="replace") if self._out.exists() else ""

    def end(self) -> None:
        """Kill what a failed test has left behind, with the processes that it started."""
        if self._code is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            self._code = self._wait()

    def send(self, number: int = signal.SIGKILL) -> None:
        """Send a signal to this process alone."""
        os.kill(self.pid, number)

    def until(self, reached: Callable[[], bool], seconds: float = 120) -> None:
        """Wait for something that the command does."""
        deadline = time.monotonic() + seconds
        while not reached():
            assert Path(f"/proc/{self.pid}").exists(), f"{self.args} ended\n{self.out}"
            assert time.monotonic() < deadline, f"{self.args} takes more than {seconds} s\n{self.out}"
            time.sleep(0.01)

    def status(self, seconds: float = 180) -> int:
        """Wait for the end; one that does not come in time fails the test."""
        late = threading.Timer(seconds, lambda: os.killpg(self.pid, signal.SIGKILL))
        late.start()
        self._code = self._wait()
        assert late.is_alive(), f"{self.args} did not end in {seconds} s\n{self.out}"
        late.cancel()
        return self._code


class Person:
    """Somebody at a shell in an empty folder."""

    def __init__(self, folder: Path, forks: subprocess.Popen) -> None:
        self.folder = folder
        self._forks = forks
        self._commands: list[Command] = []

    def start(
        self, *args: object, fresh: bool = False, launcher: tuple[str, ...] = (), code: str = "", **env: str
    ) -> Command:
        """Start ``sslmodules args``.

        Args:
            args: what is typed behind ``sslmodules``.
            code: Python to run in its place.
            fresh: a new interpreter, slower by some seconds: for several devices, which start this one again.
            launcher: words before ``-m sslmodules`` in the place of the interpreter, such as torchrun's.
            env: further variables of the environment.
        """
        words = tuple(str(a) for a in args)
        out = self.folder.parent / f"{self.folder.name}-{len(self._commands)}.out"
        if fresh or launcher:
            line = [*(launcher or (sys.executable,)), "-m", "sslmodules", *words]
            with out.open("wb") as file:
                process = subprocess.Popen(
                    line,
                    cwd=self.folder,
                    stdin=subprocess.DEVNULL,
                    stdout=file,
                    stderr=subprocess.STDOUT,
                    env={**os.environ, **QUICK, **env},
                    start_new_session=True,
                )
            return self._keep(Command(self.folder, words, process.pid, out, process.wait))
        start = {"cwd": str(self.folder), "args": words, "out": str(out), "env": {**QUICK, **env}, "code": code}
        pid = self._ask({"start": start})
        return self._keep(Command(self.folder, words, pid, out, lambda: self._ask({"wait": pid})))

    def run(self, *args: object, status: int = 0, seconds: float = 180, **options: object) -> str:
        """Run ``sslmodules args`` to its end and return what it printed; any other exit status fails the test."""
        command = self.start(*args, **options)  # type: ignore[arg-type]
        code = command.status(seconds)
        assert code == status, f"sslmodules {' '.join(command.args)} ended with {code}, not {status}\n{command.out}"
        return command.out

    def leave(self) -> None:
        """End all that still runs."""
        for command in self._commands:
            command.end()

    def _keep(self, command: Command) -> Command:
        self._commands.append(command)
        return command

    def _ask(self, request: dict) -> int:
        self._forks.stdin.write(json.dumps(request) + "\n")
        self._forks.stdin.flush()
        return int(self._forks.stdout.readline())


@pytest.fixture(scope="session")
def forks() -> Iterator[subprocess.Popen]:
    """The process that forks the others."""
    process = subprocess.Popen(
        [sys.executable, str(SUPPORT / "zygote.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **QUICK},
    )
    yield process
    process.stdin.close()
    process.wait()


@pytest.fixture
def person(tmp_path: Path, forks: subprocess.Popen) -> Iterator[Person]:
    """Somebody in an empty folder."""
    folder = tmp_path / "home"
    folder.mkdir()
    somebody = Person(folder, forks)
    yield somebody
    somebody.leave()


@pytest.fixture(scope="module")
def newcomer(tmp_path_factory: pytest.TempPathFactory, forks: subprocess.Popen) -> Iterator[Person]:
    """Somebody whose folder lasts for all tests of a file, for what is trained once and used by many."""
    somebody = Person(tmp_path_factory.mktemp("home"), forks)
    yield somebody
    somebody.leave()
