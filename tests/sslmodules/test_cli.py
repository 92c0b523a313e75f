"""The command line as a user types it; small runs on embedded data."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from runs import same_bits
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import sslmodules
from sslmodules import cli, configs
from sslmodules.cli import arguments, lightning

CONFIGS = sorted(Path(configs.__path__[0]).glob("*.yaml"))
SMALL = ["--model.encoder", "conv4", "--model.encoder_args", '{"widths": [8, 16]}', "--model.warmup_epochs", "0"]
RUN = [
    "fit",
    "--model",
    "SimCLR",
    *SMALL,
    "--data",
    "Digits",
    "--trainer.max_epochs",
    "1",
    "--trainer.accelerator",
    "cpu",
]


@pytest.fixture(autouse=True)
def in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sslmodules"])


def printed(capsys, *args):
    """What a command prints before it leaves."""
    with pytest.raises(SystemExit) as left:
        cli.main(list(args))
    out = capsys.readouterr()
    return out.out + out.err + str(left.value.code)


def pictures(folder, count=12):
    rng = np.random.default_rng(0)
    for i in range(count):
        path = folder / ("cat" if i % 2 else "dog") / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def the_run(method="simclr"):
    [run] = Path("runs").glob(f"{method}-*")
    return run


def test_fit_validate_test_and_predict(capsys):
    cli.main(RUN)
    out = capsys.readouterr().out
    assert "SimCLR" in out
    assert "the same encoder at random initialisation" in out
    assert "linear probe  10% of labels   1% of labels     kNN" in out
    run = the_run()
    assert f"last checkpoint   {run}/checkpoints/last.ckpt" in out
    assert f"best checkpoint   {run}/checkpoints/best.ckpt" in out
    assert (run / "config.yaml").is_file()
    assert list(run.glob("pictures/views-step=0.png"))
    assert list(run.glob("events*"))

    for command in ("validate", "test"):
        cli.main([command, "--ckpt_path", str(run / "checkpoints/last.ckpt"), "--data", "Digits"])
    assert "held-out images" in capsys.readouterr().out

    pictures(Path("photos"))
    last = str(run / "checkpoints/last.ckpt")
    cli.main(
        ["predict", "--ckpt_path", last, "--data", "ImageFolder", "--data.root", "photos", "--embeddings.path", "e.npz"]
    )
    with np.load("e.npz") as saved:
        assert saved["features"].shape == (12, 16)
        assert len(set(saved["files"])) == 12
        module = sslmodules.load(last)
        assert type(module).__name__ == "SimCLR"
        again = module.embed(saved["files"].tolist())  # read as the training data were
        np.testing.assert_allclose(saved["features"], again, rtol=1e-3, atol=1e-5)


def test_the_untrained_method_of_the_table_is_untrained_as_a_whole(monkeypatch):
    seen = []
    monkeypatch.setattr(lightning, "probe", lambda module, *loaders, **kwargs: seen.append(module))
    context = ["--model.input_kind", "image", "--model.context", "masked_rows", "--model.context_args.hidden", "8"]
    method = ["--model", "CPC", *SMALL, *context, "--model.steps", "5", "--model.size", "32"]
    short = ["--data.batch_size", "8", "--trainer.limit_train_batches", "1", "--trainer.limit_val_batches", "1"]
    cli.main(["fit", *method, *RUN[RUN.index("--data") :], *short])
    trained, untrained = (module.state_dict() for module in seen)
    moved = {key.split(".")[0] for key, value in trained.items() if not torch.equal(value, untrained[key])}
    assert moved == {"encoder", "context", "predictor"}


def test_the_last_checkpoint_is_that_of_the_last_epoch_whatever_is_best(capsys):
    cli.main([*RUN, "--trainer.max_epochs", "3", "--checkpoint.every_n_epochs", "2"])
    run = the_run() / "checkpoints"
    assert torch.load(run / "last.ckpt", weights_only=True)["epoch"] == 3  # epochs done
    assert torch.load(run / "best.ckpt", weights_only=True)["epoch"] == 1
    assert sorted(p.name for p in run.iterdir()) == ["best.ckpt", "last.ckpt"]


def test_without_validation_the_last_checkpoint_is_there(capsys):
    pictures(Path("photos"))
    data = ["--data", "ImageFolder", "--data.root", "photos", "--data.val_fraction", "0", "--data.batch_size", "4"]
    cli.main(["fit", "--model", "SimCLR", *SMALL, *data, "--trainer.max_epochs", "2", "--trainer.accelerator", "cpu"])
    run = the_run() / "checkpoints"
    assert [p.name for p in run.iterdir()] == ["last.ckpt"]
    out = capsys.readouterr().out
    assert f"last checkpoint   {run}/last.ckpt" in out
    assert "best checkpoint" not in out


def test_a_linear_probe_is_fitted_and_validated_from_a_checkpoint(capsys):
    cli.main(RUN)
    ckpt = str(the_run() / "checkpoints/last.ckpt")
    probe = ["--model", "LinearProbe", "--model.ckpt", ckpt, "--model.learning_rates", "[0.1, 1.0]"]
    cli.main(["fit", *probe, *RUN[RUN.index("--data") :]])
    out = capsys.readouterr().out
    assert "val/accuracy" in out
    assert "val/best_learning_rate" in out
    Path(ckpt).unlink()  # a probe's own checkpoint does without
    cli.main(["validate", "--ckpt_path", str(the_run("linear_probe") / "checkpoints/best.ckpt"), "--data", "Digits"])
    assert "val/accuracy" in capsys.readouterr().out


def test_fit_alone_is_simclr_on_digits(monkeypatch):
    seen = []
    monkeypatch.setattr(lightning, "CLI", lambda *a, **k: seen.append(k["args"]))
    cli.main(["fit"])
    cli.main(["fit", "--trainer.max_epochs", "1"])
    for args in seen:
        assert args[:2] == ["fit", "--config"]
        assert Path(args[2]).name == "simclr_digits.yaml"
    assert seen[1][3:] == ["--trainer.max_epochs", "1"]


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_recipes_parse_and_print_config_round_trips(path, capsys):
    first = printed(capsys, "fit", "--config", str(path), "--print_config")[:-1]
    Path("first.yaml").write_text(first)
    second = printed(capsys, "fit", "--config", "first.yaml", "--print_config")[:-1]
    assert first == second
    assert yaml.safe_load(first)["model"]["class_path"].split(".")[-1].lower() in path.stem.replace("_", "")


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["fit", "--model", "MoCoo", "--data", "Digits"], "--model MoCoo: there is no such class; did you mean MoCo"),
        (["fit", "--model", "MoCo", "--data", "Numbers"], "--data Numbers: there is no such class"),
        (["fit", "--model", "MoCo", "--data", "Digits", "--model.foo", "3"], "foo"),
        (["fit", "--model", "MoCo", "--data", "Digits", "--nonsense", "3"], "nonsense"),
        ([*RUN, "--model.encoder", "resnet81", "--model.encoder_args", "null"], "no encoder 'resnet81'; did you mean"),
        ([*RUN, "--data.mode", "L"], "the images have 1 channels, the encoder takes 3; pass in_channels=1"),
        (["fit", "--model", "SimCLR", "--data", "ImageFolder", "--data.root", "nowhere"], "nowhere"),
        (["fit", "--model", "SimCLR", "--data", "ImageFolder", "--data.root", "empty"], "empty"),
        (["predict", "--ckpt_path", "no.ckpt", "--data", "Digits"], "no.ckpt: there is no such file"),
        (["fit", "--model", "MoCo", "--data", "Digits", "--model.learnin_rate=3"], "mean --model.learning_rate?"),
        (["fit", "--trainer.max_epoch", "3"], "no option --trainer.max_epoch; did you mean --trainer.max_epochs?"),
        (["fit", "--trainer.max_epochs", "abc"], "--trainer.max_epochs is 'abc', expected int or null"),
        (["fti"], "there is no command 'fti'; did you mean fit?"),
        (["attention", "--ckpt", "x"], "there is no --images and no --out; it is required"),
        ([], "usage: sslmodules COMMAND"),
    ],
)  # fmt: skip
def test_bad_input_is_one_sentence_and_nothing_is_written(args, said, capsys, tmp_path):
    (tmp_path / "empty").mkdir()
    out = printed(capsys, *args)
    assert said in out
    assert len(out.splitlines()) <= (2 if args else 20)  # the sentence and the status
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


def test_a_class_is_named_as_a_person_types_it():
    args = arguments.completed("fit", ["--model", "simclr", "--data=image_folder", "--data.root", "photos"])
    assert args == ["--model", "SimCLR", "--data", "ImageFolder", "--data.root", "photos"]


@pytest.mark.parametrize("command", ["fit", "predict"])
def test_help_fits_two_screens_and_all_of_it_is_there(command, capsys):
    short = printed(capsys, command, "--help")
    assert "--trainer.max_epochs" in short
    assert "--trainer.profiler" not in short
    assert len(short.splitlines()) < 80
    assert max(map(len, short.splitlines())) <= 140
    assert "--trainer.profiler" in printed(capsys, command, "--help", "all")


def test_help_of_a_class_lists_its_arguments_and_not_every_module_of_torch(capsys):
    shown = printed(capsys, "fit", "--model.help", "MoCo")
    assert "--model.queue_size" in shown
    assert len(shown.splitlines()) < 150


def test_help_version_and_a_mistyped_command_answer_at_once():
    for args, status in ((["--help"], 0), (["--version"], 0), (["fti"], 2)):
        code = f"import sys; sys.argv[1:] = {args}; from sslmodules.cli import main\ntry: main()\n"
        code += "except SystemExit as left: sys.exit(100 + left.code if 'torch' in sys.modules else left.code)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert run.returncode == status, run.stderr


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_stands_in_the_list_and_takes_a_configuration(command, capsys):
    assert f"  {command} " in printed(capsys, "--help")
    shown = printed(capsys, command, "--help")
    assert "--config" in shown
    assert "--print_config" in shown


def test_a_corrupt_picture_is_named_or_skipped(capsys):
    pictures(Path("photos"))
    Path("photos/cat/1.png").write_bytes(b"no picture")
    folder = ["--data", "ImageFolder", "--data.root", "photos", "--data.batch_size", "4", "--data.num_workers", "0"]
    args = ["fit", "--model", "SimCLR", *SMALL, *folder, "--trainer.max_epochs", "1", "--data.val_fraction", "0"]
    assert "1.png" in printed(capsys, *args)
    with pytest.warns(UserWarning, match=r"1\.png"):
        cli.main([*args, "--data.on_error", "skip"])


@pytest.mark.parametrize(
    ("method", "best"),
    [
        (["MoCo", "--model.queue_size", "16"], "none: without labels nothing tells the best epoch of MoCo"),
        (["Rotation"], r"runs/rotation-[-\d]*/checkpoints/best.ckpt  \(epoch \d, step \d, val/loss"),
    ],
)
def test_without_labels_best_is_what_the_pretext_task_says_or_nothing(method, best, capsys):
    pictures(Path("photos"), 24)
    folder = ["--data", "ImageFolder", "--data.root", "photos", "--data.batch_size", "4", "--data.num_workers", "0"]
    cli.main(["fit", "--model", *method, *SMALL, *folder, "--trainer.max_epochs", "1", "--trainer.accelerator", "cpu"])
    out = capsys.readouterr().out
    assert "no labels to probe with" in out
    assert re.search(f"^best checkpoint   {best}", out, re.MULTILINE)
    assert len(list(Path("runs").rglob("best.ckpt"))) == best.startswith("runs")


def test_results_stand_in_tensorboard_beside_the_hyperparameters():
    cli.main([*RUN, "--trainer.limit_train_batches", "1"])
    results = json.loads((the_run() / "results.json").read_text())
    events = EventAccumulator(str(the_run())).Reload()
    for name, value in results["metrics"]["last"].items():
        [scalar] = events.Scalars(f"results/{name}")
        assert (scalar.step, scalar.value) == (results["steps"], pytest.approx(value))
    assert "_hparams_/experiment" in events.summary_metadata
    assert "hp_metric" not in events.Tags()["scalars"]


@pytest.mark.parametrize(
    ("option", "folder"),
    [
        (["--trainer.logger", "false"], "runs/simclr-*"),
        (["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "mine"], "mine/lightning_logs/version_0"),
    ],
)
def test_a_run_without_our_logger_leaves_its_files_all_the_same(option, folder):
    cli.main([*RUN, *option, "--trainer.limit_train_batches", "1"])
    [run] = Path().glob(folder)
    assert {"config.yaml", "results.json", "checkpoints"} <= {path.name for path in run.iterdir()}
    assert (run / "checkpoints/last.ckpt").is_file()
    assert not list(Path().rglob("events*"))


def test_a_trial_run_writes_nothing():
    cli.main([*RUN, "--trainer.fast_dev_run", "true"])
    assert not list(Path().iterdir())


def test_validation_writes_nothing(tmp_path):
    cli.main([*RUN, "--trainer.limit_train_batches", "1"])
    before = sorted(Path().rglob("*"))
    cli.main(["validate", "--ckpt_path", "best"])
    assert sorted(Path().rglob("*")) == before


def command(folder, *args):
    line = [sys.executable, "-m", "sslmodules", "fit", "--model", "MoCo", "--model.queue_size", "300", *SMALL]
    line += ["--data", "Digits", "--data.batch_size", "128", "--trainer.accelerator", "cpu"]
    line += ["--trainer.accumulate_grad_batches", "2", "--trainer.max_epochs", "3", "--trainer.limit_val_batches", "1"]
    line += ["--checkpoint.every_n_train_steps", "1", "--checkpoint.save_top_k", "-1", "--checkpoint.monitor", "step"]
    line += ["--checkpoint.filename", "{step}", "--checkpoint.dirpath", str(folder), *args]
    return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)


def test_a_killed_run_resumes_as_if_it_had_never_stopped(tmp_path):
    """SIGKILL in the middle of an epoch, then ``--ckpt_path``."""
    whole = command(tmp_path / "whole", "--trainer.default_root_dir", str(tmp_path / "a"))
    killed = command(tmp_path / "killed", "--trainer.default_root_dir", str(tmp_path / "b"))
    deadline = time.monotonic() + 120
    while not (tmp_path / "killed" / "step=8.ckpt").is_file():  # six steps an epoch: two into the second
        assert killed.poll() is None, killed.stdout.read().decode()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    checkpoint = tmp_path / "killed" / "step=8.ckpt"
    resumed = command(
        tmp_path / "killed", "--trainer.default_root_dir", str(tmp_path / "b"), "--ckpt_path", str(checkpoint)
    )
    for process in (whole, resumed):
        out = process.communicate(timeout=180)[0].decode()
        assert process.returncode == 0, out
    last = [torch.load(tmp_path / f / "last.ckpt", weights_only=True) for f in ("whole", "killed")]
    assert last[0]["global_step"] == last[1]["global_step"] == 18
    assert same_bits(last[0]["state_dict"], last[1]["state_dict"])
    for key in ("optimizer_states", "lr_schedulers"):
        assert str(last[0][key]) == str(last[1][key])
    probes = [next(v for k, v in c["callbacks"].items() if "Probe" in k)["head"] for c in last]
    assert same_bits(*probes)


@pytest.mark.parametrize("where", ["the table at the end", "the checks before the first step"])
def test_an_interruption_outside_of_training_says_which_checkpoint_there_is(where, monkeypatch, capsys):
    def interrupt(*_, **__):
        signal.raise_signal(signal.SIGTERM)

    if where == "the table at the end":
        monkeypatch.setattr(lightning, "probe", interrupt)
    else:
        monkeypatch.setattr("sslmodules.SimCLR.check_batch", interrupt)
    with pytest.raises(SystemExit) as error:
        cli.main([*RUN, "--trainer.max_epochs", "1"])
    said = capsys.readouterr().out
    assert error.value.code == 143
    assert said.count("ended by SIGTERM") == 1
    if where == "the table at the end":
        last = the_run() / "checkpoints/last.ckpt"
        assert f"last checkpoint   {last.absolute()}" in said
        assert f"to go on          sslmodules {' '.join(RUN[:3])}" in said
        assert f"--ckpt_path {last}\n" in said
    else:
        assert "last checkpoint   none has been written" in said
        assert "to go on" not in said
