"""Projection and prediction heads."""

from itertools import pairwise
from typing import Literal

from torch import nn


def mlp(
    *widths: int,
    norm: bool = True,
    last_norm: Literal["none", "scale", "plain", "full"] = "none",
) -> nn.Sequential:
    """Linear layers with ReLU between them, with or without batch normalisation.

    Args:
        widths: d_in, hidden widths, d_out; (B, d_in) goes in, (B, d_out) comes out.
        norm: batch normalisation after every hidden Linear; no Linear has a bias then. Without it, all have one.
        last_norm: batch normalisation after the last Linear: none; with a scale but no shift (SimCLR); without both
            (MoCo v3); with both.

    Raises:
        ValueError: fewer than two widths.

    >>> import torch
    >>> mlp(512, 2048, 128, last_norm="scale")(torch.zeros(4, 512)).shape
    torch.Size([4, 128])
    """
    if len(widths) < 2:
        raise ValueError(f"got the widths {widths}; expected at least an input and an output width")
    layers: list[nn.Module] = []
    for i, (d_in, d_out) in enumerate(pairwise(widths)):
        last = i == len(widths) - 2
        layers.append(nn.Linear(d_in, d_out, bias=not norm))
        if last and last_norm != "none":
            bn = nn.BatchNorm1d(d_out, affine=last_norm != "plain")
            if last_norm == "scale":
                bn.bias.requires_grad_(False)  # stays 0
            layers.append(bn)
        elif not last:
            layers += [nn.BatchNorm1d(d_out)] if norm else []
            layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers)
