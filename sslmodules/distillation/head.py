"""The head of DINO: a small MLP onto a sphere, and prototypes to compare with."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm


class DINOHead(nn.Module):
    """MLP with GELU to a bottleneck of unit length, then scores against K prototypes (Caron et al. 2021, appendix C).

    The prototypes are a Linear without bias whose rows are weight-normed with gain 1, so a score is a cosine. Linears
    of the MLP start as truncated normals of std 0.02. ``copy.deepcopy`` makes a teacher of it at any time.

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
        # The parametrised form: the older nn.utils.weight_norm cannot be copied once it has run.
        self.prototypes = weight_norm(nn.Linear(bottleneck_dim, output_dim, bias=False))
        gain = self.prototypes.parametrizations.weight.original0  # (K, 1)
        nn.init.ones_(gain)
        gain.requires_grad_(train_gain)

    def project(self, x: Tensor) -> Tensor:
        """(..., in_dim) representations to unit vectors (..., bottleneck_dim), fp32 or wider."""
        z = self.mlp(x)
        return F.normalize(z.to(torch.promote_types(z.dtype, torch.float32)), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        """(..., in_dim) representations to scores (..., K)."""
        return self.prototypes(self.project(x))
