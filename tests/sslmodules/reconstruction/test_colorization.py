"""Colorization's oracles, and how common colours are found out."""

import math

import pytest
import torch
from lightning.pytorch import seed_everything
from runs import images, loader, same_bits, snapshot, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

import sslmodules
from sslmodules.datamodules import UnlabeledDataModule
from sslmodules.reconstruction.color_bins import class_weights, color_bins, soft_encode
from sslmodules.reconstruction.colorization import Colorization
from sslmodules.views.lab import lab_to_rgb, lightness, rgb_to_lab

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}, "width": 16}


def method(**kwargs):
    seed_everything(0, verbose=False)
    return Colorization(**{**TINY, **kwargs})


def views_of(module, x, seed=0):
    module.generator = torch.Generator().manual_seed(seed)
    return module.make_views(x)


def zeroed(module):
    torch.nn.init.zeros_(module.decoder.last.weight)
    torch.nn.init.zeros_(module.decoder.last.bias)
    return module


def number(a, b):
    return (color_bins() == torch.tensor([float(a), float(b)])).all(1).nonzero().item()


def natural(count=64, seed=0):
    """Photographs' colours, roughly: any lightness, mostly near grey."""
    generator = torch.Generator().manual_seed(seed)
    lab = torch.randn(count, 3, 16, 16, generator=generator) * torch.tensor([20.0, 10, 12]).view(3, 1, 1)
    return (lab_to_rgb(lab + torch.tensor([50.0, 0, 0]).view(3, 1, 1)) * 255).round().to(torch.uint8)


def test_views_are_the_lightness_of_a_crop_and_the_colours_of_every_fourth_pixel():
    module = method()
    x = images(6)[:][0]
    light, ab = views_of(module, x, seed=3)
    crops = module.view(x, torch.Generator().manual_seed(3))
    lab = rgb_to_lab(crops)
    assert not torch.equal(crops, x / 255)
    torch.testing.assert_close(light, (lab[:, :1] - 50) / 50)
    torch.testing.assert_close(ab, lab[:, 1:, ::4, ::4])
    assert light.abs().max() <= 1 + 1e-5


def test_sides_that_four_does_not_divide_work():
    module = method()
    light, ab = views_of(module, images(2, side=18)[:][0])
    assert (light.shape, ab.shape) == ((2, 1, 18, 18), (2, 2, 5, 5))
    assert module.loss([light, ab])["loss"].isfinite()
    assert module.eval().colorize(torch.zeros(2, 3, 18, 21)).shape == (2, 3, 18, 21)


def test_the_network_sees_no_colour():
    module = method().eval()
    x = images(3)[:][0]
    grey = lab_to_rgb(F.pad(lightness(x), (0, 0, 0, 0, 0, 2)))
    assert module.preprocess(x).shape == (3, 1, 16, 16)
    torch.testing.assert_close(module(grey), module(x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("kwargs", [{"rebalance": None}, {"rebalance": 0.5}, {"neighbours": 1}, {"neighbours": 5}])
def test_zeroed_decoder_loses_ln_313_also_before_the_prior_is_known(kwargs):
    module = zeroed(method(**kwargs))
    assert module.loss(views_of(module, images(8)[:][0]))["loss"].item() == pytest.approx(math.log(313), abs=1e-4)


def test_hard_codes_give_plain_cross_entropy():
    module = method(neighbours=1, rebalance=None).eval()
    light, ab = views_of(module, natural(4))
    logits = module.decoder(module.encode_map(light), (4, 4))
    out = module.loss([light, ab])
    nearest = (ab.movedim(1, -1)[..., None, :] - color_bins()).square().sum(-1).argmin(-1)
    torch.testing.assert_close(out["loss"], F.cross_entropy(logits, nearest))
    torch.testing.assert_close(out["color_accuracy"], (logits.argmax(1) == nearest).float().mean())
    torch.testing.assert_close(out["features"], module.encode_map(light).mean((2, 3)).detach())


def test_weighted_soft_codes_give_the_loss_of_the_paper():
    module = method(neighbours=5, rebalance=0.5).eval()
    module.fit_prior([natural()])
    light, ab = views_of(module, natural(4, seed=1))
    log_z = module.decoder(module.encode_map(light), (4, 4)).log_softmax(1)
    index, weight = soft_encode(ab, 5)
    dense = torch.zeros(4, 313, 4, 4).scatter(1, index, weight)  # Z
    v = class_weights(module.prior, 0.5)[dense.argmax(1)]
    by_hand = (v * -(dense * log_z).sum(1)).mean()
    torch.testing.assert_close(module.loss([light, ab])["loss"], by_hand)
    assert v.std() > 0.1


def test_nearly_grey_images_count_nothing_and_only_where_colours_are_rebalanced():
    grey = torch.randint(0, 256, (4, 1, 16, 16), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    grey = grey.expand(4, 3, 16, 16)
    for rebalance, expected in ((0.5, 0.0), (None, math.log(313))):
        module = zeroed(method(rebalance=rebalance))
        assert module.loss(views_of(module, grey))["loss"].item() == pytest.approx(expected, abs=1e-4)
    module = zeroed(method())
    mixed = torch.cat([grey, images(4)[:][0]])
    views = [v.clone() for v in views_of(module, mixed)]
    whole = module.loss(views)["loss"].item()
    assert whole == pytest.approx(math.log(313) / 2, abs=1e-4)
    halves = [module.loss([v[part] for v in views])["loss"].item() for part in (slice(0, 4), slice(4, 8))]
    assert whole == pytest.approx(sum(halves) / 2, abs=1e-6)


def test_rebalancing_pulls_harder_towards_rare_colours():
    """The gradient on the logit of a rare colour, against that of grey."""
    rare, common = number(60, 40), number(0, 0)
    ab = color_bins()[[common] * 15 + [rare]].T.reshape(1, 2, 4, 4)
    light = torch.zeros(1, 1, 16, 16)
    ratios = []
    for rebalance in (None, 0.5):
        module = zeroed(method(rebalance=rebalance, neighbours=1))
        module.prior.zero_()
        module.prior[common], module.prior[rare] = 0.99, 0.01
        module.loss([light, ab])["loss"].backward()
        gradient = module.decoder.last.bias.grad
        assert gradient[rare] < 0
        ratios.append((gradient[rare] / gradient[common]).item())
    assert ratios[0] == pytest.approx(1 / 15, rel=0.1)
    assert ratios[1] > 10 * ratios[0]


# --- how common each colour is --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uint8", "float", "labels", "mapping", "views"])
def test_grey_is_the_commonest_colour_of_natural_images_in_any_kind_of_batch(kind):
    x = natural()
    module = method(min_scale=1.0)
    batch = {
        "uint8": x,
        "float": x / 255,
        "labels": [x, torch.zeros(64, dtype=torch.long)],
        "mapping": {"image": x},
        "views": {"views": [torch.zeros(64, 1, 16, 16), rgb_to_lab(x)[:, 1:, ::4, ::4]]},
    }[kind]
    module.fit_prior([batch])
    assert color_bins()[module.prior.argmax()].tolist() == [0, 0]  # pixels up to 255 taken for floats give (-90, 90)
    assert module.prior.sum() == pytest.approx(1)
    assert module.prior_images == 64
    ab = rgb_to_lab(x)[:, 1:, ::4, ::4]
    nearest = (ab.movedim(1, -1).reshape(-1, 1, 2) - color_bins()).square().sum(2).argmin(1)
    torch.testing.assert_close(module.prior, torch.bincount(nearest, minlength=313) / len(nearest), atol=2e-3, rtol=0)


def test_the_prior_undoes_a_normalisation_and_stops_at_the_number_of_images():
    x, (mean, std) = natural(), ([0.5, 0.4, 0.3], [0.2, 0.25, 0.3])
    normalised = (x / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    plain, undone = method(), method(undo_normalization=(mean, std))
    plain.fit_prior([x[:40]])
    undone.fit_prior((part for part in normalised.split(16)), max_images=40)
    assert undone.prior_images == plain.prior_images == 40
    torch.testing.assert_close(undone.prior, plain.prior, atol=2e-3, rtol=0)
    with pytest.raises(ValueError, match="no image to count"):
        plain.fit_prior([])
    with pytest.raises(ValueError, match="the images have 1 channels, Colorization takes RGB"):
        plain.fit_prior([x[:, :1]])


class Counted(Dataset):
    """Images whose reading is noted, and takes a random number."""

    def __init__(self, x):
        self.x, self.read = x, []

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        self.read.append(index)
        torch.rand(1)
        return self.x[index]


def test_a_run_counts_colours_before_its_first_step_and_leaves_its_data_and_random_numbers_alone(tmp_path):
    x, results = natural(24), []
    for by_hand in (False, True):
        module = method()
        if by_hand:
            module.fit_prior([x])
        data = Counted(x)
        trainer(tmp_path, max_steps=2).fit(module, DataLoader(data, 8, shuffle=True))
        assert module.prior_images == 24
        expected = [] if by_hand else list(range(24))
        assert data.read[: len(expected)] == expected
        assert len(data.read) >= len(expected) + 16
        results.append(snapshot(module) | {"order": torch.tensor(data.read[len(expected) :][:16])})
    assert same_bits(*results)


def test_the_images_that_are_counted_are_spread_over_the_training_set(tmp_path, monkeypatch):
    module, seen = method(), []
    monkeypatch.setattr(module, "fit_prior", lambda batches: seen.extend(batches))
    x = torch.arange(10_000, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
    data = Counted(x)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, DataLoader(data, 8))
    counted = data.read[:4096]
    assert len(torch.cat(seen)) == 4096
    assert counted == sorted(set(counted))
    assert (counted[0], counted[2048], counted[-1]) == (0, 5000, 9997)


def test_a_checkpoint_holds_the_prior_and_a_resumed_run_counts_nothing(tmp_path):
    module = method()
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, DataLoader(natural(16), 8))
    run.save_checkpoint(tmp_path / "c.ckpt")
    assert same_bits(snapshot(sslmodules.load(tmp_path / "c.ckpt")), snapshot(module))
    resumed, other = method(), Counted(images(16)[:][0])
    trainer(tmp_path, max_steps=2).fit(resumed, DataLoader(other, 8), ckpt_path=tmp_path / "c.ckpt")
    assert torch.equal(resumed.prior, module.prior)
    assert len(other.read) <= 16


def test_a_training_set_that_cannot_be_read_ahead_asks_for_the_prior(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(natural(16))

    batches = DataLoader(Stream(), 8)
    with pytest.raises(ValueError, match=r"cannot be read from a Stream.*fit_prior\(batches\).*rebalance=None"):
        trainer(tmp_path, max_steps=1).fit(method(), batches)
    module = method()
    module.fit_prior(batches)
    trainer(tmp_path, max_steps=1).fit(module, batches)
    assert module.prior_images == 16
    module = method(rebalance=None)
    trainer(tmp_path, max_steps=1).fit(module, batches)
    assert module.prior_images == 0


def test_colours_are_counted_beside_labeled_images_and_in_batches_made_elsewhere(tmp_path):
    x, y = images(24)[:]
    labeled = list(zip(x[:4], y[:4].tolist(), strict=True))
    module = method()
    trainer(tmp_path, max_steps=1).fit(module, datamodule=UnlabeledDataModule(x, labeled=labeled, batch_size=8))
    plain = method()
    plain.fit_prior([x])
    assert torch.equal(module.prior, plain.prior)
    for dataset, options in (
        ([{"image": part} for part in x.split(8)], {"batch_size": None}),
        (x, {"batch_sampler": [[0, 1, 2], [3, 4]]}),
        (x, {"batch_size": 8, "collate_fn": lambda items: {"image": default_collate(items)}}),
    ):
        module = method(optimizer=torch.optim.Adam)
        trainer(tmp_path, max_steps=1).fit(module, DataLoader(dataset, **options))
        assert torch.equal(module.prior, plain.prior)


# --- learning, decoding ---------------------------------------------------------------------------------------------


def striped(count=32, seed=0):
    """Images whose stripes' direction tells their colour: red across, blue down, on two lightnesses."""
    generator = torch.Generator().manual_seed(seed)
    down = torch.rand(count, generator=generator) < 0.5
    light = 50 + 15 * (torch.arange(16) // 2 % 2).float() + 5 * torch.rand(count, 1, 1, generator=generator)
    light = light.expand(count, 16, 16)  # stripes that run down
    light = torch.where(down.view(-1, 1, 1), light, light.transpose(1, 2))
    ab = torch.where(down.view(-1, 1), torch.tensor([10.0, -50]), torch.tensor([50.0, 30]))
    return lab_to_rgb(torch.cat([light[:, None], ab[:, :, None, None].expand(count, 2, 16, 16)], 1)), down


@pytest.mark.parametrize(
    "encoder",
    [
        TINY,
        {
            "encoder": "vit_tiny_patch16_224",
            "encoder_args": {"patch_size": 4, "depth": 1, "embed_dim": 24},
            "size": 16,
            "width": 16,
        },
    ],
    ids=["conv4", "vit"],
)
@pytest.mark.parametrize("kwargs", [{}, {"neighbours": 1, "rebalance": None}], ids=["soft", "hard"])
def test_colours_are_learnt_from_the_pattern_of_the_lightness(encoder, kwargs):
    module = method(**encoder, **kwargs, min_scale=0.8).train()
    x, _ = striped()
    module.fit_prior([x])
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for step in range(40):
        loss = module.loss(views_of(module, x, step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.eval()
    held_out, down = striped(seed=1)
    assert module.loss(views_of(module, held_out))["color_accuracy"] > 0.8  # chance is 0.5 at best
    ab = rgb_to_lab(module.colorize(held_out))[:, 1:].mean((2, 3))
    truth = torch.where(down.view(-1, 1), torch.tensor([10.0, -50]), torch.tensor([50.0, 30]))
    assert ((ab - truth).norm(dim=1) < 25).float().mean() > 0.9


def test_pictures_have_the_lightness_that_came_in_and_the_colours_that_are_predicted():
    module = zeroed(method(size=16)).eval()
    module.decoder.last.bias.data[number(20, 10)] = 100.0  # whatever comes in
    x = natural(3)[:, :, :12].clamp(60, 190)
    out = rgb_to_lab(module.colorize(x))
    assert out.shape == x.shape  # and not the square that the network saw
    torch.testing.assert_close(out[:, :1], lightness(x), rtol=0, atol=0.05)
    torch.testing.assert_close(
        out[:, 1:], torch.tensor([20.0, 10]).view(2, 1, 1).expand_as(out[:, 1:]), rtol=0, atol=0.05
    )
    shown = module.pictures(x)["colours"].images
    assert shown.shape == (3, 3, 3, 12, 16)
    assert rgb_to_lab(shown[:, 0])[:, 1:].abs().max() < 0.1
    torch.testing.assert_close(shown[:, 1], module.colorize(x))
    torch.testing.assert_close(shown[:, 2], x / 255)
    predicted = module.predict_step([x, torch.arange(3)], 0)
    assert predicted.keys() == {"features", "labels", "colors", "pictures"}
    torch.testing.assert_close(predicted["pictures"], module.colorize(x))
    torch.testing.assert_close(predicted["features"], module(x))


SMALL_VIT = {"patch_size": 4, "depth": 1, "embed_dim": 24, "num_heads": 2}
SMALL_SWIN = {"img_size": 16, "window_size": 2, "embed_dim": 12, "depths": (1, 1), "num_heads": (1, 2)}


@pytest.mark.parametrize(
    ("encoder", "kwargs", "seen"),
    [
        ("conv4", {}, [(16, 24), (33, 16), (16, 16)]),
        ("vit_tiny_patch16_224", SMALL_VIT, [(16, 24), (32, 16), (16, 16)]),
        ("swin_tiny_patch4_window7_224", SMALL_SWIN, [(16, 16)] * 3),
    ],
    ids=["conv4", "vit", "swin"],
)
def test_whole_images_are_seen_near_the_training_size_in_their_own_shape(encoder, kwargs, seen):
    module = method(encoder=encoder, encoder_args=kwargs, size=16).eval()
    shapes = [(40, 60), (63, 31), (9, 9)]
    assert [module._seen(*shape) for shape in shapes] == seen
    for shape, (h, w) in zip(shapes, seen, strict=True):
        x = torch.rand(1, 3, *shape)
        assert module.colors(x).shape == (1, 2, -(-h // 4), -(-w // 4))
        assert module.colorize(x).shape == x.shape
    module = method(size=None)
    assert module._seen(13, 20) == (13, 20)


def test_grey_images_with_undone_normalisation_are_coloured_alike():
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.25, 0.3]
    x = natural(2) / 255
    normalised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    a, b = method().eval(), method(undo_normalization=(mean, std)).eval()
    b.load_state_dict(a.state_dict())
    for name in ("colorize", "preprocess", "forward"):
        torch.testing.assert_close(getattr(b, name)(normalised), getattr(a, name)(x), rtol=1e-3, atol=1e-3)


def test_dilated_stages_keep_the_map_fine():
    encoder = {"encoder": "resnet18", "size": 64, "width": 16}
    coarse, fine = (method(**encoder, encoder_args=a) for a in ({}, {"output_stride": 8}))
    x = torch.zeros(1, 1, 64, 64)
    assert coarse.encode_map(x).shape == (1, 512, 2, 2)
    assert fine.encode_map(x).shape == (1, 512, 8, 8)
    doublings = [sum(isinstance(m, torch.nn.ConvTranspose2d) for m in c.decoder.modules()) for c in (coarse, fine)]
    assert doublings == [3, 1]


def test_a_training_run_gives_the_metrics_and_stays_finite_in_half_precision(tmp_path):
    module = method()
    run = trainer(tmp_path, max_epochs=1, precision="bf16-mixed", num_sanity_val_steps=1)
    run.fit(module, loader(16), loader(16, seed=1))
    assert {"train/loss", "train/color_accuracy", "val/loss", "val/color_accuracy"} <= run.callback_metrics.keys()
    assert all(p.isfinite().all() for p in module.state_dict().values())
    assert module.prior.dtype == torch.float32


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"in_channels": 1}, "learns from the colours of RGB images, got in_channels=1"),
        ({"mean": (0.5,), "std": (0.5,)}, r"scales lightness and colours by itself, got mean=\[0.5\]"),
        ({"neighbours": 0}, "neighbours=0"),
        ({"neighbours": 400}, "neighbours=400"),
        ({"rebalance": 0.0}, "rebalance=0.0"),
        ({"rebalance": 1.5}, "rebalance=1.5"),
        ({"temperature": 0.0}, "temperature=0.0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        method(**kwargs)


def test_images_that_are_not_rgb_and_encoders_of_rgb_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r'the images have 1 channels, Colorization takes RGB.*mode="RGB"'):
        trainer(tmp_path, max_steps=1).fit(method(), loader(8, channels=1))
    with pytest.raises(ValueError, match="gives no map for an image of 1 channels"):
        method(encoder=sslmodules.encoders.create_encoder("conv4", widths=(8, 16)), encoder_args=None)
