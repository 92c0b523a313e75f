"""Each operation is torchvision's on float images, sample by sample."""

import pytest
import torch
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as tv

from sslmodules.views import (
    adjust_brightness,
    adjust_contrast,
    adjust_hue,
    adjust_saturation,
    denormalize,
    gaussian_blur,
    grayscale,
    horizontal_flip,
    normalize,
    resized_crop,
    solarize,
    to_float,
)


def random_images(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def images_with_every_hue() -> torch.Tensor:
    """Every colour of a 7³ grid, greys, black and white among them; and colours that are almost grey."""
    levels = torch.linspace(0, 1, 7)
    grid = torch.cartesian_prod(levels, levels, levels)  # (343, 3)
    almost = 0.5 + 1e-4 * (torch.cartesian_prod(levels, levels, levels) - 0.5)
    return torch.cat([grid, almost]).T.reshape(1, 3, 14, 49).repeat(9, 1, 1, 1)


BOXES = torch.tensor(
    [[0, 0, 17, 23], [0, 0, 5, 6], [12, 17, 5, 6], [3, 4, 1, 1], [16, 0, 1, 23], [2, 5, 11, 9]]
)  # whole, two corners, a pixel, the last row, inside; of images of 17 x 23


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [(17, 23), 8, (5, 31), (40, 3), 1])
def test_crop_is_torchvisions_antialiased_crop(interpolation, size):
    images = random_images(6, 3, 17, 23)
    flip = torch.tensor([False, True, False, True, False, True])
    ours = resized_crop(images, BOXES, size, flip, interpolation)
    for image, box, mirrored, crop in zip(images, BOXES.tolist(), flip, ours, strict=True):
        size_y, size_x = (size, size) if isinstance(size, int) else size
        theirs = tv.resized_crop(image, *box, [size_y, size_x], InterpolationMode(interpolation), antialias=True)
        torch.testing.assert_close(crop, theirs.flip(-1) if mirrored else theirs, atol=1e-5, rtol=0)


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_crop_of_square_images_computes_both_axes_alike(interpolation):
    images, boxes = random_images(2, 1, 64, 64), torch.tensor([[3, 5, 60, 41], [0, 20, 9, 44]])
    ours = resized_crop(images, boxes, 24, torch.tensor([True, False]), interpolation)
    theirs = [
        tv.resized_crop(image, *box, [24, 24], InterpolationMode(interpolation), antialias=True)
        for image, box in zip(images, boxes.tolist(), strict=True)
    ]
    torch.testing.assert_close(ours, torch.stack([theirs[0].flip(-1), theirs[1]]), atol=1e-5, rtol=0)


def test_crop_of_the_whole_image_at_its_size_changes_nothing():
    images = random_images(2, 5, 9, 9)
    whole = torch.tensor([[0, 0, 9, 9]] * 2)
    assert torch.equal(resized_crop(images, whole, 9, interpolation="bicubic"), images)


def test_bicubic_crop_overshoots_as_torchvisions_does():
    images = torch.zeros(1, 1, 8, 8)
    images[..., 4:] = 1
    crop = resized_crop(images, torch.tensor([[0, 0, 8, 8]]), 16, interpolation="bicubic")
    assert crop.min() < -0.01
    assert crop.max() > 1.01


@pytest.mark.parametrize("box", [[-1, 0, 4, 4], [0, 5, 4, 4], [5, 0, 4, 4], [0, 0, 0, 4]])
def test_boxes_outside_the_image_are_refused(box):
    with pytest.raises(ValueError, match="boxes reach beyond the images of 8 x 8"):
        resized_crop(torch.zeros(1, 3, 8, 8), torch.tensor([box]), 4)


def test_crop_refuses_other_interpolations_and_shapes():
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="nearest"):
        resized_crop(images, torch.tensor([[0, 0, 8, 8]] * 2), 4, interpolation="nearest")
    with pytest.raises(ValueError, match=r"boxes have the shape \(1, 4\)"):
        resized_crop(images, torch.tensor([[0, 0, 8, 8]]), 4)
    with pytest.raises(ValueError, match="expected a batch"):
        resized_crop(images[0], torch.tensor([[0, 0, 8, 8]]), 4)


@pytest.mark.parametrize(
    ("ours", "theirs", "factors"),
    [
        (adjust_brightness, tv.adjust_brightness, [0.0, 0.3, 1.0, 1.8]),
        (adjust_contrast, tv.adjust_contrast, [0.0, 0.3, 1.0, 1.8]),
        (adjust_saturation, tv.adjust_saturation, [0.0, 0.3, 1.0, 1.8]),
        (adjust_hue, tv.adjust_hue, [-0.5, -0.07, 0.2, 0.5]),
        (solarize, tv.solarize, [0.0, 0.3, 0.5, 1.0]),
    ],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_color_operation_is_torchvisions_with_a_factor_for_each_sample(ours, theirs, factors, channels):
    images = random_images(4, channels, 11, 7)
    expected = torch.stack([theirs(image, factor) for image, factor in zip(images, factors, strict=True)])
    torch.testing.assert_close(ours(images, torch.tensor(factors)), expected, atol=2e-6, rtol=0)


def test_hue_is_torchvisions_for_every_color_grey_black_and_white():
    images, factors = images_with_every_hue(), torch.linspace(-0.5, 0.5, 9)
    expected = torch.stack([tv.adjust_hue(image, f) for image, f in zip(images, factors.tolist(), strict=True)])
    torch.testing.assert_close(adjust_hue(images, factors), expected, atol=5e-6, rtol=0)


@pytest.mark.parametrize("value", [0.0, 0.37, 1.0])
def test_hue_of_grey_stays(value):
    images = torch.full((2, 3, 4, 4), value)
    assert torch.equal(adjust_hue(images, torch.tensor([-0.3, 0.5])), images)


@pytest.mark.parametrize("channels", [1, 3])
def test_grayscale_is_torchvisions(channels):
    images = random_images(2, channels, 5, 8)
    torch.testing.assert_close(grayscale(images), tv.rgb_to_grayscale(images, channels), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("kernel_size", "height", "width"), [(3, 32, 32), (23, 31, 40), (7, 4, 9), (1, 5, 5)])
def test_blur_is_torchvisions_with_a_sigma_for_each_sample(kernel_size, height, width):
    images, sigmas = random_images(4, 3, height, width), [0.1, 0.5, 1.3, 2.0]
    expected = torch.stack([tv.gaussian_blur(x, kernel_size, s) for x, s in zip(images, sigmas, strict=True)])
    torch.testing.assert_close(gaussian_blur(images, torch.tensor(sigmas), kernel_size), expected, atol=2e-6, rtol=0)


@pytest.mark.parametrize("kernel_size", [4, 17, 0])
def test_blur_refuses_even_and_too_large_kernels(kernel_size):
    with pytest.raises(ValueError, match="an odd number of at most 15 for images of 8 x 9"):
        gaussian_blur(torch.zeros(1, 3, 8, 9), torch.tensor([1.0]), kernel_size)


def test_normalize_is_torchvisions_and_denormalize_undoes_it():
    images, mean, std = random_images(2, 3, 4, 5), [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    normalized = normalize(images, mean, std)
    torch.testing.assert_close(normalized, tv.normalize(images, mean, std))
    torch.testing.assert_close(denormalize(normalized, mean, std), images)


def test_normalize_refuses_values_that_do_not_fit_the_channels():
    with pytest.raises(ValueError, match="one a channel"):
        normalize(torch.zeros(1, 3, 2, 2), [0.5, 0.5], [1.0])
    with pytest.raises(ValueError, match="std"):
        normalize(torch.zeros(1, 3, 2, 2), [0.5], [0.0])


def test_flip_mirrors_all_or_the_named_samples():
    images = random_images(2, 3, 4, 5)
    assert torch.equal(horizontal_flip(images), tv.hflip(images))
    assert torch.equal(
        horizontal_flip(images, torch.tensor([False, True])), torch.stack([images[0], images[1].flip(-1)])
    )


def test_to_float_divides_bytes_and_leaves_floats():
    image = torch.arange(256, dtype=torch.uint8).view(1, 16, 16)
    assert torch.equal(to_float(image), tv.convert_image_dtype(image))
    assert to_float(torch.ones(2, dtype=torch.bfloat16)).dtype == torch.float32
    with pytest.raises(ValueError, match="int64"):
        to_float(torch.ones(2, dtype=torch.int64))


@pytest.mark.parametrize("operation", [adjust_saturation, adjust_hue, lambda images, _: grayscale(images)])
def test_color_of_other_channel_counts_is_refused(operation):
    with pytest.raises(ValueError, match=r"images of 4 channels; expected 3 \(RGB\) or 1"):
        operation(torch.zeros(1, 4, 2, 2), torch.tensor([0.1]))


@pytest.mark.parametrize("channels", [2, 5])
def test_operations_without_color_take_any_number_of_channels(channels):
    images, one = random_images(1, channels, 6, 6), torch.tensor([0.5])
    assert torch.equal(adjust_brightness(images, one), images * 0.5)
    torch.testing.assert_close(adjust_contrast(images, one), images * 0.5 + images.mean() * 0.5)
    for c in range(channels):
        plane = images[:, c : c + 1]
        assert torch.equal(gaussian_blur(images, one, 3)[:, c : c + 1], gaussian_blur(plane, one, 3))
        assert torch.equal(solarize(images, one)[:, c : c + 1], solarize(plane, one))
        box = torch.tensor([[1, 2, 4, 3]])
        assert torch.equal(resized_crop(images, box, 4)[:, c : c + 1], resized_crop(plane, box, 4))


@pytest.mark.parametrize(
    ("operation", "value"),
    [(adjust_brightness, -0.1), (adjust_contrast, -0.1), (adjust_saturation, -0.1), (adjust_hue, 0.6), (solarize, 2.0)],
)
def test_factors_out_of_range_are_refused(operation, value):
    with pytest.raises(ValueError, match="expected it within"):
        operation(torch.zeros(2, 3, 2, 2), torch.tensor([value, 0.0]))


def test_factors_must_be_one_a_sample_or_one_number():
    images = random_images(2, 3, 2, 2)
    assert torch.equal(adjust_brightness(images, 0.5), adjust_brightness(images, torch.tensor([0.5, 0.5])))
    with pytest.raises(ValueError, match=r"one a sample, \(2,\)"):
        adjust_brightness(images, torch.ones(3))


def test_no_operation_writes_to_its_input():
    images = random_images(2, 3, 24, 24)
    before, half = images.clone(), torch.tensor([0.5, 0.4])
    for operation in (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue, solarize):
        operation(images, half)
    gaussian_blur(images, half, 3)
    resized_crop(images, torch.tensor([[0, 0, 24, 24]] * 2), 24)
    normalize(images, [0.5], [0.5])
    assert torch.equal(images, before)
