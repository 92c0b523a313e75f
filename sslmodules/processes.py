"""The processes of several devices end together, with the sentence of the one that failed first."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.distributed import _InfiniteBarrier, _set_num_threads_if_needed
from lightning.pytorch import LightningDataModule, Trainer
from lightning.pytorch.strategies.launchers import _SubprocessScriptLauncher

from sslmodules.distributed import first_to_fail
from sslmodules.signals import Interrupted

PATIENCE = 5.0  # seconds in which a process can end by itself
SAYING = 2.0  # seconds in which it can print its error


class Launcher(_SubprocessScriptLauncher):
    """Start a process for each further device as Lightning does, and see to it that all of them end.

    Where one fails, Lightning's launcher kills the first process by SIGKILL up to five seconds later, in which it may
    have printed "Connection closed by peer"; where the first fails, it leaves the others alone. Here the process that
    failed first prints its error, and all end with status 1.
    """

    @classmethod
    def attach(cls, trainer: Trainer) -> None:
        """Take the place of Lightning's launcher in a Trainer that has one."""
        old = trainer.strategy.launcher
        if type(old) is _SubprocessScriptLauncher:
            trainer.strategy._launcher = cls(old.cluster_environment, old.num_processes, old.num_nodes)

    def launch(self, function: Callable, *args: Any, trainer: Trainer | None = None, **kwargs: Any) -> Any:
        """Start the other processes, unless this is one of them, and call the function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        self._done = threading.Event()
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
        if self.procs:  # of this call, or of an earlier one with the same Trainer
            threading.Thread(target=self._watch_children, daemon=True).start()
        elif isinstance(self.cluster_environment, LightningEnvironment) and self.cluster_environment.local_rank() > 0:
            threading.Thread(target=self._watch_parent, args=(os.getppid(),), daemon=True).start()
        _set_num_threads_if_needed(self.num_processes)
        try:
            try:
                return function(*args, **kwargs)
            finally:
                self._done.set()
        except Interrupted:
            self._end_children(PATIENCE)
            raise
        except BaseException as error:
            first = first_to_fail()
            killed = self._killed()
            self._end_children(0 if first else PATIENCE)
            if killed:
                raise ChildProcessError(killed) from error
            if first:
                raise
            if not self.procs:
                # What has started this process ends all others when this one ends: let the first say why.
                signal.signal(signal.SIGTERM, signal.SIG_DFL)
                time.sleep(SAYING)
            raise SystemExit(1) from error

    def _killed(self) -> str:
        """Say which of the other processes a signal has ended; "" if there is none."""
        deadline = time.monotonic() + 1  # its connections are closed a moment before its status is known
        while self.procs and time.monotonic() < deadline:
            for rank, process in enumerate(self.procs, 1):
                if (process.poll() or 0) < 0:
                    name = signal.Signals(-process.returncode).name
                    hint = ", as the system does where memory runs out" if name == "SIGKILL" else ""
                    return f"the process of device {rank} was ended by {name}{hint}"
            time.sleep(0.1)
        return ""

    def _end_children(self, patience: float) -> None:
        for number, seconds in ((signal.SIGTERM, patience), (signal.SIGKILL, PATIENCE)):
            deadline = time.monotonic() + seconds
            for process in self.procs:
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(max(0, deadline - time.monotonic()))
            self.kill(number)

    def _watch_children(self) -> None:
        """End this process where another one has failed and this one waits for it for ever, in a collective."""
        while not any(process.poll() for process in self.procs):
            if self._done.wait(0.2):
                return
        if not self._done.wait(2 * PATIENCE):
            killed = self._killed()
            self._end_children(0)
            if killed:
                print(f"sslmodules: error: {killed}", file=sys.stderr)
            _exit(1)

    def _watch_parent(self, parent: int) -> None:
        """End this process where the first one was killed."""
        while os.getppid() == parent:
            if self._done.wait(1):
                return
        _exit(1)


def prepare_data(trainer: Trainer, datamodule: LightningDataModule) -> None:
    """Call ``datamodule.prepare_data`` before the Trainer does, in one process while the others wait."""
    environment = getattr(trainer.strategy, "cluster_environment", None)
    if environment is None or not environment.creates_processes_externally:
        datamodule.prepare_data()
    elif not isinstance(environment, LightningEnvironment):  # else the first has done it before it started this one
        trainer.strategy.setup_environment()
        with _InfiniteBarrier():
            if (trainer.local_rank if datamodule.prepare_data_per_node else trainer.global_rank) == 0:
                datamodule.prepare_data()


def _exit(status: int) -> None:
    """Leave at once, from a thread."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)
