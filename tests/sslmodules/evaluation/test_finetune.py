"""Fine-tuning: rates by layer as timm maps them, targets by hand, and frozen parts that stay."""

import pytest
import timm
import timm.optim
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from method_list import METHODS
from runs import images, loader, same_bits, snapshot, trainer
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sslmodules
from sslmodules import FineTune
from sslmodules.datamodules import LabeledDataModule
from sslmodules.evaluation import classification_loss

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16, 24)}}
VIT = {
    "encoder": "vit_tiny_patch16_224",
    "encoder_args": {"patch_size": 4, "depth": 3, "embed_dim": 24, "num_heads": 2},
    "size": 16,
}
PLAIN = {"mixup": 0, "cutmix": 0, "randaugment": None, "label_smoothing": 0.0}


def finetune(**kwargs):
    seed_everything(0, verbose=False)
    return FineTune(**{"num_classes": 4, "warmup_epochs": 0, **kwargs})


class Rates(Callback):
    """Learning rates by the names of the parameters, in every step."""

    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        names = {id(p): name for name, p in pl_module.named_parameters()}
        groups = trainer.optimizers[0].param_groups
        self.seen.append({names[id(p)]: group["lr"] for group in groups for p in group["params"]})


def test_layer_wise_rates_reach_the_optimizer_as_timm_maps_them(tmp_path):
    module, rates = finetune(**VIT, layer_decay=0.5), Rates()
    trainer(tmp_path, max_epochs=2, callbacks=[rates]).fit(module, loader(), loader())
    expected = {"heads.0.weight": 1.0, "heads.0.bias": 1.0}
    theirs = timm.create_model(VIT["encoder"], **VIT["encoder_args"], img_size=16, num_classes=4)
    names = {id(p): name for name, p in theirs.named_parameters()}
    for group in timm.optim.param_groups_layer_decay(theirs, layer_decay=0.5):
        expected |= {f"encoder.{names[id(p)]}": group["lr_scale"] for p in group["params"]}
    assert {expected.pop(f"encoder.head.{name}") for name in ("weight", "bias")} == {1.0}
    # timm counts the final norm with the last block; BEiT, MAE and DINOv2 with the head
    expected |= {"encoder.norm.weight": 1.0, "encoder.norm.bias": 1.0}
    assert expected["encoder.patch_embed.proj.weight"] == 0.5**4  # three blocks and the norm behind them
    assert len(rates.seen) == 8
    for step in (0, 5):
        peak = rates.seen[step]["heads.0.weight"]
        assert rates.seen[step] == pytest.approx({name: peak * scale for name, scale in expected.items()})
    assert rates.seen[0]["heads.0.weight"] == pytest.approx(1e-3 * 8 / 256)
    assert rates.seen[5]["heads.0.weight"] < rates.seen[0]["heads.0.weight"]


@pytest.mark.parametrize(
    ("kwargs", "trained"),
    [
        ({**TINY, "blocks": 0}, []),
        ({**TINY, "blocks": 1}, ["stages.2"]),
        ({**VIT, "blocks": 1}, ["blocks.2", "norm"]),
        ({**VIT, "blocks": 1, "global_pool": True}, ["blocks.2"]),
        ({"encoder": "resnet18-cifar", "blocks": 3}, ["layer3.1", "layer4"]),
        ({**VIT, "blocks": None}, [""]),
    ],
)
def test_frozen_parts_stay_to_the_bit_and_in_eval_mode(kwargs, trained, tmp_path):
    module = finetune(**kwargs, learning_rate=0.5)
    before = snapshot(module.encoder)
    trainer(tmp_path, max_steps=2).fit(module, loader(8, 4), loader(8))
    after = snapshot(module.encoder)
    changed = {name for name in after if not torch.equal(before[name], after[name])}
    expected = {name for name in after if name.startswith(tuple(trained))} if trained else set()
    assert changed == expected
    parts = {name for name, part in module.encoder.named_modules() if part.training and list(part.parameters())}
    assert all(name.startswith(tuple(trained)) or any(t.startswith(name) for t in trained) for name in parts)
    assert all(part.training for part in module.heads)


def test_a_pretrained_encoder_is_trained_whole_even_where_its_method_froze_it(tmp_path):
    for name in ("DINOv2", "MoCoV3.vit"):
        method = METHODS[name]()
        run = trainer(tmp_path)
        run.strategy.connect(method)
        run.save_checkpoint(tmp_path / "m.ckpt")
        module = finetune(ckpt=str(tmp_path / "m.ckpt"))
        idle = {n for n, p in module.encoder.named_parameters() if not p.requires_grad}
        assert idle == ({"mask_token"} if name == "DINOv2" else set())
        trainer(tmp_path, max_steps=1).fit(module, loader(), loader())


def test_drop_path_comes_on_top_of_a_checkpoints_arguments(tmp_path):
    method = METHODS["MAE"]()
    run = trainer(tmp_path)
    run.strategy.connect(method)
    run.save_checkpoint(tmp_path / "m.ckpt")
    module = finetune(ckpt=str(tmp_path / "m.ckpt"), encoder_args={"drop_path_rate": 0.2}, global_pool=True)
    assert module.encoder.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    assert torch.equal(module.encoder.blocks[0].attn.qkv.weight, method.encoder.blocks[0].attn.qkv.weight)
    run = trainer(tmp_path)
    run.strategy.connect(module)
    run.save_checkpoint(tmp_path / "f.ckpt")
    again = sslmodules.load(tmp_path / "f.ckpt")
    assert again.encoder.blocks[-1].drop_path1.drop_prob == pytest.approx(0.2)
    x = images(3)[:][0]
    assert torch.equal(again.eval().logits(x), module.eval().logits(x))


def test_global_pool_is_the_mean_patch_behind_a_norm_of_its_own():
    module = finetune(**VIT, global_pool=True).eval()
    for p in module.norm.parameters():
        nn.init.normal_(p)
    x = images(3)[:][0]
    tokens = module.encoder.blocks(module.encoder._pos_embed(module.encoder.patch_embed(module.preprocess(x))))
    expected = F.layer_norm(tokens[:, 1:].mean(1), [24], module.norm.weight, module.norm.bias, 1e-6)
    torch.testing.assert_close(module(x), expected)
    torch.testing.assert_close(module.logits(x), module.heads[0](expected))


def test_smoothed_targets_give_pytorchs_loss():
    module = finetune(**TINY, **{**PLAIN, "label_smoothing": 0.3})
    y = torch.tensor([0, 3, 1, -1])
    logits = torch.randn(4, 1, 4)
    _, targets = module.mix(torch.zeros(4, 3, 8, 8), module.targets(y))
    expected = F.cross_entropy(logits[:3, 0], y[:3], label_smoothing=0.3)  # the last has no label
    torch.testing.assert_close(classification_loss(logits, targets)[0], expected)
    several = finetune(**TINY, **{**PLAIN, "label_smoothing": 0.3}, multi_label=True)
    _, targets = several.mix(torch.zeros(1, 3, 8, 8), torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
    torch.testing.assert_close(targets, torch.tensor([[0.15, 0.85, 0.85, 0.15]]))


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_targets_are_mixed_as_the_images_are(kind):
    module = finetune(**TINY, **{**PLAIN, kind: 1.0})
    torch.manual_seed(1)
    x = torch.arange(5.0).view(5, 1, 1, 1).expand(5, 3, 16, 16)  # the images are their numbers
    mixed, targets = module.mix(x, torch.eye(5)[:, :4])
    share = targets[0, 0].item()  # of the image itself
    assert 0.02 < share < 0.98
    if kind == "mixup":
        torch.testing.assert_close(mixed, share * x + (1 - share) * x.roll(1, 0))
    else:
        assert ((mixed == x) | (mixed == x.roll(1, 0))).all()
    torch.testing.assert_close((mixed == x).float().mean((1, 2, 3))[0].item() if kind == "cutmix" else share, share)
    torch.testing.assert_close(targets[:, 0], torch.tensor([share, 1 - share, 0, 0, 0]))


def test_each_image_is_augmented_by_itself_and_the_same_again():
    module = finetune(**TINY)
    module.view = None
    x = images(1)[:][0].expand(16, -1, -1, -1) / 255
    with module._keyed_randomness(7):
        first = module.augment(x)
    with module._keyed_randomness(7):
        again = module.augment(x)
    assert torch.equal(first, again)
    assert first.min() >= 0
    assert first.max() <= 1
    different = {tuple(image.flatten().tolist()) for image in first}
    assert 6 < len(different) < 16  # a quarter stays as it is


def test_resuming_equals_never_stopping(tmp_path):
    def run_to(folder, ckpt=None):
        module = finetune(**{**VIT, "encoder_args": {**VIT["encoder_args"], "drop_path_rate": 0.3}}, blocks=2)
        data = LabeledDataModule(images(36), images(8, seed=1), batch_size=8, seed=3, num_workers=0)
        save = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(folder, max_epochs=3, accumulate_grad_batches=2, callbacks=[save], enable_checkpointing=True)
        run.fit(module, datamodule=data, ckpt_path=ckpt)
        states = run.optimizers[0].state_dict()["state"].items()
        return snapshot(module) | {f"{i}.{name}": value for i, s in states for name, value in s.items()}

    whole = run_to(tmp_path / "whole")
    seed_everything(99, verbose=False)
    resumed = run_to(tmp_path / "resumed", tmp_path / "whole" / "step=3.ckpt")
    assert same_bits(whole, resumed)


def test_it_learns_from_a_tenth_of_the_labels_and_all(tmp_path):
    for fraction in (0.1, 1.0):
        data = LabeledDataModule(
            images(160), images(40, seed=1), batch_size=8, label_fraction=fraction, unlabeled="drop", num_workers=0
        )
        module = finetune(**TINY, **PLAIN, min_scale=0.5, learning_rate=0.2, layer_decay=1.0)
        run = trainer(tmp_path, max_steps=40, max_epochs=-1)
        run.fit(module, datamodule=data)
        assert run.callback_metrics["val/accuracy"] > 0.5


def test_several_labels_are_mixed_and_learned(tmp_path):
    x, y = images(64)[:]
    several = torch.stack([y == 0, y <= 1, y >= 2], 1).long()
    data = DataLoader(TensorDataset(x, several), 16)
    module = finetune(**TINY, num_classes=3, multi_label=True, randaugment=None, learning_rate=0.05)
    run = trainer(tmp_path, max_epochs=8)
    run.fit(module, data, data)
    assert run.callback_metrics["val/mean_average_precision"] > 0.6


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({**TINY, "blocks": 4}, "blocks is 4, expected 0 to 3, as many as the encoder has"),
        ({**TINY, "global_pool": True}, "global_pool is for transformers with a final norm, the encoder is a ConvNet"),
        ({**TINY, "in_channels": 4}, "RandAugment is of images with 1 or 3 channels, these have 4"),
        ({"encoder": nn.Conv2d(3, 8, 3), "blocks": 1}, "the blocks of a Conv2d are not known"),
    ],
)
def test_what_cannot_be_tuned_gets_one_sentence(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        finetune(**kwargs)
