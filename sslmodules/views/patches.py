"""Tiles cut from a grid on each image, and what keeps them from giving their places away.

Two tiles show that they are neighbours by edges that run on from one to the other (so there are gaps, and each tile is
shifted at random), by the colour fringes of the lens, which point away from the middle of the picture (so colours are
projected or dropped), and by their brightness and contrast (so each tile is standardised). Doersch, Gupta, Efros 2015,
section 3; Noroozi & Favaro 2016, section 3.

As everywhere in these views, parameters are drawn on the host and a batch is computed at once where it lies.
"""

import math
from typing import NamedTuple

import torch
from torch import Generator, Tensor, nn
from torch.nn import functional as F

from sslmodules.views.geometry import RandomResizedCrop
from sslmodules.views.resample import resized_crop
from sslmodules.views.transforms import chance, on_chosen

# The least standard deviation that is divided by: what fp32 leaves of a constant tile lies below, the noise of 8 bits
# in a tile that is not constant above.
LEAST_STD = 1e-4

# Sides that patches are shrunk to begin here, in pixels (Doersch et al. 2015).
LEAST_SIDE = 10


class Grid(NamedTuple):
    """A square grid of tiles; lengths in pixels.

    Args:
        tile: side of the tiles.
        gap: between neighbouring tiles before they are shifted.
        jitter: largest shift of a tile, up, down, left or right: gaps then lie in ``gap ± 2 · jitter``.
        channel_jitter: largest shift of a channel of a tile, to the right and down.
        cells: tiles along a side.

    >>> Grid(tile=96, gap=48, jitter=7).side  # Doersch et al. 2015
    398
    """

    tile: int
    gap: int
    jitter: int
    channel_jitter: int = 0
    cells: int = 3

    @property
    def side(self) -> int:
        """Side of the square that the grid needs, whatever the shifts."""
        return self.cells * self.tile + (self.cells - 1) * self.gap + 2 * self.jitter + self.channel_jitter


def fit_grid(
    side: int,
    tile: int | None = None,
    gap: int | None = None,
    jitter: int | None = None,
    channel_jitter: int = 0,
    cells: int = 3,
) -> Grid:
    """Return the grid for a square of ``side`` pixels; what is None follows from the cells, a third of the side each.

    Args:
        side: of the square that the tiles are cut from.
        tile: None is three quarters of a cell: 64 of the 85 px of a square of 255 (Noroozi & Favaro 2016).
        gap: None is the rest of the cell.
        jitter: None is as much as leaves neighbouring tiles apart: half the gap, less the channels' shift.
        channel_jitter: shift of single channels, 0 or more.
        cells: tiles along a side.

    Raises:
        ValueError: the grid does not fit into the square, or a length is out of range.

    >>> fit_grid(255)
    Grid(tile=64, gap=21, jitter=10, channel_jitter=0, cells=3)
    """
    cell = side // cells
    tile = max(1, round(0.75 * cell)) if tile is None else tile
    gap = max(0, cell - tile) if gap is None else gap
    jitter = max(0, (gap - channel_jitter) // 2) if jitter is None else jitter
    if tile < 1 or min(gap, jitter, channel_jitter) < 0:
        raise ValueError(
            f"tile, gap, jitter and channel_jitter are {tile}, {gap}, {jitter} and {channel_jitter}; expected a tile "
            "of 1 px or more, and the others not negative."
        )
    grid = Grid(tile, gap, jitter, channel_jitter, cells)
    _require_room(grid, side)
    return grid


def _require_room(grid: Grid, side: int) -> None:
    # Tiles at the border are never pushed inwards instead: that would make gaps narrower there than elsewhere.
    if grid.side > side:
        shifts = f" and channels by {grid.channel_jitter}" if grid.channel_jitter else ""
        raise ValueError(
            f"{grid.cells} x {grid.cells} tiles of {grid.tile} px with gaps of {grid.gap}, shifted by up to "
            f"{grid.jitter}{shifts}, need {grid.side} px and the images have {side}; pass a smaller tile, gap or "
            "jitter, or a larger size."
        )


def random_corners(
    batch: int, height: int, width: int, grid: Grid, channels: int = 3, generator: Generator | None = None
) -> Tensor:
    """Return top left corners of the tiles of a grid that stands anywhere in each image, each tile shifted by itself.

    Args:
        batch: B, images.
        height: of the images, in pixels.
        width: of the images.
        grid: N = cells² tiles, row by row.
        channels: C, of the images; they matter where the grid shifts them one by one.
        generator: on the host.

    Returns:
        (top, left), (B, N, 2) int64 on the host; with a ``channel_jitter``, (B, N, C, 2).

    Raises:
        ValueError: the grid does not fit into the images.

    >>> random_corners(1, 7, 7, Grid(tile=2, gap=3, jitter=0, cells=2)).tolist()
    [[[0, 0], [0, 5], [5, 0], [5, 5]]]
    """
    _require_room(grid, min(height, width))
    cells = grid.cells
    where = torch.cartesian_prod(torch.arange(cells), torch.arange(cells))  # (N, 2): row, column
    corners = where * (grid.tile + grid.gap)
    room = torch.tensor([height, width]) - grid.side
    place = (torch.rand(batch, 1, 2, generator=generator) * (room + 1)).long().minimum(room)
    shift = torch.randint(2 * grid.jitter + 1, (batch, cells**2, 2), generator=generator)
    corners = corners + place + shift  # (B, N, 2)
    if grid.channel_jitter == 0:
        return corners
    of_channel = torch.randint(grid.channel_jitter + 1, (batch, cells**2, channels, 2), generator=generator)
    return corners[:, :, None] + of_channel


def tiles_at(images: Tensor, corners: Tensor, tile: int) -> Tensor:
    """Return the tiles with the given corners, all of a batch in one gather.

    Args:
        images: (B, C, H, W), any type.
        corners: (top, left) integers, (B, N, 2), or (B, N, C, 2) for channels that are cut at places of their own.
        tile: side t of the tiles in pixels.

    Returns:
        (B, N, C, t, t) of the images' type.

    Raises:
        ValueError: corners of another shape, or (where they are on the host) tiles that reach beyond the images.

    >>> images = torch.arange(16).view(1, 1, 4, 4)
    >>> tiles_at(images, torch.tensor([[[0, 0], [2, 1]]]), tile=2).flatten(2)
    tensor([[[ 0,  1,  4,  5],
             [ 9, 10, 13, 14]]])
    """
    b, c, height, width = images.shape
    if corners.shape[:1] != (b,) or corners.shape[2:] not in ((2,), (c, 2)):
        raise ValueError(
            f"corners have the shape {tuple(corners.shape)}; expected (top, left), ({b}, N, 2) or ({b}, N, {c}, 2)."
        )
    if corners.device.type == "cpu" and corners.numel():  # elsewhere, looking would wait for the device
        first, last = corners.flatten(0, -2).aminmax(dim=0)
        if first.min() < 0 or last[0] > height - tile or last[1] > width - tile:
            raise ValueError(
                f"tiles of {tile} px have corners from {first.tolist()} to {last.tolist()} and reach beyond the "
                f"images of {height} x {width}."
            )
    corners = corners.to(images.device, non_blocking=True)
    if corners.ndim == 3:
        corners = corners[:, :, None]
    top, left = corners.unbind(-1)  # (B, N, C or 1)
    windows = images.unfold(2, tile, 1).unfold(3, tile, 1)  # (B, C, H - t + 1, W - t + 1, t, t), no copy
    sample = torch.arange(b, device=images.device)[:, None, None]
    return windows[sample, torch.arange(c, device=images.device), top, left]


def standardize(images: Tensor) -> Tensor:
    """Return images or tiles (..., H, W) with mean 0 and standard deviation 1 in each channel; constant ones become 0.

    >>> standardize(torch.tensor([[0.25, 0.75]]))
    tensor([[-1.,  1.]])
    """
    centred = images - images.mean((-2, -1), keepdim=True)
    return centred / _std(centred).clamp(min=LEAST_STD)


def _std(centred: Tensor) -> Tensor:
    return centred.square().mean((-2, -1), keepdim=True).sqrt()  # several times faster than var_mean on a processor


def project_color(images: Tensor) -> Tensor:
    """Remove the axis from magenta to green, along which the fringes of lenses lie (Doersch et al. 2015, section 3).

    Each colour x becomes Bx, ``B = I - aᵀa / (aaᵀ)`` with ``a = [-1, 2, -1]``. Greys stay as they are; values may
    leave [0, 1]. In textures finer than the fringe, a faint double image remains.

    Args:
        images: images or tiles of red, green and blue, (..., 3, H, W).

    Raises:
        ValueError: another number of channels.

    >>> project_color(torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1)).flatten()
    tensor([0.3333, 0.3333, 0.3333])
    """
    _require_rgb(images, "project_color")
    red, green, blue = images.unbind(-3)
    # No matrix product, which autocast would round.
    sixth = (2 * green - red - blue) / 6  # a·x / (aaᵀ)
    return torch.stack([red + sixth, green - 2 * sixth, blue + sixth], -3)


def drop_channels(tiles: Tensor, keep: Tensor, seed: int) -> Tensor:
    """Keep one channel of each tile, and put Gaussian noise in the place of the others (Doersch et al. 2015).

    The noise has mean 0 and a hundredth of the kept channel's standard deviation. Standardising would make it as strong
    as the picture, so that comes before.

    Args:
        tiles: standardised, fp32 (B, N, 3, t, t).
        keep: (B, N) channel that each tile keeps.
        seed: of the noise. It is drawn where the tiles are, so another kind of device draws other noise.

    Raises:
        ValueError: another number of channels.

    >>> tiles = standardize(torch.rand(1, 2, 3, 8, 8))
    >>> dropped = drop_channels(tiles, torch.tensor([[0, 2]]), seed=0)
    >>> (dropped.std((3, 4)) > 0.5).tolist()
    [[[True, False, False], [False, False, True]]]
    """
    _require_rgb(tiles, "drop_channels")
    channel = keep.to(tiles.device, non_blocking=True)[..., None, None, None]  # (B, N, 1, 1, 1)
    kept = tiles.take_along_dim(channel, 2)  # (B, N, 1, t, t)
    generator = torch.Generator(tiles.device).manual_seed(seed)
    std = _std(kept - kept.mean((-2, -1), keepdim=True))
    noise = torch.randn(tiles.shape, generator=generator, device=tiles.device).mul_(std / 100)
    return noise.scatter_(2, channel.expand_as(kept), kept)


def _require_rgb(images: Tensor, what: str) -> None:
    if images.shape[-3] != 3:
        raise ValueError(f"{what} got {images.shape[-3]} channels; expected red, green and blue.")


def downsample_some(tiles: Tensor, p: float, generator: Generator | None = None) -> Tensor:
    """Shrink some tiles and enlarge them again, so that nothing can rest on single pixels (Doersch et al. 2015).

    Each tile with probability p, by itself; to a side that is drawn once, from 10 px to the tile's. Tiles of up to 10
    px are returned as they are.

    Args:
        tiles: fp32 (B, N, C, t, t), overwritten.
        p: share of the tiles, a third in the paper.
        generator: on the host.

    >>> downsample_some(torch.ones(2, 9, 3, 16, 16), p=1 / 3).shape
    torch.Size([2, 9, 3, 16, 16])
    """
    b, n, _, tile, _ = tiles.shape
    if p == 0 or tile <= LEAST_SIDE:
        return tiles
    side = int(torch.randint(LEAST_SIDE, tile, (), generator=generator))

    def there_and_back(chosen: Tensor) -> Tensor:
        return _resized(_resized(chosen, side), tile)

    return on_chosen(tiles.flatten(0, 1), chance(b * n, p, generator), there_and_back).unflatten(0, (b, n))


def _resized(images: Tensor, side: int) -> Tensor:
    whole = torch.tensor([0, 0, *images.shape[2:]]).expand(len(images), 4)
    return resized_crop(images, whole, side)


class RandomSquareCrop(RandomResizedCrop):
    """Cut a random square out of each image, resize it, and mirror half of them: what a grid of tiles is cut from.

    Args:
        size: side of the result in pixels; None is the shorter side of the incoming images.
        min_scale: least area of the square, as a fraction of the image.

    >>> RandomSquareCrop()(torch.zeros(2, 3, 32, 40)).shape
    torch.Size([2, 3, 32, 32])
    """

    def __init__(self, size: int | None = None, min_scale: float = 0.08) -> None:
        super().__init__(size, (min_scale, 1.0), (1.0, 1.0), "bilinear", flip=0.5)

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the side twice."""
        side = min(height, width)
        return super().output_size(side, side)


def mosaic(tiles: Tensor, gap: int = 1, value: float = 1.0) -> Tensor:
    """Lay square numbers of tiles out as one picture each, row by row.

    Args:
        tiles: (B, N, C, t, t), N a square number.
        gap: pixels between tiles.
        value: of the pixels between, 1 is white.

    Returns:
        (B, C, S, S) with ``S = √N (t + gap) - gap``.

    Raises:
        ValueError: N is no square number.

    >>> mosaic(torch.arange(4.0).view(1, 4, 1, 1, 1), gap=0)[0, 0]
    tensor([[0., 1.],
            [2., 3.]])
    """
    b, n, c, tile, _ = tiles.shape
    cells = math.isqrt(n)
    if cells**2 != n:
        raise ValueError(f"got {n} tiles, which make no square; expected 4, 9, 16, ...")
    framed = F.pad(tiles, (0, gap, 0, gap), value=value).unflatten(1, (cells, cells))  # (B, r, r, C, t + gap, t + gap)
    side = cells * (tile + gap)
    return framed.permute(0, 3, 1, 4, 2, 5).reshape(b, c, side, side)[..., : side - gap, : side - gap]


def require_tiles_fit(encoder: nn.Module, tile: int) -> None:
    """Refuse an encoder that cannot look at tiles of that side.

    Raises:
        ValueError: the tile is no multiple of a transformer's patch, or the encoder takes one size only.
    """
    embedding = getattr(encoder, "patch_embed", None)
    patch = getattr(embedding, "patch_size", None)
    if patch is None:
        return
    if tile % patch[0] or tile % patch[1]:
        raise ValueError(
            f"the tiles are {tile}x{tile} px and the encoder cuts patches of {patch[0]}x{patch[1]}; pass a tile that "
            "is a multiple of the patch."
        )
    only = getattr(embedding, "img_size", None)
    if getattr(embedding, "strict_img_size", False) and only is not None and tuple(only) != (tile, tile):
        raise ValueError(
            f"the tiles are {tile}x{tile} px and {type(encoder).__name__} takes images of {only[0]}x{only[1]} only; "
            "pass an encoder for images of any size: a convolutional one, or a ViT of timm by its name."
        )
