"""Masks of patches in blocks, for masked image modelling, drawn on the host for a whole batch."""

import math

import torch
from torch import Generator, Tensor


def block_masks(
    counts: Tensor,
    height: int,
    width: int,
    min_patches: int = 4,
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    tries: int = 10,
    generator: Generator | None = None,
) -> Tensor:
    """Mask about so many patches of each image, block by block (BEiT, Bao et al. 2022, algorithm 1; iBOT, DINOv2).

    A block's area is uniform between ``min_patches`` and what is left to mask, its aspect ratio log-uniform. The first
    of ``tries`` that fits inside and masks something new, but not too much, is taken; where none does, the image stays
    with fewer (by 4 % at worst at 16 x 16 patches).

    Args:
        counts: (B,) int64, patches to mask in each image.
        height: H, rows of patches.
        width: W, columns.
        min_patches: least area of a block, as long as so many are left.
        aspect: least and greatest ratio of a block's height to its width.
        tries: for each block.
        generator: on the CPU; None is torch's global one.

    Returns:
        bool (B, H, W) on the host, true = masked; at most ``counts`` in each image.

    Raises:
        ValueError: counts below 0 or of all patches.

    >>> mask = block_masks(torch.tensor([0, 20, 60]), 14, 14, generator=torch.Generator().manual_seed(0))
    >>> mask.sum((1, 2)).tolist()
    [0, 20, 60]
    """
    if len(counts) and not 0 <= int(counts.min()) <= int(counts.max()) < max(height * width, 1):
        raise ValueError(
            f"{int(counts.min())} to {int(counts.max())} of {height} x {width} patches were to be masked; expected at "
            "least 0 and less than all"
        )
    mask = torch.zeros(len(counts), height, width, dtype=torch.bool)
    row, column = torch.arange(height), torch.arange(width)
    low, high = math.log(aspect[0]), math.log(aspect[1])
    unfinished = counts.nonzero().flatten()
    while len(unfinished):
        b = len(unfinished)
        left = (counts - mask.sum((1, 2)))[unfinished, None]  # (b, 1)
        draw = torch.rand(4, b, tries, generator=generator)
        area = min_patches + draw[0] * (left - min_patches)  # (b, tries)
        ratio = (low + draw[1] * (high - low)).exp()
        h, w = (area * ratio).sqrt().round().long(), (area / ratio).sqrt().round().long()
        top, start = (draw[2] * (height - h + 1)).long(), (draw[3] * (width - w + 1)).long()
        rows = (row >= top[..., None]) & (row < (top + h)[..., None])  # (b, tries, H)
        columns = (column >= start[..., None]) & (column < (start + w)[..., None])  # (b, tries, W)
        block = rows[..., None] & columns[:, :, None]  # (b, tries, H, W)
        new = (block & ~mask[unfinished, None]).sum((2, 3))  # (b, tries)
        fits = (h < height) & (w < width) & (new > 0) & (new <= left)
        first = fits.to(torch.uint8).argmax(1)
        found = fits.any(1)
        mask[unfinished] |= block[torch.arange(b), first] & found[:, None, None]
        unfinished = unfinished[found & (mask[unfinished].sum((1, 2)) < counts[unfinished])]
    return mask


def spread_block_masks(
    batch: int,
    height: int,
    width: int,
    share: float = 0.5,
    ratio: tuple[float, float] = (0.1, 0.5),
    generator: Generator | None = None,
) -> Tensor:
    """Mask a share of the images of a batch, from little to much (DINOv2, Oquab et al. 2023, the authors' code).

    Exactly ``floor(share·batch)`` images are masked. The range of ratios is cut into as many equal pieces, one image's
    ratio is drawn from each, and the images are shuffled: every batch has all ratios, and nearly the same total.

    Args:
        batch: B.
        height: H, rows of patches.
        width: W, columns.
        share: of the images that are masked at all.
        ratio: least and greatest share of patches, in [0, 1).
        generator: on the CPU; None is torch's global one.

    Returns:
        bool (B, H, W) on the host, true = masked.

    Raises:
        ValueError: shares out of their range.

    >>> masks = spread_block_masks(8, 14, 14, generator=torch.Generator().manual_seed(0))
    >>> masks.shape, masks.any(1).any(1).sum().item()
    (torch.Size([8, 14, 14]), 4)
    """
    if not 0 <= share <= 1 or not 0 <= ratio[0] <= ratio[1] < 1:
        raise ValueError(f"share is {share} and ratio {ratio}; expected 0 to 1, and 0 <= least <= greatest < 1")
    masked = int(share * batch)
    edges = torch.linspace(*ratio, masked + 1)
    ratios = edges[:-1] + edges.diff() * torch.rand(masked, generator=generator)
    counts = torch.zeros(batch, dtype=torch.int64)
    counts[torch.randperm(batch, generator=generator)[:masked]] = (ratios * height * width).long()
    return block_masks(counts, height, width, generator=generator)
