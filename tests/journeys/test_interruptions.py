"""A run that is interrupted says where its checkpoint is and how it goes on, and loses nothing."""

import os
import shlex
import signal
import time
from pathlib import Path

import pytest
import torch
from flowers import flowers
from runs import same_bits

SMALL = ["--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}', "--trainer.accelerator", "cpu"]
DATA = ["--data", "ImageFolder", "--data.root", "photos", "--data.size", 16, "--data.num_workers", 1]
FIT = ["fit", "--model", "MoCo", "--model.queue_size", 16, *SMALL, *DATA, "--data.batch_size", 2]


@pytest.fixture(scope="module")
def whole(newcomer):
    """A checkpoint after four epochs that nobody has interrupted."""
    flowers(newcomer.folder / "photos", 48)
    newcomer.run(*FIT, "--trainer.max_epochs", 4, "--trainer.default_root_dir", "whole")
    [last] = (newcomer.folder / "whole").rglob("last.ckpt")
    return last


def after(words, said):
    """What a line of the output says that begins with some words."""
    [line] = [line for line in said.splitlines() if line.startswith(words)]
    return line.removeprefix(words).strip()


def checkpoint(folder, said):
    return torch.load(folder / after("last checkpoint", said).split("  (")[0], weights_only=True)


def test_ctrl_c_loses_nothing_where_the_printed_command_goes_on(newcomer, whole):
    command = newcomer.start(*FIT, "--trainer.max_epochs", 4, "--trainer.default_root_dir", "parts")
    command.until(lambda: any((newcomer.folder / "parts").rglob("last.ckpt")))  # of the first epoch
    time.sleep(0.1)
    os.killpg(command.pid, signal.SIGINT)
    assert command.status(60) == 130, command.out
    assert "interrupted by Ctrl-C" in command.out
    assert "Traceback" not in command.out
    expected = torch.load(whole, weights_only=True)
    assert 0 < checkpoint(newcomer.folder, command.out)["global_step"] < expected["global_step"]
    start, *words = shlex.split(after("to go on", command.out))
    assert start == "sslmodules"
    resumed = checkpoint(newcomer.folder, newcomer.run(*words))
    assert resumed["global_step"] == expected["global_step"]
    assert same_bits(resumed["state_dict"], expected["state_dict"])


def test_max_time_ends_with_the_status_of_timeout(person):
    flowers(person.folder / "photos", 24)
    said = person.run(*FIT, "--trainer.max_epochs", 100_000, "--trainer.max_time", "00:00:00:02", status=124)
    assert "max_time has passed" in said
    assert checkpoint(person.folder, said)["global_step"] > 0


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_other_commands_end_without_a_traceback(command, newcomer, whole):
    labels = ["--data.labels", True] if command == "evaluate" else []
    option = "--ckpt" if command == "evaluate" else "--ckpt_path"
    process = newcomer.start(command, option, whole, *DATA, *labels)
    time.sleep(0.7)
    process.send(signal.SIGINT)
    assert process.status(60) == 130, process.out
    assert "Traceback" not in process.out


def processes_of(group):
    """Ids of the running processes of a group, without those that wait for their parent to ask for their status."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = stat.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # it has ended meanwhile
            continue
        if int(its_group) == group and state != "Z":
            found.append(stat.parent.name)
    return found


def test_a_scheduler_that_sends_sigterm_to_all_processes_of_a_job_ends_two_devices_with_a_checkpoint(person):
    flowers(person.folder / "photos", 24)
    command = person.start(*FIT, "--trainer.devices", 2, "--trainer.max_epochs", 100_000, fresh=True)
    command.until(lambda: any(person.folder.rglob("last.ckpt")))
    assert len(processes_of(command.pid)) > 2  # with the workers of the loaders
    os.killpg(command.pid, signal.SIGTERM)
    assert command.status(60) == 143, command.out
    deadline = time.monotonic() + 10
    while processes_of(command.pid) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert processes_of(command.pid) == []
    assert "ended by SIGTERM" in command.out
    assert "Traceback" not in command.out
    assert "Connection closed" not in command.out
    assert checkpoint(person.folder, command.out)["global_step"] > 0
