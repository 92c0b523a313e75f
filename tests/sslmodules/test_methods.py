"""What every method must stand: one list, the same tests."""

import copy
import math
import pickle
import warnings

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from method_list import METHODS, kind
from runs import EXAMPLES, loader, same_bits, snapshot, trainer
from torch.utils.data import DataLoader

import sslmodules
from sslmodules import (
    CPC,
    Colorization,
    DINOv2,
    Jigsaw,
    MoCo,
    MoCoV3,
    RelativePatch,
    Rotation,
    SimCLR,
    VideoColorization,
)
from sslmodules.callbacks import Collapse, MomentumUpdate, OnlineKNN, OnlineLinearProbe, QueueUpdate
from sslmodules.datamodules import LabeledDataModule
from sslmodules.module import NOT_METRICS
from sslmodules.views import ColorJitter, RandomGrayscale, color

# Methods whose task has right and wrong answers.
ACCURACIES = {
    SimCLR: "pair_accuracy",
    MoCo: "pair_accuracy",
    MoCoV3: "pair_accuracy",
    CPC: "prediction_accuracy",
    Rotation: "rotation_accuracy",
    RelativePatch: "position_accuracy",
    Jigsaw: "jigsaw_accuracy",
    Colorization: "color_accuracy",
    VideoColorization: "color_accuracy",
}

every_method = pytest.mark.parametrize("name", METHODS)


def every(wanted):
    return pytest.mark.parametrize("name", [name for name in METHODS if kind(name) == wanted])


def built(name, **kwargs):
    seed_everything(0, verbose=False)
    return METHODS[name](**kwargs)


def data(name, *args, **kwargs):
    return EXAMPLES[kind(name)](*args, **kwargs)


def as_floats(x):
    return x if x.is_floating_point() else x / 255.0


def batches(name, *args, **kwargs):
    return loader(*args, kind=kind(name), **kwargs)


@every_method
def test_the_loss_of_a_batch_falls_when_it_is_trained_on(name):
    method = built(name).train()
    views = method.make_views(data(name, 16)[:][0])
    optimizer = torch.optim.Adam((p for p in method.parameters() if p.requires_grad), 3e-3)
    losses = []
    for _ in range(50):
        loss = method.loss(views)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]


@every_method
def test_trains_as_documented_with_probe_and_knn(name, tmp_path):
    method = built(name, optimizer=lambda p: torch.optim.Adam(p, 3e-3))
    run = trainer(
        tmp_path, max_epochs=8, callbacks=[OnlineLinearProbe(4, learning_rate=0.03), OnlineKNN(4), Collapse()]
    )
    run.fit(method, batches(name, 128, 16), batches(name, 32, 16, seed=1))
    logged = run.callback_metrics
    metrics = [k for k in method.loss(method.make_views(data(name, 4)[:][0])) if k not in NOT_METRICS]
    expected = ["loss", *metrics, *(ACCURACIES[kind] for kind in ACCURACIES if isinstance(method, kind))]
    assert {f"{stage}/{metric}" for stage in ("train", "val") for metric in expected} <= logged.keys()
    assert {"probe/val_accuracy", "probe/knn/val_accuracy", "monitor/rank_me"} <= logged.keys()
    assert logged["probe/val_accuracy"] > 0.5  # brightness tells the four classes
    features = method.eval()(data(name, 5)[:][0])
    assert features.shape == (5, method.feature_dim)


@every_method
def test_recipe_optimizer_and_schedule_train(name, tmp_path):
    warmup = built(name).warmup_epochs  # as typed: a default would become a tenth of this short run
    method, rates = built(name, warmup_epochs=warmup), []

    class Note(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            rates.append([g["lr"] / g.get("lr_scale", 1) for g in trainer.optimizers[0].param_groups])

    before = snapshot(method.encoder)
    trainer(tmp_path, max_epochs=3, callbacks=[Note()], accumulate_grad_batches=2).fit(method, batches(name))
    assert not same_bits(before, snapshot(method.encoder))
    images_a_step = 16
    share = images_a_step / method.lr_batch_size if method.lr_batch_size else 1
    peak = method.learning_rate * (math.sqrt(share) if isinstance(method, DINOv2) else share)
    steps = [i // 2 for i in range(12)]  # 3 epochs of 4 batches, two to a step
    warmup = method.warmup_epochs * 2
    if getattr(method, "milestones", None):
        expected = [peak] * 12
    elif warmup:
        expected = [peak * step / warmup for step in steps]
    else:
        expected = [peak * 0.5 * (1 + math.cos(math.pi * step / 6)) for step in steps]
    assert [r[0] for r in rates] == pytest.approx(expected)
    assert all(r == pytest.approx([r[0]] * len(r)) for r in rates)


@every_method
def test_foreign_datamodule_with_float_tuples_of_another_size_works(name, tmp_path):
    class Foreign(LightningDataModule):
        def train_dataloader(self):
            x, y = data(name, 16, **({"length": 400} if kind(name) == "sound" else {"side": 40}))[:]
            return DataLoader(list(zip(as_floats(x), y.tolist(), strict=True)), 8, shuffle=True)

        val_dataloader = train_dataloader

    run = trainer(tmp_path, max_epochs=1, callbacks=[OnlineLinearProbe(4), OnlineKNN(4)])
    run.fit(built(name), datamodule=Foreign())
    assert "probe/val_accuracy" in run.callback_metrics


@every_method
@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 3, "gradient_clip_val": 0.1},
        {"max_steps": 5},  # without max_epochs
    ],
    ids=str,
)
def test_trainer_settings_work(name, settings, tmp_path):
    method = built(name)
    run = trainer(tmp_path, **{"max_epochs": None if "max_steps" in settings else 2, **settings})
    run.fit(method, batches(name), batches(name))
    assert all(p.isfinite().all() for p in method.state_dict().values())
    assert run.global_step > 0


@every_method
@pytest.mark.parametrize("precision", ["16-true", "bf16-true", "64-true"])
def test_a_precision_of_the_weights_other_than_fp32_is_refused_before_they_are_converted(name, precision, tmp_path):
    method = built(name)
    with pytest.raises(ValueError, match=rf"precision is {precision}, but .* pass precision="):
        trainer(tmp_path, max_steps=1, precision=precision).fit(method, batches(name))
    assert all(p.dtype == torch.float32 for p in method.parameters())


@every_method
def test_odd_last_batch_one_image_a_class_and_no_labels_work(name, tmp_path):
    x, y = data(name, 10, classes=10)[:]  # batches of 4, 4 and 2
    callbacks = [OnlineLinearProbe(10), OnlineKNN(10), Collapse()]
    run = trainer(tmp_path, max_epochs=2, callbacks=callbacks)
    run.fit(built(name), DataLoader(list(zip(x, y, strict=True)), 4), DataLoader(list(zip(x, y, strict=True)), 3))
    assert run.global_step == 6
    with pytest.warns(UserWarning, match="no labels"):
        trainer(tmp_path, max_epochs=1, callbacks=[OnlineLinearProbe(9), OnlineKNN(9)]).fit(
            built(name), DataLoader(x[:8], 4)
        )


@every_method
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_compiled_encoder_trains_like_the_plain_one(name, tmp_path):
    results = []
    for compiled in (False, True):
        method = built(name)
        if compiled:
            method.encoder.compile(backend="aot_eager")
        trainer(tmp_path, max_steps=2).fit(method, batches(name, 16))
        results.append(snapshot(method))
    assert results[0].keys() == results[1].keys()  # no _orig_mod
    for key, value in results[0].items():
        torch.testing.assert_close(value.float(), results[1][key].float(), rtol=1e-3, atol=1e-4)


@every_method
def test_encoder_is_bit_identical_with_and_without_probe_and_knn(name, tmp_path):
    results = []
    for extras in (
        [],
        [OnlineLinearProbe(4), OnlineLinearProbe(4, reads="projections", name="z"), OnlineKNN(4), Collapse()],
    ):
        method = built(name)
        run = trainer(
            tmp_path, max_steps=20, callbacks=extras, precision="bf16-mixed", accumulate_grad_batches=2,
            gradient_clip_val=0.5,
        )  # fmt: skip
        run.fit(method, batches(name, 32, 8), batches(name, 16, 8))
        results.append(snapshot(method))
    assert same_bits(*results)


def run_to(name, folder, ckpt=None, **kwargs):
    """Train 3 epochs of 4 batches, two accumulated; checkpoints after every optimizer step."""
    method = built(name)
    labeled = LabeledDataModule(data(name, 36), data(name, 8, seed=1), batch_size=8, seed=3, num_workers=0)
    probe, knn = OnlineLinearProbe(4), OnlineKNN(4, bank_size=20)
    save = ModelCheckpoint(folder, "{step}", every_n_train_steps=1, save_top_k=-1)
    run = trainer(
        folder,
        max_epochs=3,
        accumulate_grad_batches=2,
        callbacks=[probe, knn, save],
        enable_checkpointing=True,
        **kwargs,
    )
    run.fit(method, datamodule=labeled, ckpt_path=ckpt)
    state = snapshot(method)
    state |= {f"probe.{k}": v.clone() for k, v in probe.head.state_dict().items()}
    state |= {"bank": knn._bank.clone(), "bank_labels": knn._labels.clone()}
    for i, s in enumerate(run.optimizers[0].state_dict()["state"].values()):
        state |= {f"optimizer.{i}.{k}": v.clone() for k, v in s.items() if isinstance(v, torch.Tensor)}
    return state


@every_method
def test_resuming_from_any_optimizer_step_equals_never_stopping(name, tmp_path):
    never_stopped = run_to(name, tmp_path / "whole")
    checkpoints = sorted((tmp_path / "whole").glob("*.ckpt"))
    assert [c.stem for c in checkpoints] == [f"step={s}" for s in range(1, 7)]
    for checkpoint in (checkpoints[2], checkpoints[3]):  # in the middle of the second epoch, and at its end
        seed_everything(99, verbose=False)
        resumed = run_to(name, tmp_path / f"resumed {checkpoint.stem}", ckpt=checkpoint)
        assert same_bits(never_stopped, resumed)


@every_method
def test_checkpoint_loads_without_arguments(name, tmp_path):
    method = built(name)
    run = trainer(tmp_path, max_steps=1)
    run.fit(method, batches(name))
    run.save_checkpoint(tmp_path / "m.ckpt")
    for again in (
        type(method).load_from_checkpoint(tmp_path / "m.ckpt", weights_only=True),
        sslmodules.load(tmp_path / "m.ckpt"),
    ):
        assert type(again) is type(method)
        assert same_bits(snapshot(method), snapshot(again))
        assert dict(again.hparams) == dict(method.hparams)


@every_method
def test_a_trained_method_can_be_copied_and_pickled(name, tmp_path):
    method, images = built(name), data(name, 4)[:][0]
    trainer(tmp_path, max_steps=1).fit(method, batches(name))
    method.trainer = None  # which copies have not either: temperatures go by its step
    views = method.eval().make_views(images)
    for again in (copy.deepcopy(method), pickle.loads(pickle.dumps(method))):
        assert torch.equal(again(images), method(images))
        assert torch.equal(again.loss(views)["loss"], method.loss(views)["loss"])


@every_method
def test_an_encoder_given_as_an_object_is_asked_for_when_loading(name, tmp_path):
    encoder = built(name).encoder
    method = built(name, encoder=encoder, encoder_args=None)
    run = trainer(tmp_path, max_steps=1)
    run.fit(method, batches(name))
    run.save_checkpoint(tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match=r"pass encoder=\.\.\. when loading"):
        sslmodules.load(tmp_path / "m.ckpt")
    again = sslmodules.load(tmp_path / "m.ckpt", encoder=encoder)
    assert same_bits(snapshot(method), snapshot(again))


@every_method
def test_ready_made_views_skip_make_views(name, tmp_path):
    method = built(name)
    made = method.make_views(data(name, 16)[:][0])

    def refuse(images):
        raise AssertionError("views were made although the batch holds them")

    method.make_views = refuse
    as_list = [
        ([v[:8] for v in made], torch.zeros(8, dtype=torch.long)),
        ([v[8:] for v in made], torch.zeros(8, dtype=torch.long)),
    ]
    as_mapping = [{"views": views, "label": labels} for views, labels in as_list]
    for batches in (as_list, as_mapping):
        method.optimizer_callable = torch.optim.Adam  # these batches tell no batch size
        trainer(tmp_path, max_steps=2).fit(method, DataLoader(batches, batch_size=None))


@every_method
def test_views_of_accumulated_batches_differ_and_are_the_same_again(name, tmp_path):
    seen = []

    class Note(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pl_module.make_views = (lambda original: lambda x: seen.append(v := original(x)) or v)(
                type(pl_module).make_views.__get__(pl_module)
            )

    x = data(name, 8)[:][0]
    x = torch.cat([x, x])  # the same eight twice
    for _ in range(2):
        trainer(tmp_path, max_steps=1, accumulate_grad_batches=2, callbacks=[Note()]).fit(built(name), DataLoader(x, 8))
    assert not torch.equal(seen[0][0], seen[1][0])
    assert torch.equal(seen[0][0], seen[2][0])
    assert torch.equal(seen[1][-1], seen[3][-1])


@every_method
def test_callbacks_a_method_needs_come_by_themselves_and_once(name, tmp_path):
    class Mine(MomentumUpdate):
        pass

    method = built(name)
    run = trainer(tmp_path, max_steps=1, callbacks=[Mine()])
    run.fit(method, batches(name))
    momentum = [c for c in run.callbacks if isinstance(c, MomentumUpdate)]
    assert [type(c) for c in momentum] == [Mine]
    assert sum(isinstance(c, QueueUpdate) for c in run.callbacks) == (method.queue is not None)


@every_method
def test_teachers_get_no_gradient_and_stand_in_no_optimizer(name, tmp_path):
    method = built(name)
    run = trainer(tmp_path, max_steps=1)
    run.fit(method, batches(name))
    optimised = {id(p) for g in run.optimizers[0].param_groups for p in g["params"]}
    teachers = [p for _, teacher in method.momentum_pairs for p in teacher.parameters()]
    assert not optimised & {id(p) for p in teachers}
    assert all(p.grad is None and not p.requires_grad for p in teachers)
    assert {id(p) for p in method.encoder.parameters() if p.requires_grad} <= optimised


@every("image")
@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (torch.zeros(8, 4, 16, 16), r"images have 4 channels"),
        (
            torch.full((8, 3, 16, 16), -1.5),
            r"floats from -1.5 to -1.5, expected uint8.*undo_normalization=\(mean, std\)",
        ),
        (torch.full((8, 3, 16, 16), 255.0), r"floats from 255 to 255.*leave them uint8 or divide by 255"),
        (torch.zeros(8, 3, 16, 16, dtype=torch.int64), r"images are torch.int64, expected uint8"),
        (torch.zeros(8, 3, 16), r"shape \(8, 3, 16\), expected \(B, C, H, W\)"),
        (torch.full((8, 3, 16, 16), float("nan")), r"floats from nan to nan"),
    ],
)
def test_bad_images_get_one_sentence_before_the_first_step_and_nothing_is_written(name, batch, sentence, tmp_path):
    refuses(name, batch, sentence, tmp_path)


@every("video")
@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (torch.zeros(8, 4, 4, 16, 16), r"images have 4 channels"),
        (torch.full((8, 4, 3, 16, 16), -1.5), r"floats from -1.5 to -1.5, expected uint8"),
        (torch.zeros(8, 3, 16, 16), r"clips have the shape \(8, 3, 16, 16\), expected \(B, T, C, H, W\)"),
    ],
)
def test_bad_clips_get_one_sentence_before_the_first_step_and_nothing_is_written(name, batch, sentence, tmp_path):
    refuses(name, batch, sentence, tmp_path)


@every("sound")
@pytest.mark.parametrize(
    ("batch", "sentence"),
    [
        (torch.zeros(8, 2, 256), r"sound has 2 channels"),
        (torch.full((8, 1, 256), -1.5), r"floats from -1.5 to -1.5, expected int16, or float in \[-1, 1\]"),
        (torch.zeros(8, 1, 256, dtype=torch.int64), r"sound is torch.int64, expected int16"),
        (torch.zeros(8, 256), r"sound has the shape \(8, 256\), expected \(B, C, T\)"),
        (torch.full((8, 1, 256), float("nan")), r"floats from nan to nan"),
    ],
)
def test_bad_sound_gets_one_sentence_before_the_first_step_and_nothing_is_written(name, batch, sentence, tmp_path):
    refuses(name, batch, sentence, tmp_path)


def refuses(name, batch, sentence, tmp_path):
    method = built(name)
    before = snapshot(method)
    with pytest.raises(ValueError, match=sentence):
        trainer(tmp_path, max_steps=1, enable_checkpointing=True).fit(method, DataLoader(batch, 8))
    assert same_bits(before, snapshot(method))
    assert not list(tmp_path.rglob("*"))


def refused(name, **kwargs):
    try:
        built(name, **kwargs)
    except ValueError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("channels", [1, 2, 4, 13])
@pytest.mark.parametrize("name", [name for name in METHODS if kind(name) != "sound"])
def test_any_number_of_channels_trains_or_is_refused_with_advice(name, channels, tmp_path):
    said = refused(name, in_channels=channels)
    if "learns from the colours of RGB images" in said:
        return
    advice = {"mean": None, "std": None} if "pass mean and std of your data" in said else {}
    advice |= {"aberration": None} if "pass aberration=None" in said else {}
    method = built(name, in_channels=channels, **advice)
    examples = data(name, 8, channels=channels)
    color._warn_of.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer(tmp_path, max_steps=1).fit(method, DataLoader(examples, 8), DataLoader(examples, 8))
    left_out = [str(w.message) for w in caught if "which need RGB, are left out" in str(w.message)]
    jitters = any(isinstance(m, ColorJitter | RandomGrayscale) for m in method.modules())
    assert len(left_out) == (channels > 1 and (jitters or getattr(method, "gray", False)))
    method.pictures(examples[:2][0])


@every("image")
def test_normalised_floats_are_undone_where_asked(name, tmp_path):
    mean, std = [0.5, 0.4, 0.3], [0.2, 0.2, 0.2]
    x = data(name, 8)[:][0] / 255.0
    normalised = (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)
    method = built(name, undo_normalization=(mean, std))
    trainer(tmp_path, max_steps=1).fit(method, DataLoader(normalised, 8))
    plain = built(name)
    plain.load_state_dict(method.state_dict())
    torch.testing.assert_close(method.eval()(normalised), plain.eval()(x), rtol=1e-4, atol=1e-5)
