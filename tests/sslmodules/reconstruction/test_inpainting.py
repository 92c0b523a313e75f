"""Context encoders: what the network may see, what the loss reads, and a GAN's two gradients out of one loss."""

import copy

import pytest
import torch
from runs import images, loader, trainer
from torch import nn
from torch.nn import functional as F

from sslmodules.optim import parameter_groups
from sslmodules.reconstruction.inpainting import ChannelwiseLinear, Inpainting, discriminator
from sslmodules.views.masks import overlap_weights

KINDS = ("center", "blocks", "region")
each_mask = pytest.mark.parametrize("mask", KINDS)


def built(**kwargs) -> Inpainting:
    torch.manual_seed(0)
    given = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}, "size": 16, "width": 16, **kwargs}
    return Inpainting(**given)


def views_of(method: Inpainting, count: int = 6, **kwargs) -> list[torch.Tensor]:
    method.generator = torch.Generator().manual_seed(0)
    views = method.make_views(images(count, side=20, **kwargs)[:][0])
    method.generator = None
    return views


def fill_with(method: Inpainting, fill: torch.Tensor) -> float:
    """L_rec where ``fill`` stands in for the prediction."""
    method.fill = lambda hidden: fill
    return method.loss(method.views)["reconstruction"].item()


@pytest.fixture
def with_views():
    def make(**kwargs):
        method = built(**kwargs)
        method.views = views_of(method)
        return method

    return make


# Views


@each_mask
def test_views_are_crops_from_minus_1_to_1_and_a_mask_each(mask):
    crops, hidden = views_of(built(mask=mask), 32)
    assert crops.shape == (32, 3, 16, 16)
    assert hidden.shape == (32, 1, 16, 16)
    assert hidden.dtype == crops.dtype == torch.float32
    assert set(hidden.unique().tolist()) == {0, 1}
    assert crops.min() >= -1
    assert crops.max() <= 1
    assert crops.min() < -0.9
    assert len(hidden.flatten(1).unique(dim=0)) == (1 if mask == "center" else 32)


def test_the_papers_sizes_are_the_defaults():
    method = Inpainting("conv4")
    _, mask = method.make_views(torch.zeros(1, 3, 128, 128))
    assert mask.sum() == 56**2
    assert method.weights(mask).sum() == 12736
    assert Inpainting("conv4", size=64).overlap == 2
    assert Inpainting("conv4", size=64, mask="region").overlap == 0


@each_mask
def test_the_encoder_does_not_see_what_is_hidden(mask):
    method = built(mask=mask, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)).eval()
    target, hidden = views_of(method)
    other = torch.where(hidden > 0, torch.rand_like(target) * 2 - 1, target)
    seen = method.hide(target, hidden)
    assert torch.equal(method.encode_map(seen), method.encode_map(method.hide(other, hidden)))
    assert not torch.equal(seen, method.hide(torch.where(hidden > 0, target, other.flip(3)), hidden))
    expected = method.normalize((target + 1) / 2)
    torch.testing.assert_close(torch.where(hidden > 0, 0, expected), seen)


def test_what_is_predicted_does_not_depend_on_mean_and_std(with_views):
    method = with_views(mean=(0.4, 0.4, 0.4), std=(0.1, 0.1, 0.1))
    assert torch.equal(method.views[0], with_views().views[0])


# Reconstruction


@each_mask
def test_reconstruction_reads_the_hole_alone(mask, with_views):
    method = with_views(mask=mask, overlap=0)
    target, hidden = method.views
    fill = torch.rand_like(target)
    before = fill_with(method, fill)
    assert fill_with(method, torch.where(hidden > 0, fill, torch.rand_like(fill))) == before > 0
    assert fill_with(method, torch.where(hidden > 0, fill + 1e-3, fill)) > before
    by_hand = [((fill - target)[i][:, hidden[i, 0] > 0] ** 2).mean() for i in range(len(fill))]
    assert before == pytest.approx(torch.stack(by_hand).mean().item(), rel=1e-6)


def test_reconstruction_weighs_the_band_ten_times_and_reads_nothing_beyond(with_views):
    method = with_views(overlap=2)
    target, hidden = method.views
    weights = overlap_weights(hidden, 2)
    assert weights.sum().item() == len(target) * (4 * 4 + 10 * (8 * 8 - 4 * 4))
    fill = torch.rand_like(target)
    expected = (weights * (fill - target) ** 2).sum() / (3 * weights.sum())
    assert fill_with(method, fill) == pytest.approx(expected.item(), rel=1e-5)
    assert fill_with(method, torch.where(weights > 0, fill, 0.3)) == pytest.approx(expected.item(), rel=1e-6)


@each_mask
@pytest.mark.parametrize("loss_on", ["hole", "image"])
def test_perfect_fills_cost_nothing(mask, loss_on, with_views):
    method = with_views(mask=mask, loss_on=loss_on)
    assert fill_with(method, method.views[0]) == 0


def test_loss_on_the_image_reads_every_pixel_and_visible_ones_tenfold_where_there_is_an_overlap(with_views):
    for overlap, visible in [(0, 1), (1, 10)]:
        method = with_views(mask="region", loss_on="image", overlap=overlap)
        target, hidden = method.views
        weights = torch.where(hidden > 0, 1, visible)
        assert torch.equal(method.weights(hidden), weights.float())
        fill = torch.rand_like(target)
        error = (weights * (fill - target) ** 2).mean(1).sum((1, 2)) / weights.sum((1, 2, 3))
        assert fill_with(method, fill) == pytest.approx(error.mean().item(), rel=1e-5)


@each_mask
def test_two_halves_with_unequal_holes_have_the_loss_of_the_whole(mask, with_views):
    method = with_views(mask=mask).eval()  # batch norm apart, samples meet in the mean only
    if mask != "center":
        areas = method.views[1].sum((1, 2, 3)).chunk(2)
        assert areas[0].sum() != areas[1].sum()
    whole = method.loss(method.views)["loss"]
    halves = [method.loss([v.chunk(2)[i] for v in method.views])["loss"] for i in range(2)]
    torch.testing.assert_close((halves[0] + halves[1]) / 2, whole)


def test_images_without_a_hole_leave_the_loss_finite(with_views):
    method = with_views(overlap=0)
    method.views[1].zero_()
    assert method.loss(method.views)["loss"] == 0


# Networks


def test_channelwise_layer_has_the_papers_weights_and_is_one_dense_layer_a_channel():
    layer = ChannelwiseLinear(256, 36)
    assert layer.weight.numel() == 331_776
    assert 256**2 * 36**2 == 84_934_656  # dense
    layer, x = ChannelwiseLinear(3, 6), torch.randn(2, 3, 2, 3)
    dense = [nn.Linear(6, 6) for _ in range(3)]
    with torch.no_grad():
        for c, own in enumerate(dense):
            own.weight.copy_(layer.weight[c])
            own.bias.copy_(layer.bias.view(3, 6)[c])
    expected = torch.stack([own(x[:, c].flatten(1)) for c, own in enumerate(dense)], 1).view_as(x)
    torch.testing.assert_close(layer(x), expected)
    decayed, spared = parameter_groups(layer)
    assert [p.shape for p in decayed["params"]] == [layer.weight.shape]
    assert [p.shape for p in spared["params"]] == [layer.bias.shape]


@pytest.mark.parametrize(
    ("size", "widths"),
    [
        (128, [64, 64, 128, 256, 512, 1]),
        (64, [64, 128, 256, 512, 1]),
        (32, [64, 128, 256, 1]),
        (16, [64, 128, 1]),
        (50, [64, 128, 256, 1]),
        (5, [64, 1]),
    ],
)
def test_discriminator_has_the_papers_layers_for_the_size(size, widths):
    network = discriminator(2, size)
    convolutions = [m for m in network if isinstance(m, nn.Conv2d)]
    assert [m.out_channels for m in convolutions] == widths
    assert sum(isinstance(m, nn.BatchNorm2d) for m in network) == len(widths) - 2
    assert network(torch.zeros(3, 2, size, size)).shape == (3,)


@pytest.mark.parametrize(
    "kwargs",
    [
        {
            "encoder": "vit_tiny_patch16_224",
            "encoder_args": {"patch_size": 4, "depth": 1, "embed_dim": 24},
            "mask": "blocks",
        },
        {"encoder": "resnet18-cifar", "encoder_args": None, "mask": "region"},
        {"in_channels": 1},
        {"in_channels": 5, "adversarial": True},
        {"size": 24, "mean": None, "std": None},
    ],
    ids=str,
)
def test_other_encoders_channels_and_sizes_train_and_encode(kwargs):
    method = built(**kwargs).train()
    channels = method.in_channels
    views = views_of(method, channels=channels)
    out = method.loss(views)
    out["loss"].backward()
    assert all(p.grad is not None for p in method.bottleneck.parameters())
    assert any(p.grad.abs().max() > 0 for p in method.encoder.parameters() if p.grad is not None)
    features = method.eval()(images(3, channels=channels, side=20)[:][0])
    assert features.shape == (3, method.feature_dim)
    assert method.fill(method.hide(*views)).shape == views[0].shape


@pytest.mark.parametrize("adversarial", [False, True])
def test_fills_and_losses_are_fp32_under_autocast(adversarial):
    method = built(adversarial=adversarial).train()
    views = views_of(method)
    full = method.loss(views)
    with torch.autocast("cpu", torch.bfloat16):
        out = method.loss(views)
        assert method.fill(method.hide(*views)).dtype == torch.float32
    assert {v.dtype for v in out.values()} == {torch.float32}
    assert out["reconstruction"].item() == pytest.approx(full["reconstruction"].item(), rel=0.05)
    out["loss"].backward()


# The adversary


def by_two_passes(method: Inpainting, views: list[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Gradients as a GAN's own loop computes them: a pass for the discriminator, one for the generator."""
    target, mask = views
    judge: nn.Module = method.discriminator
    bce = F.binary_cross_entropy_with_logits
    fill = method.fill(method.hide(target, mask))
    right, wrong = judge(mask * target), judge((mask * fill).detach())
    (bce(right, torch.ones_like(right)) + bce(wrong, torch.zeros_like(wrong))).backward()
    gradients = {n: p.grad.clone() for n, p in method.named_parameters() if p.grad is not None}
    assert all(n.startswith("discriminator.") for n in gradients)
    statistics = {n: b.clone() for n, b in judge.named_buffers()}

    method.zero_grad()
    fooled = judge(mask * fill)
    weights = method.weights(mask)
    error = (weights * (fill - target) ** 2).mean(1).sum((1, 2)) / weights.sum((1, 2, 3))
    (0.999 * error.mean() + 0.001 * bce(fooled, torch.ones_like(fooled))).backward()
    gradients |= {
        n: p.grad for n, p in method.named_parameters() if p.grad is not None and not n.startswith("discriminator.")
    }
    return gradients | {f"statistics.{n}": b for n, b in statistics.items()}


@each_mask
def test_one_loss_gives_the_gradients_of_a_gans_two_passes(mask):
    method = built(mask=mask, adversarial=True).double().train()
    views = [v.double() for v in views_of(method)]
    expected = by_two_passes(copy.deepcopy(method), views)
    method.loss(views)["loss"].backward()
    found = {n: p.grad for n, p in method.named_parameters() if p.grad is not None}
    found |= {f"statistics.{n}": b for n, b in method.discriminator.named_buffers()}
    assert found.keys() == expected.keys()
    assert {n.split(".")[0] for n in found} == {"encoder", "bottleneck", "decoder", "discriminator", "statistics"}
    for name, gradient in found.items():
        assert gradient.abs().max() > 0, name
        torch.testing.assert_close(gradient, expected[name], rtol=1e-6, atol=1e-10)


def test_the_adversary_reaches_the_generator_and_weighs_as_much_as_asked():
    """Alone, with all the weight, its gradient is that of the non-saturating loss."""
    method = built(adversarial=True, adversarial_weight=1.0).double().train()
    views = [v.double() for v in views_of(method)]
    target, mask = views
    judge = copy.deepcopy(method.discriminator).requires_grad_(False)
    twin = copy.deepcopy(method)
    (-judge(mask * twin.fill(twin.hide(target, mask))).sigmoid().log().mean()).backward()
    method.loss(views)["loss"].backward()
    for own, other in zip(method.decoder.parameters(), twin.decoder.parameters(), strict=True):
        torch.testing.assert_close(own.grad, other.grad, rtol=1e-6, atol=1e-10)


def test_the_discriminator_sees_the_holes_content_and_no_context():
    method = built(adversarial=True, mask="region").train()
    seen = []
    method.discriminator.register_forward_hook(lambda module, args, out: seen.append(args[0].detach()))
    target, mask = views_of(method)
    method.loss([target, mask])
    real, fake, _ = seen
    assert torch.equal(real, mask * target)
    assert torch.equal(fake == 0, (mask == 0).expand_as(fake))


def test_evaluation_leaves_the_discriminators_statistics_alone():
    method = built(adversarial=True).eval()
    before = {n: b.clone() for n, b in method.named_buffers()}
    out = method.loss(views_of(method))
    assert all(torch.equal(b, before[n]) for n, b in method.named_buffers())
    assert 0 <= out["discriminator_accuracy"] <= 1


def test_an_undecided_discriminator_costs_twice_ln_2():
    method = built(adversarial=True).train()
    nn.init.zeros_(method.discriminator[-2].weight)
    out = method.loss(views_of(method))
    assert out["discriminator"].item() == pytest.approx(2 * 0.693147, rel=1e-5)
    assert out["generator"].item() == pytest.approx(0.693147, rel=1e-5)
    total = 0.999 * out["reconstruction"] + 0.001 * out["generator"] + out["discriminator"]
    assert out["loss"].item() == pytest.approx(total.item(), rel=1e-6)


def test_the_discriminator_has_groups_of_its_own_at_a_tenth_of_the_rate(tmp_path):
    method = built(adversarial=True)
    run = trainer(tmp_path, max_steps=1)
    run.fit(method, loader())
    (optimizer,) = run.optimizers
    assert optimizer.defaults["betas"] == (0.5, 0.999)
    judging = {id(p) for p in method.discriminator.parameters()}
    rates = {}
    for group in optimizer.param_groups:
        own = {id(p) in judging for p in group["params"]}
        assert len(own) == 1
        rates.setdefault(own.pop(), []).append(group["initial_lr"])
    assert rates == {False: [2e-3] * 2, True: pytest.approx([2e-4] * 2)}
    grouped = [id(p) for g in optimizer.param_groups for p in g["params"]]
    assert sorted(grouped) == sorted(id(p) for p in method.parameters())
    assert all("lr_scale" not in group for group in built().parameter_groups())


def test_both_networks_learn_under_accumulation_and_clipping(tmp_path):
    method = built(adversarial=True, learning_rate=5e-3, milestones=())
    before = copy.deepcopy(method.state_dict())
    views = views_of(method, 64, seed=1)  # not trained on
    first = method.train().loss(views)
    method.load_state_dict(before)  # batch norm has seen them
    run = trainer(tmp_path, max_epochs=15, accumulate_grad_batches=2, gradient_clip_val=1.0)
    run.fit(method, loader(128, 16))
    last = method.train().loss(views)
    assert last["reconstruction"] < 0.2 * first["reconstruction"]
    assert last["discriminator"] < 0.9 * 2 * 0.693147  # better than chance
    assert last["discriminator_accuracy"] > 0.7
    assert last["generator"] > 0.693147  # which the generator notices
    logged = {f"train/{k}" for k in ("reconstruction", "generator", "discriminator", "discriminator_accuracy")}
    assert logged <= run.callback_metrics.keys()
    moved = {name.split(".")[0] for name, value in method.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == {"encoder", "bottleneck", "decoder", "discriminator"}


# The rest of the contract


def test_pictures_show_the_input_the_filled_hole_and_the_truth():
    method = built(mask="region", mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.2)).eval()
    x = images(4, side=20)[:][0]
    torch.manual_seed(0)
    tiles = method.pictures(x)["inpainting"].images
    assert tiles.shape == (4, 3, 3, 16, 16)
    assert tiles.min() >= 0
    assert tiles.max() <= 1
    torch.manual_seed(0)
    target, mask = method.make_views(x)
    hidden, filled, truth = tiles.unbind(1)
    torch.testing.assert_close(truth, (target + 1) / 2)
    where = mask.expand_as(truth) > 0
    torch.testing.assert_close(filled[~where], truth[~where])
    torch.testing.assert_close(hidden[~where], truth[~where])
    assert not torch.equal(filled[where], truth[where])
    mean = torch.tensor([0.5, 0.4, 0.3]).view(1, 3, 1, 1).expand_as(truth)
    torch.testing.assert_close(hidden[where], mean[where])


def test_features_are_those_of_whole_images_and_not_of_the_loss():
    method = built().eval()
    assert "features" not in method.loss(views_of(method))
    x = images(4)[:][0]
    torch.testing.assert_close(method(x), method.encode_map(x / 127.5 - 1).mean((2, 3)))


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"mask": "ring"}, r"mask is 'ring'.*expected 'center', 'blocks' or 'region'"),
        ({"loss_on": "edge"}, r"loss_on 'edge'; expected .*'hole' or 'image'"),
        ({"hole": 1.5}, r"share is 1.5"),
        ({"overlap": 4}, r"hides 0 x 0 px"),
        ({"overlap": -1, "mask": "region"}, r"overlap -1; expected"),
        ({"adversarial_weight": 2.0}, r"adversarial_weight is 2.0"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, r"expected 3 numbers each"),
    ],
    ids=str,
)
def test_silly_arguments_are_refused(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        built(**kwargs)
