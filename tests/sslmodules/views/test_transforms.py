"""What is drawn, what it is applied to, and that neither autocast, chunks nor layout change a view."""

import math
import warnings

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torchvision.transforms import ColorJitter as TorchvisionJitter
from torchvision.transforms import RandomResizedCrop as TorchvisionCrop
from torchvision.transforms import functional as tv

from sslmodules.views import (
    ColorJitter,
    Compose,
    GaussianBlur,
    Identity,
    Normalize,
    RandomGrayscale,
    RandomHorizontalFlip,
    RandomResizedCrop,
    RandomSolarize,
    Resize,
    color,
    jitter,
    random_boxes,
    simclr,
    transforms,
)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_bytes(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=seeded())


def all_transforms() -> list[transforms.Transform]:
    return [
        RandomResizedCrop(flip=0.5),
        RandomResizedCrop(size=(9, 20), interpolation="bilinear"),
        Resize(16, "bicubic"),
        RandomHorizontalFlip(),
        ColorJitter(0.8, 0.8, 0.8, 0.2),
        RandomGrayscale(p=0.5),
        GaussianBlur(kernel_size=5),
        RandomSolarize(p=0.5),
        Normalize([0.5, 0.4, 0.3], [0.2, 0.3, 0.4]),
        Identity(),
        simclr(),
    ]


each_transform = pytest.mark.parametrize("transform", all_transforms(), ids=lambda t: type(t).__name__)


# What is drawn


@pytest.mark.parametrize(("height", "width"), [(32, 32), (40, 25)])
def test_boxes_are_distributed_as_torchvisions(height, width):
    torch.manual_seed(0)
    scale, ratio = (0.2, 1.0), (3 / 4, 4 / 3)
    ours = random_boxes(3000, height, width, scale, ratio, seeded()).double()
    image = torch.zeros(1, height, width)
    theirs = torch.tensor([TorchvisionCrop.get_params(image, list(scale), list(ratio)) for _ in range(3000)]).double()
    error = theirs.std(0) / math.sqrt(3000) * math.sqrt(2)
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
    torch.testing.assert_close(ours.std(0), theirs.std(0), rtol=0.07, atol=0)
    assert torch.equal(ours.amax(0), theirs.amax(0)) or (ours.amax(0) - theirs.amax(0)).abs().max() <= 1
    assert (ours[:, :2] + ours[:, 2:]).amax(0).tolist() == [height, width]


@pytest.mark.parametrize(("height", "width"), [(4, 100), (100, 4), (3, 3)])
def test_boxes_fall_back_to_the_central_one_as_torchvisions(height, width):
    scale = (1.0, 1.0) if height != width else (0.001, 0.001)  # too large, or rounded to nothing: no try fits
    theirs = TorchvisionCrop.get_params(torch.zeros(1, height, width), list(scale), [3 / 4, 4 / 3])
    assert random_boxes(5, height, width, scale).tolist() == [list(theirs)] * 5


def test_boxes_lie_inside_a_single_pixel_image():
    assert random_boxes(3, 1, 1).tolist() == [[0, 0, 1, 1]] * 3


def test_jitter_factors_have_torchvisions_ranges():
    drawn = ColorJitter(0.4, 1.5, 0.0, 0.1, p=0.5).draw(4000, 1, 1, seeded())
    theirs = TorchvisionJitter(0.4, 1.5, 0.0, 0.1)
    for factors, limits in zip(
        drawn["factors"].T, (theirs.brightness, theirs.contrast, (1, 1), theirs.hue), strict=True
    ):
        assert factors.min() >= limits[0]
        assert factors.max() <= limits[1]
        assert factors.max() - factors.min() >= 0.99 * (limits[1] - limits[0])
    assert abs(drawn["mask"].float().mean() - 0.5) < 0.03


def test_jitter_draws_every_order_about_as_often():
    order = ColorJitter(p=1.0).draw(4800, 1, 1, seeded())["order"]
    _, counts = order.unique(dim=0, return_counts=True)
    assert len(counts) == 24
    assert counts.min() > 140  # 200 expected, standard deviation 14


@each_transform
def test_same_seed_same_views_and_another_seed_others(transform):
    images = random_bytes(16, 3, 24, 24)
    first = transform(images, seeded(1))
    assert torch.equal(first, transform(images, seeded(1)))
    if transform.draw(1, 24, 24):
        assert not torch.equal(first, transform(images, seeded(2)))


def test_global_seed_decides_where_no_generator_is_given():
    images = random_bytes(4, 3, 24, 24)
    torch.manual_seed(3)
    first = simclr()(images)
    torch.manual_seed(3)
    assert torch.equal(first, simclr()(images))


@each_transform
def test_global_generator_is_untouched_where_one_is_given(transform):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    transform(random_bytes(2, 3, 24, 24), seeded())
    assert torch.equal(before, torch.get_rng_state())


def test_parameters_differ_within_a_batch():
    views = simclr()(random_bytes(1, 3, 24, 24).expand(12, -1, -1, -1), seeded())
    assert all(not torch.equal(views[i], views[j]) for i in range(12) for j in range(i))


@pytest.mark.parametrize("make", [RandomHorizontalFlip, RandomGrayscale, lambda p: RandomSolarize(p=p)])
def test_probability_is_the_share_of_samples_changed(make):
    images = random_bytes(1, 3, 4, 4).expand(2000, -1, -1, -1)
    changed = (make(p=0.3)(images, seeded()) != images / 255).flatten(1).any(1)
    assert abs(changed.float().mean() - 0.3) < 0.04


@pytest.mark.parametrize("make", [RandomHorizontalFlip, RandomGrayscale, lambda p: GaussianBlur(p=p)])
def test_probability_zero_never_and_one_always(make):
    images = random_bytes(64, 3, 20, 20)
    assert torch.equal(make(p=0.0)(images), images / 255)
    assert (make(p=1.0)(images) != images / 255).flatten(1).any(1).all()


# What the parameters do


def test_jitter_is_torchvisions_image_by_image_in_the_drawn_order():
    transform = ColorJitter(0.8, 0.8, 0.8, 0.2, p=0.8)
    images = random_bytes(64, 3, 6, 7) / 255
    drawn = transform.draw(64, 6, 7, seeded())
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    expected = images.clone()
    for i in drawn["mask"].nonzero().flatten():
        for k in drawn["order"][i].tolist():
            expected[i] = operations[k](expected[i], drawn["factors"][i, k].item())
    assert 0 < drawn["mask"].sum() < 64
    torch.testing.assert_close(transform.apply_params(images.clone(), drawn), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("strengths", [(0.4, 0, 0, 0), (0, 0.4, 0, 0), (0, 0, 0.4, 0), (0, 0, 0, 0.4), (0, 0, 0, 0)])
def test_jitter_of_one_property_leaves_the_others(strengths):
    transform, images = ColorJitter(*strengths, p=1.0), random_bytes(8, 3, 5, 5) / 255
    drawn = transform.draw(8, 5, 5, seeded())
    operations = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    k = max(range(4), key=lambda i: strengths[i])
    expected = [operations[k](image, drawn["factors"][i, k].item()) for i, image in enumerate(images)]
    torch.testing.assert_close(transform.apply_params(images.clone(), drawn), torch.stack(expected), atol=5e-6, rtol=0)


def test_crop_flips_with_its_probability():
    transform = RandomResizedCrop(scale=(1.0, 1.0), ratio=(1.0, 1.0), flip=0.5)
    images = random_bytes(1, 3, 8, 8).expand(400, -1, -1, -1) / 255
    views = transform(images, seeded())
    flipped = (views - images.flip(-1)).abs().flatten(1).amax(1) < 1e-6
    kept = (views - images).abs().flatten(1).amax(1) < 1e-6
    assert (flipped ^ kept).all()
    assert abs(flipped.float().mean() - 0.5) < 0.1


@pytest.mark.parametrize("transform", [RandomResizedCrop(32), Resize(32, "bicubic"), simclr(32)])
def test_bicubic_overshoot_is_clamped(transform):
    views = transform(torch.randint(0, 2, (8, 3, 16, 16), generator=seeded()).float(), seeded())
    assert views.min() >= 0
    assert views.max() <= 1


def test_crop_without_size_keeps_the_incoming_one():
    assert RandomResizedCrop()(random_bytes(2, 3, 13, 21)).shape == (2, 3, 13, 21)
    assert RandomResizedCrop(size=(5, 6))(random_bytes(2, 3, 13, 21)).shape == (2, 3, 5, 6)


@pytest.mark.parametrize(("side", "kernel_size"), [(224, 23), (96, 9), (32, 3), (20, 3)])
def test_blur_spans_a_tenth_of_the_side(side, kernel_size):
    image = torch.zeros(1, 1, side, side)
    image[..., side // 2, side // 2] = 1
    row = GaussianBlur(sigma=(2.0, 2.0), p=1.0)(image)[0, 0, side // 2]
    assert int((row > 0).sum()) == kernel_size


def test_blur_leaves_images_whose_tenth_is_one_pixel():
    images = random_bytes(2, 3, 19, 40)
    assert torch.equal(GaussianBlur(p=1.0)(images), images / 255)


# What changes nothing


@each_transform
def test_bytes_and_floats_give_the_same_views(transform):
    images = random_bytes(6, 3, 24, 24)
    views = transform(images, seeded())
    assert views.dtype == torch.float32
    assert torch.equal(views, transform(images / 255, seeded()))


@each_transform
def test_input_is_never_written_to_nor_returned(transform):
    images = random_bytes(6, 3, 24, 24) / 255
    before = images.clone()
    transform(images, seeded()).zero_()
    assert torch.equal(images, before)


@each_transform
@pytest.mark.parametrize("shape", [(1, 3, 24, 24), (3, 3, 21, 33)])
def test_batches_of_one_odd_sides_and_non_contiguous_images_work(transform, shape):
    images = random_bytes(*shape)
    views = transform(images, seeded())
    assert views.shape == (*shape[:2], *transform.output_size(*shape[2:]))
    assert torch.equal(views, transform(images.contiguous(memory_format=torch.channels_last), seeded()))


@each_transform
def test_single_image_is_a_batch_of_one(transform):
    image = random_bytes(3, 24, 26)
    assert torch.equal(transform(image, seeded()), transform(image[None], seeded())[0])


@each_transform
@pytest.mark.parametrize("values", [1, 4000])
def test_chunks_do_not_change_the_views(transform, values, monkeypatch):
    images = random_bytes(9, 3, 24, 24)
    whole = transform(images, seeded())
    monkeypatch.setattr(transforms, "CACHED_VALUES", values)
    assert torch.equal(transform(images, seeded()), whole)


def test_jitter_of_large_images_one_by_one_is_that_of_the_batch(monkeypatch):
    transform, images = ColorJitter(0.8, 0.8, 0.8, 0.2), random_bytes(32, 3, 20, 20)
    batch = transform(images, seeded())
    monkeypatch.setattr(jitter, "LARGE", 1)
    assert torch.equal(transform(images, seeded()), batch)


@each_transform
def test_bf16_autocast_changes_nothing(transform):
    images = random_bytes(6, 3, 24, 24)
    expected = transform(images, seeded())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(transform(images, seeded()), expected)


def test_matmul_precision_changes_nothing_and_is_not_changed():
    images, before = random_bytes(6, 3, 24, 24), torch.get_float32_matmul_precision()
    expected = simclr()(images, seeded())
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(simclr()(images, seeded()), expected)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_no_view_is_made_by_a_matrix_product():
    """So that TF32, which rounds products on GPUs, has nothing to round."""
    called = set()

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.add(func.overloadpacket.__name__)
            return func(*args, **(kwargs or {}))

    with Record():
        simclr()(random_bytes(16, 3, 40, 40), seeded())
    assert "_embedding_bag_forward_only" in called or "_embedding_bag" in called
    assert not called & {"mm", "bmm", "addmm", "baddbmm", "convolution", "einsum", "_scaled_mm"}


def test_no_gradient_is_kept():
    images = torch.rand(2, 3, 24, 24, requires_grad=True)
    assert not simclr()(images).requires_grad


def test_no_value_on_the_images_device_is_asked_for():
    """On the meta device, which has no values, whatever waits for one raises; a step there stays asynchronous."""
    views = simclr(size=20)(torch.empty(16, 3, 40, 40, dtype=torch.uint8, device="meta"), seeded())
    assert views.shape == (16, 3, 20, 20)
    assert views.device.type == "meta"


def test_compose_nests_and_follows_the_size():
    nested = Compose(Compose(Resize(20), RandomResizedCrop()), Compose(Resize(10)))
    assert nested.output_size(33, 44) == (10, 10)
    assert nested(random_bytes(2, 3, 33, 44)).shape == (2, 3, 10, 10)
    drawn = nested.draw(2, 33, 44, seeded())
    assert (drawn["0.1.boxes"][:, :2] + drawn["0.1.boxes"][:, 2:]).max() <= 20


def test_normalize_adds_nothing_to_checkpoints():
    assert Compose(Normalize([0.5], [0.5])).state_dict() == {}


def test_transforms_leave_torchs_module_apply_alone():
    seen = []
    torch.nn.Sequential(simclr()).apply(lambda module: seen.append(type(module).__name__))
    assert {"RandomResizedCrop", "Compose", "Sequential"} <= set(seen)


# What is refused


@pytest.mark.parametrize("side", [6, 128])  # in a batch, and one by one
def test_color_transforms_leave_out_what_needs_rgb_with_one_warning(side):
    color._warn_of.cache_clear()
    images, jitter = torch.rand(6, 5, side, side), ColorJitter(0.4, 0.4, 0.4, 0.1, p=0.8)
    params = jitter.draw(6, side, side, torch.Generator().manual_seed(0))
    colorless = params["factors"].clone()
    colorless[:, 2:] = torch.tensor([1.0, 0.0])  # saturation, hue
    expected = ColorJitter(0.4, 0.4).apply_params(
        images.clone(), jitter.steps(params["mask"], params["order"], colorless)
    )
    with pytest.warns(
        UserWarning, match="views of 5 channels: saturation, hue and grayscale, which need RGB, are left out"
    ):
        jittered = jitter.apply_params(images.clone(), params)
    assert torch.equal(jittered, expected)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(RandomGrayscale(p=1.0)(images), images)
    assert not torch.equal(expected, images)


@pytest.mark.parametrize("channels", [1, 2, 6])
def test_recipes_without_color_take_any_number_of_channels(channels):
    view = Compose(RandomResizedCrop(flip=0.5), ColorJitter(0.4, 0.4), RandomGrayscale(p=0.0), GaussianBlur())
    assert view(random_bytes(4, channels, 24, 24)).shape == (4, channels, 24, 24)


def test_one_channel_goes_through_simclr():
    assert simclr()(random_bytes(8, 1, 24, 24)).shape == (8, 1, 24, 24)


def test_generator_must_be_on_the_host():
    class Elsewhere:
        device = torch.device("cuda")

    with pytest.raises(ValueError, match="drawn on the host"):
        Identity()(random_bytes(1, 3, 4, 4), Elsewhere())


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match=r"expected \(B, C, H, W\) or \(C, H, W\)"):
        Identity()(torch.zeros(4, 4))


@pytest.mark.parametrize(
    "make",
    [
        lambda: RandomHorizontalFlip(p=1.1),
        lambda: RandomResizedCrop(scale=(0.5, 0.2)),
        lambda: RandomResizedCrop(scale=(0.5, 2.0)),
        lambda: GaussianBlur(sigma=(0.0, 1.0)),
        lambda: ColorJitter(hue=0.6),
        lambda: ColorJitter(brightness=-0.1),
    ],
)
def test_arguments_out_of_range_are_refused(make):
    with pytest.raises(ValueError, match="expected"):
        make()
