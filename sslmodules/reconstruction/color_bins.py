"""Colours as classes: the 313 bins of Zhang, Isola, Efros, "Colorful Image Colorization", ECCV 2016.

A bin is a point of the lattice of step 10 in the plane (a, b) of CIE L*a*b*. The authors' file ``pts_in_hull.npy``
holds the lattice points inside the convex hull of all sRGB colours, 233, and the neighbours of those, together 313.
It is constructed here, point for point, so that no data file is needed.
"""

import functools

import torch
from scipy.spatial import ConvexHull
from torch import Tensor
from torch.nn import functional as F

from sslmodules.precision import in_full_precision
from sslmodules.views.lab import rgb_to_lab

NUM_BINS = 313
STEP = 10.0  # between neighbouring bins
LIMIT = 130.0  # the encoding is exact for |a|, |b| up to here; sRGB ends at 107.9


@functools.cache
@torch.inference_mode(False)  # what is kept between calls must serve in training too
def color_bins() -> Tensor:
    """Return the bins' centres (a, b): fp32 (313, 2), sorted by a and then by b. Shared between calls: do not change.

    Example:
        >>> color_bins()[[0, 1, -1]]
        tensor([[-90.,  50.],
                [-90.,  60.],
                [100.,   0.]])
    """
    levels = torch.linspace(0, 1, 17, device="cpu")
    cube = torch.cartesian_prod(levels, levels, levels).T.view(1, 3, 17, -1)
    hull = ConvexHull(rgb_to_lab(cube)[0, 1:].flatten(1).T.numpy())
    ticks = torch.arange(-LIMIT, LIMIT + STEP, STEP, device="cpu")
    lattice = torch.cartesian_prod(ticks, ticks)  # (27², 2)
    normals, offsets = torch.from_numpy(hull.equations).float().split([2, 1], 1)  # (E, 2), (E, 1)
    inside = ((lattice[:, None] * normals).sum(2) + offsets.T <= 0).all(1)  # (27²,): within all of the hull's edges
    side = len(ticks)
    dilated = F.max_pool2d(inside.float().view(1, side, side), 3, stride=1, padding=1)
    return lattice[dilated.flatten() > 0]


@torch.no_grad()
@in_full_precision
def soft_encode(ab: Tensor, neighbours: int = 10, sigma: float = 5.0) -> tuple[Tensor, Tensor]:
    """Spread each colour over its nearest bins, with weights ``exp(-d² / 2σ²)`` that sum to 1 (section 2.2).

    The neighbours are found without looking at all bins, and are the exact ones for |a| and |b| up to 130. Bins at the
    same distance as the last neighbour may stand in for it.

    Args:
        ab: (B, 2, h, w), colours in units of L*a*b*.
        neighbours: k, from 1 (a hard code) to 313.
        sigma: σ in units of L*a*b*.

    Returns:
        Numbers of the bins, int64 (B, k, h, w), the nearest first, and their weights (B, k, h, w).

    Raises:
        ValueError: a number of neighbours or a sigma out of its range.

    Example:
        >>> index, weight = soft_encode(torch.zeros(1, 2, 1, 1), neighbours=5)
        >>> color_bins()[index[0, 0, 0, 0]], weight.flatten()
        (tensor([0., 0.]), tensor([0.6488, 0.0878, 0.0878, 0.0878, 0.0878]))
    """
    if not 1 <= neighbours <= NUM_BINS or not sigma > 0:
        raise ValueError(
            f"got neighbours={neighbours} and sigma={sigma}; expected 1 to {NUM_BINS} neighbours, sigma above 0"
        )
    index, bins = _candidates(neighbours, ab.device)  # (cells², M), (cells², M, 2)
    cells = int(2 * LIMIT / STEP)
    # Clamped as integers: a NaN becomes some cell, and not an index out of range, which would take the device down.
    row, column = ((ab + LIMIT) / STEP).floor().long().clamp(0, cells - 1).unbind(1)  # (B, h, w)
    cell = row * cells + column
    a, b = bins[..., 0][cell], bins[..., 1][cell]  # (B, h, w, M)
    distance = (a - ab[:, 0, ..., None]).square_().add_((b - ab[:, 1, ..., None]).square_())
    distance, chosen = distance.topk(neighbours, largest=False)  # (B, h, w, k), ascending
    index = index[cell].gather(-1, chosen)
    weight = (distance / (-2 * sigma**2)).softmax(-1)
    return index.movedim(-1, 1).contiguous(), weight.movedim(-1, 1).contiguous()


@in_full_precision
def annealed_mean(logits: Tensor, temperature: float = 0.38) -> Tensor:
    """Decode a distribution over the bins into one colour: the mean after ``z^(1/T) / Σ z^(1/T)`` (section 2.3).

    Args:
        logits: (B, 313, h, w), of which ``softmax`` gives the distribution z.
        temperature: T above 0; 1 is the mean, which is often grey, and towards 0 it becomes the mode.

    Returns:
        Colours (a, b), (B, 2, h, w).

    Raises:
        ValueError: a temperature of 0 or below.

    Example:
        >>> logits = torch.full((1, 313, 1, 1), -torch.inf)
        >>> logits[:, :2] = torch.tensor([0.8, 0.2]).log().view(1, 2, 1, 1)  # bins (-90, 50) and (-90, 60)
        >>> annealed_mean(logits).flatten()
        tensor([-90.0000,  50.2538])
    """
    if not temperature > 0:
        raise ValueError(f"the temperature is {temperature}, expected above 0")
    z = (logits / temperature).softmax(1)
    return torch.einsum("bqhw,qc->bchw", z, color_bins().to(z))


@in_full_precision
def class_weights(prior: Tensor, uniform: float = 0.5, sigma: float = 5.0) -> Tensor:
    """Weigh rare colours up: ``w ∝ ((1 - λ) p̃ + λ / 313)⁻¹`` with ``Σ p̃ w = 1`` (section 2.2, class rebalancing).

    p̃ is the prior smoothed with a Gaussian over the plane (a, b), as an average, so that a uniform prior stays uniform.

    Args:
        prior: p (313,), the share of each bin; it need not sum to 1.
        uniform: λ in (0, 1], the share of the uniform distribution that is mixed in; at 1 all weights are 1.
        sigma: of the Gaussian, in units of L*a*b*.

    Returns:
        w (313,).

    Raises:
        ValueError: a λ or sigma out of its range.

    Example:
        >>> class_weights(torch.ones(313)).unique()
        tensor([1.])
    """
    if not 0 < uniform <= 1 or not sigma > 0:
        raise ValueError(f"got uniform={uniform} and sigma={sigma}; expected uniform in (0, 1] and sigma above 0")
    bins = _bins_on(prior.device).to(prior.dtype)  # asked in every step, so nothing is copied from the host again
    kernel = ((bins[:, None] - bins).square().sum(2) / (-2 * sigma**2)).exp()  # (313, 313)
    smooth = (kernel * prior).sum(1) / kernel.sum(1)
    smooth = smooth / smooth.sum()
    weights = 1 / ((1 - uniform) * smooth + uniform / NUM_BINS)
    return weights / (smooth * weights).sum()


@functools.cache
@torch.inference_mode(False)
def _bins_on(device: torch.device) -> Tensor:
    return color_bins().to(device)


@functools.cache
@torch.inference_mode(False)
def _candidates(neighbours: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each cell of the lattice, every bin that is among the nearest of some point in the cell.

    Returns:
        Numbers (cells², M) and centres (cells², M, 2) of the candidates, filled up with centres at infinity.
    """
    bins = color_bins()
    ticks = torch.arange(-LIMIT, LIMIT, STEP, device="cpu")
    low = torch.cartesian_prod(ticks, ticks)  # (cells², 2), where the cells begin
    # Out is what is farther from the cell's middle than the last neighbour by more than the cell's diagonal.
    from_middle = (low[:, None] + STEP / 2 - bins).square().sum(2).sqrt()  # (cells², 313)
    reach = from_middle.kthvalue(neighbours, keepdim=True).values + 1.5 * STEP
    index = from_middle.topk(int((from_middle <= reach).sum(1).max()), largest=False).indices  # (cells², P)
    # Out is also what enough bins beat. The difference of two squared distances is linear in the point, so a bin that
    # is nearer than another at the four corners is so in the whole cell.
    corners = low[:, None] + STEP * torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], device="cpu")  # (cells², 4, 2)
    d = (corners[:, :, None] - bins[index][:, None]).square().sum(3)  # (cells², 4, P)
    nearer = (d[..., :, None] < d[..., None, :]).all(1)  # (cells², P, P)
    stays, order = (nearer.sum(1) < neighbours).sort(stable=True, descending=True)
    width = int(stays.sum(1).max())
    index = index.gather(1, order)[:, :width]  # (cells², M)
    centres = torch.where(stays[:, :width, None], bins[index], torch.inf)
    return index.to(device), centres.to(device)
