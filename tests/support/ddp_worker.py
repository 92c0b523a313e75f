"""One of two gloo processes that run the whole list of methods; called by test_ddp.py, which reads what it writes.

Every process writes a dict of what it found into ``<folder>/rank<r>.pt``.
"""

import signal
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from evaluation_list import EVALUATIONS, batches
from lightning.pytorch import Callback, Trainer
from method_list import METHODS, kind, replace_batch_norm
from runs import EXAMPLES, images, snapshot, trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler

from sslmodules import SimCLR
from sslmodules.callbacks import Interruption, LastCheckpoint, NotFiniteError, OnlineKNN, OnlineLinearProbe
from sslmodules.contrastive.moco import MoCo
from sslmodules.datamodules import LabeledDataModule
from sslmodules.distributed import gather, rank, world_size
from sslmodules.module import SSLModule
from sslmodules.signals import Interrupted


class SyncBatchNorm(nn.Module):
    """Batch norm over all ranks on the CPU, where torch has none; a gather that carries gradients does it."""

    def __init__(self, like: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = like.weight, like.bias

    def forward(self, x: Tensor) -> Tensor:
        dims = [0, *range(2, x.ndim)]
        everyone = gather(x)
        shape = [1, -1] + [1] * (x.ndim - 2)
        mean, var = everyone.mean(dims).view(shape), everyone.var(dims, correction=0).view(shape)
        out = (x - mean) / (var + 1e-5).sqrt()
        return out if self.weight is None else out * self.weight.view(shape) + self.bias.view(shape)


def prepared(name: str) -> tuple[SSLModule, list[Tensor]]:
    """A method in fp64 with synchronised batch norm, and views of eight images, the same in every process."""
    torch.manual_seed(0)
    module = METHODS[name]()
    replace_batch_norm(module, SyncBatchNorm)
    images = EXAMPLES[kind(name)](8)[:][0]
    module.generator = torch.Generator().manual_seed(1)
    views = [v.double() if v.is_floating_point() else v for v in module.make_views(images)]
    module.generator = None
    return module.double().train(), views


def loss_and_gradients(module: SSLModule, views: list[Tensor]) -> tuple[Tensor, list[Tensor], dict]:
    """Averaged over ranks, as DDP does."""
    out = module.loss(views)
    out["loss"].backward()
    loss, gradients = out["loss"].detach().clone(), [p.grad.clone() for p in module.parameters() if p.grad is not None]
    if world_size() > 1:
        for t in [loss, *gradients]:
            dist.all_reduce(t)
            t /= world_size()
    return loss, gradients, out


def shuffled_keys() -> dict:
    """Keys of MoCo with real, local batch norm: by shuffling BN, and by hand."""
    torch.manual_seed(0)
    module = METHODS["MoCo"]().train()
    view = torch.randn(8, 3, 16, 16)
    mine = view.chunk(2)[rank()]
    # The deal: rank 0 normalises every other image of the whole batch, rank 1 the rest.
    by_hand = torch.empty(8, 8)
    for r in range(2):
        part = torch.arange(8).view(2, 4).T.flatten().chunk(2)[r]
        with torch.no_grad():
            by_hand[part] = nn.functional.normalize(module.teacher_projector(module.teacher_encoder(view[part])))
    return {"keys": module.keys(mine), "by_hand": by_hand.chunk(2)[rank()]}


class RecordGlobalStep(Callback):
    def __init__(self) -> None:
        self.queue_seen: list[Tensor] = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if pl_module.queue is not None:
            self.queue_seen.append(pl_module.queue.features.clone())


def pair(folder: Path, **kwargs: Any) -> Trainer:
    """A quiet Trainer of this process and the other."""
    return trainer(folder, devices=2, strategy="ddp", max_steps=3, **kwargs)


def fitted(name: str, folder: Path) -> dict:
    """State after a real Trainer run under DDP, with probe and kNN."""
    torch.manual_seed(rank())  # ranks differ before the run, as in life
    module = METHODS[name]()
    data = EXAMPLES[kind(name)](32)
    loader = DataLoader(data, 4, sampler=DistributedSampler(data, 2, rank()))
    probe, knn, seen = OnlineLinearProbe(4), OnlineKNN(4, bank_size=64), RecordGlobalStep()
    run = pair(folder, callbacks=[probe, knn, seen], accumulate_grad_batches=2, limit_val_batches=1)
    run.fit(module, loader, DataLoader(data, 8))
    return {
        "parameters": {n: p.detach().clone() for n, p in module.named_parameters()},
        "queue": None if module.queue is None else dict(module.queue.state_dict()),
        "queues": seen.queue_seen,
        "probe": probe.head.state_dict(),
        "bank": knn._bank,
        "metrics": {k: float(v) for k, v in run.callback_metrics.items() if "val_accuracy" in k},
    }


def evaluated(name: str, folder: Path) -> dict:
    """State and measures after a real Trainer run of an evaluation under DDP."""
    torch.manual_seed(rank())
    make, examples = EVALUATIONS[name]
    module, train, val = make(), examples(24), examples(16, seed=1)
    shares = DistributedSampler(train, 2, rank()), DistributedSampler(val, 2, rank(), shuffle=False)
    loaders = batches(train, 4, sampler=shares[0]), batches(val, 3, sampler=shares[1])
    pair(folder).fit(module, *loaders)
    for buffer in module.buffers():
        dist.broadcast(buffer, 0)  # each rank's batch norms have seen their own images
    run = pair(folder)
    run.validate(module, loaders[1], verbose=False)
    values = {k: float(v) for k, v in run.callback_metrics.items() if k != "val/loss"}
    return {"state": snapshot(module), "values": values}


class Diverges(SimCLR):
    """SimCLR whose loss is spoiled in the second batch of the second process."""

    batches = 0

    def training_step(self, batch: Any, batch_idx: int) -> dict[str, Any]:
        out = super().training_step(batch, batch_idx)
        self.batches += 1
        return {**out, "loss": out["loss"] * (torch.nan if (batch_idx, rank()) == (1, 1) else 1)}


def diverged(folder: Path) -> dict:
    """Batches until the end of a run that reads its losses every third batch, and what it says."""
    torch.manual_seed(0)
    data, module = EXAMPLES["image"](32), Diverges("conv4", encoder_args={"widths": (8, 16)}, warmup_epochs=0)
    run = trainer(folder, devices=2, strategy="ddp", max_epochs=2, log_every_n_steps=3)
    try:
        run.fit(module, DataLoader(data, 4, sampler=DistributedSampler(data, 2, rank())))
    except NotFiniteError as error:
        return {"batches": module.batches, "sentence": str(error)}
    return {"batches": module.batches, "sentence": ""}


class SignalSecond(Callback):
    """Send SIGTERM to the second process alone, in a hook's n-th call outside of the sanity check."""

    def __init__(self, hook: str, number: int) -> None:
        self.left = number
        setattr(self, hook, self.count)

    def count(self, *_: Any) -> None:
        self.left -= 1
        if self.left == 0 and rank() == 1:
            signal.raise_signal(signal.SIGTERM)


def interrupted(folder: Path, hook: str, number: int) -> dict:
    """Weights of a run that was never stopped, and of one that was stopped by a signal to one process and went on."""

    def fit(where: str, *callbacks: Callback, **kwargs: Any) -> dict:
        torch.manual_seed(0)
        module, data = METHODS["MoCo"](), LabeledDataModule(images(40), images(16, seed=1), batch_size=4)
        last = LastCheckpoint(folder / where, None)
        options = {"devices": 2, "strategy": "ddp", "max_epochs": 2, "enable_checkpointing": True}
        trainer(folder, **options, callbacks=[*callbacks, Interruption(), last]).fit(module, data, **kwargs)
        return snapshot(module)

    whole = fit(f"whole-{hook}")
    try:
        fit(f"parts-{hook}", SignalSecond(hook, number))
    except Interrupted as end:
        code, path = end.code, end.checkpoint
    step = torch.load(path, weights_only=True)["global_step"]
    dist.barrier()  # the other process reads the file too
    return {"code": code, "step": step, "whole": whole, "resumed": fit(f"parts-{hook}", ckpt_path=path)}


def main(folder: Path) -> None:
    found: dict = {}
    for name in METHODS:
        loss, gradients, _ = loss_and_gradients(*prepared(name))
        found[name] = {"alone": (loss, gradients)}
    x = torch.arange(6.0).view(3, 2).requires_grad_()
    assert gather(x) is x, "without a process group a gather is the identity"

    import os

    dist.init_process_group("gloo", rank=int(os.environ["LOCAL_RANK"]), world_size=2)
    for name in METHODS:
        module, views = prepared(name)
        loss, gradients, out = loss_and_gradients(module, [v.chunk(2)[rank()] for v in views])
        found[name]["pair"] = (loss, gradients)
        found[name]["keys"] = gather(out["keys"].detach()) if "keys" in out else None
    (gather(x + 10 * rank()) * torch.arange(1.0, 13.0).view(6, 2) * (1 + rank())).sum().backward()
    found["gather gradient"] = x.grad
    found["shuffled"] = shuffled_keys()
    for name in METHODS:
        found[name]["fitted"] = fitted(name, folder)
    found["evaluations"] = {name: evaluated(name, folder) for name in EVALUATIONS}
    found["diverged"] = diverged(folder)
    found["interrupted in training"] = interrupted(folder, "on_train_batch_start", 7)
    found["interrupted in validation"] = interrupted(folder, "on_validation_batch_start", 1)
    assert isinstance(METHODS["MoCo"](), MoCo)
    torch.save(found, folder / f"rank{rank()}.pt")


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]))
