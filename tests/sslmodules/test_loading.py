"""Reading checkpoints back: what is broken is said in one sentence, from wherever it is read."""

import os
import pickle
import re
import sys
import zipfile
from pathlib import Path

import pytest
import torch
import torchvision
from flowers import flowers
from method_list import TINY, VIT
from PIL import Image
from runs import loader, same_bits, snapshot, trainer

import sslmodules
from sslmodules import DINO, MAE, LinearProbe, SimCLR
from sslmodules.cli import main
from sslmodules.encoders import create_encoder, load_weights, without_pretrained_weights
from sslmodules.evaluation import Evaluation
from sslmodules.evaluation.looking import looked_with


class Code:
    """Writes a file wherever it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def save(module, path: Path) -> dict:
    """Train for a step and save; returns what the file holds."""
    run = trainer(path.parent, max_steps=1)
    run.fit(module, loader(8))
    run.save_checkpoint(path)
    return torch.load(path, weights_only=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Every kind of broken file beside a good one."""
    folder = tmp_path_factory.mktemp("broken")
    held = save(SimCLR(**TINY), folder / "good.ckpt")
    ran = folder / "ran"

    def without(key: str) -> dict:
        return {k: v for k, v in held.items() if k != key}

    state = dict(held["state_dict"])
    first = next(name for name in state if name.startswith("encoder"))
    files = {
        "no-weights": without("state_dict"),
        "no-arguments": without("hyper_parameters"),
        "no-class": held | {"sslmodules": {"seed": 0}},
        "not-ours": without("sslmodules"),
        "no-tensor": {"epoch": 3, "lr": 0.1},
        "a-tensor": torch.zeros(3),
        "other-shape": held | {"state_dict": state | {first: torch.zeros(5, 3, 3, 3)}},
        "other-names": held | {"state_dict": {"a.weight" if k == first else k: v for k, v in state.items()}},
        "other-arguments": held | {"hyper_parameters": held["hyper_parameters"] | {"no_such": 1}},
        "other-class": held | {"sslmodules": held["sslmodules"] | {"class_path": "elsewhere.Method"}},
        "code": held | {"callbacks": Code(ran)},
    }
    for name, content in files.items():
        torch.save(content, folder / f"{name}.ckpt")
    whole = (folder / "good.ckpt").read_bytes()
    torch.save(held, folder / "old.ckpt", _use_new_zipfile_serialization=False)
    raw = {
        "empty": b"",
        "text": b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
        "half": whole[: len(whole) // 2],
        "last-byte": whole[:-1],
        "old-half": (folder / "old.ckpt").read_bytes()[: len(whole) // 2],
        "pickle-2": pickle.dumps(Code(ran), 2),
        "pickle-5": pickle.dumps(Code(ran), 5),
        "binary": b"\x89PNG\r\n\x1a\n" + bytes(range(256)),
        "safetensors": b"\xff\0\0\0\0\0\0\0{file}",
    }
    for name, content in raw.items():
        (folder / f"{name}.ckpt").write_bytes(content)
    with zipfile.ZipFile(folder / "archive.ckpt", "w") as archive:
        archive.writestr("a.txt", "a")
    (folder / "folder.ckpt").mkdir()
    (folder / "folder.ckpt" / "last.ckpt").write_bytes(whole)
    os.mkfifo(folder / "pipe.ckpt")
    yield folder
    assert not ran.exists(), "loading ran code of a file"


FILES = {  # what is no file of weights at all
    "empty": "is empty",
    "text": "is a text file that begins with 'version https://git-lfs",
    "half": "is cut off after [0-9,]+ bytes",
    "last-byte": "is cut off after [0-9,]+ bytes",
    "old-half": "is cut off after [0-9,]+ bytes",
    "pickle-2": "holds objects besides tensors .*mkdir.* can run code|is a pickle of something else .* could run code",
    "pickle-5": "holds objects besides tensors .*mkdir.* can run code|is a pickle of something else .* could run code",
    "code": "holds objects besides tensors .*mkdir.* can run code",
    "binary": "it begins with .*PNG",
    "safetensors": "is a damaged safetensors file",
    "archive": "is a zip archive and no checkpoint",
    "folder": "is a folder; pass a file, such as .*folder.ckpt/last.ckpt",
    "pipe": "is neither a file nor a folder",
    "nowhere": "there is no such file",
    "a-tensor": "holds a Tensor, expected a state dict",
}
CHECKPOINTS = {  # what lacks something, or does not fit
    "no-weights": "without its state_dict",
    "no-arguments": "without its hyper_parameters",
    "no-class": "does not say of which class it is",
    "other-shape": r"does not fit this SimCLR: encoder\S+ is \(5, 3, 3, 3\) in it, expected \(8, 3, 3, 3\)",
    "other-names": r"does not fit this SimCLR: it lacks encoder\S+; it has a.weight besides",
    "other-arguments": "arguments do not fit its class .*no_such",
    "other-class": "holds a elsewhere.Method, which is not imported",
}


def one_sentence(error: BaseException, name: str, words: str) -> None:
    said = str(error)
    assert re.search(words, said), said
    assert f"{name}.ckpt" in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("name", [*FILES, *CHECKPOINTS, "no-tensor"])
@pytest.mark.parametrize("read", [sslmodules.load, LinearProbe, Evaluation, lambda path: looked_with(str(path), None)])
def test_a_broken_file_is_named_and_described_by_one_sentence(name, read, folder):
    words = {**FILES, **CHECKPOINTS, "no-tensor": "is not an sslmodules checkpoint|holds no tensor"}[name]
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        read(folder / f"{name}.ckpt")
    one_sentence(caught.value, name, words)


@pytest.mark.parametrize("name", FILES)
def test_published_weights_are_read_with_the_same_sentences(name, folder):
    with pytest.raises((ValueError, FileNotFoundError)) as caught:
        load_weights(folder / f"{name}.ckpt")
    one_sentence(caught.value, name, FILES[name])


def test_what_holds_tensors_of_others_is_taken_for_published_weights(folder):
    with pytest.raises(ValueError, match="not-ours.ckpt is not an sslmodules checkpoint: the key"):
        sslmodules.load(folder / "not-ours.ckpt")
    with pytest.raises(ValueError, match=r"not-ours.ckpt is not an sslmodules checkpoint.*pass encoder="):
        Evaluation(str(folder / "not-ours.ckpt"))
    taken = Evaluation(str(folder / "not-ours.ckpt"), encoder="conv4", encoder_args={"widths": [8, 16]})
    held = sslmodules.load(folder / "good.ckpt")
    assert same_bits(snapshot(taken.encoder), snapshot(held.encoder))
    assert taken.input_format is None


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_named(folder, tmp_path):
    (tmp_path / "secret.ckpt").write_bytes((folder / "good.ckpt").read_bytes())
    (tmp_path / "secret.ckpt").chmod(0)
    with pytest.raises(ValueError, match=r"secret.ckpt cannot be read: Permission denied"):
        sslmodules.load(tmp_path / "secret.ckpt")


def test_an_error_of_the_system_is_named(folder, monkeypatch):
    def refused(self, *args, **kwargs):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "open", refused)
    with pytest.raises(ValueError, match=r"good.ckpt cannot be read: Permission denied"):
        sslmodules.load(folder / "good.ckpt")


# --- what is loaded ---------------------------------------------------------------------------------------------------


def test_a_loaded_module_is_in_eval_mode(folder):
    module = sslmodules.load(folder / "good.ckpt")
    assert not any(part.training for part in module.modules())
    images = loader(8).dataset[:8][0]
    torch.testing.assert_close(module(images)[:1], module(images[:1]))  # whatever else is in the batch


def test_training_goes_on_from_a_loaded_module_as_before(folder, tmp_path):
    module = sslmodules.load(folder / "good.ckpt")
    run = trainer(tmp_path, max_steps=1)
    modes = []
    module.on_train_batch_end = lambda *args: modes.append(module.encoder.training)
    module.train()
    run.fit(module, loader(8))
    assert modes == [True]


def test_loading_downloads_nothing(tmp_path, monkeypatch):
    from timm.models import _builder

    asked = []
    monkeypatch.setattr(_builder, "load_pretrained", lambda *args, **kwargs: asked.append(args))
    resnet = {"encoder": "test_resnet", "encoder_args": {"pretrained": True}}
    vit = {**VIT, "encoder_args": {**VIT["encoder_args"], "pretrained": True}}
    modules = {
        "simclr": SimCLR(**resnet),
        "mae": MAE(**vit, decoder_dim=16, decoder_depth=1, decoder_heads=2),
        "probe": LinearProbe(
            encoder="resnet18", encoder_args={"pretrained": True}, num_classes=4, learning_rates=[0.1]
        ),
    }
    assert len(asked) == 3
    for name, module in modules.items():
        save(module, tmp_path / f"{name}.ckpt")
    monkeypatch.setattr(_builder, "load_pretrained", _refuse)
    for name, module in modules.items():
        path = tmp_path / f"{name}.ckpt"
        for again in (sslmodules.load(path), type(module).load_from_checkpoint(path)):
            assert same_bits(snapshot(again), snapshot(module))
            trained = [p.requires_grad for p in module.parameters()]
            assert [p.requires_grad for p in again.parameters()] == trained
        assert same_bits(snapshot(Evaluation(str(path)).encoder), snapshot(module.encoder))
    looked_with(str(tmp_path / "simclr.ckpt"), None)
    with without_pretrained_weights():
        create_encoder("test_resnet", pretrained=True, checkpoint_path="/nowhere")
    with pytest.raises(OSError, match="network"):
        create_encoder("test_resnet", pretrained=True)


def _refuse(*args, **kwargs):
    raise OSError("asked the network")


def test_a_module_given_as_class_path_downloads_nothing_either(tmp_path, monkeypatch):
    held = save(SimCLR(**TINY), tmp_path / "m.ckpt")
    encoder = {"class_path": "torchvision.models.resnet18", "init_args": {"weights": "DEFAULT"}}
    arguments = {"encoder": encoder, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    module = SimCLR(torchvision.models.resnet18())
    torch.save(held | {"hyper_parameters": arguments, "state_dict": module.state_dict()}, tmp_path / "m.ckpt")
    monkeypatch.setattr(torchvision.models._api, "load_state_dict_from_url", _refuse)
    again = sslmodules.load(tmp_path / "m.ckpt")
    assert same_bits(snapshot(again), snapshot(module))
    assert same_bits(snapshot(Evaluation(str(tmp_path / "m.ckpt")).encoder), snapshot(module.encoder))


def test_a_class_path_in_a_file_imports_nothing(folder, tmp_path, monkeypatch):
    (tmp_path / "trap.py").write_text("raise SystemExit('imported')")
    held = torch.load(folder / "good.ckpt", weights_only=True)
    arguments = held["hyper_parameters"] | {"_class_path": "trap.Trap", "_instantiator": "trap.run"}
    torch.save(held | {"hyper_parameters": arguments}, tmp_path / "m.ckpt")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match=r"m\.ckpt: The instantiator 'trap.run' .* is not in the allowlist"):
        sslmodules.load(tmp_path / "m.ckpt")
    Evaluation(str(tmp_path / "m.ckpt"))
    assert "trap" not in sys.modules


# --- how the images were made -----------------------------------------------------------------------------------------


def test_a_checkpoint_knows_how_its_images_were_made(tmp_path):
    module = SimCLR(**TINY, mean=[0.5] * 3, std=[0.25] * 3)
    held = save(module, tmp_path / "m.ckpt")
    assert held["sslmodules"]["inputs"] == {
        "kind": "image",
        "shape": (3, 16, 16),
        "mode": "RGB",
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
        "crop": "center",
        "sample_rate": None,
    }
    again = sslmodules.load(tmp_path / "m.ckpt")
    assert again.input_format == module.input_format
    assert again.input_format.size == (16, 16)
    probe = LinearProbe(str(tmp_path / "m.ckpt"), num_classes=4, learning_rates=[0.1])
    assert probe.input_format == module.input_format
    save(probe, tmp_path / "p.ckpt")
    assert sslmodules.load(tmp_path / "p.ckpt").input_format == module.input_format
    picture = torch.zeros(3, 50, 70, dtype=torch.uint8)
    assert torch.equal(again.embed(picture), again.embed(torch.zeros(3, 16, 16, dtype=torch.uint8)))


def test_a_start_from_that_does_not_fit_is_named(tmp_path):
    small = {**VIT, "local_size": 8, "local_crops": 2, "hidden_dim": 16, "bottleneck_dim": 8}
    save(DINO(**small, output_dim=16), tmp_path / "d.ckpt")
    with pytest.raises(ValueError, match=r"d.ckpt: .*does not fit this DINO: .*is \(16,.* expected \(24,"):
        trainer(tmp_path, max_steps=1).fit(DINO(**small, output_dim=24, start_from=str(tmp_path / "d.ckpt")), loader(8))


# --- from the command line --------------------------------------------------------------------------------------------


COMMANDS = {
    "fit": "fit --model SimCLR {tiny} --data Digits --ckpt_path {file}",
    "fit alone": "fit --data Digits --ckpt_path {file}",
    "validate": "validate --data Digits --ckpt_path {file}",
    "test": "test --model SimCLR {tiny} --data Digits --ckpt_path {file}",
    "predict": "predict --data ImageFolder --data.root photos --ckpt_path {file}",
    "probe": "fit --model LinearProbe --model.ckpt {file} --data Digits",
    "evaluate": "evaluate --data Digits --ckpt {file}",
    "attention": "attention --images photos --out out --ckpt {file}",
    "propagate": "propagate --frames photos --mask mask.png --out out --ckpt {file}",
    "propagate untrained": "propagate --frames photos --mask mask.png --out out --baseline untrained --ckpt {file}",
}
TOLD = ["empty", "half", "pickle-5", "no-weights", "other-shape", "folder"]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_names_a_broken_file_in_one_sentence(command, folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flowers(tmp_path / "photos", 3, classes=1)
    Image.new("L", (8, 8)).save(tmp_path / "mask.png")
    tiny = '--model.encoder conv4 --model.encoder_args {"widths":[8,16]}'
    for name in TOLD:
        with pytest.raises(SystemExit) as left:
            main(COMMANDS[command].format(tiny=tiny, file=folder / f"{name}.ckpt").split())
        said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("sslmodules: error: ")]
        assert left.value.code == 1
        assert len(said) == 1
        one_sentence(ValueError(said[0]), name, {**FILES, **CHECKPOINTS}[name])
    assert not Path("out").exists()
