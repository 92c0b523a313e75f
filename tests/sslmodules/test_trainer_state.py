"""A run that is killed goes on with the batch after the last one, also where it is killed twice around an epoch's end."""

import logging
from functools import partial

import pytest
import torch
from kills import CASES, kills, sigkill
from lightning.pytorch.callbacks import ModelCheckpoint
from runs import images, trainer

from sslmodules import MoCo
from sslmodules.datamodules import LabeledDataModule
from sslmodules.trainer_state import gradients_pending

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.mark.parametrize(
    ("case", "workers"), [("SimCLR, no validation, steps", 0), ("MoCo, accumulation, ModelCheckpoint", 0), ("DINO", 2)]
)
def test_killed_once_or_twice_anywhere(case, workers, tmp_path):
    count = 0
    for name, differing in kills(case, tmp_path, workers, pairs=8):
        assert not differing, name
        count += 1
    assert count > 12


def test_a_real_kill_leaves_what_the_file_says(tmp_path):
    assert not sigkill("MoCo, accumulation", tmp_path, 2, after=3)
