"""Split-brain's oracles: halves that do not see each other, bins, losses."""

import math

import pytest
import torch
from lightning.pytorch import seed_everything
from runs import images, loader, trainer
from torch import nn
from torch.nn import functional as F

import sslmodules
from sslmodules.encoders import create_encoder, last_map, map_shape, stage_maps
from sslmodules.reconstruction.color_bins import color_bins
from sslmodules.reconstruction.split_brain import SplitBrain, SplitEncoder, lightness_bins
from sslmodules.views.lab import lab_to_rgb, lightness, rgb_to_lab

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}
VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 4, "depth": 1, "embed_dim": 24},
    "size": 16,
}


def method(**kwargs):
    seed_everything(0, verbose=False)
    return SplitBrain(**{**TINY, **kwargs})


def views_of(module, x, seed=0):
    module.generator = torch.Generator().manual_seed(seed)
    return module.make_views(x)


def zeroed(module):
    for head in (module.color_from_lightness, module.lightness_from_color):
        nn.init.zeros_(head[-1].weight)
        nn.init.zeros_(head[-1].bias)
    return module


def test_views_are_the_crop_in_lab_scaled_to_one():
    module = method()
    x = images(6)[:][0]
    (view,) = views_of(module, x, seed=3)
    lab = rgb_to_lab(module.view(x, torch.Generator().manual_seed(3)))
    torch.testing.assert_close(view[:, :1] * 50 + 50, lab[:, :1], rtol=0, atol=1e-4)
    torch.testing.assert_close(view[:, 1:] * 110, lab[:, 1:], rtol=0, atol=1e-4)
    corners = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 3).T.view(1, 3, 2, 4)
    assert module.preprocess(corners).abs().max() <= 1 + 1e-5


@pytest.mark.parametrize(
    "kwargs", [TINY, VIT, {"encoder": "resnet18", "encoder_args": {}}], ids=["conv", "vit", "resnet"]
)
@pytest.mark.parametrize("task", ["classification", "regression"])
def test_neither_half_sees_what_it_predicts(kwargs, task):
    module = method(**kwargs, task=task).train()
    (view,) = views_of(module, images(4, side=32)[:][0])
    view.requires_grad_()
    _, color, light = module.predict(view)
    for predicted, seen, hidden in ((color, slice(0, 1), slice(1, 3)), (light, slice(1, 3), slice(0, 1))):
        (gradient,) = torch.autograd.grad(predicted.square().sum(), view, retain_graph=True)
        assert (gradient[:, hidden] == 0).all()
        assert gradient[:, seen].abs().max() > 0
    parameters = [
        {id(p) for p in (*encoder.parameters(), *head.parameters())}
        for encoder, head in (
            (module.encoder.lightness, module.color_from_lightness),
            (module.encoder.color, module.lightness_from_color),
        )
    ]
    assert not parameters[0] & parameters[1]
    assert parameters[0] | parameters[1] == {id(p) for p in module.parameters()}


def test_two_encoders_are_one_with_grouped_convolutions():
    torch.manual_seed(0)
    halves = [nn.Sequential(nn.Conv2d(c, 6, 3), nn.ReLU(), nn.Conv2d(6, 4, 3)) for c in (1, 2)]
    encoder = SplitEncoder(*halves)
    x = torch.randn(2, 3, 9, 9)
    first = torch.zeros(12, 3, 3, 3)  # no weight from one half to the other
    first[:6, :1], first[6:, 1:] = halves[0][0].weight.detach(), halves[1][0].weight.detach()
    bias, second, second_bias = (
        torch.cat([getattr(half[i], name) for half in halves]) for i, name in [(0, "bias"), (2, "weight"), (2, "bias")]
    )
    grouped = F.conv2d(F.conv2d(x, first, bias).relu(), second, second_bias, groups=2)
    torch.testing.assert_close(encoder.forward_features(x), grouped)
    torch.testing.assert_close(encoder(x), grouped.mean((2, 3)))


@pytest.mark.parametrize(
    ("name", "args", "size", "widths", "stages"),
    [
        ("conv4", {"widths": (8, 16)}, None, (16, 16), [(16, 16, 16), (32, 8, 8)]),
        ("resnet18", {"channels": [8, 16, 32, 64]}, None, (64, 64), [(128, 8, 8), (16, 4, 4), (32, 2, 2), (64, 1, 1)]),
        ("vit_tiny_patch16_224", VIT["encoder_args"], 16, (24, 24), [(48, 4, 4)]),
        ("swin_tiny_patch4_window7_224",
         {"embed_dim": 12, "depths": (1, 1), "num_heads": (1, 1), "window_size": 2, "img_size": 16},
         16, (24, 24), [(24, 4, 4), (48, 2, 2)]),
    ],
)  # fmt: skip
def test_features_are_as_wide_as_both_encoders_at_every_stage(name, args, size, widths, stages):
    module = method(encoder=name, encoder_args=args, size=size).eval()
    x = images(2)[:][0]
    assert module.encoder.widths == widths
    assert module.feature_dim == sum(widths) == module.encoder.num_features
    view = module.preprocess(x)
    assert module(x).shape == (2, sum(widths))
    torch.testing.assert_close(module.encoder(view), module(x))
    maps = module.features(x)
    assert [tuple(m.shape[1:]) for m in maps][: len(stages)] == stages
    alone = stage_maps(module.encoder.lightness, view[:, :1]), stage_maps(module.encoder.color, view[:, 1:])
    for both, first, second in zip(maps, *alone, strict=True):
        assert torch.equal(both, torch.cat([first, second], 1))
    assert last_map(module.encoder, view).shape[1] == sum(widths)
    assert map_shape(module.encoder, 3, 16)[0] == sum(widths)


def test_lightness_falls_into_fifty_bins_and_white_into_the_last():
    assert lightness_bins(torch.tensor([-1e-5, 0.0, 1.99, 2.0, 50.0, 97.99, 98.0, 99.9, 100.0])).tolist() == [
        0, 0, 0, 1, 25, 48, 49, 49, 49
    ]  # fmt: skip
    white_and_black = torch.tensor([1.0, 0.0]).expand(1, 3, 1, 2)
    assert lightness_bins(lightness(white_and_black)).flatten().tolist() == [49, 0]


def test_zeroed_heads_lose_ln_313_and_ln_50():
    module = zeroed(method())
    out = module.loss(views_of(module, images(8)[:][0]))
    assert out["loss"].item() == pytest.approx(math.log(313) + math.log(50), abs=1e-4)
    # On a head alone: the other's logits are so sure of the truth that it loses nothing.
    module.color_from_lightness[-1].bias.data[(color_bins() == 0).all(1)] = 1e4
    grey = torch.full((2, 3, 16, 16), 128, dtype=torch.uint8)
    out = module.loss(views_of(module, grey))
    assert out["loss"].item() == pytest.approx(math.log(50), abs=1e-4)
    assert out["color_accuracy"] == 1


def test_targets_are_the_mean_lab_of_each_cell_of_the_map():
    module = method().eval()
    (view,) = views_of(module, images(4)[:][0])
    _, color, light = module.predict(view)
    assert (color.shape, light.shape) == ((4, 313, 8, 8), (4, 50, 8, 8))
    cells = view.unflatten(3, (8, 2)).unflatten(2, (8, 2)).mean((3, 5))  # (4, 3, 8, 8)
    nearest = (110 * cells[:, 1:].movedim(1, -1)[..., None, :] - color_bins()).square().sum(-1).argmin(-1)
    bins = ((50 * cells[:, 0] + 50) / 2).floor().long()
    out = module.loss([view])
    torch.testing.assert_close(out["loss"], F.cross_entropy(color, nearest) + F.cross_entropy(light, bins))
    torch.testing.assert_close(out["lightness_accuracy"], (light.argmax(1) == bins).float().mean())
    torch.testing.assert_close(out["color_accuracy"], (color.argmax(1) == nearest).float().mean())
    torch.testing.assert_close(out["features"], module.encode(view).detach())


def test_regression_is_half_the_squared_distance_in_scaled_units():
    module = zeroed(method(task="regression"))
    rgb = lab_to_rgb(torch.tensor([70.0, 22.0, -33.0]).view(1, 3, 1, 1).expand(2, 3, 16, 16))
    out = module.loss(views_of(module, rgb))
    assert out["loss"].item() == pytest.approx(0.5 * (0.2**2 + 0.3**2) + 0.5 * 0.4**2, rel=1e-3)
    assert out["color_error"].item() == pytest.approx(math.hypot(22, 33), rel=1e-3)
    assert out["lightness_error"].item() == pytest.approx(20, rel=1e-3)
    assert out.keys() == {"loss", "color_error", "lightness_error", "features"}


def coupled(count=32, seed=0):
    """Images of two halves, dark and blue beside light and yellow: each channel tells the others."""
    generator = torch.Generator().manual_seed(seed)
    swap = torch.rand(count, generator=generator).view(-1, 1, 1, 1) < 0.5
    left = (torch.arange(16) < 8).expand(count, 1, 16, 16) ^ swap
    lab = torch.where(
        left,
        torch.tensor([35.0, 20, -50]).view(3, 1, 1),
        torch.tensor([80.0, -10, 60]).view(3, 1, 1),
    )
    return lab_to_rgb(lab + torch.randn(count, 3, 16, 16, generator=generator))


@pytest.mark.parametrize("kwargs", [TINY, VIT], ids=["conv4", "vit"])
def test_both_directions_are_learnt(kwargs):
    module = method(**kwargs, min_scale=0.9).train()
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for step in range(40):
        loss = module.loss(views_of(module, coupled(), step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    out = module.eval().loss(views_of(module, coupled(seed=1)))
    assert out["color_accuracy"] > 0.6  # cells on the edge are mixed
    assert out["lightness_accuracy"] > 0.6


def test_pictures_show_what_each_half_sees_and_says():
    for task in ("classification", "regression"):
        module = zeroed(method(task=task)).eval()
        if task == "classification":
            module.color_from_lightness[-1].bias.data[(color_bins() == torch.tensor([20.0, 10.0])).all(1)] = 100.0
            module.lightness_from_color[-1].bias.data[35] = 100.0
        else:
            module.color_from_lightness[-1].bias.data = torch.tensor([20 / 110, 10 / 110])
            module.lightness_from_color[-1].bias.data.fill_((71 - 50) / 50)
        x = (images(3)[:][0] / 4 + 90).to(torch.uint8)
        shown = module.pictures(x)
        assert {k: tuple(v.images.shape) for k, v in shown.items()} == {
            "colours from lightness": (3, 3, 3, 16, 16),
            "lightness from colours": (3, 3, 3, 16, 16),
        }
        true = rgb_to_lab(x)
        seen, said, truth = (rgb_to_lab(column) for column in shown["colours from lightness"].images.unbind(1))
        for column in (seen, said, truth):
            torch.testing.assert_close(column[:, :1], true[:, :1], rtol=0, atol=0.1)
        assert seen[:, 1:].abs().max() < 0.1
        assert (said[:, 1:] - torch.tensor([20.0, 10]).view(2, 1, 1)).abs().max() < 0.1
        torch.testing.assert_close(truth, true, rtol=0, atol=0.1)
        seen, said, truth = (rgb_to_lab(column) for column in shown["lightness from colours"].images.unbind(1))
        assert (said[:, 0] - 71).abs().max() < 0.1
        torch.testing.assert_close(truth[:, :1], true[:, :1], rtol=0, atol=0.1)
        torch.testing.assert_close(seen[:, 1:], true[:, 1:], rtol=0, atol=0.1)


@pytest.mark.parametrize("task", ["classification", "regression"])
def test_a_training_run_gives_the_metrics_in_half_precision(task, tmp_path):
    module = method(task=task)
    run = trainer(tmp_path, max_epochs=1, precision="bf16-mixed")
    run.fit(module, loader(16), loader(16, seed=1))
    kind = "accuracy" if task == "classification" else "error"
    assert {f"{s}/{c}_{kind}" for s in ("train", "val") for c in ("color", "lightness")} <= run.callback_metrics.keys()
    assert all(p.isfinite().all() for p in module.state_dict().values())
    run.save_checkpoint(tmp_path / "c.ckpt")
    again = sslmodules.load(tmp_path / "c.ckpt").eval()
    x = images(2)[:][0]
    torch.testing.assert_close(again(x), module.eval()(x))


def test_two_modules_serve_as_halves_and_are_asked_for_when_loading(tmp_path):
    halves = SplitEncoder(create_encoder("conv4", 1, widths=(8, 16)), create_encoder("conv4", 2, widths=(4, 12)))
    module = method(encoder=halves, encoder_args=None)
    assert module.feature_dim == 28
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, loader(8))
    run.save_checkpoint(tmp_path / "c.ckpt")
    with pytest.raises(ValueError, match=r"pass encoder=\.\.\. when loading"):
        sslmodules.load(tmp_path / "c.ckpt")
    assert sslmodules.load(tmp_path / "c.ckpt", encoder=halves).feature_dim == 28


def test_encoders_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="encoder is a ConvNet; pass a name, or two encoders of your own as SplitEnc"):
        method(encoder=create_encoder("conv4", 1), encoder_args=None)
    with pytest.raises(ValueError, match="there is no encoder 'conv5'"):
        method(encoder="conv5", encoder_args=None)
    with pytest.raises(ValueError, match="an image of 2 channels"):
        SplitEncoder(create_encoder("conv4", 1), create_encoder("conv4", 3))
    with pytest.raises(ValueError, match="are 8x8 and 32x32; pass two encoders of one kind"):
        SplitEncoder(create_encoder("conv4", 1), create_encoder("conv4", 2, widths=(4, 8)))


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"task": "both"}, "expected 'classification' or 'regression'"),
        ({"in_channels": 1}, "got in_channels=1"),
        ({"mean": (0.5,), "std": (0.5,)}, "scales lightness and colours by itself"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        method(**kwargs)


def test_images_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the images have 1 channels, SplitBrain takes RGB"):
        trainer(tmp_path, max_steps=1).fit(method(), loader(8, channels=1))
    with pytest.raises(ValueError, match="the encoder cuts patches of 4x4"):
        trainer(tmp_path, max_steps=1).fit(method(**{**VIT, "size": None}), loader(8, side=18))
