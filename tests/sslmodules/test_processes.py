"""Processes of several devices end together."""

import signal
import subprocess
import sys
import threading
import time

import pytest
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer

from sslmodules import processes
from sslmodules.processes import Launcher
from sslmodules.signals import Interrupted

KILLED = "import os; os.kill(os.getpid(), 9)"
FAILS = "raise SystemExit(3)"
WAITS = "import time; time.sleep(60)"


class Started(Launcher):
    """Starts a program in the place of the second process."""

    def __init__(self, program):
        super().__init__(LightningEnvironment(), num_processes=2, num_nodes=1)
        self.program = program

    def _call_children_scripts(self):
        self.procs = [subprocess.Popen([sys.executable, "-S", "-c", self.program], stderr=subprocess.DEVNULL)]


@pytest.fixture(autouse=True)
def hurry(monkeypatch):
    monkeypatch.setattr(processes, "PATIENCE", 0.3)
    monkeypatch.delenv("LOCAL_RANK", raising=False)


def test_it_takes_the_place_of_lightnings_launcher_on_several_devices_alone():
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    pair, single = Trainer(devices=2, **quiet), Trainer(devices=1, **quiet)
    for trainer in (pair, single):
        Launcher.attach(trainer)
    assert type(pair.strategy.launcher) is Launcher
    assert pair.strategy.launcher.num_processes == 2
    assert single.strategy.launcher is None


@pytest.mark.parametrize("end", [ValueError("an error of the first process"), Interrupted(130)])
def test_an_error_of_the_first_process_ends_the_second(end):
    launcher = Started(WAITS)

    def fails():
        raise end

    with pytest.raises(type(end)) as error:
        launcher.launch(fails)
    assert error.value is end
    assert launcher.procs[0].wait(5) == -signal.SIGTERM


def test_a_second_process_that_was_killed_is_the_error_of_the_first():
    def connection_closed():
        time.sleep(0.5)
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(ChildProcessError, match=r"^the process of device 1 was ended by SIGKILL, as the system does"):
        Started(KILLED).launch(connection_closed)


def test_an_error_that_another_process_had_first_ends_without_a_word(monkeypatch):
    monkeypatch.setattr(processes, "first_to_fail", lambda: False)

    def connection_closed():
        raise RuntimeError("Connection closed by peer")

    with pytest.raises(SystemExit) as error:
        Started(FAILS).launch(connection_closed)
    assert error.value.code == 1


def test_a_first_process_that_waits_for_one_that_has_failed_is_ended(monkeypatch, capsys):
    ended = threading.Event()
    monkeypatch.setattr(processes, "_exit", lambda status: ended.set() if status == 1 else None)
    Started(KILLED).launch(lambda: ended.wait(20))
    assert ended.is_set()
    assert "the process of device 1 was ended by SIGKILL" in capsys.readouterr().err


def test_processes_of_an_earlier_call_are_watched_too(monkeypatch):
    """As where ``trainer.validate`` follows on ``trainer.fit``."""
    ended = threading.Event()
    monkeypatch.setattr(processes, "_exit", lambda status: ended.set())
    launcher = Started(WAITS)
    launcher.launch(lambda: None)
    monkeypatch.setenv("LOCAL_RANK", "0")  # what Lightning sets when it has started the others
    launcher.procs[0].kill()
    launcher.launch(lambda: ended.wait(20))
    assert ended.is_set()


def test_a_single_process_is_not_bound_to_the_shell_that_started_it(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    watched = []
    monkeypatch.setattr(Launcher, "_watch_parent", lambda *_: watched.append(1))
    launcher = Launcher(LightningEnvironment(), num_processes=1, num_nodes=1)
    assert launcher.launch(lambda: time.sleep(0.2) or watched) == []
