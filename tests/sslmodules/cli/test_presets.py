"""Recipes that fit the method, the data and the machine."""

import pytest
import torch
import yaml
from flowers import flowers
from jsonargparse import ArgumentParser

import sslmodules
from sslmodules import SSLModule
from sslmodules.cli import data_facts, presets
from sslmodules.cli.arguments import completed
from sslmodules.cli.data_facts import DataFacts
from sslmodules.cli.presets import PRESETS, config, read_recipe

SECTIONS = {
    preset: [name for name in yaml.safe_load(config(f"presets/{preset}.yaml").read_text()) if name != "all"]
    for preset in PRESETS
}
METHODS = {name for name in sslmodules.__all__ if isinstance(cls := getattr(sslmodules, name), type)} - {
    "SSLModule",
    "Detection",
    "SemanticSegmentation",
}


def built(preset, section):
    recipe = read_recipe(preset, section)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(SSLModule, "model")
    words = ["--model", section.split(".")[0], *presets._words("model", recipe["model"])]
    return parser, parser.parse_args(words), recipe


@pytest.mark.parametrize("preset", PRESETS)
def test_every_method_has_a_section_in_every_preset(preset):
    assert {section.split(".")[0] for section in SECTIONS[preset]} == METHODS
    assert len(SECTIONS[preset]) == len(METHODS) + 2  # three of CPC


@pytest.mark.parametrize(("preset", "section"), [(p, s) for p in ("small", "paper") for s in SECTIONS[p]])
def test_the_arguments_of_a_recipe_are_those_of_its_method(preset, section):
    assert built(preset, section)[2]["trainer"]


@pytest.mark.parametrize("section", [s for s in SECTIONS["tiny"] if s not in ("LinearProbe", "FineTune")])
def test_every_method_takes_a_step_with_its_tiny_recipe(section):
    parser, arguments, recipe = built("tiny", section)
    method = parser.instantiate_classes(arguments).model
    size, data = recipe["data"]["size"], recipe["data"]
    pixels = {"dtype": torch.uint8, "size": (2, 3, size, size)}
    batch = {
        "image": lambda: torch.randint(0, 256, **pixels),
        "sound": lambda: 2 * torch.rand(2, 1, data["window"]) - 1,
        "video": lambda: torch.stack([torch.randint(0, 256, **pixels)] * data.get("frames", 4), 1),
    }[method.input_kind]()
    method.check_batch(batch)
    method.loss(method.make_views(batch))["loss"].backward()
    assert sum(p.numel() for p in method.parameters()) < 2.5e6


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    flowers(tmp_path / "photos", 40)
    return ["--data", "ImageFolder", "--data.root", "photos"]


def values(words):
    return dict(zip(words, [*words[1:], ""], strict=True))


def test_nothing_is_added_where_a_method_is_named_and_no_preset(photos):
    assert completed("fit", ["--model", "simclr", *photos]) == ["--model", "SimCLR", *photos]


def test_options_of_a_preset_come_before_those_that_were_typed(photos):
    words = completed("fit", ["--model", "simclr", "--preset", "tiny", *photos, "--model.size", "24"])
    assert words.index("--model.size") < words.index("--data.root")
    assert values(words)["--model.size"] == "24"
    assert values(words)["--data.batch_size"] == "16"  # of 36 pictures
    assert "--preset" not in words


def test_arguments_of_the_encoder_go_with_it(photos):
    given = ["--model", "simclr", "--preset", "tiny", *photos]
    assert "--model.encoder_args" in completed("fit", given)
    assert "--model.encoder_args" not in completed("fit", [*given, "--model.encoder", "resnet18"])


def test_a_recipe_for_pictures_on_a_cpu_is_said_in_two_lines(photos, capsys):
    words = values(completed("fit", photos))
    assert words["--model"] == "SimCLR"
    assert words["--model.encoder"] == "conv4"
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 2
    assert said[0].startswith("recipe: SimCLR, preset tiny, 100 epochs, because there are 36 pictures of about ")
    assert said[0].endswith("px and no GPU")
    assert "--preset tiny, small, paper" in said[1]


def choose(monkeypatch, photos, facts, gpu=False, *more):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: gpu)
    monkeypatch.setattr(presets, "facts_of", lambda data: facts)
    return values(completed("fit", [*photos, *more]))


def test_a_run_is_as_long_as_its_budget(photos, monkeypatch):
    few = choose(monkeypatch, photos, DataFacts(200, "picture", (48, 48)))
    some = choose(monkeypatch, photos, DataFacts(4_000, "picture", (48, 48)))
    large = choose(monkeypatch, photos, DataFacts(4_000, "picture", (3000, 4000)))
    many = choose(monkeypatch, photos, DataFacts(1_000_000, "picture", (48, 48)))
    assert int(few["--trainer.max_epochs"]) == 100
    assert 100 > int(some["--trainer.max_epochs"]) > int(large["--trainer.max_epochs"]) >= 1
    assert many["--trainer.max_epochs"] == "1"
    assert int(many["--trainer.limit_train_batches"]) * int(many["--data.batch_size"]) < 100_000


def test_the_warmup_is_a_tenth_of_a_short_run(photos, monkeypatch):
    some = choose(monkeypatch, photos, DataFacts(4_000, "picture", (48, 48)))
    assert float(some["--model.warmup_epochs"]) == int(some["--trainer.max_epochs"]) / 10
    short = choose(monkeypatch, photos, DataFacts(200, "picture"), False, "--trainer.max_epochs", "4")
    assert short["--model.warmup_epochs"] == "0.4"
    assert "--model.warmup_epochs" not in choose(monkeypatch, photos, DataFacts(200, "picture"))  # 10 of 100


def test_many_pictures_and_a_gpu_get_the_larger_network(photos, monkeypatch):
    assert choose(monkeypatch, photos, DataFacts(5_000, "picture"), gpu=True)["--model.encoder"] == "resnet18"
    assert choose(monkeypatch, photos, DataFacts(500, "picture"), gpu=True)["--model.encoder"] == "conv4"
    on_cpu = ("--trainer.accelerator", "cpu")
    assert choose(monkeypatch, photos, DataFacts(5_000, "picture"), True, *on_cpu)["--model.encoder"] == "conv4"


def test_sound_and_video_have_methods_of_their_own(tmp_path, monkeypatch):
    for data, method in (("AudioFolder", "CPC"), ("VideoFrames", "VideoColorization")):
        folder = ["--data", data, "--data.root", str(tmp_path)]
        kind = data_facts.kind_of(data_facts.built_data(folder, None))
        assert choose(monkeypatch, folder, DataFacts(100, kind))["--model"] == method


def test_clips_are_counted_as_the_recipe_takes_them_out_of_videos(tmp_path, monkeypatch, capsys):
    folder = ["--data", "VideoFrames", "--data.root", str(tmp_path)]
    words = choose(monkeypatch, folder, DataFacts(50, "clip"))
    assert "there are 1,000 clips" in capsys.readouterr().err
    assert int(words["--trainer.max_epochs"]) * 1000 * presets.ITEM_SECONDS["tiny"]["clip"] <= presets.BUDGET["tiny"]
    words = choose(monkeypatch, folder, DataFacts(50, "clip"), False, "--data.clips_per_video", "1")
    assert "there are 50 clips" in capsys.readouterr().err


def test_a_paper_keeps_its_global_batch_on_fewer_devices(photos):
    words = values(completed("fit", ["--model", "moco", "--preset", "paper", *photos]))
    assert words["--model.encoder"] == "resnet50"
    assert words["--data.batch_size"] == "32"
    assert words["--trainer.accumulate_grad_batches"] == "8"
    assert words["--data.root"] == "photos"
    assert not {"--trainer.devices", "--trainer.strategy", "--data.val_root"} & words.keys()


def test_what_there_is_not_is_one_sentence(photos):
    with pytest.raises(ValueError, match="--preset huge: there is no such preset; expected tiny, small, paper"):
        completed("fit", ["--model", "simclr", "--preset", "huge", *photos])
    with pytest.raises(ValueError, match="--preset tiny has no recipe for Detection; it has SimCLR, MoCo"):
        completed("fit", ["--model", "detection", "--preset", "tiny", *photos])
    with pytest.raises(ValueError, match="--preset tiny needs data; pass --data"):
        completed("fit", ["--model", "simclr", "--preset", "tiny"])


def test_a_recipe_is_found_by_name_and_a_file_of_that_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("moco_v2_imagenet", "moco_v2_imagenet.yaml", "configs/moco_v2_imagenet.yaml"):
        assert completed("fit", ["--config", name]) == ["--config", str(config("moco_v2_imagenet.yaml"))]
    (tmp_path / "moco_v2_imagenet.yaml").touch()
    assert completed("fit", ["--config", "moco_v2_imagenet.yaml"]) == ["--config", "moco_v2_imagenet.yaml"]
    with pytest.raises(FileNotFoundError, match=r"no such file.*did you mean simclr_digits\.yaml"):
        completed("fit", ["--config", "simclr_digit.yaml"])
