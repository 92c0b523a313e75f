"""The recipes hold the papers' numbers."""

import pytest
import torch

from sslmodules.views import (
    ColorJitter,
    Compose,
    GaussianBlur,
    RandomGrayscale,
    RandomResizedCrop,
    RandomSolarize,
    Transform,
    identity,
    moco_v1,
    moco_v2,
    moco_v3,
    simclr,
)


def part(view: Compose, kind: type) -> Transform:
    (found,) = [transform for transform in view.transforms if isinstance(transform, kind)]
    return found


def jitter_of(view: Compose) -> tuple[float, ...]:
    jitter = part(view, ColorJitter)
    return jitter.brightness, jitter.contrast, jitter.saturation, jitter.hue, jitter.p


def crop_of(view: Compose) -> tuple[object, ...]:
    crop = part(view, RandomResizedCrop)
    return crop.scale, crop.ratio, crop.interpolation, crop.flip


def test_simclr_is_appendix_a():
    view = simclr(size=224)
    assert crop_of(view) == ((0.08, 1.0), (3 / 4, 4 / 3), "bicubic", 0.5)
    assert jitter_of(view) == (0.8, 0.8, 0.8, 0.2, 0.8)
    assert part(view, RandomGrayscale).p == 0.2
    blur = part(view, GaussianBlur)
    assert (blur.p, blur.sigma, blur.kernel_size) == (0.5, (0.1, 2.0), None)


def test_simclr_for_cifar_is_half_as_strong_without_blur():
    view = simclr(strength=0.5, blur=0.0)
    assert jitter_of(view) == (0.4, 0.4, 0.4, 0.1, 0.8)
    assert part(view, GaussianBlur).p == 0


def test_moco_v1_makes_grey_first_and_jitters_every_image():
    view = moco_v1()
    assert [type(transform) for transform in view.transforms] == [RandomResizedCrop, RandomGrayscale, ColorJitter]
    assert crop_of(view) == ((0.2, 1.0), (3 / 4, 4 / 3), "bilinear", 0.5)
    assert jitter_of(view) == (0.4, 0.4, 0.4, 0.4, 1.0)


def test_moco_v2_is_aug_plus():
    view = moco_v2()
    assert crop_of(view) == ((0.2, 1.0), (3 / 4, 4 / 3), "bilinear", 0.5)
    assert jitter_of(view) == (0.4, 0.4, 0.4, 0.1, 0.8)
    assert (part(view, GaussianBlur).p, part(view, GaussianBlur).sigma) == (0.5, (0.1, 2.0))


def test_moco_v3_pair_differs_in_blur_and_solarization():
    first, second = moco_v3(min_scale=0.2)
    for view in (first, second):
        assert crop_of(view) == ((0.2, 1.0), (3 / 4, 4 / 3), "bilinear", 0.5)
        assert jitter_of(view) == (0.4, 0.4, 0.2, 0.1, 0.8)
    assert [part(view, GaussianBlur).p for view in (first, second)] == [1.0, 0.1]
    assert [part(view, RandomSolarize).p for view in (first, second)] == [0.0, 0.2]


@pytest.mark.parametrize("view", [simclr(16), moco_v1(16), moco_v2(16), *moco_v3(16)])
def test_views_have_the_asked_size_and_stay_in_range(view):
    images = torch.randint(0, 256, (6, 3, 32, 40), dtype=torch.uint8)
    views = view(images)
    assert views.shape == (6, 3, 16, 16)
    assert views.min() >= 0
    assert views.max() <= 1


def test_identity_changes_the_type_and_the_size_only():
    images = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert torch.equal(identity()(images), images / 255)
    assert identity(size=4)(images).shape == (2, 3, 4, 4)
