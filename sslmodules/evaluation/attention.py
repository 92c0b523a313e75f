"""What an encoder looks at: attention of transformers, activations of convolutional encoders, patches as colours.

Caron et al., "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, figures 1 and 4. Zagoruyko,
Komodakis, "Paying More Attention to Attention", ICLR 2017, section 3.1. Oquab et al., "DINOv2: Learning Robust Visual
Features without Supervision", 2023, figure 1.
"""

from collections.abc import Iterable
from typing import TypeGuard

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional as F

from sslmodules.encoders.vit import ViT

# A set that lacks this part of the share holds it: sums in fp32 are no more exact.
ROUNDING = 1e-5

# Components with less of the features' mean square than this are rounding, and no colour is made of it.
LEAST_VARIANCE = 1e-12


def shows_attention(encoder: nn.Module) -> TypeGuard[ViT]:
    """Whether :func:`class_attention` can read the encoder: a ViT with a class token and timm's own blocks.

    >>> shows_attention(nn.Conv2d(3, 8, 3))
    False
    """
    return (
        isinstance(encoder, ViT)
        and encoder.cls_token is not None
        and all(isinstance(b, Block) and isinstance(b.attn, Attention) for b in encoder.blocks)
    )


def class_attention(encoder: ViT, x: Tensor, block: int = -1) -> Tensor:
    """Attention of the class token on the patches, of each head (Caron et al. 2021, figure 1).

    It is the class token's row of the softmax, without the columns of itself and of the registers, and not made to
    sum to 1 again.

    Args:
        encoder: with a class token.
        x: preprocessed images (B, C, H, W) of any size that its patches divide; positions are interpolated.
        block: index, negative from the last.

    Returns:
        (B, heads, h, w) in [0, 1], fp32 or wider, with h = H / patch and w = W / patch.

    Raises:
        ValueError: no class token, no such block, one without timm's ``Block`` and ``Attention``, or an image that the
            patches do not divide.

    >>> vit = ViT(img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=0, dynamic_img_size=True)
    >>> class_attention(vit, torch.zeros(1, 3, 16, 40)).shape
    torch.Size([1, 3, 2, 5])
    """
    if encoder.cls_token is None:
        raise ValueError("the encoder has no class token whose attention could be shown; show its activations")
    patch = encoder.patch_embed.patch_size
    height, width = x.shape[-2:]
    if height % patch[0] or width % patch[1]:
        raise ValueError(
            f"the images are {height}x{width} px, no multiple of the patch ({patch[0]}x{patch[1]}); crop them to one"
        )
    row = encoder.attention(x, block)[:, :, 0, encoder.num_prefix_tokens :]  # (B, heads, N)
    return row.unflatten(2, (height // patch[0], width // patch[1]))


def mass_mask(attention: Tensor, share: float = 0.6) -> Tensor:
    """Smallest set of patches that holds a share of the attention on all (Caron et al. 2021, figures 1 and 4).

    Of patches with equal attention the earlier ones (in rows) are taken first.

    Args:
        attention: (..., h, w), at least 0, of any scale; every map has its own set.
        share: in (0, 1].

    Returns:
        (..., h, w) bool; without any patch where the attention is 0 everywhere.

    Raises:
        ValueError: a share out of its range.

    >>> mass_mask(torch.tensor([[0.1, 0.4], [0.3, 0.2]]))
    tensor([[False,  True],
            [ True, False]])
    """
    if not 0 < share <= 1:
        raise ValueError(f"the share is {share}, expected a number above 0 and at most 1")
    mass, order = attention.float().flatten(-2).sort(dim=-1, descending=True, stable=True)  # (..., N)
    before = mass.cumsum(-1) - mass  # held by the patches that come first
    total = mass.sum(-1, keepdim=True)
    taken = before < share * (1 - ROUNDING) * total
    return torch.zeros_like(taken).scatter(-1, order, taken).unflatten(-1, attention.shape[-2:])


def activation_attention(maps: Tensor, power: float = 2) -> Tensor:
    """Where a convolutional encoder is active: Σ abs(activation)^p over the channels (Zagoruyko, Komodakis 2017).

    Args:
        maps: (B, C, h, w), of any stage of any encoder: ``module.features(images, [stage])``.
        power: p, above 0; the larger, the more the strongest channels count.

    Returns:
        (B, h, w) fp32, each image's from 0 to 1; 0 where an image's is the same everywhere.

    Raises:
        ValueError: maps of another number of dimensions, or a power out of its range.

    >>> activation_attention(torch.tensor([[[[0.0, 1.0]], [[0.0, -2.0]]]]))
    tensor([[[0., 1.]]])
    """
    if maps.ndim != 4:
        raise ValueError(f"the maps are {tuple(maps.shape)}, expected (B, C, h, w)")
    if power <= 0:
        raise ValueError(f"the power is {power}, expected a number above 0")
    return stretched(maps.float().abs().pow(power).sum(1))


def stretched(maps: Tensor) -> Tensor:
    """Every map (..., h, w) moved and scaled so that it goes from 0 to 1; 0 where it is the same everywhere.

    >>> stretched(torch.tensor([[2.0, 4.0, 3.0]]))
    tensor([[0.0000, 1.0000, 0.5000]])
    """
    least, most = maps.amin((-2, -1), keepdim=True), maps.amax((-2, -1), keepdim=True)
    extent = most - least
    return (maps - least) / torch.where(extent > 0, extent, 1)


def principal_axes(patches: Iterable[Tensor], components: int = 3) -> tuple[Tensor, Tensor]:
    """Mean and first principal axes of features that come in parts, of which only sums are kept.

    Signs are made the same for the same features: each axis's largest entry (the first of equals) is positive. Axes
    along which the features do not vary are 0.

    Args:
        patches: parts (n, D) of the N features, such as the patches of one image after the other.
        components: K, at most D.

    Returns:
        Mean (D,) and axes (D, K), fp64 on the CPU, the axis of the greatest variance first.

    Raises:
        ValueError: no features, or more components than they have dimensions.

    >>> principal_axes([torch.tensor([[0.0, 1.0]]), torch.tensor([[4.0, 1.0]])], 1)
    (tensor([2., 1.], dtype=torch.float64), tensor([[1.],
            [0.]], dtype=torch.float64))
    """
    count, total, products = 0, torch.zeros(()).double(), torch.zeros(()).double()
    for part in patches:
        part = part.detach().cpu().double()  # differences of sums need the digits, and not all devices have them
        count, total, products = count + len(part), total + part.sum(0), products + part.T @ part
    if count == 0 or not 0 < components <= len(total):
        raise ValueError(
            f"{components} components were asked for of {count} features of {total.numel()} dimensions; expected at "
            "least one feature, and one component to as many as there are dimensions"
        )
    mean = total / count
    variances, axes = torch.linalg.eigh(products / count - mean.outer(mean))  # ascending
    variances, axes = variances.flip(0)[:components], axes.flip(1)[:, :components]
    signs = axes.gather(0, axes.abs().argmax(0, keepdim=True)).sign()  # (1, K)
    varies = variances > LEAST_VARIANCE * products.trace() / count
    return mean, axes * signs * varies


def pca_colors(maps: Tensor, components: int = 3) -> Tensor:
    """First principal components of all patches of all images together, as colours (Oquab et al. 2023, figure 1).

    Alike patches get like colours, also in different images. The figure besides leaves out the background, by a
    threshold on the first component; here it is shown.

    Args:
        maps: features of the patches (B, D, h, w), such as ``module.encode_map(module.preprocess(images))``.
        components: K, at most D.

    Returns:
        (B, K, h, w) fp32 in [0, 1]: every component from its least value over all images to its greatest, 0.5 where it
        is the same for all. Signs are those of :func:`principal_axes`.

    Raises:
        ValueError: maps of another number of dimensions, or more components than channels.

    >>> pca_colors(torch.randn(2, 8, 4, 5)).shape
    torch.Size([2, 3, 4, 5])
    """
    if maps.ndim != 4:
        raise ValueError(f"the maps are {tuple(maps.shape)}, expected (B, D, h, w)")
    mean, axes = principal_axes([maps.permute(0, 2, 3, 1).flatten(0, 2)], components)
    scores = projected(maps, mean, axes)  # (B, K, h, w)
    return colors(scores, scores.amin((0, 2, 3)), scores.amax((0, 2, 3))).to(maps.device)


def projected(maps: Tensor, mean: Tensor, axes: Tensor) -> Tensor:
    """Coordinates (B, K, h, w) of maps (B, D, h, w) along axes (D, K), fp64 on the CPU."""
    return torch.einsum("bdhw,dk->bkhw", maps.detach().cpu().double() - mean.view(-1, 1, 1), axes)


def colors(scores: Tensor, least: Tensor, most: Tensor) -> Tensor:
    """Scores (B, K, h, w) to fp32 in [0, 1], 0 at ``least`` (K,) and 1 at ``most`` (K,); 0.5 where these are equal."""
    least, extent = least.view(-1, 1, 1), (most - least).view(-1, 1, 1)
    return torch.where(extent > 0, (scores - least) / extent.where(extent > 0, 1), 0.5).float().clamp(0, 1)


def enlarged(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (B, K, h, w) as large as the image, without smoothing: every patch one colour (Caron et al. 2021).

    >>> enlarged(torch.tensor([[[[1.0, 2.0]]]]), 2, 4)
    tensor([[[[1., 1., 2., 2.],
              [1., 1., 2., 2.]]]])
    """
    return F.interpolate(maps.float(), (height, width), mode="nearest-exact")


def attention_tiles(images: Tensor, attention: Tensor, share: float = 0.6) -> Tensor:
    """Pictures of attention for the eye: the image, the mean over the heads, every head, and the mask of the mean.

    Every map goes from black to white on its own scale. What lies outside the mask is darkened.

    Args:
        images: (B, C, H, W) in [0, 1].
        attention: (B, heads, h, w), see :func:`class_attention`.
        share: of the attention that the mask holds; see :func:`mass_mask`.

    Returns:
        (B, 3 + heads, C, H, W) in [0, 1].

    >>> attention_tiles(torch.ones(2, 3, 8, 8), torch.rand(2, 6, 4, 4)).shape
    torch.Size([2, 9, 3, 8, 8])
    """
    size = images.shape[-2:]
    mean = attention.mean(1, keepdim=True)  # (B, 1, h, w)
    maps = enlarged(stretched(torch.cat([mean, attention], 1)), *size)  # (B, 1 + heads, H, W)
    inside = enlarged(mass_mask(mean, share), *size)  # (B, 1, H, W)
    grey = maps[:, :, None].expand(-1, -1, images.shape[1], -1, -1)  # (B, 1 + heads, C, H, W)
    return torch.cat([images[:, None], grey, (images * (0.25 + 0.75 * inside))[:, None]], 1)
