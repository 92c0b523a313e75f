"""Linear probes beside plain PyTorch on the same features, and beside scikit-learn's measures."""

import pytest
import torch
from lightning.pytorch import seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from method_list import METHODS, kind
from runs import EXAMPLES, images, loader, same_bits, snapshot, trainer
from sklearn.metrics import average_precision_score
from timm.data import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import sslmodules
from sslmodules import FineTune, LinearProbe, SimCLR
from sslmodules.datamodules import LabeledDataModule
from sslmodules.encoders import ConvNet, create_encoder, export_weights
from sslmodules.evaluation import base, classification_loss, stage_vectors
from sslmodules.optim import LARS
from sslmodules.views import normalize

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}
VIT = {"patch_size": 4, "depth": 3, "embed_dim": 24, "num_heads": 2}
RATES = [0.5, 2.0, 10.0]


def saved(method, folder):
    """A checkpoint of a method as a Trainer writes it before the first step."""
    run = trainer(folder)
    run.strategy.connect(method)
    run.save_checkpoint(folder / "method.ckpt")
    return str(folder / "method.ckpt")


def probe(rates=RATES, **kwargs):
    seed_everything(0, verbose=False)
    return LinearProbe(**{**TINY, "num_classes": 4, "learning_rates": rates, **kwargs})


def weights(module):
    return [head.weight.detach().clone() for head in module.heads]


@pytest.mark.parametrize("kwargs", [{}, {"batch_norm": True, "lars": True, "weight_decay": 0.1}], ids=["SGD", "LARS"])
def test_a_sweep_is_as_many_single_probes(kwargs, tmp_path):
    sweep = probe(**kwargs)
    trainer(tmp_path, max_epochs=2).fit(sweep, loader(), loader())
    for rate, weight in zip(RATES, weights(sweep), strict=True):
        single = probe([rate], **kwargs)
        trainer(tmp_path, max_epochs=2).fit(single, loader(), loader())
        torch.testing.assert_close(weights(single)[0], weight, rtol=1e-4, atol=1e-6)
    assert not torch.allclose(*weights(sweep)[:2])


def test_it_is_stochastic_gradient_descent_on_frozen_features(tmp_path):
    module = probe()
    module.view = None  # images as they are, so that features can be made once
    start = weights(module)[0]
    trainer(tmp_path, max_epochs=2).fit(module, loader(), loader())
    batches = [(module.eval()(x), y) for x, y in loader()]
    for rate, weight in zip(RATES, weights(module), strict=True):
        linear = nn.Linear(16, 4)
        linear.weight.data.copy_(start)
        nn.init.zeros_(linear.bias)
        optimizer = torch.optim.SGD(linear.parameters(), rate * 8 / 256, momentum=0.9)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
        for x, y in batches * 2:
            optimizer.zero_grad()
            F.cross_entropy(linear(x), y).backward()
            optimizer.step()
            schedule.step()
        torch.testing.assert_close(linear.weight.data, weight, rtol=1e-4, atol=1e-6)


def test_the_encoder_stays_as_it_was_to_the_bit_and_in_eval_mode(tmp_path):
    module = probe(batch_norm=True)
    before = snapshot(module.encoder)
    run = trainer(tmp_path, max_epochs=2, gradient_clip_val=0.1, precision="bf16-mixed")
    run.fit(module, loader(), loader())
    assert same_bits(before, snapshot(module.encoder))
    assert not any(part.training for part in module.encoder.modules())
    assert module.norm.training
    optimised = {id(p) for group in run.optimizers[0].param_groups for p in group["params"]}
    assert optimised == {id(p) for p in module.heads.parameters()}


def test_the_recipe_of_mae_is_lars_behind_batch_norm(tmp_path):
    module = probe(batch_norm=True, lars=True)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, loader(), loader())
    assert isinstance(run.optimizers[0], LARS)
    x = module.train().read(module.preprocess(images(32)[:][0]))
    torch.testing.assert_close(module.norm(x), (x - x.mean(0)) / (x.var(0, correction=0) + 1e-6).sqrt())


def test_validation_chooses_the_best_and_the_test_measures_that_one(tmp_path):
    module = probe([0.0, 8.0, 0.0])
    data = loader(64, 16)
    run = trainer(tmp_path, max_epochs=6)
    run.fit(module, data, data)
    assert module.best == 1
    found = run.callback_metrics["val/accuracy"]
    assert run.callback_metrics["val/best_learning_rate"] == 8
    x, y = images(64)[:]
    logits = module.eval().logits(x)
    torch.testing.assert_close(logits, F.linear(module(x), module.heads[1].weight, module.heads[1].bias))
    assert found == (logits.argmax(1) == y).float().mean() > 0.4
    tested = run.test(module, loader(40, seed=1), verbose=False)[0]
    x, y = images(40, seed=1)[:]
    assert tested["test/accuracy"] == pytest.approx((module.logits(x).argmax(1) == y).float().mean().item())
    predicted = run.predict(module, loader(40, seed=1))
    torch.testing.assert_close(torch.cat([p["logits"] for p in predicted]), module.eval().logits(x))


def test_a_diverging_rate_disturbs_no_other(tmp_path):
    module = probe([0.5, float("inf")])
    trainer(tmp_path, max_epochs=2).fit(module, loader(), loader())
    alone = probe([0.5])
    trainer(tmp_path, max_epochs=2).fit(alone, loader(), loader())
    assert not weights(module)[1].isfinite().all()
    torch.testing.assert_close(weights(module)[0], weights(alone)[0], rtol=1e-4, atol=1e-6)


def test_vectors_of_stages_are_timms():
    vit = create_encoder("vit_tiny_patch16_224", image_size=16, reg_tokens=2, **VIT).eval()
    for p in vit.norm.parameters():
        nn.init.normal_(p)
    x = torch.randn(2, 3, 16, 16)
    found = vit.get_intermediate_layers(x, n=[0, 2], return_prefix_tokens=True, norm=True)
    classes = [prefix[:, 0] for _, prefix in found]
    torch.testing.assert_close(stage_vectors(vit, x, [0, -1], "class"), torch.cat(classes, 1))
    both = torch.cat([*classes, found[1][0].mean(1)], 1)
    torch.testing.assert_close(stage_vectors(vit, x, [-3, 2], "both"), both)
    encoder = ConvNet().eval()
    maps = encoder.forward_intermediates(x)
    torch.testing.assert_close(stage_vectors(encoder, x, [1, 3]), torch.cat([m.mean((2, 3)) for m in maps[1::2]], 1))
    module = LinearProbe(
        encoder="vit_tiny_patch16_224", encoder_args=VIT, size=16, num_classes=2, stages=[-2, -1], tokens="class"
    )
    assert module.heads[0].in_features == 48


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"stages": [4]}, r"stages \[4\] were asked for, ConvNet has 2"),
        ({"stages": [-1], "tokens": "class"}, "tokens is 'class', of a ConvNet; expected 'patches'"),
        ({"rates": []}, "learning_rates is empty"),
        ({"encoder": None, "encoder_args": None}, "no encoder to evaluate; pass ckpt="),
        ({"ckpt": "nowhere.ckpt"}, "nowhere.ckpt: there is no such file"),
    ],
)
def test_what_cannot_be_probed_gets_one_sentence(kwargs, sentence):
    with pytest.raises((ValueError, FileNotFoundError), match=sentence):
        probe(**kwargs)


@pytest.mark.parametrize("name", METHODS)
def test_the_encoder_is_fed_and_read_as_by_its_method(name, tmp_path):
    method = METHODS[name](optimizer=torch.optim.SGD).eval()
    with torch.no_grad():
        for p in method.parameters():
            p.add_(0.01 * torch.randn_like(p))  # a teacher differs from its student
    x = EXAMPLES[kind(name)](4)[:][0]
    module = LinearProbe(saved(method, tmp_path), num_classes=4).eval()
    if "DINO" in name:
        method.encoder = method.teacher_encoder
    assert torch.equal(module(x), method(x))
    assert {k.split(".")[0] for k in module.state_dict()} - {"behind"} == {"best", "encoder", "heads"}
    if kind(name) == "sound":
        with pytest.raises(ValueError, match="offers no stages"):
            module.features(x)
    else:
        assert all(map(torch.equal, module.features(x, [0, -1]), method.features(x, [0, -1])))
        assert [m.ndim for m in module.features(x)] == [4] * len(method.features(x))


def test_a_checkpoint_does_without_the_one_it_came_from(tmp_path):
    source = saved(SimCLR(**TINY, size=16, mean=[0.4] * 3, std=[0.2] * 3), tmp_path)
    module = LinearProbe(source, learning_rates=RATES)
    data = LabeledDataModule(images(32), images(8, seed=1), batch_size=8, num_workers=0)
    run = trainer(tmp_path, max_steps=2)
    run.fit(module, datamodule=data)  # which says how many classes there are
    run.save_checkpoint(tmp_path / "probe.ckpt")
    (tmp_path / "method.ckpt").unlink()
    x = images(5, side=24)[:][0]
    for again in (
        LinearProbe.load_from_checkpoint(tmp_path / "probe.ckpt", weights_only=True),
        sslmodules.load(tmp_path / "probe.ckpt"),
    ):
        assert same_bits(snapshot(module), snapshot(again))
        assert torch.equal(module.eval().logits(x), again.eval().logits(x))


def test_what_an_evaluation_reads_is_evaluated_in_turn(tmp_path):
    of_contexts = saved(METHODS["CPC.video"](), tmp_path)
    pooled = FineTune(**METHODS["Rotation.vit"].keywords, num_classes=4, global_pool=True)
    for module, what in ((LinearProbe(of_contexts, num_classes=4), "video"), (pooled, "image")):
        x = EXAMPLES[what](4)[:][0]
        nested = LinearProbe(saved(module.eval(), tmp_path), num_classes=2).eval()
        assert torch.equal(nested(x), module(x))
        again = sslmodules.load(saved(nested, tmp_path)).eval()
        assert torch.equal(again(x), module(x))
        assert not any(p.requires_grad for name, p in nested.named_parameters() if not name.startswith("heads"))


def test_an_encoder_given_as_an_object_is_asked_for_when_loading(tmp_path):
    encoder = ConvNet(widths=(4, 8))
    for module in (LinearProbe(encoder=encoder, num_classes=4), SimCLR(encoder, output_dim=8)):
        path = saved(module, tmp_path)
        with pytest.raises(ValueError, match=r"pass encoder=\.\.\. when loading"):
            sslmodules.load(path)
        assert same_bits(snapshot(sslmodules.load(path, encoder=encoder)), snapshot(module))
    with pytest.raises(ValueError, match=r"pass encoder=\.\.\. when loading"):
        LinearProbe(path)
    again = LinearProbe(path, encoder=ConvNet(widths=(4, 8)))
    assert same_bits(snapshot(again.encoder), snapshot(encoder))


def test_published_weights_are_read_by_the_name_of_their_encoder(tmp_path):
    torch.manual_seed(0)
    published = create_encoder("vit_tiny_patch16_224", image_size=16, **VIT).eval()
    export_weights(published, tmp_path / "weights.safetensors")
    path = str(tmp_path / "weights.safetensors")
    with pytest.raises(ValueError, match=r"not an sslmodules checkpoint.*pass encoder="):
        LinearProbe(path)
    module = LinearProbe(path, encoder="vit_tiny_patch16_224", encoder_args=VIT, size=16, num_classes=2).eval()
    x = images(3)[:][0]
    expected = published(normalize(x / 255, IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    torch.testing.assert_close(module(x), expected)
    again = sslmodules.load(saved(module, tmp_path))
    assert torch.equal(again.eval()(x), module(x))


@pytest.mark.parametrize("step", [3, 6])
def test_resuming_equals_never_stopping(step, tmp_path):
    def run_to(folder, ckpt=None):
        module = probe(num_classes=None)
        data = LabeledDataModule(images(36), images(8, seed=1), batch_size=8, seed=3, num_workers=0)
        save = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(folder, max_epochs=3, callbacks=[save], enable_checkpointing=True)
        run.fit(module, datamodule=data, ckpt_path=ckpt)
        momenta = {str(i): s["momentum_buffer"] for i, s in run.optimizers[0].state_dict()["state"].items()}
        return snapshot(module) | momenta

    whole = run_to(tmp_path / "whole")
    seed_everything(99, verbose=False)
    resumed = run_to(tmp_path / "resumed", tmp_path / "whole" / f"step={step}.ckpt")
    assert same_bits(whole, resumed)


# --- labels of all kinds ----------------------------------------------------------------------------------------------


def several(count, seed=0):
    """Images of which each has some of four labels, and the first has none in the last quarter of the classes."""
    x, y = images(count, seed=seed)[:]
    return x, torch.stack([y == 0, y <= 1, y >= 2, torch.zeros_like(y) > 0], 1).long()


def test_several_labels_are_measured_by_mean_average_precision(tmp_path):
    module = probe([4.0], multi_label=True)
    train, val = (TensorDataset(*several(n, seed)) for n, seed in ((64, 0), (30, 1)))
    run = trainer(tmp_path, max_epochs=4)
    run.fit(module, DataLoader(train, 16), DataLoader(val, 7))
    x, y = several(30, 1)
    logits = module.eval().logits(x).detach()
    occur = y.any(0)  # one never does
    expected = average_precision_score(y[:, occur], logits[:, occur], average="macro")
    assert run.callback_metrics["val/mean_average_precision"] == pytest.approx(expected, abs=1e-5)
    assert run.callback_metrics["val/loss"] == pytest.approx(
        F.binary_cross_entropy_with_logits(logits, y.float()).item(), abs=1e-5
    )


def test_two_classes_and_one_that_validation_lacks(tmp_path):
    x, y = images(32, classes=2)[:]
    module = probe([8.0], num_classes=2)
    run = trainer(tmp_path, max_epochs=6)
    run.fit(module, DataLoader(TensorDataset(x, y), 8), DataLoader(TensorDataset(x[y == 1], y[y == 1]), 8))
    expected = (module.eval().logits(x[y == 1]).argmax(1) == 1).float().mean()
    assert run.callback_metrics["val/accuracy"] == expected


def test_images_without_a_label_do_not_count(tmp_path):
    logits, y = torch.randn(6, 2, 4), torch.tensor([0, -1, 3, -1, 1, 2])
    targets = probe().targets(y)
    for r, loss in enumerate(classification_loss(logits, targets)):
        torch.testing.assert_close(loss, F.cross_entropy(logits[:, r], y, ignore_index=-1))
    x, y = images(16)[:]
    hidden = torch.where(torch.arange(16) % 3 == 0, -1, y)
    module = probe([1.0])
    run = trainer(tmp_path)
    run.validate(module, DataLoader(TensorDataset(x, hidden), 5), verbose=False)
    right = (module.eval().logits(x).argmax(1) == y)[hidden >= 0]
    assert run.callback_metrics["val/accuracy"] == pytest.approx(right.float().mean().item())


def test_ranks_average_over_the_labels_of_all(monkeypatch):
    logits = torch.randn(6, 1, 4, requires_grad=True)
    targets = probe().targets(torch.tensor([0, 1, 2, -1, -1, 3]))
    (whole,) = torch.autograd.grad(classification_loss(logits, targets).sum(), logits)
    monkeypatch.setattr(base, "world_size", lambda: 2)
    monkeypatch.setattr(base, "all_reduced", lambda count: targets.sum())
    halves = [classification_loss(logits[part], targets[part]) for part in (slice(0, 3), slice(3, 6))]
    (pair,) = torch.autograd.grad(torch.stack(halves).mean(), logits)
    torch.testing.assert_close(pair, whole)


@pytest.mark.parametrize(
    ("labels", "kwargs", "sentence"),
    [
        (None, {}, r"holds images without labels, expected \(images, labels\)"),
        (
            torch.full((8,), 4),
            {},
            r"int64 \(8,\) from .* to 4, expected whole numbers \(B,\) below the number of classes, 4, or -1 for none",
        ),
        (torch.ones(8, 4), {}, r"float32 \(8, 4\) from 1 to 1, expected whole numbers .* multi_label=True"),
        (torch.ones(8, 3), {"multi_label": True}, r"\(8, 3\) from 1 to 1, expected 0 and 1, \(B, 4\)"),
        (torch.full((8, 4), 2), {"multi_label": True}, r"\(8, 4\) from 2 to 2, expected 0 and 1"),
        (torch.zeros(8), {"num_classes": None}, "does not know the number of classes"),
    ],
)
def test_labels_that_do_not_fit_get_one_sentence_before_the_first_step(labels, kwargs, sentence, tmp_path):
    x = images(8)[:][0]
    data = DataLoader(x if labels is None else TensorDataset(x, labels), 8)
    with pytest.raises(ValueError, match=sentence):
        trainer(tmp_path, max_steps=1).fit(probe(**kwargs), data, data)


@pytest.mark.parametrize(
    ("labels", "kwargs", "sentence"),
    [
        (torch.full((8,), 4), {}, r"int64 \(8,\) from 4 to 4, expected whole numbers"),
        (torch.full((8,), -2), {}, r"int64 \(8,\) from -2 to -2, expected whole numbers .* or -1 for none"),
        (torch.full((8,), 1.0), {}, r"float32 \(8,\) from 1 to 1, expected whole numbers"),
        (torch.full((8, 4), 0.5), {"multi_label": True}, r"float32 \(8, 4\) from 0.5 to 0.5, expected 0 and 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_any_batch(labels, kwargs, sentence, tmp_path):
    x, y = images(8)[:]
    good = (x, torch.nn.functional.one_hot(y, 4) if kwargs else y)
    run = trainer(tmp_path, max_epochs=1)
    train = DataLoader([good, good, (x, labels)], batch_size=None)
    with pytest.raises(ValueError, match=sentence):
        run.fit(probe([0.1], **kwargs, optimizer=torch.optim.SGD), train)
    assert run.global_step == 2
    with pytest.raises(ValueError, match=sentence):
        trainer(tmp_path).validate(probe([0.1], **kwargs), DataLoader([good, (x, labels)], batch_size=None))


def test_a_choice_without_validation_images_is_refused(tmp_path):
    with pytest.raises(ValueError, match="3 learning rates and no validation images to choose by"):
        trainer(tmp_path, max_steps=1).fit(probe(), loader())
    trainer(tmp_path, max_steps=1).fit(probe([0.1]), loader())
