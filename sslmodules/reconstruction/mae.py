"""MAE (masked autoencoder): see a quarter of the patches of an image, reconstruct the pixels of the others.

He, Chen, Xie, Li, Dollár, Girshick, "Masked Autoencoders Are Scalable Vision Learners", CVPR 2022. With three quarters
of an image gone, filling in by extending lines and textures fails: the content has to be understood. The transformer
that is kept computes visible patches alone, so most of its work is saved; mask tokens enter a small decoder behind it.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers import LayerNorm, PatchEmbed, build_sincos2d_pos_embed, resample_abs_pos_embed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from sslmodules.encoders import ViT
from sslmodules.module import SSLModule
from sslmodules.tiles import Tiles
from sslmodules.views import RandomResizedCrop

# Of the variance of a patch's pixels, against patches of one colour.
NORM_PIX_EPS = 1e-6
# Parts of a ViT that tokens do not pass through on their way to the loss.
UNREACHED = ("attn_pool", "fc_norm", "head", "mask_token")


class MAE(SSLModule):
    """Masked autoencoder (He et al. 2022). Defaults: ImageNet, ViT-B/16, batch 4,096, 800 or 1,600 epochs (table 8).

    A linear probe sees little of what was learned (68 % where fine-tuning gives 83.6 %), and nearest neighbours less.
    To compile what the encoder computes in training, ``method.encoder.blocks.compile()``.

    Args:
        encoder: a name for :func:`~sslmodules.encoders.create_encoder` that gives a :class:`~sslmodules.encoders.ViT`,
            or one. See :class:`~sslmodules.SSLModule` for the arguments that are not listed here.
        size: side of the views in pixels; None makes them as large as the images that come in.
        mask_ratio: share of the patches that are removed, in [0, 1), the same count in every image. Nothing is left to
            predict at 0, and the loss is 0.
        norm_pix_loss: predict each patch's pixels less their mean, over their standard deviation: the better features
            (table 1d). False predicts the pixels of the normalised image.
        decoder_dim: width of the decoder, a multiple of 4.
        decoder_depth: number of its blocks.
        decoder_heads: number of its attention heads.
        fixed_positions: whether the encoder has sines and cosines for positions, which are not trained; else those of
            timm, which are. Only of an encoder that is built by name and without pretrained weights, and so are the
            authors' initial values.
        min_scale: smallest share of the image's area that the crop covers.
        learning_rate: of AdamW, for a batch of 256; scaled in proportion to the global batch.
        weight_decay: of AdamW; the class token and the mask token have it too.

    Raises:
        ValueError: an encoder that is no ViT or has weights that the loss does not reach, a mask_ratio outside [0, 1),
            or a decoder_dim that does not divide.

    >>> tiny = {"encoder_args": {"patch_size": 4, "embed_dim": 24, "depth": 1}, "decoder_dim": 16, "decoder_heads": 2}
    >>> method = MAE("vit_tiny_patch16_224", size=16, decoder_depth=1, **tiny)
    >>> views = method.make_views(torch.randint(0, 256, (8, 3, 20, 20), dtype=torch.uint8))
    >>> [v.shape for v in views], sorted(method.loss(views))
    ([torch.Size([8, 3, 16, 16]), torch.Size([8, 16])], ['loss'])
    """

    default_warmup_epochs = 40
    validation_measure = "loss"

    encoder: ViT

    def __init__(
        self,
        encoder: str | nn.Module = "vit_base_patch16_224",
        *,
        size: int | None = 224,
        mask_ratio: float = 0.75,
        norm_pix_loss: bool = True,
        decoder_dim: int = 512,
        decoder_depth: int = 8,
        decoder_heads: int = 16,
        fixed_positions: bool = True,
        min_scale: float = 0.2,
        mean: Sequence[float] | None = IMAGENET_DEFAULT_MEAN,
        std: Sequence[float] | None = IMAGENET_DEFAULT_STD,
        learning_rate: float = 1.5e-4,
        weight_decay: float = 0.05,
        **kwargs: Any,
    ) -> None:
        super().__init__(
            encoder,
            size=size,
            mean=mean,
            std=std,
            learning_rate=learning_rate,
            weight_decay=weight_decay,
            **kwargs,
        )
        _require_vit(self.encoder)
        if not 0 <= mask_ratio < 1:
            raise ValueError(f"mask_ratio is {mask_ratio}, expected a share of at least 0 and below 1")
        self.mask_ratio = mask_ratio
        self.norm_pix_loss = norm_pix_loss
        self.view = RandomResizedCrop(size, scale=(min_scale, 1.0), interpolation="bicubic", flip=0.5)
        self.patch: tuple[int, int] = self.encoder.patch_embed.patch_size
        self.decoder = TokenDecoder(
            self.encoder.embed_dim,
            self.encoder.patch_embed.grid_size,
            self.encoder.num_prefix_tokens,
            self.patch[0] * self.patch[1] * self.in_channels,
            dim=decoder_dim,
            depth=decoder_depth,
            heads=decoder_heads,
        )
        given = kwargs.get("encoder_args") or {}
        if isinstance(encoder, str) and not (given.get("pretrained") or given.get("checkpoint_path")):
            _initialise(self.encoder, fixed_positions)

    def make_views(self, images: Tensor) -> list[Tensor]:
        """Crops (B, C, H, W), and for each its patches in random order, (B, N) int64: the first are to be visible."""
        crops = self.normalize(self.view(images, self.generator))
        h, w = self.grid(crops)
        noise = torch.rand(len(crops), h * w, generator=self.generator)
        return [crops, noise.argsort(1).to(crops.device, non_blocking=True)]

    def grid(self, x: Tensor) -> tuple[int, int]:
        """Rows and columns of the patches of images (B, C, H, W)."""
        return x.shape[2] // self.patch[0], x.shape[3] // self.patch[1]

    def visible(self, patches: int) -> int:
        """How many of an image's patches the encoder sees: ``floor(N·(1 - mask_ratio))``."""
        return int(patches * (1 - self.mask_ratio) + 1e-9)  # 10 · (1 - 0.9) must not fall short of 1

    def predict(self, x: Tensor, shuffle: Tensor) -> Tensor:
        """Predict every patch of images from those that come first in the order ``shuffle`` (B, N).

        Returns:
            (B, N, p·q·C), in rows; see :func:`patchify`. Of visible patches it is not trained.
        """
        keep = shuffle[:, : self.visible(shuffle.shape[1])]  # (B, K)
        tokens = self.encoder.forward_tokens(x, keep)  # (B, prefix + K, D)
        return self.decoder(tokens, shuffle.argsort(1), self.grid(x))

    def loss(self, views: list[Tensor]) -> dict[str, Any]:
        """Mean squared error over the pixels of masked patches.

        Without features: the encoder saw a part of each image.
        """
        x, shuffle = views
        target = patchify(x, self.patch)  # (B, N, p·q·C)
        if self.norm_pix_loss:
            mean, std = patch_statistics(target)
            target = (target - mean) / std
        error = (self.predict(x, shuffle).to(target.dtype) - target).square().mean(2)  # (B, N)
        error = error.gather(1, shuffle[:, self.visible(shuffle.shape[1]) :])  # (B, N - K)
        return {"loss": error.sum() / max(error.numel(), 1)}  # where none is masked, a mean would be NaN

    def check_images(self, images: Tensor) -> None:
        """Refuse a mask that leaves nothing visible, besides what no method can train on."""
        super().check_images(images)
        side = images if self.size is None else images.new_empty(1, 1, self.size, self.size)
        h, w = self.grid(side)
        if self.visible(h * w) == 0:
            raise ValueError(
                f"a mask_ratio of {self.mask_ratio} leaves none of {h}x{w} patches visible; pass a smaller one, or "
                "smaller patches"
            )

    @torch.no_grad()
    def pictures(self, images: Tensor) -> dict[str, Tiles]:
        """Show what the encoder sees, its patches with the predicted ones between them, and the truth.

        With ``norm_pix_loss`` a predicted patch takes its mean and standard deviation from the truth, so that even an
        untrained decoder shows the coarse image.
        """
        x, shuffle = self._views(images)
        grid = self.grid(x)
        target = patchify(x, self.patch)
        prediction = self.predict(x, shuffle).to(target.dtype)
        if self.norm_pix_loss:
            mean, std = patch_statistics(target)
            prediction = prediction * std + mean
        shown = shuffle[:, : self.visible(shuffle.shape[1]), None]
        hidden = torch.ones_like(target[..., :1]).scatter_(1, shown, 0.0)  # (B, N, 1), 1 where masked
        filled = unpatchify(torch.where(hidden > 0, prediction, target), grid, self.patch)
        hidden = unpatchify(hidden.expand_as(target), grid, self.patch)
        truth = self.denormalize(x)
        shown = torch.stack([torch.where(hidden > 0, 0.5, truth), self.denormalize(filled), truth], 1)
        return {"reconstruction": Tiles(shown, ["visible patches", "the others predicted", "image"])}

    def recipe_optimizer(self, groups: list[dict[str, Any]], lr: float) -> Optimizer:
        """AdamW, β = (0.9, 0.95)."""
        return AdamW(groups, lr=lr, betas=(0.9, 0.95), weight_decay=self.weight_decay)


class TokenDecoder(nn.Module):
    """From the tokens of the visible patches to a vector for every patch: a transformer, narrower than the encoder.

    Args:
        in_dim: length of the tokens that come in.
        grid: rows and columns of the patches that the table of positions is made for; for others it is resized.
        prefix: how many tokens stand before the patches.
        out: length of the vectors that go out.
        dim: width, a multiple of 4 and of ``heads``.
        depth: number of blocks.
        heads: number of attention heads.

    Raises:
        ValueError: a ``dim`` that does not divide.

    >>> decoder = TokenDecoder(in_dim=24, grid=(2, 2), prefix=1, out=48, dim=16, depth=1, heads=2)
    >>> decoder(torch.zeros(3, 1 + 1, 24), torch.tensor([[0, 1, 2, 3]] * 3), (2, 2)).shape
    torch.Size([3, 4, 48])
    """

    positions: Tensor

    def __init__(
        self, in_dim: int, grid: tuple[int, int], prefix: int, out: int, *, dim: int, depth: int, heads: int
    ) -> None:
        super().__init__()
        if dim % heads:
            raise ValueError(f"decoder_dim is {dim} and decoder_heads {heads}; expected a multiple of the heads")
        self.grid = grid
        self.prefix = prefix
        self.embed = nn.Linear(in_dim, dim)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.register_buffer("positions", sincos_positions(grid, dim), persistent=False)
        self.blocks = nn.Sequential(*(Block(dim, heads, qkv_bias=True, norm_layer=LayerNorm) for _ in range(depth)))
        self.norm = LayerNorm(dim)
        self.head = nn.Linear(dim, out)
        nn.init.normal_(self.mask_token, std=0.02)
        _xavier(self)

    def forward(self, tokens: Tensor, restore: Tensor, grid: tuple[int, int]) -> Tensor:
        """Put mask tokens in the gaps, add positions, decode.

        Args:
            tokens: (B, prefix + K, in_dim).
            restore: (B, N) int64, for every patch in rows where it stands among the K visible and then the masked.
            grid: rows and columns of the N patches.

        Returns:
            (B, N, out).
        """
        tokens = self.embed(tokens)  # (B, prefix + K, dim)
        prefix, visible = tokens.tensor_split([self.prefix], 1)
        gaps = self.mask_token.expand(len(tokens), restore.shape[1] - visible.shape[1], -1)
        patches = torch.cat([visible, gaps.to(visible.dtype)], 1)
        patches = patches.gather(1, restore[..., None].expand_as(patches))  # (B, N, dim)
        patches = patches + resample_abs_pos_embed(self.positions, list(grid), list(self.grid), num_prefix_tokens=0)
        x = self.blocks(torch.cat([prefix.to(patches.dtype), patches], 1))
        return self.head(self.norm(x[:, self.prefix :]))


def patchify(images: Tensor, patch: tuple[int, int]) -> Tensor:
    """Cut images (B, C, H, W) into patches (B, N, p·q·C) in rows; inside a patch rows, columns, then channels.

    >>> patchify(torch.arange(12.0).view(1, 3, 2, 2), (1, 2))[0, 0].tolist()
    [0.0, 4.0, 8.0, 1.0, 5.0, 9.0]
    """
    p, q = patch
    cut = images.unflatten(3, (-1, q)).unflatten(2, (-1, p))  # (B, C, h, p, w, q)
    return cut.permute(0, 2, 4, 3, 5, 1).flatten(3).flatten(1, 2)


def unpatchify(patches: Tensor, grid: tuple[int, int], patch: tuple[int, int]) -> Tensor:
    """Put patches (B, h·w, p·q·C) together again, to (B, C, h·p, w·q): the inverse of :func:`patchify`.

    >>> images = torch.rand(2, 3, 8, 12)
    >>> torch.equal(unpatchify(patchify(images, (4, 2)), (2, 6), (4, 2)), images)
    True
    """
    cut = patches.unflatten(2, (*patch, -1)).unflatten(1, grid)  # (B, h, w, p, q, C)
    return cut.permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def patch_statistics(patches: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each patch's values, (B, N, 1) both, the variance unbiased (He et al. 2022).

    >>> mean, std = patch_statistics(torch.tensor([[[1.0, 2.0, 3.0]]]))
    >>> mean.item(), round(std.item(), 4)
    (2.0, 1.0)
    """
    return patches.mean(2, keepdim=True), (patches.var(2, keepdim=True, correction=1) + NORM_PIX_EPS).sqrt()


def sincos_positions(grid: tuple[int, int], dim: int) -> Tensor:
    """MAE's table of positions (1, h·w, dim): sines and cosines of the column, then sines and cosines of the row.

    Args:
        grid: h and w.
        dim: a multiple of 4.

    Raises:
        ValueError: another dim.

    >>> (100 * sincos_positions((1, 2), 4)).round().int().tolist()
    [[[0, 100, 0, 100], [84, 54, 0, 100]]]
    """
    if dim % 4:
        raise ValueError(f"positions of {dim} sines and cosines were asked for; expected a multiple of 4")
    h, w = grid
    table = build_sincos2d_pos_embed([w, h], dim, interleave_sin_cos=True)  # timm's has the first axis first
    return table.view(w, h, dim).transpose(0, 1).reshape(1, h * w, dim)


def _require_vit(encoder: nn.Module) -> None:
    if not isinstance(encoder, ViT) or not isinstance(encoder.patch_embed, PatchEmbed):
        raise ValueError(
            f"MAE needs a transformer that computes some patches of an image alone, and the encoder is a "
            f"{type(encoder).__name__}; pass a name like 'vit_base_patch16_224', or ViT.of(...) a VisionTransformer "
            "of timm"
        )
    unreached = [n for n, p in encoder.named_parameters() if n.split(".")[0] in UNREACHED and p.requires_grad]
    if unreached:
        raise ValueError(
            f"MAE's loss does not reach the encoder's {', '.join(unreached)}, which stand behind the tokens or beside "
            "them; build it without: num_classes=0, global_pool='token' (or 'avg' with fc_norm=False), "
            "mask_token=False"
        )


@torch.no_grad()
def _initialise(encoder: ViT, fixed_positions: bool) -> None:
    """Give a ViT the values that MAE starts from."""
    _xavier(encoder)
    projection: Any = encoder.patch_embed.proj
    nn.init.xavier_uniform_(projection.weight.view(len(projection.weight), -1))  # as the Linear that it is
    if projection.bias is not None:
        nn.init.zeros_(projection.bias)
    for token in (encoder.cls_token, encoder.reg_token):
        if token is not None:
            nn.init.normal_(token, std=0.02)
    if fixed_positions and encoder.pos_embed is not None:
        table = sincos_positions(encoder.patch_embed.grid_size, encoder.embed_dim)
        encoder.pos_embed.zero_()  # of the class token, where it has one
        encoder.pos_embed[:, -table.shape[1] :] = table
        encoder.pos_embed.requires_grad_(False)


def _xavier(module: nn.Module) -> None:
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
