"""Masks that hide part of an image: 1 where a pixel is hidden, one mask a sample, drawn on the host.

The shapes are those of Pathak et al., "Context Encoders: Feature Learning by Inpainting", CVPR 2016, section 3.3: a
square in the middle, blocks that may overlap, arbitrary regions.
"""

from functools import lru_cache

import torch
from torch import Generator, Tensor
from torch.nn import functional as F

# Authors' code (train_random.lua): noise of 600² pixels is enlarged to 10,000² and cropped at 128 px, so that a crop
# spans 7.7 of its pixels each way; noise below 0.25 is hole; crops of 20 to 30 % are taken.
CELLS = 0.06 * 128
THRESHOLD = 0.25
COVERAGE = (0.2, 0.3)
# Sides of the pattern in sides of a crop: the authors' 78 would take 100 MB at 128 px, these 1.6 MB.
CROPS = 10


def center_mask(batch: int, height: int, width: int, share: float = 0.5, overlap: int = 0) -> Tensor:
    """Hide a rectangle in the middle, the same in every sample.

    Args:
        batch: B.
        height: H in pixels.
        width: W in pixels.
        share: sides of the hole as a share of the image's, above 0 and below 1; rounded to whole pixels.
        overlap: width in pixels of a band along the hole's inner edge that stays visible, although it is part of what
            is to be predicted; see :func:`overlap_weights`.

    Returns:
        uint8 (B, 1, H, W), 1 = hidden.

    Raises:
        ValueError: arguments that hide nothing, or everything.

    >>> center_mask(1, 4, 6)[0, 0].tolist()
    [[0, 0, 0, 0, 0, 0], [0, 1, 1, 1, 0, 0], [0, 1, 1, 1, 0, 0], [0, 0, 0, 0, 0, 0]]
    """
    if not 0 < share < 1 or overlap < 0:
        raise ValueError(f"the hole's share is {share} and its overlap {overlap}; expected 0 < share < 1, overlap >= 0")
    sides = [round(share * height), round(share * width)]
    hidden = [side - 2 * overlap for side in sides]
    if min(hidden) < 1 or (sides[0] == height and sides[1] == width):
        raise ValueError(
            f"a hole of {share:g} of {height} x {width} px, less {overlap} px on each side, hides {hidden[0]} x "
            f"{hidden[1]} px; expected at least one and not all: pass another share or a smaller overlap"
        )
    top, left = (height - sides[0]) // 2 + overlap, (width - sides[1]) // 2 + overlap
    mask = torch.zeros(batch, 1, height, width, dtype=torch.uint8)
    mask[:, :, top : top + hidden[0], left : left + hidden[1]] = 1
    return mask


def random_blocks_mask(
    batch: int, height: int, width: int, blocks: int = 4, coverage: float = 0.25, generator: Generator | None = None
) -> Tensor:
    """Hide several squares that may overlap, at most ``coverage`` of the image together.

    Each has a side of its own, uniform between half of the greatest that keeps to ``coverage`` and that, and stands
    anywhere in the image. The paper gives no more than "a number of smaller possibly overlapping masks, covering up to
    1/4 of the image".

    Args:
        batch: B.
        height: H in pixels.
        width: W in pixels.
        blocks: squares in each sample.
        coverage: greatest share of the area, above 0 and below 1.
        generator: on the CPU; None is torch's global one.

    Returns:
        uint8 (B, 1, H, W), 1 = hidden.

    Raises:
        ValueError: no blocks, a coverage out of its range, or blocks smaller than a pixel.

    >>> mask = random_blocks_mask(8, 32, 32, generator=torch.Generator().manual_seed(0))
    >>> mask.shape, bool(mask.float().mean((1, 2, 3)).max() <= 0.25)
    (torch.Size([8, 1, 32, 32]), True)
    """
    if blocks < 1 or not 0 < coverage < 1:
        raise ValueError(f"blocks is {blocks} and coverage {coverage}; expected at least 1 block, 0 < coverage < 1")
    greatest = min(int((coverage * height * width / blocks) ** 0.5), height, width)
    if greatest < 1:
        raise ValueError(
            f"{blocks} blocks within {coverage:g} of {height} x {width} px are smaller than a pixel; pass fewer "
            "blocks, more coverage or larger images"
        )
    side = torch.randint((greatest + 1) // 2, greatest + 1, (batch, blocks), generator=generator)  # (B, N)
    first = torch.rand(2, batch, blocks, generator=generator)
    top, left = (first * (torch.tensor([height, width]).view(2, 1, 1) - side + 1)).long()  # (B, N) each
    rows = _within(top, side, height)  # (B, N, H)
    columns = _within(left, side, width)  # (B, N, W)
    return (rows.mT @ columns > 0)[:, None].to(torch.uint8)


def random_region_mask(batch: int, height: int, width: int, generator: Generator | None = None) -> Tensor:
    """Hide smooth, arbitrary shapes: 20 to 30 % of each image.

    As in the authors' code (``train_random.lua``) a mask is cropped from one large pattern: uniform noise, enlarged
    bicubically and cut at 0.25. The pattern is made once for each size of images, from a seed of its own, so it is the
    same everywhere; the shapes keep their proportion to the image, 1/7.7 of its longer side a cell of noise. Positions
    are drawn among all that have the right coverage, which is what trying until one fits comes to.

    Args:
        batch: B.
        height: H in pixels, at least 4.
        width: W in pixels, at least 4.
        generator: on the CPU; None is torch's global one.

    Returns:
        uint8 (B, 1, H, W), 1 = hidden.

    Raises:
        ValueError: images smaller than 4 px.

    >>> mask = random_region_mask(8, 32, 32, torch.Generator().manual_seed(0)).float()
    >>> bool(mask.mean((1, 2, 3)).min() >= 0.2), bool(mask.mean((1, 2, 3)).max() <= 0.3)
    (True, True)
    """
    if min(height, width) < 4:
        raise ValueError(f"the images are {height} x {width} px; regions need at least 4 x 4")
    pattern, corners = _region_pattern(height, width)
    chosen = corners[torch.randint(len(corners), (batch,), generator=generator)].long()  # (B,)
    crops = pattern.unfold(0, height, 1).unfold(1, width, 1)  # every crop, without a copy
    return crops[chosen // crops.shape[1], chosen % crops.shape[1]][:, None]


def overlap_weights(mask: Tensor, overlap: int, weight: float = 10.0) -> Tensor:
    """Weights of the pixels that are to be predicted: 1 where hidden, more in the visible band around it, else 0.

    The network sees the band and is asked for it nevertheless, so that its prediction continues the context; Pathak et
    al. 2016 weigh it 10-fold.

    Args:
        mask: (B, 1, H, W), 1 = hidden.
        overlap: width of the band in pixels, diagonals included; 0 for none.
        weight: in the band.

    Returns:
        (B, 1, H, W), floating point as the mask is, or fp32.

    >>> overlap_weights(torch.tensor([0, 0, 1, 0, 0]).expand(1, 1, 1, 5), overlap=1)[0, 0, 0].tolist()
    [0.0, 10.0, 1.0, 10.0, 0.0]
    """
    hidden = mask if mask.is_floating_point() else mask.float()
    if overlap == 0:
        return hidden
    span = 2 * overlap + 1
    near = F.max_pool2d(F.max_pool2d(hidden, (span, 1), 1, (overlap, 0)), (1, span), 1, (0, overlap))
    return hidden + weight * (near - hidden)


def _within(first: Tensor, length: Tensor, side: int) -> Tensor:
    """1 at the positions from ``first`` on, ``length`` of them: (B, N) to fp32 (B, N, side)."""
    position = torch.arange(side)
    return ((position >= first[..., None]) & (position < (first + length)[..., None])).float()


@lru_cache(maxsize=4)
def _region_pattern(height: int, width: int) -> tuple[Tensor, Tensor]:
    """The pattern, uint8 (H', W'), and the corners of its crops of the right coverage, int32 row · columns + column."""
    cell = max(height, width) / CELLS
    sides = [CROPS * height, CROPS * width]
    noise = torch.rand(
        [1, 1, *(max(1, round(side / cell)) for side in sides)],
        dtype=torch.float64,  # so that no rounding decides at the threshold, whatever the machine
        generator=torch.Generator().manual_seed(0),
    )
    pattern = (F.interpolate(noise, sides, mode="bicubic")[0, 0] < THRESHOLD).to(torch.uint8)
    area = F.pad(pattern.cumsum(0, dtype=torch.int32).cumsum(1, dtype=torch.int32), (1, 0, 1, 0))
    rows, columns = area[height:] - area[:-height], slice(width, None)
    hidden = rows[:, columns] - rows[:, :-width]  # (H' - H + 1, W' - W + 1), pixels hidden in each crop
    least, most = (share * height * width for share in COVERAGE)
    fits = (hidden >= least) & (hidden <= most)
    return pattern, fits.flatten().nonzero().flatten().to(torch.int32)
