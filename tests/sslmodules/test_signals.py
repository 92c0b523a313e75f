"""Ctrl-C and SIGTERM as an exception that carries the status."""

import os
import signal

import pytest

from sslmodules.signals import Interrupted, StopSignals


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_raises_the_status_that_a_shell_expects(number, status):
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as error, StopSignals():
        signal.raise_signal(number)
    assert error.value.code == status
    assert signal.getsignal(number) == before


def test_a_deferred_signal_is_kept_and_another_one_raises(capfd):
    with pytest.raises(Interrupted) as error, StopSignals(defer=True, message="stopping") as signals:
        signal.raise_signal(signal.SIGINT)
        assert signals.status == 130
        signal.raise_signal(signal.SIGINT)  # the same one, which a launcher has forwarded
        assert capfd.readouterr().err == "stopping"
        signal.raise_signal(signal.SIGTERM)
    assert error.value.code == 143


def test_a_forked_process_leaves_signals_to_the_one_that_started_it():
    with StopSignals(defer=True) as signals:
        pid = os.fork()
        if pid == 0:
            signal.raise_signal(signal.SIGTERM)
            os._exit(signals.status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
