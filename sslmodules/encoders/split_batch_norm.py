"""Batch norm over parts of the batch: what several devices without SyncBN compute, on one."""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class SplitBatchNorm2d(nn.BatchNorm2d):
    """Batch norm whose statistics in training are those of each of ``splits`` equal parts of the batch.

    MoCo's shuffle-BN needs it on a single device: with the keys in another order, a query and its key are normalised
    among different images and cannot be matched by their common statistics (He et al. 2020, section 3.3; the authors'
    CIFAR demo uses 8 splits). A batch that ``splits`` does not divide is cut into their greatest common divisor.

    >>> bn = SplitBatchNorm2d(1, splits=2)
    >>> bn(torch.tensor([0.0, 2, 10, 14]).reshape(4, 1, 1, 1)).flatten().round(decimals=2).tolist()
    [-1.0, 1.0, -1.0, 1.0]
    """

    def __init__(self, num_features: int, splits: int, **kwargs: float) -> None:
        super().__init__(num_features, **kwargs)  # type: ignore[arg-type]
        self.splits = splits

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) to the same."""
        splits = math.gcd(len(x), self.splits)
        if not self.training or splits == 1:
            return super().forward(x)
        b, c, h, w = x.shape
        # Parts become channels: (s·b, C, H, W) -> (b, s·C, H, W).
        parts = x.reshape(splits, b // splits, c, h, w).transpose(0, 1).reshape(b // splits, splits * c, h, w)
        mean, var = self.running_mean.repeat(splits), self.running_var.repeat(splits)  # type: ignore[union-attr]
        weight, bias = self.weight.repeat(splits), self.bias.repeat(splits)
        out = F.batch_norm(parts, mean, var, weight, bias, True, self.momentum or 0.1, self.eps)
        with torch.no_grad():
            self.running_mean.copy_(mean.view(splits, c).mean(0))  # type: ignore[union-attr]
            self.running_var.copy_(var.view(splits, c).mean(0))  # type: ignore[union-attr]
            self.num_batches_tracked.add_(1)  # type: ignore[union-attr]
        return out.reshape(b // splits, splits, c, h, w).transpose(0, 1).reshape(b, c, h, w)


def split_batch_norm(module: nn.Module, splits: int) -> nn.Module:
    """Replace every BatchNorm2d below ``module`` by a :class:`SplitBatchNorm2d` with the same values; returns it.

    >>> type(split_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), 4)[0]).__name__
    'SplitBatchNorm2d'
    """
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            split = SplitBatchNorm2d(child.num_features, splits, eps=child.eps)
            split.momentum = child.momentum
            split.load_state_dict(child.state_dict())
            setattr(module, name, split)
        else:
            split_batch_norm(child, splits)
    return module
