import pytest
from lightning.pytorch.loggers import TensorBoardLogger
from runs import loader, trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from sslmodules import LinearProbe, SimCLR
from sslmodules.callbacks import Collapse, LearningRate, OnlineKNN, OnlineLinearProbe

TINY = {"encoder": "conv4", "encoder_args": {"widths": (4, 8)}}


def scalars(folder, module, callbacks):
    logger = TensorBoardLogger(folder, version=0, default_hp_metric=False)
    run = trainer(folder, max_epochs=2, callbacks=callbacks, logger=logger, log_every_n_steps=1)
    run.fit(module, loader(16), loader(16, seed=1))
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    return {tag: [event.value for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


def test_every_scalar_of_a_run_stands_in_one_of_four_groups(tmp_path):
    callbacks = [LearningRate(), OnlineLinearProbe(4), OnlineKNN(4), Collapse()]
    found = scalars(tmp_path, SimCLR(**TINY, warmup_epochs=1), callbacks)
    assert found.keys() - {"epoch"} == {
        *(f"{stage}/{name}" for stage in ("train", "val") for name in ("loss", "pair_accuracy", "mutual_information")),
        *(f"probe/{name}" for name in ("train_loss", "train_accuracy", "val_accuracy", "knn/val_accuracy")),
        *(f"monitor/{name}" for name in ("learning_rate", "spread", "rank_me")),
    }


def test_the_rate_is_that_of_the_schedule(tmp_path):
    module = SimCLR(**TINY, warmup_epochs=1, learning_rate=0.4)
    rates = scalars(tmp_path, module, [LearningRate()])["monitor/learning_rate"]
    peak = 0.4 * 8 / 256  # in proportion to the batch
    assert rates == pytest.approx([peak * module.recipe_schedule(step, 2, 4) for step in range(4)])


def test_a_sweep_of_thirteen_rates_is_one_curve(tmp_path):
    found = scalars(tmp_path, LinearProbe(**TINY, num_classes=4), [LearningRate()])
    assert [name for name in found if "rate" in name] == ["monitor/learning_rate", "val/best_learning_rate"]
