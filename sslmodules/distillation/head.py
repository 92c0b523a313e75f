"""The head of DINO: a small MLP onto a sphere, and prototypes to compare with."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Prototypes(nn.Module):
    """Weight-normed Linear without bias: row k of its weight is ``gain[k]`` times the unit vector of ``direction[k]``.

    As :func:`torch.nn.utils.parametrizations.weight_norm` of a Linear, which cannot be pickled.

    Args:
        in_dim: D.
        output_dim: K, number of rows; they start with gain 1 and the directions of a Linear.

    >>> Prototypes(3, 5)(torch.zeros(2, 3)).shape
    torch.Size([2, 5])
    """

    def __init__(self, in_dim: int, output_dim: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(output_dim, 1))
        self.direction = nn.Linear(in_dim, output_dim, bias=False).weight  # (K, D)

    @property
    def weight(self) -> Tensor:
        """(K, D)."""
        return torch._weight_norm(self.direction, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """(..., D) to scores (..., K)."""
        return F.linear(x, self.weight)


class DINOHead(nn.Module):
    """MLP with GELU to a bottleneck of unit length, then scores against K prototypes (Caron et al. 2021, appendix C).

    The prototypes are weight-normed with gain 1, so a score is a cosine. Linears of the MLP start as truncated normals
    of std 0.02.

    Args:
        in_dim: length of the representation.
        output_dim: K, number of prototypes.
        hidden_dim: width of the hidden layers.
        bottleneck_dim: length of the unit vectors.
        layers: Linears of the MLP, at least 1.
        norm: batch normalisation before each GELU; the Linears in front of it have no bias then.
        train_gain: whether the prototypes' lengths are learned (DINOv2); False keeps them at 1, which is stabler.

    Raises:
        ValueError: no layers.

    >>> head = DINOHead(384, output_dim=1024)
    >>> scores = head(torch.randn(4, 384))
    >>> scores.shape, bool(scores.abs().max() <= 1)
    (torch.Size([4, 1024]), True)
    """

    def __init__(
        self,
        in_dim: int,
        output_dim: int = 65536,
        *,
        hidden_dim: int = 2048,
        bottleneck_dim: int = 256,
        layers: int = 3,
        norm: bool = False,
        train_gain: bool = False,
    ) -> None:
        super().__init__()
        if layers < 1:
            raise ValueError(f"the head has {layers} layers, expected at least 1")
        parts: list[nn.Module] = []
        for _ in range(layers - 1):
            parts += [nn.Linear(in_dim, hidden_dim, bias=not norm), *([nn.BatchNorm1d(hidden_dim)] if norm else [])]
            parts.append(nn.GELU())
            in_dim = hidden_dim
        self.mlp = nn.Sequential(*parts, nn.Linear(in_dim, bottleneck_dim))
        for part in self.mlp:
            if isinstance(part, nn.Linear):
                nn.init.trunc_normal_(part.weight, std=0.02)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
        self.prototypes = Prototypes(bottleneck_dim, output_dim)
        self.prototypes.gain.requires_grad_(train_gain)

    def project(self, x: Tensor) -> Tensor:
        """(..., in_dim) representations to unit vectors (..., bottleneck_dim), fp32 or wider."""
        z = self.mlp(x)
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) representations to scores (..., K)."""
        return self.prototypes(self.project(x))
