"""The vision transformer: timm's, on some of its patches, with mask tokens, at any size, and with its attention."""

from typing import Any, Literal, Self

import torch
from timm.layers import Attention, DropPath
from timm.models import checkpoint_seq
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional as F

# Above this rate DINOv2 computes a branch for a part of the batch only; below, picking the part costs what it saves.
SUBSET_ABOVE = 0.1


class ViT(VisionTransformer):
    """timm's vision transformer (Dosovitskiy et al. 2021), and what masked and multi-crop training ask of it besides.

    Modules, names of weights and ``forward`` are timm's: weights go back and forth with ``strict=True`` (but for
    ``mask_token``, where there is one). Registers are timm's ``reg_tokens``, images of any size its
    ``dynamic_img_size=True``. :func:`~sslmodules.encoders.create_encoder` gives every ``"vit_..."`` of timm as a ViT.

    Args:
        interpolation: how positions are made for another grid of patches than the one they were trained on.
            ``"antialiased"`` is timm's; ``"dino"`` that of DINO and DINOv2, whose weights expect it: bicubic without
            antialiasing, by factors of a tenth of a patch more (in effect a small shift).
        mask_token: whether there is a learnable token, zero at first, to put in the place of masked patches.
        uniform_drop_path: rate in [0, 1) at which every block leaves out its residual branches in training. Above 0.1
            each branch is computed for a random ``floor(B·(1 - rate))`` images of the batch only, weighted by
            ``B / kept`` (DINOv2, Oquab et al. 2023, section 5). 0 leaves what timm built: ``drop_path_rate`` rises
            from block to block.
        kwargs: of timm's ``VisionTransformer``.

    Raises:
        ValueError: an unknown interpolation, a rate outside [0, 1), or a rate for blocks that are not timm's ``Block``.

    >>> vit = ViT(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0, dynamic_img_size=True)
    >>> images = torch.zeros(2, 3, 32, 32)
    >>> vit(images).shape, vit.forward_tokens(images, keep=torch.tensor([[0, 5], [7, 1]])).shape
    (torch.Size([2, 24]), torch.Size([2, 3, 24]))
    """

    interpolation: Literal["antialiased", "dino"]
    mask_token: nn.Parameter | None

    def __init__(
        self,
        *,
        interpolation: Literal["antialiased", "dino"] = "antialiased",
        mask_token: bool = False,
        uniform_drop_path: float = 0.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self._extend(interpolation, mask_token, uniform_drop_path)

    @classmethod
    def of(
        cls,
        vit: VisionTransformer,
        *,
        interpolation: Literal["antialiased", "dino"] = "antialiased",
        mask_token: bool = False,
        uniform_drop_path: float = 0.0,
    ) -> Self:
        """Make a ViT of a transformer that timm has built, in place: its modules and weights stay the same objects.

        Args:
            vit: a ``timm.models.vision_transformer.VisionTransformer`` (and no subclass), pretrained or not.
            interpolation: see the class.
            mask_token: see the class.
            uniform_drop_path: see the class.

        Raises:
            ValueError: another class, or an argument out of its range.

        >>> import timm
        >>> ViT.of(timm.create_model("vit_tiny_patch16_224", depth=1)).attention(torch.zeros(1, 3, 224, 224)).shape
        torch.Size([1, 3, 197, 197])
        """
        if type(vit) is not VisionTransformer:
            raise ValueError(f"the encoder is a {type(vit).__name__}, expected timm's VisionTransformer")
        extended: Any = vit
        extended.__class__ = cls  # timm's factory names its class itself; the instance has all that ours needs
        extended._extend(interpolation, mask_token, uniform_drop_path)
        return extended

    def _extend(self, interpolation: Any, mask_token: bool, uniform_drop_path: float) -> None:
        if interpolation not in ("antialiased", "dino"):
            raise ValueError(f"interpolation is {interpolation!r}, expected 'antialiased' or 'dino'")
        if not 0 <= uniform_drop_path < 1:
            raise ValueError(f"uniform_drop_path is {uniform_drop_path}, expected a rate of at least 0 and below 1")
        self.interpolation = interpolation
        token = next(self.parameters()).new_zeros(1, 1, self.embed_dim)
        self.register_parameter("mask_token", nn.Parameter(token) if mask_token else None)
        if uniform_drop_path == 0:
            return
        for block in self.blocks:
            if type(block) is not Block:
                raise ValueError(
                    f"uniform_drop_path needs timm's Block and the encoder has {type(block).__name__}; pass "
                    "drop_path_rate, timm's own, in its place"
                )
            block.drop_path1, block.drop_path2 = DropPath(uniform_drop_path), DropPath(uniform_drop_path)
            if uniform_drop_path > SUBSET_ABOVE:
                block.__class__ = SubsetBlock

    def forward_tokens(self, x: Tensor, keep: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        """Tokens behind the final norm: class token, registers, then the patches in rows, or those kept of them.

        Positions are added before patches are left out, so every patch knows its place. ``encoder.compile()`` does
        not reach this method, ``encoder.blocks.compile()`` does.

        Args:
            x: preprocessed images (B, C, H, W) of N patches.
            keep: (B, K) int64, indices of the patches to compute, in the order in which they come out; None is all.
            mask: (B, N) bool, patches in whose place the mask token stands.

        Returns:
            (B, prefix + K, D), or (B, prefix + N, D) without ``keep``; prefix is ``num_prefix_tokens``.

        Raises:
            ValueError: a mask without a mask token, or shapes that do not fit the images.
        """
        x = self.patch_embed(x)  # (B, h, w, D), or (B, N, D) without dynamic sizes
        b, n, d = len(x), x.shape[1:-1].numel(), x.shape[-1]
        if mask is not None:
            if self.mask_token is None:
                raise ValueError("there is a mask and no token to put there; build the ViT with mask_token=True")
            if mask.shape != (b, n):
                raise ValueError(f"the mask is {tuple(mask.shape)}, expected one bool a patch, {(b, n)}")
            x = torch.where(mask.view(*x.shape[:-1], 1), self.mask_token.view(d).to(x.dtype), x)
        x = self._pos_embed(x)  # (B, prefix + N, D)
        if keep is not None:
            if keep.ndim != 2 or len(keep) != b or keep.shape[1] > n:
                raise ValueError(f"keep is {tuple(keep.shape)}, expected indices ({b}, K) of at most {n} patches")
            prefix = torch.arange(self.num_prefix_tokens, device=keep.device).expand(b, -1)
            kept = torch.cat([prefix, keep + self.num_prefix_tokens], 1)  # (B, prefix + K)
            x = x.gather(1, kept[..., None].expand(-1, -1, d))
        x = self.norm_pre(self.patch_drop(x))
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return self.norm(x)

    def attention(self, x: Tensor, block: int = -1) -> Tensor:
        """Attention weights of one block: of every token (rows) on all tokens (columns), which sum to 1.

        They are computed for this block alone, from what comes into it; elsewhere attention stays fused.

        Args:
            x: preprocessed images (B, C, H, W).
            block: index, negative from the last.

        Returns:
            (B, heads, T, T) with T = prefix + N, fp32 or wider.

        Raises:
            ValueError: no such block, or one without timm's ``Block`` and ``Attention``.
        """
        depth = len(self.blocks)
        if not -depth <= block < depth:
            raise ValueError(f"block {block} was asked for, the encoder has {depth}")
        layer = self.blocks[block]
        if not (isinstance(layer, Block) and isinstance(layer.attn, Attention)):
            raise ValueError(f"attention is read from timm's Block and Attention, not from a {type(layer).__name__}")
        x = self.norm_pre(self.patch_drop(self._pos_embed(self.patch_embed(x))))
        for earlier in self.blocks[:block]:
            x = earlier(x)
        attn: Any = layer.attn
        q, k, _ = attn.qkv(layer.norm1(x)).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = attn.q_norm(q), attn.k_norm(k)  # (B, heads, T, D / heads)
        scores = (q * attn.scale) @ k.transpose(-2, -1)
        return scores.softmax(-1, dtype=torch.promote_types(scores.dtype, torch.float32))

    def _pos_embed(self, x: Tensor) -> Tensor:
        """(B, h, w, D) patches, or (B, N, D) without dynamic sizes, to (B, prefix + N, D) tokens with positions."""
        if self.interpolation == "antialiased" or self.pos_embed is None or not self.dynamic_img_size:
            return super()._pos_embed(x)
        b, h, w, _ = x.shape
        prefix = [t.expand(b, -1, -1) for t in (self.cls_token, self.reg_token) if t is not None]
        without = 0 if self.no_embed_class else self.num_prefix_tokens
        table = self.pos_embed[:, without:]  # (1, N, D)
        positions = dino_positions(table, self.patch_embed.grid_size, (h, w))
        x = x.flatten(1, 2)
        if self.no_embed_class:
            x = torch.cat([*prefix, x + positions], 1)
        else:
            x = torch.cat([*prefix, x], 1) + torch.cat([self.pos_embed[:, :without], positions], 1)
        return self.pos_drop(x)


class SubsetBlock(Block):
    """timm's block whose residual branches are computed for a random part of the batch in training.

    With rate d, the rate of its ``drop_path1`` and ``drop_path2``, ``max(1, floor(B·(1 - d)))`` images are kept and
    what their branch adds is weighted by ``B / kept``: as much as if all had been computed, on average.
    """

    def forward(self, x: Tensor, **masks: Any) -> Tensor:  # type: ignore[override]
        """(B, T, D) to the same; under an attention mask, timm's drop path of single images."""
        if not self.training or masks:
            return super().forward(x, **masks)
        chosen = self._chosen(x)
        x = self._add(x, chosen, self.ls1(self.attn(self.norm1(x.index_select(0, chosen)))))
        chosen = self._chosen(x)
        return self._add(x, chosen, self.ls2(self.mlp(self.norm2(x.index_select(0, chosen)))))

    def _chosen(self, x: Tensor) -> Tensor:
        rate: Any = self.drop_path1.drop_prob
        kept = max(1, int(len(x) * (1 - rate) + 1e-9))  # 10 · (1 - 0.9) must not fall short of 1
        return torch.randperm(len(x), device=x.device)[:kept]

    def _add(self, x: Tensor, chosen: Tensor, branch: Tensor) -> Tensor:
        return x.index_add(0, chosen, branch.to(x.dtype), alpha=len(x) / len(chosen))


def dino_positions(table: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Positions for another grid, as DINO makes them (Caron et al. 2021, the authors' code).

    The table is resized bicubically, without antialiasing, by the factors ``(new + 0.1) / old``. The tenth was meant
    against rounding, and moves every point at which the table is read; weights trained so expect it.

    Args:
        table: (1, N, D), of the patches alone.
        old: rows and columns of the N patches.
        new: rows and columns of the patches to come.

    Returns:
        (1, rows·columns, D); the table itself where the grid is the same.

    >>> dino_positions(torch.zeros(1, 16, 8), (4, 4), (2, 6)).shape
    torch.Size([1, 12, 8])
    """
    if old == new:
        return table
    maps = table.unflatten(1, old).permute(0, 3, 1, 2).float()  # (1, D, h, w)
    factors = tuple((n + 0.1) / o for n, o in zip(new, old, strict=True))
    maps = F.interpolate(maps, scale_factor=factors, mode="bicubic")
    return maps.flatten(2).transpose(1, 2).to(table.dtype)
