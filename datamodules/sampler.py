"""The order of the data: a permutation that is a function of (seed, epoch), and a place in it that can be saved."""

from collections.abc import Iterator, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from sslmodules.datamodules.images import ImageSet, PairedSet


class ResumableSampler(DistributedSampler):
    """Shuffled indices, one share a process, that continue where they were stopped.

    Each pass over the sampler is one epoch: a pass that is begun after another has drawn something is the next epoch.
    `set_epoch` is ignored, because Lightning calls it after it has asked for the iterator. It is a
    `DistributedSampler`, because Lightning replaces any other kind when it runs on several devices. All processes draw
    equally many indices; the last ones wrap to the beginning of the permutation.

    Args:
        dataset: anything with a length, N >= 1.
        num_replicas: number of processes that share the data.
        rank: this process, 0 <= rank < num_replicas.
        seed: a number >= 0; together with the epoch it fixes the permutation.
        pairs: length M of a second dataset whose items ride along. The sampler then yields `(i, j)` with
            `j = (i + epoch * N) mod M`, so that every j has its turn also where M > N. None: plain integers.
        epoch: the epoch to begin with.

    Example:
        >>> sampler = ResumableSampler(range(5))
        >>> indices = iter(sampler)
        >>> seen = [next(indices) for _ in range(2)]
        >>> other = ResumableSampler(range(5))
        >>> other.load_state_dict(sampler.state_dict())
        >>> sorted(seen + list(other))
        [0, 1, 2, 3, 4]

    """

    def __init__(
        self,
        dataset: Sized,
        num_replicas: int = 1,
        rank: int = 0,
        seed: int = 0,
        pairs: int | None = None,
        epoch: int = 0,
    ) -> None:
        super().__init__(dataset, num_replicas, rank, shuffle=True, seed=seed)  # type: ignore[arg-type]
        self.pairs = pairs
        self.epoch = epoch
        self.position = 0  # indices drawn from this epoch by this process
        self._resumed = False

    def order(self, epoch: int) -> Tensor:
        """The indices of one epoch that fall to this process, (ceil(N / num_replicas),)."""
        size = len(self.dataset)  # type: ignore[arg-type]
        key = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
        permutation = torch.randperm(size, generator=torch.Generator().manual_seed(int(key[0])))
        wrapped = permutation.repeat(-(-self.total_size // size))[: self.total_size]
        return wrapped[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[Any]:
        if self.position >= len(self) or (self.position and not self._resumed):
            self.epoch, self.position = self.epoch + 1, 0
        self._resumed = False
        shift = self.epoch * len(self.dataset)  # type: ignore[arg-type]
        for index in self.order(self.epoch)[self.position :].tolist():
            self.position += 1
            yield index if self.pairs is None else (index, (index + shift) % self.pairs)

    def set_epoch(self, epoch: int) -> None:
        """Nothing: the epoch is the sampler's own and stands in its state."""

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many indices all processes together have drawn from it."""
        return {"epoch": self.epoch, "position": self.position * self.num_replicas}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from a `state_dict`, which another number of processes may have written."""
        self.epoch = state_dict["epoch"]
        self.position = state_dict["position"] // self.num_replicas
        self._resumed = True


class ResumableLoader(DataLoader):
    """A DataLoader over a `ResumableSampler` whose state is the last batch that was *delivered*.

    Workers draw indices ahead of time, and Lightning asks for iterators that it does not use, ends an epoch without
    exhausting the loader, and saves when no iterator exists any more. So the place is counted here, batch by batch as
    they are handed over; the sampler is set to it when the first batch of a pass is asked for. The number of workers
    is no part of the state. After the last batch of an epoch, the next pass is the next epoch, resumed or not.

    Args:
        dataset: a map-style dataset.
        batch_size: images in a batch.
        sampler: the order; its epoch is the loader's first one.
        limit: batches in an epoch, as in `Trainer(limit_train_batches=...)`: a number, or a share of all in [0, 1].
        **options: anything else that a `DataLoader` takes.

    Example:
        >>> data = torch.arange(12)
        >>> loader = ResumableLoader(data, batch_size=4, sampler=ResumableSampler(data))
        >>> batches = iter(loader)
        >>> seen = next(batches)
        >>> other = ResumableLoader(data, batch_size=4, sampler=ResumableSampler(data))
        >>> other.load_state_dict(loader.state_dict())
        >>> all(torch.equal(a, b) for a, b in zip(batches, other, strict=True))
        True

    """

    def __init__(
        self, dataset: Any, batch_size: int, sampler: ResumableSampler, limit: int | float = 1.0, **options: Any
    ) -> None:
        super().__init__(dataset, batch_size=batch_size, sampler=sampler, **options)
        self.limit = limit
        self.epoch = getattr(sampler, "epoch", 0)
        self.position = 0  # samples of this epoch that were delivered to this process
        self._resumed = False

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]  # a generator: nothing happens before the first batch
        if not isinstance(self.sampler, ResumableSampler):  # Trainer(overfit_batches=...) puts in another one
            yield from super().__iter__()
            return
        batches = self.limit if isinstance(self.limit, int) else int(self.limit * len(self))
        batches = min(batches, len(self))
        if self.position >= min(batches * self.batch_size, len(self.sampler)) or (self.position and not self._resumed):  # type: ignore[operator]
            self.epoch, self.position = self.epoch + 1, 0
        self._resumed = False
        self.sampler.load_state_dict(self.state_dict())
        for batch in super().__iter__():
            self.position = min(self.position + self.batch_size, len(self.sampler))  # type: ignore[operator]
            yield batch

    def state_dict(self) -> dict[str, int]:
        """The epoch, and how many of its samples were delivered to all processes together."""
        return {"epoch": self.epoch, "position": self.position * getattr(self.sampler, "num_replicas", 1)}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Continue from a `state_dict`.

        Raises:
            ValueError: if the state was written by another kind of loader.

        """
        if not {"epoch", "position"} <= state_dict.keys():
            raise ValueError(
                f"the checkpoint holds the state of another kind of training loader (keys {sorted(state_dict)}, "
                "expected epoch and position): resume with the DataModule that wrote it, or load only the weights"
            )
        self.epoch = state_dict["epoch"]
        self.position = state_dict["position"] // getattr(self.sampler, "num_replicas", 1)
        self._resumed = True

    def files_of(self, state_dict: dict[str, int]) -> list[str]:
        """The files of the last batch that was delivered before a `state_dict`; none where the images are no files."""
        images = self.dataset.images if isinstance(self.dataset, PairedSet) else self.dataset
        if not isinstance(self.sampler, ResumableSampler) or not isinstance(images, ImageSet):
            return []
        stop = state_dict["position"] // self.sampler.num_replicas
        start = (stop - 1) // self.batch_size * self.batch_size  # type: ignore[operator]
        files = images.files
        rows = self.sampler.order(state_dict["epoch"])[start:stop].tolist() if len(files) == len(images) else []
        return [files[row] for row in rows]
