from collections import deque

import pytest
import torch
from lightning.pytorch import LightningModule
from runs import loader, trainer
from torch import nn
from torch.nn import functional as F

from sslmodules import MoCo
from sslmodules.callbacks import FeatureQueue, QueueUpdate
from sslmodules.losses import info_nce


def test_five_batches_of_eight_into_a_queue_of_32():
    queue = FeatureQueue(32, 4)
    keys = [F.normalize(torch.randn(8, 4), dim=1) for _ in range(5)]
    for k in keys:
        queue.enqueue(k)
    assert queue.pointer == 8
    torch.testing.assert_close(queue.features[:8], keys[4])
    torch.testing.assert_close(queue.features[8:], torch.cat(keys[1:4]))
    torch.testing.assert_close(queue.features.norm(dim=1), torch.ones(32))


def test_queue_is_a_deque_at_batches_that_do_not_divide_it():
    queue, peer = FeatureQueue(40, 2), deque(maxlen=40)
    torch.manual_seed(0)
    for _ in range(11):
        keys = torch.randn(16, 2)
        queue.enqueue(keys)
        peer.extend(keys.tolist())
    assert sorted(queue.features.tolist()) == sorted(peer)
    oldest_first = queue.features.roll(-queue.pointer.item(), 0)
    torch.testing.assert_close(oldest_first, torch.tensor(list(peer)))


@pytest.mark.parametrize("sizes", [[7], [3, 11, 1], [40, 5]])
def test_any_batch_fits_also_one_longer_than_the_queue(sizes):
    queue, peer = FeatureQueue(9, 1), deque(maxlen=9)
    count = 0
    for size in sizes * 3:
        keys = torch.arange(count, count + size, dtype=torch.float)[:, None]
        queue.enqueue(keys)
        peer.extend(keys[:, 0].tolist())
        count += size
    filled = [v for v in queue.features.roll(-queue.pointer.item(), 0)[:, 0].tolist() if v >= 0][-len(peer) :]
    assert filled[-min(len(peer), 9) :] == list(peer)


def test_a_new_queue_holds_unit_vectors_and_a_bad_one_is_refused():
    torch.testing.assert_close(FeatureQueue(16, 3).features.norm(dim=1), torch.ones(16))
    with pytest.raises(ValueError, match="0 keys of length 3"):
        FeatureQueue(0, 3)
    with pytest.raises(ValueError, match=r"shape \(2, 5\), expected \(B, 3\)"):
        FeatureQueue(4, 3).enqueue(torch.zeros(2, 5))


def test_the_queue_stays_fp32_when_the_module_goes_to_bf16():
    module = nn.ModuleDict({"queue": FeatureQueue(4, 3), "net": nn.Linear(3, 3)}).to(torch.bfloat16)
    assert module["queue"].features.dtype == torch.float32
    assert module["net"].weight.dtype == torch.bfloat16
    assert module["queue"].state_dict()["features"].dtype == torch.float32


def test_positive_is_not_among_the_negatives(tmp_path):
    """With keys enqueued first, a perfect query finds its own key in the queue and the loss cannot fall below ln 2."""
    seen = []

    class Watch(MoCo):
        def loss(self, views):
            out = super().loss(views)
            similarity = out["keys"] @ self.queue.features.T  # (B, K)
            seen.append(similarity.amax().item())
            return out

    torch.manual_seed(0)
    method = Watch("conv4", encoder_args={"widths": (8, 16)}, queue_size=16, output_dim=32)
    batch = torch.randint(0, 256, (8, 3, 16, 16), dtype=torch.uint8)
    trainer(tmp_path, max_steps=1).fit(method, torch.utils.data.DataLoader(batch, 8))
    assert seen[0] < 0.999
    k = F.normalize(torch.randn(4, 8), dim=1)
    assert info_nce(k, k, torch.cat([k, k]), 0.01).item() > 0.69  # what the wrong order would give


def test_keys_of_accumulated_batches_enter_together_after_the_optimizer_step(tmp_path):
    pointers, queues = [], []

    class Watch(QueueUpdate):
        def on_train_batch_end(self, trainer, pl_module, *args):
            super().on_train_batch_end(trainer, pl_module, *args)
            pointers.append(pl_module.queue.pointer.item())
            queues.append(pl_module.queue.features.clone())

    method = MoCo("conv4", encoder_args={"widths": (8, 16)}, queue_size=40)
    trainer(tmp_path, max_epochs=1, accumulate_grad_batches=3, callbacks=[Watch()]).fit(method, loader(8 * 4))
    assert pointers == [0, 0, 24, 32]  # three batches, then the one that is left at the epoch's end
    assert torch.equal(queues[0], queues[1])


def test_queue_is_in_the_checkpoint(tmp_path):
    method = MoCo("conv4", encoder_args={"widths": (8, 16)}, queue_size=40)
    run = trainer(tmp_path, max_steps=2)
    run.fit(method, loader(16))
    run.save_checkpoint(tmp_path / "m.ckpt")
    again = MoCo.load_from_checkpoint(tmp_path / "m.ckpt")
    assert torch.equal(method.queue.features, again.queue.features)
    assert again.queue.pointer == 16


def test_any_module_with_a_queue_and_keys_is_served_and_ddp_leaves_it_alone(tmp_path):
    class Foreign(LightningModule):
        def __init__(self):
            super().__init__()
            self.net, self.queue = nn.Linear(768, 5), FeatureQueue(20, 5)

        def training_step(self, batch, batch_idx):
            out = self.net(batch[0].flatten(1) / 255.0)
            return {"loss": out.mean(), "keys": out}

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), 0.1)

    module = Foreign()
    trainer(tmp_path, max_steps=2, callbacks=[QueueUpdate()]).fit(module, loader(16))
    assert module.queue.pointer == 16
    assert module._ddp_params_and_buffers_to_ignore == ["queue.features", "queue.pointer"]


def test_a_queue_shorter_than_a_batch_is_refused_before_the_first_step(tmp_path):
    method = MoCo("conv4", encoder_args={"widths": (8, 16)}, queue_size=7)
    with pytest.raises(
        ValueError, match="the queue holds 7 keys, fewer than a batch of 8 over all devices; pass a larger"
    ):
        trainer(tmp_path, max_steps=1).fit(method, loader(8))


def test_held_out_batches_may_be_larger_than_the_queue(tmp_path):
    method = MoCo("conv4", encoder_args={"widths": (8, 16)}, queue_size=8)
    run = trainer(tmp_path, max_steps=1)
    run.fit(method, loader(8), loader(32, batch_size=32))
    assert "val/loss" in run.callback_metrics
