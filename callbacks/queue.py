"""A queue of keys from earlier batches, and when it is filled."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.nn import functional as F

from sslmodules.distributed import gather


class FeatureQueue(nn.Module):
    """The last ``length`` keys, a ring in fp32 that travels with the checkpoint (He et al. 2020, section 3.1).

    Read ``queue.features`` in a loss as it is, (length, dim); :class:`QueueUpdate` enqueues after the optimizer step,
    so the keys of a batch are never among its own negatives.

    Args:
        length: K, number of keys.
        dim: length of a key.

    Raises:
        ValueError: a length or dim below 1, or keys of another length.

    >>> queue = FeatureQueue(5, dim=2)
    >>> queue.enqueue(torch.ones(3, 2)); queue.enqueue(torch.zeros(3, 2))  # wraps: the oldest goes
    >>> queue.features[:, 0].tolist(), queue.pointer.item()
    ([0.0, 1.0, 1.0, 0.0, 0.0], 1)
    """

    features: Tensor
    pointer: Tensor

    def __init__(self, length: int, dim: int) -> None:
        super().__init__()
        if length < 1 or dim < 1:
            raise ValueError(f"a queue of {length} keys of length {dim} was asked for; expected both to be at least 1")
        self.register_buffer("features", F.normalize(torch.randn(length, dim), dim=1))
        self.register_buffer("pointer", torch.zeros((), dtype=torch.long))

    def __len__(self) -> int:
        return len(self.features)

    @torch.no_grad()
    def enqueue(self, keys: Tensor) -> None:
        """Overwrite the oldest keys by ``keys`` (B, dim). Any B: of more than ``length`` the last ones stay.

        The pointer is never read by the host, so nothing waits for the device.
        """
        if keys.ndim != 2 or keys.shape[1] != self.features.shape[1]:
            raise ValueError(f"the keys have the shape {tuple(keys.shape)}, expected (B, {self.features.shape[1]})")
        length = len(self)
        skipped = max(0, len(keys) - length)
        position = torch.arange(skipped, len(keys), device=self.pointer.device)
        self.features.index_copy_(0, (self.pointer + position) % length, keys[skipped:].to(self.features))
        self.pointer.add_(len(keys)).remainder_(length)

    @torch.no_grad()
    def resize(self, length: int) -> None:
        """Take another length: the first keys stay, as many as fit; new ones are random."""
        kept = self.features[:length]
        new = F.normalize(torch.randn(length - len(kept), kept.shape[1]), dim=1).to(kept)
        self.features = torch.cat([kept, new])
        self.pointer.remainder_(length)

    def _apply(self, fn: Any, recurse: bool = True) -> "FeatureQueue":
        super()._apply(fn, recurse)
        self.features = self.features.float()  # stays fp32 under precision="bf16-true"
        return self


class QueueUpdate(Callback):
    """Enqueue the keys of each optimizer step into the module's ``queue``, those of all ranks in the same order.

    It serves any module with a :class:`FeatureQueue` as ``queue`` whose step returns ``"keys"`` (B, dim). Under
    accumulation the keys are collected and enqueued together once the optimizer has stepped. It does nothing for other
    modules.

    >>> trainer = Trainer(callbacks=[QueueUpdate()], logger=False)
    """

    def __init__(self) -> None:
        self._pending: list[Tensor] = []
        self._last_step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Keep DDP from broadcasting rank 0's queue in every forward pass."""
        for prefix, module in pl_module.named_modules():
            if isinstance(module, FeatureQueue):
                ignored = set(getattr(pl_module, "_ddp_params_and_buffers_to_ignore", ()))
                ignored |= {f"{prefix}.{name}" for name, _ in module.named_buffers()}
                pl_module._ddp_params_and_buffers_to_ignore = sorted(ignored)  # type: ignore[assignment]

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give all ranks rank 0's queue, once."""
        queue = _queue(pl_module)
        if queue is not None and trainer.world_size > 1:
            for buffer in queue.buffers():
                torch.distributed.broadcast(buffer, 0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin to count where the run stands."""
        self._pending = []
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Collect this batch's keys; enqueue all that were collected if the optimizer has stepped."""
        queue = _queue(pl_module)
        if queue is None:
            return
        with torch.no_grad():
            self._pending.append(gather(outputs["keys"].detach().float()))
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        queue.enqueue(torch.cat(self._pending))
        self._pending = []


def _queue(module: LightningModule) -> FeatureQueue | None:
    queue = getattr(module, "queue", None)
    return queue if isinstance(queue, FeatureQueue) else None
