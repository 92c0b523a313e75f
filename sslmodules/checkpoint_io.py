"""Checkpoints that are whole or not there."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.fabric.utilities.cloud_io import _is_local_file_protocol
from lightning.pytorch import Trainer
from torch import Tensor

from sslmodules.storage import StorageError, atomic_write, check_writable, remove_unfinished


class AtomicCheckpointIO(TorchCheckpointIO):
    """Write checkpoints beside their target and rename them, so that no kill or full disk breaks the last good one.

    Lightning's own writes them to ``$TMPDIR`` and moves them; where that is another filesystem, a run that is killed
    then leaves a part in the place of the file. Addresses such as ``s3://...`` are left to it.

    >>> trainer = Trainer(plugins=[AtomicCheckpointIO()], logger=False)
    """

    def __init__(self) -> None:
        self._tidied: set[Path] = set()

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write a checkpoint.

        Raises:
            StorageError: it cannot be written; what was there before is whole.
        """
        if not _is_local_file_protocol(path):
            return super().save_checkpoint(checkpoint, path, storage_options)
        self._tidy(Path(path).parent)
        with atomic_write(path, needed=tensor_bytes(checkpoint)) as file:
            torch.save(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Read a checkpoint, after what a killed run has left beside it is removed."""
        if _is_local_file_protocol(path):
            self._tidy(Path(path).parent)
        return super().load_checkpoint(path, *args, **kwargs)

    def _tidy(self, folder: Path) -> None:
        if folder not in self._tidied:
            self._tidied.add(folder)
            remove_unfinished(folder)


def check_space(trainer: Trainer, path: str | Path) -> None:
    """Raise before training where a checkpoint will not fit, or cannot be written at all; on all processes alike.

    A file that is replaced needs its space twice. The optimizer's state is estimated, since it is empty before the
    first step: two tensors a parameter for Adam and its kin, one for momentum.

    Raises:
        StorageError: the first process cannot write ``path``, or has less free space there.
    """
    sentence = None
    if trainer.is_global_zero and _is_local_file_protocol(path):
        size = tensor_bytes(trainer.lightning_module.state_dict())
        for group in (g for optimizer in trainer.optimizers for g in optimizer.param_groups):
            copies = 2 if "betas" in group else bool(group.get("momentum"))
            size += copies * sum(p.nbytes for p in group["params"])
        try:
            check_writable(path, size if Path(path).exists() else 2 * size)
        except StorageError as error:
            sentence = str(error)
    sentence = trainer.strategy.broadcast(sentence)
    if sentence is not None:
        raise StorageError(sentence)


def tensor_bytes(value: Any) -> int:
    """Bytes of all tensors in nested dicts and sequences, those that share memory counted once.

    >>> a = torch.zeros(10)
    >>> tensor_bytes({"a": a, "b": [a[:5], torch.zeros(2)]})
    48
    """
    return sum({s.data_ptr(): s.nbytes() for s in _storages(value)}.values())


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    if isinstance(value, Tensor):
        yield value.untyped_storage()
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _storages(item)
    elif isinstance(value, list | tuple | set):
        for item in value:
            yield from _storages(item)
