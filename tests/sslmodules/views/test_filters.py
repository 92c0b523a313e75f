"""Each operation is another library's, or its definition pixel by pixel, sample by sample."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage, stats

from sslmodules.views.filters import (
    convolved,
    copied_neighbours,
    disk,
    motion_blur,
    photons,
    pixelated,
    plasma,
    resampled,
    smooth,
    zoomed,
)

IMAGES = torch.rand(3, 2, 17, 23, generator=torch.Generator().manual_seed(0))


def plane_by_plane(function, images=IMAGES):
    """What a function of (H, W) arrays makes of every channel of every image."""
    return torch.from_numpy(np.stack([[function(plane) for plane in image] for image in images.numpy()])).float()


@pytest.mark.parametrize(("sigma", "truncate"), [(0, 4.0), (0.4, 4.0), (1.5, 3.0), (12.0, 3.0)])
@pytest.mark.parametrize("border", ["nearest", "reflect", "mirror"])
def test_smooth_is_scipys_gaussian_filter(sigma, truncate, border):
    expected = plane_by_plane(lambda p: ndimage.gaussian_filter(p, sigma, truncate=truncate, mode=border))
    torch.testing.assert_close(smooth(IMAGES, sigma, truncate, border), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("share", [0.95, 0.9, 0.85, 0.75, 0.65, 0.6, 0.5, 0.4, 0.3, 0.25])
def test_pixelated_is_pils_box_filter_twice(share):
    image = torch.rand(1, 1, 32, 224, generator=torch.Generator().manual_seed(0))
    small = Image.fromarray(image[0, 0].numpy()).resize((int(224 * share), int(32 * share)), Image.Resampling.BOX)
    theirs = np.array(small.resize((224, 32), Image.Resampling.BOX))
    torch.testing.assert_close(pixelated(image, share)[0, 0], torch.from_numpy(theirs), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("radius", "blur"), [(0.5, 0.6), (1.5, 0.1), (3, 0.1), (8, 0.5), (10, 0.5)])
def test_defocus_is_a_softened_disk_over_a_mirrored_border(radius, blur):
    reach, taps = (8, 1) if radius <= 8 else (radius, 2)
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    kernel = (x**2 + y**2 <= radius**2).astype(float)
    kernel = ndimage.gaussian_filter(kernel / kernel.sum(), blur, radius=taps, mode="mirror")
    expected = plane_by_plane(lambda p: ndimage.correlate(p, kernel, mode="mirror"))
    torch.testing.assert_close(convolved(IMAGES, disk(radius, blur)), expected, atol=1e-6, rtol=0)


def test_motion_blur_is_half_a_gaussian_of_whole_steps_with_an_angle_for_each_sample():
    angles, radius, sigma = [-45.0, 0.0, 100.0], 3.5, 2.0
    height, width = IMAGES.shape[2:]
    expected = torch.zeros_like(IMAGES)
    weights = [math.exp(-(i**2) / (2 * sigma**2)) for i in range(9)]
    for b, angle in enumerate(angles):
        for i, weight in enumerate(weights):
            dy = math.ceil(i * math.sin(math.radians(angle)) - 0.5)
            dx = math.ceil(i * math.cos(math.radians(angle)) - 0.5)
            for y in range(height):
                for x in range(width):
                    source = IMAGES[b, :, min(max(y + dy, 0), height - 1), min(max(x + dx, 0), width - 1)]
                    expected[b, :, y, x] += weight / sum(weights) * source
    torch.testing.assert_close(motion_blur(IMAGES, torch.tensor(angles), radius, sigma), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("factor", [1.0, 1.06, 1.26, 2.25, 4.5])
def test_zoomed_is_scipys_zoom_of_the_middle(factor):
    def by_scipy(plane):
        cut = [math.ceil(n / factor) for n in plane.shape]
        top, left = ((n - c) // 2 for n, c in zip(plane.shape, cut, strict=True))
        large = ndimage.zoom(plane[top : top + cut[0], left : left + cut[1]], factor, order=1)
        top, left = ((m - n) // 2 for m, n in zip(large.shape, plane.shape, strict=True))
        return large[top : top + plane.shape[0], left : left + plane.shape[1]]

    torch.testing.assert_close(zoomed(IMAGES, factor), plane_by_plane(by_scipy), atol=1e-5, rtol=0)


def test_plasma_is_the_diamond_square_algorithm():
    noise = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 2 - 1
    for ours, drawn in zip(plasma(noise, 1.75), noise.tolist(), strict=True):
        side, heights, strength = 8, {(0, 0): 0.0}, 100.0

        def mean(*places, heights=heights, side=side):
            return sum(heights[y % side, x % side] for y, x in places) / 4

        step = side
        while step >= 2:
            h = step // 2
            for y in range(h, side, step):
                for x in range(h, side, step):
                    corners = [(y - h, x - h), (y - h, x + h), (y + h, x - h), (y + h, x + h)]
                    heights[y, x] = mean(*corners) + strength**2 * drawn[y][x]
            for y in range(0, side, h):
                for x in range(h if y % step == 0 else 0, side, step):
                    around = [(y - h, x), (y + h, x), (y, x - h), (y, x + h)]
                    heights[y, x] = mean(*around) + strength**2 * drawn[y][x]
            step, strength = h, strength / 1.75
        low, high = min(heights.values()), max(heights.values())
        expected = [[(heights[y, x] - low) / (high - low) for x in range(side)] for y in range(side)]
        torch.testing.assert_close(ours, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("border", ["reflect", "mirror"])
def test_resampled_is_scipys_map_coordinates(border):
    place = torch.rand(2, 3, 9, 11, generator=torch.Generator().manual_seed(0)) * 60 - 20  # far outside too
    ours = resampled(IMAGES, *place, border)
    for b, image in enumerate(IMAGES.numpy()):
        expected = [ndimage.map_coordinates(p, place[:, b].numpy(), order=1, mode=border) for p in image]
        torch.testing.assert_close(ours[b], torch.from_numpy(np.stack(expected)), atol=2e-5, rtol=0)


@pytest.mark.parametrize("rate", [3, 60, 500])
def test_photons_are_poisson_quantiles(rate):
    images = torch.arange(256).repeat(8).view(1, 1, 8, 256) / 255
    uniform = torch.rand(images.shape, generator=torch.Generator().manual_seed(0))
    expected = stats.poisson.ppf(uniform.double().numpy(), np.arange(256) / 255 * rate)
    expected[..., 0] = 0  # scipy's of a mean of 0 are -1
    assert (photons(images, uniform, rate).numpy() != expected).mean() < 1e-3  # a quantile that lies on a step


def test_photons_of_black_and_of_the_last_quantile_are_finite():
    last = torch.full((1, 1, 1, 2), 1 - 2**-24)
    count = photons(torch.tensor([0.0, 1.0]).view(1, 1, 1, 2), last, 5).flatten()
    assert count[0] == 0
    assert 15 < count[1] < 30


def test_glass_copies_neighbours_from_the_end_on():
    height, width, distance, rounds = 7, 6, 2, 2
    steps = rounds * (height - 4) * (width - 4)
    offsets = torch.randint(-2, 2, (steps, 3, 2), generator=torch.Generator().manual_seed(0), dtype=torch.int8)
    ours = copied_neighbours(offsets, height, width, distance)
    for b in range(3):
        picture = np.arange(height * width).reshape(height, width)
        step = iter(offsets[:, b].tolist())
        for _ in range(rounds):
            for y in range(height - distance, distance, -1):
                for x in range(width - distance, distance, -1):
                    dy, dx = next(step)
                    picture[y, x] = picture[y + dy, x + dx]
        assert ours[b].tolist() == picture.ravel().tolist()
