import pytest
import torch
from lightning.pytorch import LightningModule
from runs import images, loader, snapshot, trainer
from torch import nn

import sslmodules
from sslmodules import MoCo, SimCLR, SSLModule
from sslmodules.batch import unpack
from sslmodules.encoders import create_encoder, feature_dim, pool, split_batch_norm
from sslmodules.heads import mlp

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}
X, Y = torch.zeros(2, 3, 8, 8), torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("batch", "labels", "views"),
    [
        (X, None, None),
        ([X, Y], Y, None),
        ((X, Y), Y, None),
        ([X], None, None),
        ({"image": X}, None, None),
        ({"image": X, "label": Y, "file": ["a", "b"]}, Y, None),
        ([[X, X], Y], Y, [X, X]),
        ({"views": [X, X]}, None, [X, X]),
    ],
)
def test_what_ordinary_loaders_yield_is_read(batch, labels, views):
    found = unpack(batch)
    assert found.labels is labels
    assert (found.views is None) == (views is None)
    if views is None:
        assert found.images is X
    else:
        assert all(a is b for a, b in zip(found.views, views, strict=True))


@pytest.mark.parametrize(
    ("batch", "said"),
    [
        ([X, X, Y], r"a list of a tensor \(2, 3, 8, 8\), a tensor \(2, 3, 8, 8\), a tensor \(2,\); expected"),
        ([X, X], "expected a tensor of images"),
        ({"img": X}, r"has the keys \['img'\]; expected 'image' or 'views'"),
        ("x", "the batch is a str"),
    ],
)
def test_other_batches_are_described(batch, said):
    with pytest.raises(ValueError, match=said):
        unpack(batch)


def test_features_are_those_of_clean_images_and_shapes_are_as_documented():
    module = SimCLR(**TINY).eval()
    x = images(4)[:][0]
    torch.testing.assert_close(module(x), module(x / 255.0))
    torch.testing.assert_close(module(x), module.encoder(x / 255.0))
    assert [tuple(m.shape) for m in module.features(x, [0, -1])] == [(4, 8, 16, 16), (4, 16, 8, 8)]
    with pytest.raises(ValueError, match=r"the stages \[2\] were asked for, ConvNet has 2"):
        module.features(x, [2])
    assert module.project(module(x)).shape == (4, 128)


def test_preprocess_normalises_and_brings_images_to_the_size_of_the_views():
    module = MoCo(**TINY, queue_size=8, size=8)
    x = torch.full((2, 3, 16, 24), 255, dtype=torch.uint8)
    expected = (1 - torch.tensor(module.mean)) / torch.tensor(module.std)
    out = module.preprocess(x)
    assert out.shape == (2, 3, 8, 8)
    torch.testing.assert_close(out[0, :, 3, 3], expected)


def test_gradients_reach_the_images_through_preprocess():
    x = torch.rand(2, 3, 16, 16, requires_grad=True)
    MoCo(**TINY, queue_size=8).eval()(x).sum().backward()
    assert x.grad.abs().sum() > 0


@pytest.mark.parametrize("shape", [(2, 5), (2, 7, 5), (2, 5, 4, 4)])
def test_vectors_tokens_and_maps_are_pooled(shape):
    assert pool(torch.ones(shape)).shape == (2, 5)


def test_an_encoder_of_ones_own_needs_nothing_but_a_forward():
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3, 2), nn.ReLU())
    module = SimCLR(encoder, output_dim=4)
    assert module.feature_dim == 6
    assert module(images(4)[:][0]).shape == (4, 6)

    class Picky(nn.Module):
        def forward(self, x):
            raise RuntimeError("only 37 px")

    with pytest.raises(ValueError, match=r"Picky's features is unknown.*only 37 px.*set encoder.num_features"):
        SimCLR(Picky())
    picky = Picky()
    picky.num_features = 3
    assert SimCLR(picky).feature_dim == 3


def test_finding_the_feature_length_draws_nothing_and_leaves_modes_alone():
    encoder = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Dropout())
    encoder[1].eval()
    before, state = snapshot(encoder), torch.get_rng_state()
    feature_dim(encoder)
    assert all(torch.equal(v, before[k]) for k, v in encoder.state_dict().items())
    assert torch.equal(state, torch.get_rng_state())
    assert [m.training for m in encoder] == [True, False, True]


def test_unknown_encoder_is_answered_with_the_nearest_names():
    with pytest.raises(ValueError, match=r"no encoder 'resnet81'; did you mean .*resnet18"):
        create_encoder("resnet81")
    with pytest.raises(ValueError, match="only ResNets with a 7x7 stem have the '-cifar' form"):
        create_encoder("vit_tiny_patch16_224-cifar")


def test_patches_that_do_not_fit_are_named(tmp_path):
    vit = {"encoder": "vit_tiny_patch16_224", "encoder_args": {"depth": 1}}
    with pytest.raises(ValueError, match="the views are 12x12 px and the encoder cuts patches of 16x16; pass a size"):
        trainer(tmp_path, max_steps=1).fit(SimCLR(**vit), loader(8, side=12))
    trainer(tmp_path, max_steps=1).fit(SimCLR(**vit, size=32), loader(8, side=12))


def test_mean_and_std_must_fit_the_channels():
    with pytest.raises(ValueError, match="in_channels is 1 but mean and std are of 3 channels"):
        MoCo(**TINY, queue_size=8, in_channels=1)
    with pytest.raises(ValueError, match="expected 3 numbers each"):
        SimCLR(**TINY, mean=[0.5, 0.5], std=[1.0, 1.0])
    MoCo(**TINY, queue_size=8, in_channels=1, mean=[0.5], std=[0.5])


def test_grey_images_train(tmp_path):
    trainer(tmp_path, max_steps=1).fit(SimCLR(**TINY, in_channels=1), loader(8, channels=1))


def test_hyperparameters_are_those_of_the_class_that_was_made(tmp_path):
    class Mine(SimCLR):
        def __init__(self, width=8, **kwargs):
            super().__init__("conv4", encoder_args={"widths": (width, 16)}, **kwargs)

    module = Mine(width=4, temperature=0.3, optimizer=torch.optim.SGD)
    assert dict(module.hparams) == {"width": 4, "temperature": 0.3, "optimizer": "<an object: torch.optim.sgd.SGD>"}


def test_a_subclass_of_a_method_loads_and_trains(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.fit(Wide(width=4), loader(8))
    run.save_checkpoint(tmp_path / "m.ckpt")
    again = sslmodules.load(tmp_path / "m.ckpt")
    assert type(again) is Wide
    assert again.encoder.stages[0][0].out_channels == 4


class Wide(SimCLR):
    def __init__(self, width: int = 8, **kwargs):
        super().__init__("conv4", encoder_args={"widths": (width, 16)}, **kwargs)


def test_a_checkpoint_of_another_method_is_refused(tmp_path):
    run = trainer(tmp_path, max_steps=1)
    run.fit(SimCLR(**TINY), loader(8))
    run.save_checkpoint(tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match=r"m.ckpt is of sslmodules.*SimCLR and this is .*MoCo; load it with that"):
        trainer(tmp_path, max_steps=2).fit(MoCo(**TINY, queue_size=8), loader(8), ckpt_path=tmp_path / "m.ckpt")

    class Plain(LightningModule):
        def __init__(self):
            super().__init__()
            self.net = nn.Linear(1, 1)

    run = trainer(tmp_path)
    run.strategy.connect(Plain())
    run.save_checkpoint(tmp_path / "p.ckpt")
    with pytest.raises(ValueError, match="is not an sslmodules checkpoint: the key 'sslmodules' is missing"):
        sslmodules.load(tmp_path / "p.ckpt")


def test_a_default_warmup_as_long_as_the_run_takes_a_tenth_of_it(tmp_path, caplog):
    module = SimCLR(**TINY)
    with caplog.at_level("INFO", "lightning.pytorch"):
        trainer(tmp_path, max_epochs=5).fit(module, loader(16))
    assert module.warmup_epochs == 0.5
    assert [r.message for r in caplog.records if "warm-up" in r.message] == [
        "warm-up: 0.5 epochs, a tenth of the run, and not 10"
    ]
    trainer(tmp_path, max_epochs=11).fit(module, loader(8))
    assert module.warmup_epochs == 10


def test_a_warmup_that_was_asked_for_stays_and_is_warned_of(tmp_path):
    module = SimCLR(**TINY, warmup_epochs=10)
    with pytest.warns(UserWarning, match=r"warm-up of 10 epochs is as long as the whole run.*warmup_epochs=0.5"):
        trainer(tmp_path, max_epochs=5).fit(module, loader(16))
    assert module.warmup_epochs == 10


def test_optimizer_and_schedule_given_by_lightnings_convention_are_used(tmp_path):
    seen = []

    class Watch(SimCLR):
        def on_train_epoch_start(self):
            seen.append(self.trainer.optimizers[0].param_groups[0]["lr"])

    module = Watch(
        **TINY,
        optimizer=lambda p: torch.optim.SGD(p, 0.5),
        lr_scheduler=lambda o: torch.optim.lr_scheduler.StepLR(o, 1, gamma=0.1),
    )
    run = trainer(tmp_path, max_epochs=3)
    run.fit(module, loader(16))
    assert seen == pytest.approx([0.5, 0.05, 0.005])
    assert [g["weight_decay"] for g in run.optimizers[0].param_groups] == [0, 0.0]


def test_a_schedule_that_watches_a_metric_is_stepped(tmp_path):
    plateau = {"mode": "max", "factor": 0.1, "patience": 0, "threshold": 1e9}
    from lightning.pytorch.cli import ReduceLROnPlateau

    module = SimCLR(
        **TINY,
        optimizer=lambda p: torch.optim.SGD(p, 0.5),
        lr_scheduler=lambda o: ReduceLROnPlateau(o, monitor="val/loss", **plateau),
    )
    run = trainer(tmp_path, max_epochs=3)
    run.fit(module, loader(16), loader(16))
    assert run.optimizers[0].param_groups[0]["lr"] < 0.5


def test_layer_wise_rates_reach_the_optimizer_and_survive_the_schedule(tmp_path):
    class Scaled(SimCLR):
        def recipe_optimizer(self, groups, lr):
            first, *rest = groups
            return torch.optim.SGD([{**first, "lr_scale": 0.25}, *rest], lr=lr)

    run = trainer(tmp_path, max_steps=2)
    run.fit(Scaled(**TINY, warmup_epochs=0), loader(32))
    scaled, full = run.optimizers[0].param_groups
    assert scaled["lr"] == pytest.approx(0.25 * full["lr"])
    assert scaled["initial_lr"] == pytest.approx(0.25 * full["initial_lr"]) != 0


def test_a_method_without_views_or_loss_says_what_to_write():
    bare = SSLModule(**TINY)
    with pytest.raises(NotImplementedError, match="SSLModule does not say how views are made: write make_views"):
        bare.make_views(X)
    with pytest.raises(NotImplementedError, match="SSLModule has no loss: write loss"):
        bare.loss([X])


def test_heads_have_the_papers_layout():
    def layout(head):
        return [
            (type(m).__name__, m.bias is not None and m.bias.requires_grad) if not isinstance(m, nn.ReLU) else "ReLU"
            for m in head
        ]

    simclr = [("Linear", False), ("BatchNorm1d", True), "ReLU", ("Linear", False), ("BatchNorm1d", False)]
    assert layout(mlp(8, 8, 4, last_norm="scale")) == simclr
    assert layout(mlp(8, 8, 4, norm=False)) == [("Linear", True), "ReLU", ("Linear", True)]  # MoCo v2
    assert layout(mlp(8, 4, norm=False)) == [("Linear", True)]  # MoCo v1
    assert mlp(8, 8, 4, last_norm="plain")[-1].weight is None  # MoCo v3
    assert layout(mlp(8, 8, 4)) == [("Linear", False), ("BatchNorm1d", True), "ReLU", ("Linear", False)]
    with pytest.raises(ValueError, match="at least an input and an output width"):
        mlp(8)


def test_split_batch_norm_is_batch_norm_of_each_part():
    torch.manual_seed(0)
    x = torch.randn(8, 3, 4, 4) * 3 + 1
    split = split_batch_norm(nn.Sequential(nn.BatchNorm2d(3)), 4)
    parts = [nn.BatchNorm2d(3)(part) for part in x.chunk(4)]
    torch.testing.assert_close(split(x), torch.cat(parts))
    whole = nn.BatchNorm2d(3)
    whole(x)
    torch.testing.assert_close(split[0].running_mean, whole.running_mean)
    assert split[0](x[:7]).shape == (7, 3, 4, 4)  # 4 does not divide 7: ordinary batch norm
    torch.testing.assert_close(
        split.eval()(x), split.eval()(x[:2].repeat(4, 1, 1, 1))[:2].repeat(4, 1, 1, 1) * 0 + split(x)
    )


@pytest.mark.parametrize("kind", ["image", "sound", "video"])
def test_mappings_hold_images_sound_or_video_by_name(kind):
    found = unpack({kind: X, "label": Y})
    assert found.images is X
    assert found.labels is Y


def test_a_clip_of_normalised_frames_is_undone_frame_by_frame():
    module = SimCLR(**TINY, undo_normalization=([0.5, 0.4, 0.3], [0.2, 0.2, 0.2]))
    frames = torch.rand(2, 5, 3, 8, 8)
    scale = torch.tensor([0.5, 0.4, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(module._undo((frames - scale) / 0.2), frames)
