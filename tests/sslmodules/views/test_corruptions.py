"""Strengths, ranges and seeds of the common corruptions, and their formulas, sample by sample."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from skimage import color, data
from torchvision.transforms.functional import pil_to_tensor, resize, to_pil_image

from sslmodules.views import corruptions as c
from sslmodules.views.filters import motion_blur, plasma, zoomed

SIDES = (32, 80)  # of which one is corrupted as CIFAR-10-C, the other as ImageNet-C


def photographs(side):
    """Three crops of a photograph, (3, 3, side, side), uint8."""
    photograph = torch.from_numpy(data.astronaut()).permute(2, 0, 1)
    crops = torch.stack([photograph[:, y : y + 160, y + 60 : y + 220] for y in (0, 60, 200)])
    return resize(crops, [side, side])


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def hwc(images):
    return images.permute(0, 2, 3, 1).double().numpy()


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", c.CORRUPTIONS)
def test_a_corruption_is_a_view_from_a_seed(name, side):
    images = photographs(side)
    before = images.clone()
    corruption = c.CORRUPTIONS[name](severity=4)
    out = corruption(images, seeded())
    assert out.dtype == torch.float32
    assert out.shape == images.shape
    assert 0 <= out.min() <= out.max() <= 1
    assert not torch.equal(out, images / 255)
    assert torch.equal(images, before)
    assert torch.equal(corruption(images, seeded()), out)
    grey = corruption(images[:, :1], seeded())
    assert grey.shape == (3, 1, side, side)
    if corruption.draw(1, side, side):
        twins = corruption(images[:1].expand(2, -1, -1, -1), seeded())
        assert not torch.equal(twins[0], twins[1])
        assert not torch.equal(corruption(images, seeded(1)), out)


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("name", sorted(set(c.CORRUPTIONS) - {"glass_blur", "elastic_transform", "snow"}))
def test_more_severe_is_further_from_the_clean_image(name, side):
    images = photographs(side)
    away = [(c.CORRUPTIONS[name](s)(images, seeded()) - images / 255).square().mean().item() for s in c.SEVERITIES]
    assert away == sorted(away)
    assert away[0] > 0


@pytest.mark.parametrize("name", ["glass_blur", "snow"])
def test_most_severe_is_further_than_least(name):  # the published strengths between these do not all rise
    images = photographs(32)
    least, most = ((c.CORRUPTIONS[name](s)(images, seeded()) - images / 255).square().mean() for s in (1, 5))
    assert least < most


def test_noises_are_their_formulas():
    images = photographs(32)
    x = images / 255
    noise = torch.randn(3, 3, 32, 32, generator=seeded())
    torch.testing.assert_close(c.GaussianNoise(5)(images, seeded()), (x + 0.1 * noise).clamp(0, 1))
    drawn = torch.rand(3, 3, 32, 32, generator=seeded())
    expected = torch.where(drawn < 0.035, 0, torch.where(drawn >= 0.965, 1, x))
    assert torch.equal(c.ImpulseNoise(5)(images, seeded()), expected)


def test_brightness_adds_to_the_value_of_hsv():
    images = photographs(80)
    images[0, :, 0, 0] = 0
    hsv = color.rgb2hsv(hwc(images) / 255)
    hsv[..., 2] = np.clip(hsv[..., 2] + 0.3, 0, 1)
    np.testing.assert_allclose(hwc(c.Brightness(3)(images)), color.hsv2rgb(hsv), atol=1e-5)


def test_contrast_scales_about_the_mean_of_each_channel():
    images = photographs(80)
    x = hwc(images) / 255
    mean = x.mean((1, 2), keepdims=True)
    np.testing.assert_allclose(hwc(c.Contrast(5)(images)), (x - mean) * 0.05 + mean, atol=1e-6)


def test_fog_is_scaled_to_the_range_of_its_image():
    images = photographs(80)
    clouds = plasma(torch.rand(3, 128, 128, generator=seeded()) * 2 - 1, 1.7)[:, :80, :80]
    for image, cloud, ours in zip(images / 255, clouds, c.Fog(3)(images, seeded()), strict=True):
        expected = (image + 2.5 * cloud) * image.max() / (image.max() + 2.5)
        torch.testing.assert_close(ours, expected.clamp(0, 1), atol=1e-5, rtol=0)


def test_snow_whitens_and_falls_from_both_sides():
    images = photographs(32)
    params = c.Snow(1).draw(3, 32, 32, seeded())  # its flakes are not enlarged
    flakes = params["noise"] * 0.2 + 0.1
    flakes = motion_blur(flakes.clamp(0, 1) * (flakes >= 0.6), params["angle"], 8, 3)
    x = images / 255
    white = torch.maximum(x, torch.from_numpy(color.rgb2gray(hwc(x))).float()[:, None] * 1.5 + 0.5)
    expected = 0.95 * x + 0.05 * white + flakes + flakes.rot90(2, (2, 3))
    ours = c.Snow(1)(images, seeded())
    torch.testing.assert_close(ours, expected.clamp(0, 1), atol=0.01, rtol=0)  # other weights of the grey


@pytest.mark.parametrize("side", SIDES)
def test_elastic_transform_is_an_affine_map_and_then_smooth_displacements(side):
    images, corruption = photographs(side), c.ElasticTransform(2)
    params = corruption.draw(3, side, side, seeded())
    lengths = (0.05, 0.2, 0.07) if side == 32 else np.array([2, 0.08, 0.2]) * 244 / 224
    displacement, sigma, corner = (side * length for length in lengths)
    third, middle = side // 3, side // 2
    points = np.array([[middle + third, middle + third], [middle - third, middle + third], [middle - third] * 2])
    grid = np.stack(np.mgrid[:side, :side]).reshape(2, -1)
    for b, ours in enumerate(corruption(images, seeded())):
        moved = np.c_[points + corner * params["corners"][b].numpy(), np.ones(3)]
        back = np.linalg.lstsq(moved, points, rcond=None)[0].T  # (2, 3)
        down, right = (
            displacement * ndimage.gaussian_filter(n, sigma, truncate=3).ravel() for n in params["noise"][b].numpy()
        )
        for channel, plane in zip(ours, images[b].numpy() / 255, strict=True):
            mapped = ndimage.map_coordinates(plane, back @ np.r_[grid, np.ones((1, side**2))], order=1, mode="mirror")
            pulled = ndimage.map_coordinates(
                mapped.reshape(side, side), np.add(grid, [down, right]), order=1, mode="reflect"
            )
            np.testing.assert_allclose(channel.numpy().ravel(), pulled, atol=2e-4)


def test_zoom_blur_is_the_mean_of_the_image_and_of_it_enlarged_by_each_factor():
    images = photographs(32)
    x = images / 255
    expected = (x + sum(zoomed(x, 1 + 0.01 * i) for i in range(7))) / 8
    torch.testing.assert_close(c.ZoomBlur(1)(images), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("severity", [1, 5])
def test_jpeg_is_pils(severity):
    images = photographs(80)
    ours = c.JPEGCompression(severity)(images)
    for image, compressed in zip(images, ours, strict=True):
        file = io.BytesIO()
        to_pil_image(image).save(file, "JPEG", quality=c.JPEGCompression.large[severity - 1])
        assert torch.equal(compressed, pil_to_tensor(Image.open(file)) / 255)


def test_the_larger_images_have_the_other_strengths():
    small, large = torch.full((1, 3, 64, 64), 0.2), torch.full((1, 3, 64, 65), 0.2)
    assert c.Brightness(5)(small).unique().item() == pytest.approx(0.5)
    assert c.Brightness(5)(large).unique().item() == pytest.approx(0.7)


def test_bad_input_is_one_sentence():
    with pytest.raises(ValueError, match="severity is 6; expected 1 to 5"):
        c.Fog(6)
    with pytest.raises(ValueError, match="the images have 4 channels"):
        c.Contrast(1)(torch.zeros(1, 4, 8, 8))
