import numpy as np
import pytest
import torch
from skimage.color import lab2rgb, rgb2lab

from sslmodules.views.lab import RGB_FROM_XYZ, XYZ_FROM_RGB, lab_to_rgb, lightness, rgb_to_lab


def reference(function, images):
    """What a function of scikit-image on (..., 3) gives in double precision."""
    return torch.from_numpy(function(images.double().movedim(1, -1).numpy())).movedim(-1, 1).float()


def colours(side=16, seed=0):
    """Random colours, the corners of the RGB cube, and the darkest greys, where the curves change their form."""
    corners = torch.tensor([[r, g, b] for r in (0.0, 1.0) for g in (0.0, 1.0) for b in (0.0, 1.0)])
    dark = torch.linspace(0, 0.08, side * side - 8)[:, None] * torch.tensor([1.0, 0.9, 1.0])
    first = torch.cat([corners, dark]).T.view(3, side, side)
    return torch.stack([first, torch.rand(3, side, side, generator=torch.Generator().manual_seed(seed))])


def test_lab_is_that_of_scikit_image():
    images = colours()
    torch.testing.assert_close(rgb_to_lab(images), reference(rgb2lab, images), rtol=0, atol=1e-3)
    pixels = (images * 255).round().to(torch.uint8)
    torch.testing.assert_close(rgb_to_lab(pixels), reference(rgb2lab, pixels / 255), rtol=0, atol=1e-3)


def test_white_and_black_span_the_lightness_and_greys_have_no_colour():
    grey = torch.linspace(0, 1, 256).expand(1, 3, 1, 256)
    lab = rgb_to_lab(grey)
    assert lab[0, 0, 0, 0].item() == pytest.approx(0, abs=1e-5)
    assert lab[0, 0, 0, -1].item() == pytest.approx(100, abs=1e-4)
    assert lab[:, 0].diff().min() > 0
    assert lab[:, 1:].abs().max() < 0.01


def test_lightness_is_the_first_channel():
    assert torch.equal(lightness(colours()), rgb_to_lab(colours())[:, :1])


def test_round_trip_gives_the_colours_back():
    images = colours(64)
    torch.testing.assert_close(lab_to_rgb(rgb_to_lab(images)), images, rtol=0, atol=1e-4)
    assert torch.equal((lab_to_rgb(rgb_to_lab(images)) * 255).round(), (images * 255).round())


@pytest.mark.filterwarnings("ignore:Conversion from CIE-LAB")  # scikit-image on colours that do not exist
def test_rgb_is_that_of_scikit_image_and_clamped_where_srgb_has_no_such_colour():
    generator = torch.Generator().manual_seed(0)
    lab = torch.rand(1, 3, 40, 40, generator=generator) * torch.tensor([80.0, 80, 80]).view(3, 1, 1)
    lab += torch.tensor([15.0, -40, -40]).view(3, 1, 1)
    rgb, expected = lab_to_rgb(lab), reference(lab2rgb, lab)
    inside = ((expected > 1e-3) & (expected < 1 - 1e-3)).all(1, keepdim=True).expand_as(rgb)
    assert 0.2 < inside.float().mean() < 0.95
    torch.testing.assert_close(rgb[inside], expected[inside], rtol=0, atol=1e-4)
    assert rgb.min() == 0
    assert 1 - 1e-6 < rgb.max() <= 1


def test_the_matrices_are_inverse():
    np.testing.assert_allclose(np.array(XYZ_FROM_RGB) @ np.array(RGB_FROM_XYZ), np.eye(3), atol=1e-14)


def test_gradients_are_finite_everywhere_and_right():
    images = colours().requires_grad_()
    (gradient,) = torch.autograd.grad(rgb_to_lab(images).square().sum(), images)
    assert gradient.isfinite().all()
    lab = torch.cat([rgb_to_lab(images.detach()), torch.tensor([0.0, 100, -100]).view(1, 3, 1, 1).expand(1, 3, 16, 16)])
    lab.requires_grad_()
    (gradient,) = torch.autograd.grad(lab_to_rgb(lab).square().sum(), lab)
    assert gradient.isfinite().all()

    image = torch.tensor([0.2, 0.5, 0.7]).view(1, 3, 1, 1).requires_grad_()
    (slope,) = torch.autograd.grad(rgb_to_lab(image)[0, 1].sum(), image)
    step = 1e-3 * torch.eye(3).view(3, 3, 1, 1)
    measured = (rgb_to_lab(image + step) - rgb_to_lab(image - step))[:, 1, 0, 0].detach() / 2e-3
    torch.testing.assert_close(slope.flatten(), measured, rtol=1e-2, atol=0.1)


def test_autocast_rounds_nothing():
    images = colours()
    lab = rgb_to_lab(images)
    again = lab_to_rgb(lab)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(rgb_to_lab(images), lab)
        assert torch.equal(lab_to_rgb(lab), again)
    assert lab_to_rgb(lab.bfloat16()).dtype == rgb_to_lab(images.half()).dtype == torch.float32


@pytest.mark.parametrize("function", [rgb_to_lab, lightness, lab_to_rgb])
@pytest.mark.parametrize("shape", [(2, 1, 4, 4), (2, 4, 4, 4), (3, 4, 4)])
def test_anything_but_three_channels_is_refused(function, shape):
    with pytest.raises(ValueError, match="expected three channels"):
        function(torch.zeros(shape))
