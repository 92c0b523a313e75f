import pytest
import torch
from runs import loader, trainer

import sslmodules
from sslmodules import MoCo

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}, "output_dim": 8}


def test_a_default_queue_is_as_long_as_a_smaller_training_set_and_keeps_its_length(tmp_path):
    module = MoCo(**TINY)
    assert len(module.queue) == 65_536
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, loader(24, 8))
    assert len(module.queue) == 24
    run.save_checkpoint(tmp_path / "m.ckpt")

    again = sslmodules.load(tmp_path / "m.ckpt")
    assert torch.equal(again.queue.features, module.queue.features)

    resumed = MoCo(**TINY)  # more images than before: the queue of the checkpoint stays
    trainer(tmp_path, max_epochs=2).fit(resumed, loader(40, 8), ckpt_path=tmp_path / "m.ckpt")
    assert len(resumed.queue) == 24


def test_a_queue_that_was_asked_for_stays_and_is_warned_of(tmp_path):
    module = MoCo(**TINY, queue_size=40)
    with pytest.warns(UserWarning, match=r"queue of 40 keys is longer than the training set of 24.*queue_size=24"):
        trainer(tmp_path, max_epochs=1).fit(module, loader(24, 8))
    assert len(module.queue) == 40


def test_a_default_queue_is_shorter_with_a_line_about_it(tmp_path, caplog):
    with caplog.at_level("INFO", "lightning.pytorch"):
        trainer(tmp_path, max_epochs=1).fit(MoCo(**TINY), loader(24, 8))
    assert [r.message for r in caplog.records if r.message.startswith("queue")] == [
        "queue: 24 keys, as many as there are training images, and not 65,536"
    ]
