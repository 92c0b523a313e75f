"""Every method once, with a tiny encoder: the parametrised tests run over this list. A new method adds its line."""

from collections.abc import Callable
from functools import partial

from torch import nn

from sslmodules import MoCo, MoCoV3, Rotation, SimCLR, SSLModule

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}

VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 4, "depth": 1, "embed_dim": 24},
    "size": 16,
}

METHODS: dict[str, Callable[..., SSLModule]] = {
    "SimCLR": partial(SimCLR, **TINY, output_dim=8, warmup_epochs=0),
    "MoCo": partial(MoCo, **TINY, output_dim=8, queue_size=40, momentum=0.9),
    "MoCo.v1": partial(MoCo.v1, **TINY, output_dim=8, queue_size=40),
    "MoCo symmetric": partial(MoCo, **TINY, output_dim=8, queue_size=40, symmetric=True, batch_norm_splits=2),
    "MoCoV3": partial(MoCoV3, **TINY, output_dim=8, hidden_dim=16, warmup_epochs=0),
    "MoCoV3.vit": partial(
        MoCoV3.vit, encoder_args={"patch_size": 4, "depth": 1, "embed_dim": 24}, size=16, output_dim=8, hidden_dim=16
    ),
    "Rotation": partial(Rotation, **TINY),
    "Rotation.vit": partial(Rotation, **VIT),
}


def replace_batch_norm(module: nn.Module, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put ``make(batch_norm)`` in the place of every batch norm below ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, make(child))
        else:
            replace_batch_norm(child, make)
