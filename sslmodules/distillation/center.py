"""The centre of the teacher's scores: what keeps one prototype from taking all."""

from typing import Any

import torch
from torch import Tensor, nn

from sslmodules.distributed import all_reduced


class Center(nn.Module):
    """Running mean of the teacher's scores, taken off before its softmax (Caron et al. 2021, section 3.1, eq. 4).

    ``c ← m·c + (1 - m)·mean``, once an optimizer step: :meth:`collect` the scores of each batch and :meth:`commit`
    after the step, so that a loss sees the centre of before. The mean is that of all ranks. The value is a buffer: fp32
    also under ``precision="bf16-true"``, in the checkpoint, the same on all ranks.

    Args:
        dim: K, number of prototypes.
        momentum: m in [0, 1]; 1 switches centring off.

    Raises:
        ValueError: a momentum outside [0, 1].

    >>> center = Center(2)
    >>> center.collect(torch.tensor([[1.0, 0.0], [3.0, 0.0]]))
    >>> center.commit()
    >>> center.value
    tensor([0.2000, 0.0000])
    """

    value: Tensor

    def __init__(self, dim: int, momentum: float = 0.9) -> None:
        super().__init__()
        if not 0 <= momentum <= 1:
            raise ValueError(f"the centre's momentum is {momentum}, expected a number from 0 to 1")
        self.momentum = momentum
        self.register_buffer("value", torch.zeros(dim))
        # No buffers: DDP would overwrite them by rank 0's, and no checkpoint falls between two optimizer steps.
        self._sum: Tensor | None = None
        self._count = 0

    def forward(self, scores: Tensor, temperature: float) -> Tensor:
        """Probabilities (..., K), ``softmax((scores - c) / temperature)``, fp32 or wider."""
        scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
        return ((scores - self.value) / temperature).softmax(-1)

    @torch.no_grad()
    def collect(self, scores: Tensor) -> None:
        """Keep the sum of scores (..., K) of this rank for the next :meth:`commit`."""
        rows = scores.flatten(0, -2)  # (rows, K)
        total = rows.sum(0, dtype=torch.promote_types(rows.dtype, torch.float32))
        self._sum = total if self._sum is None else self._sum + total
        self._count += len(rows)

    @torch.no_grad()
    def commit(self) -> None:
        """Move the centre to the mean of what all ranks have collected; without anything collected it stays."""
        if self._sum is None:
            return
        totals = all_reduced(torch.cat([self._sum, self._sum.new_full((1,), self._count)]))  # (K + 1,)
        count = totals[-1]
        mean = (totals[:-1] / count.clamp(min=1)).to(self.value)
        self.value.lerp_(torch.where(count > 0, mean, self.value), 1 - self.momentum)
        self.forget()

    def forget(self) -> None:
        """Drop what has been collected."""
        self._sum, self._count = None, 0

    def _apply(self, fn: Any, recurse: bool = True) -> "Center":
        exact = self.value
        super()._apply(fn, recurse)
        if self.value.dtype.itemsize < 4:
            self.value = exact.to(self.value.device)
        return self
