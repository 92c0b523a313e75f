"""The vision transformer of MoCo v3."""

import math
from typing import Any

import timm
import torch
from timm.layers import build_sincos2d_pos_embed
from torch import nn

from sslmodules.encoders.vit import ViT


def moco_v3_vit(size: str = "small", freeze_patch_projection: bool = True, **kwargs: Any) -> ViT:
    """ViT as MoCo v3 trains it (Chen, Xie, He 2021, section 4.3 and appendix): a random, frozen patch projection.

    Positions are fixed 2-D sines and cosines, the class token starts at std 1e-6, Linears are Xavier-uniform with
    queries, keys and values counted as three matrices. ViT-S has 12 heads.

    Args:
        size: ``"small"`` (384 wide, 12 heads) or ``"base"`` (768 wide, 12 heads); both 12 blocks, patch 16.
        freeze_patch_projection: leave the patch projection at its random values, which is what makes training stable.
        kwargs: further arguments of timm's ``VisionTransformer`` (``img_size``, ``in_chans``, ``patch_size``).

    Raises:
        ValueError: another size.

    >>> vit = moco_v3_vit("small", img_size=32, patch_size=8)
    >>> vit(torch.zeros(1, 3, 32, 32)).shape, vit.patch_embed.proj.weight.requires_grad
    (torch.Size([1, 384]), False)
    """
    if size not in ("small", "base"):
        raise ValueError(f"the size is {size!r}, expected 'small' or 'base'")
    # Without dynamic sizes: the position table is made for one grid, as in the paper.
    plain: Any = timm.create_model(f"vit_{size}_patch16_224", num_classes=0, num_heads=12, **kwargs)
    vit: Any = ViT.of(plain)
    projection = vit.patch_embed.proj
    with torch.no_grad():
        positions = build_sincos2d_pos_embed(vit.patch_embed.grid_size, dim=vit.embed_dim, interleave_sin_cos=True)
        vit.pos_embed[:, 0] = 0
        vit.pos_embed[:, 1:] = positions
        nn.init.normal_(vit.cls_token, std=1e-6)
        for name, module in vit.named_modules():
            if isinstance(module, nn.Linear):
                if name.endswith("qkv"):
                    bound = math.sqrt(6 / (module.weight.shape[0] // 3 + module.weight.shape[1]))
                    nn.init.uniform_(module.weight, -bound, bound)
                else:
                    nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        fan_in = projection.weight[0].numel()
        bound = math.sqrt(6 / (fan_in + vit.embed_dim))
        nn.init.uniform_(projection.weight, -bound, bound)
        nn.init.zeros_(projection.bias)
    vit.pos_embed.requires_grad_(False)
    projection.requires_grad_(not freeze_patch_projection)
    return vit
