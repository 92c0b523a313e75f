"""Ctrl-C and SIGTERM as one exception that carries the exit status a shell expects."""

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

TIME_IS_UP = 124  # what the command `timeout` of the GNU core utilities ends with
REASONS = {
    TIME_IS_UP: "max_time has passed",
    128 + signal.SIGINT: "interrupted by Ctrl-C",
    128 + signal.SIGTERM: "ended by SIGTERM",
}
AGAIN = 0.5  # seconds; launchers forward a signal that the terminal has sent to the whole group already


class Interrupted(SystemExit):
    """The end of a command that was asked for from outside. Nobody catches it: the process ends with its status.

    Args:
        status: 130 after Ctrl-C, 143 after SIGTERM, 124 when the time is up.

    Attributes:
        checkpoint: file from which training can go on, "" where there is none; None unless training was interrupted.
    """

    code: int

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.checkpoint: str | None = None

    @property
    def reason(self) -> str:
        """What has happened, for people."""
        return REASONS.get(self.code, f"ended by signal {self.code - 128}")


class StopSignals:
    """Turn Ctrl-C and SIGTERM into `Interrupted` within a ``with`` block.

    Forked processes, such as the workers of a loader, leave both to the process that started them. In threads other
    than the main one the block changes nothing, since Python handles signals in the main thread alone.

    Args:
        defer: raise nothing at the first signal and keep its status in ``status``, for code that looks there when it
            can stop in good order. A second signal raises all the same.
        message: what to write to stderr at a signal that is deferred.

    >>> with StopSignals(defer=True) as signals:
    ...     signal.raise_signal(signal.SIGTERM)
    >>> signals.status
    143
    """

    def __init__(self, defer: bool = False, message: str = "") -> None:
        self.defer = defer
        self.message = message
        self.status = 0
        self._received_at = 0.0
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: Any) -> None:
        self.restore()

    def restore(self) -> None:
        """Put back the handlers that were there before; a second call changes nothing."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Handle one signal."""
        if os.getpid() != self._pid:
            return
        again = self.status != 0
        if again and 128 + number == self.status and time.monotonic() - self._received_at < AGAIN:
            return
        self.status, self._received_at = 128 + number, time.monotonic()
        # The workers of a loader may have been ended by the same signal. PyTorch would raise a RuntimeError at their
        # end, in the middle of whatever this process does.
        if callable(signal.getsignal(signal.SIGCHLD)):
            signal.signal(signal.SIGCHLD, _ignore)
        if again or not self.defer:
            raise Interrupted(self.status)
        os.write(2, self.message.encode())  # not print: the signal may have come in the middle of another one


def _ignore(number: int, frame: FrameType | None) -> None:
    """Do nothing; unlike SIG_IGN it leaves the exit status of children to be read."""
