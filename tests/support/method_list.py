"""Every method once, with a tiny encoder: the parametrised tests run over this list. A new method adds its line."""

from collections.abc import Callable
from functools import lru_cache, partial

from torch import nn

from sslmodules import (
    CPC,
    DINO,
    MAE,
    Colorization,
    DINOv2,
    Inpainting,
    Jigsaw,
    MoCo,
    MoCoV3,
    RelativePatch,
    Rotation,
    SimCLR,
    SplitBrain,
    SSLModule,
    VideoColorization,
)

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}

VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 4, "depth": 2, "embed_dim": 24, "num_heads": 2},
    "size": 16,
}

PATCHES = {"embed_dim": 8, "hidden_dim": 32, "dropout": 0.0, "warmup_epochs": 0}  # dropout differs between ranks
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
CROPS = {"size": 16, "local_size": 8, "local_crops": 2, "hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 16}
FLAT = {"layer_decay": 1.0, "patch_embed_scale": 1.0, "koleo_gather": True}  # one rate; KoLeo over all ranks

WAVES = {"encoder_args": {"widths": (8, 16), "kernels": (8, 4), "strides": (4, 2)}, "size": 192}
PAST = {"context_args": {"dim": 12}, "steps": 2, "learning_rate": 1e-3, "gather": True}  # negatives of all ranks

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
    "RelativePatch": partial(RelativePatch, **TINY, **PATCHES),
    "RelativePatch all pairs": partial(RelativePatch, **TINY, **PATCHES, pairs="all", aberration="drop"),
    "RelativePatch.vit": partial(RelativePatch, **VIT, **PATCHES),
    "Jigsaw": partial(Jigsaw, **TINY, **PATCHES, permutations=16, channel_jitter=1),
    "Jigsaw.vit": partial(Jigsaw, **VIT, **PATCHES, permutations=16, channel_jitter=1),
    "Colorization": partial(Colorization, **TINY, width=16),
    "Colorization hard": partial(Colorization, **TINY, width=16, neighbours=1, rebalance=None),
    "Colorization.vit": partial(Colorization, **VIT, width=16),
    "SplitBrain": partial(SplitBrain, **TINY),
    "SplitBrain regression": partial(SplitBrain, **TINY, task="regression"),
    "SplitBrain.vit": partial(SplitBrain, **VIT),
    "VideoColorization": partial(VideoColorization, **TINY, head_width=16, head_depth=2),
    "VideoColorization.vit": partial(VideoColorization, **VIT, head_width=16, head_depth=2),
    "Inpainting": partial(Inpainting, **TINY, size=16, width=16),
    "Inpainting adversarial": partial(Inpainting, **TINY, size=16, width=16, mask="region", adversarial=True),
    "Inpainting.vit": partial(Inpainting, **VIT, width=16, mask="blocks"),
    "MAE": partial(MAE, **VIT, **DECODER),
    "MAE pixels": partial(MAE, **VIT, **DECODER, norm_pix_loss=False),
    "CPC.audio": partial(CPC.audio, **WAVES, **PAST),
    "CPC.image": partial(CPC.image, **TINY, **PAST | {"context_args": {"layers": 1, "hidden": 8}}, size=16, patch=6),
    "CPC.video": partial(CPC.video, **TINY, **PAST, size=16),
    "DINO": partial(DINO, **TINY, **CROPS),
    "DINO.vit": partial(DINO, **{**VIT, **CROPS}),
    "DINOv2": partial(DINOv2, **{**VIT, **CROPS}, **FLAT),
    "DINOv2 Gram": partial(DINOv2, **{**VIT, **CROPS}, **FLAT, gram_weight=1.0, gram_scale=2, gram_every=2),
    "DINOv2 untied": partial(DINOv2, **{**VIT, **CROPS}, **FLAT, patch_bottleneck_dim=4, targets="sinkhorn_knopp"),
}


@lru_cache
def kind(name: str) -> str:
    """What the method takes: "image", "sound" or "video"."""
    return METHODS[name]().input_kind


def replace_batch_norm(module: nn.Module, make: Callable[[nn.Module], nn.Module]) -> None:
    """Put ``make(batch_norm)`` in the place of every batch norm below ``module``."""
    for name, child in module.named_children():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            setattr(module, name, make(child))
        else:
            replace_batch_norm(child, make)
