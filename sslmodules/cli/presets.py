"""Recipes for ``fit``: presets of a method, and the choice of method and preset for a person's data."""

import difflib
import json
import math
import os
import sys
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch.utilities import rank_zero_only

from sslmodules import configs
from sslmodules.cli.data_facts import DataFacts, accepts, built_data, facts_of, kind_of
from sslmodules.datamodules.splits import SplitDataModule
from sslmodules.loading import subclasses
from sslmodules.module import SSLModule

PRESETS = ("tiny", "small", "paper")
METHODS = {"picture": "SimCLR", "recording": "CPC", "clip": "VideoColorization"}  # where none is named
CPC_SECTIONS = {"picture": "CPC.image", "recording": "CPC.audio", "clip": "CPC.video"}
MANY = 2_000  # training images from which a GPU trains the larger network
SMALLEST_BATCH = 16  # that a small training set is cut into
BUDGET = {"tiny": 180, "small": 3_600}  # seconds that a run may take
# Seconds of training on one item: by `tiny` on a CPU core, by `small` on a GPU.
ITEM_SECONDS = {
    "tiny": {"picture": 3.5e-3, "recording": 1.2e-2, "clip": 8e-2},
    "small": {"picture": 5e-4, "recording": 3e-3, "clip": 2e-2},
}
PIXELS_A_SECOND = 4e8  # of large picture files that one core reads
NOT_OURS = ("root", "val_root", "labels")  # arguments of a paper's data in which the user's differ

Recipe = dict[str, dict[str, Any]]


def config(name: str) -> Path:
    """Path of a recipe that comes with the package."""
    return Path(next(iter(configs.__path__))) / name


def with_config_paths(args: list[str]) -> list[str]:
    """Put paths in the place of the names of the package's recipes, such as ``--config moco_v2_imagenet``.

    Raises:
        FileNotFoundError: no such file here, nor such a recipe.
    """
    return [_config_path(a) if option in ("--config", "-c") else a for option, a in pairwise(["", *args])]


def with_preset(args: list[str]) -> list[str]:
    """Put the options of a preset before those of the user, which therefore take precedence.

    Args:
        args: words behind ``fit``. ``--preset`` names one for ``--model``. Without a model, method and preset are
            chosen for the data and the machine, and two lines on stderr say so. All else is returned as it is.

    Raises:
        ValueError: an unknown preset, or one that has no recipe for the method.
    """
    options = dict(pairwise([*args, ""]))
    preset, sections = options.get("--preset"), config_sections(args)
    if preset is not None and preset not in PRESETS:
        raise ValueError(f"--preset {preset}: there is no such preset; expected {', '.join(PRESETS)}")
    method = options.get("--model") or _class_name(sections.get("model"))
    data_class = options.get("--data") or _class_name(sections.get("data"))
    if preset is None and (method or not data_class or "--ckpt_path" in options):
        return args
    if not data_class:
        raise ValueError(f"--preset {preset} needs data; pass --data, such as --data ImageFolder --data.root photos")
    data = built_data(args, sections.get("data"))
    if data is None:  # the parser finds out once more, and says so
        return ["--model", method or METHODS["picture"], *_without(args, "--preset", "--model")]
    if not method and isinstance(data, SplitDataModule):  # masks and boxes are for heads on an encoder
        return args
    facts = None if preset == "paper" else facts_of(data)
    gpu = torch.accelerator.is_available() and options.get("--trainer.accelerator") != "cpu"
    chosen = not method
    method = method or METHODS[kind_of(data)]
    preset = preset or ("small" if gpu and facts is not None and facts.items >= MANY else "tiny")
    recipe = read_recipe(preset, CPC_SECTIONS[kind_of(data)] if method == "CPC" else method)
    recipe["data"] = {k: v for k, v in recipe["data"].items() if accepts(data, k) and f"--data.{k}" not in options}
    if "--model.encoder" in options or "encoder" in (sections.get("model") or {}).get("init_args", {}):
        recipe["model"].pop("encoder_args", None)  # they belong to the preset's encoder
    if facts is not None:
        facts = facts._replace(items=facts.items * recipe["data"].get("clips_per_video", 1))
        _fit_to_data(recipe, facts, preset)
        _fit_warmup(recipe, method, options)
        if chosen:
            _say_choice(method, preset, recipe, facts, options, gpu)
    elif not any(option.startswith("--trainer.devices") for option in options):
        _fit_to_devices(recipe)
    words = ["--model", method, *_words("model", recipe.pop("model"))]
    words += ["--data", data_class, *_words("data", recipe.pop("data"))]
    words += [word for section, values in recipe.items() for word in _words(section, values)]
    return words + _without(args, "--preset", "--model", "--data")


def read_recipe(preset: str, method: str) -> Recipe:
    """Read what a preset has for a method: arguments by section, ``"model"``, ``"data"`` and ``"trainer"`` among them.

    Args:
        preset: one of ``PRESETS``.
        method: name of a class; of CPC ``CPC.audio``, ``CPC.image`` or ``CPC.video``.

    Raises:
        ValueError: the preset has nothing for it.
    """
    known = yaml.safe_load(config(f"presets/{preset}.yaml").read_text(encoding="utf-8"))
    every = known.pop("all", {})
    if method not in known:
        raise ValueError(f"--preset {preset} has no recipe for {method}; it has {', '.join(known)}")
    own = known[method]
    if isinstance(own, str):  # the name of a recipe
        own = yaml.safe_load(config(own).read_text(encoding="utf-8"))
        own["model"], own["data"] = own["model"]["init_args"], own["data"]["init_args"]
        own["data"] = {k: v for k, v in own["data"].items() if k not in NOT_OURS}
    sections = dict.fromkeys(["model", "data", "trainer", *every, *own])
    return {name: {**every.get(name, {}), **own.get(name, {})} for name in sections}


def _fit_to_data(recipe: Recipe, facts: DataFacts, preset: str) -> None:
    """Make batches small enough for several an epoch, and a run short enough for its budget of time."""
    given = batch_size = recipe["data"].get("batch_size", 256)
    while batch_size > max(SMALLEST_BATCH, facts.items / 2):
        batch_size //= 2
    if batch_size != given:
        recipe["data"]["batch_size"] = batch_size
    pixels = 0 if facts.size is None else facts.size[0] * facts.size[1]
    readers = max(1, len(os.sched_getaffinity(0)) - 1 if hasattr(os, "sched_getaffinity") else 1)
    seconds = facts.items * (ITEM_SECONDS[preset][facts.kind] + pixels / PIXELS_A_SECOND / readers)
    epochs = BUDGET[preset] / max(seconds, 1e-9)
    trainer = recipe["trainer"]
    trainer["max_epochs"] = max(1, min(trainer["max_epochs"], int(epochs)))
    if epochs < 1:
        batches = max(1, math.ceil(epochs * facts.items / batch_size))
        trainer |= {"limit_train_batches": batches, "limit_val_batches": batches}


def _fit_warmup(recipe: Recipe, method: str, options: Mapping[str, str]) -> None:
    """Shorten the method's warm-up, which is meant for longer runs, to a tenth of this one."""
    epochs = int(options.get("--trainer.max_epochs", recipe["trainer"]["max_epochs"]))
    default = next(c.default_warmup_epochs for c in subclasses(SSLModule) if c.__name__ == method)
    if 0 < epochs < 10 * default:
        recipe["model"].setdefault("warmup_epochs", epochs / 10)


def _fit_to_devices(recipe: Recipe) -> None:
    """Accumulate batches where this machine has fewer devices than the recipe, so that its global batch stays."""
    trainer = recipe["trainer"]
    wanted = trainer.get("devices", 1) * trainer.get("num_nodes", 1)
    here = max(1, torch.accelerator.device_count() if torch.accelerator.is_available() else 1)
    if here >= wanted:
        return
    for argument in ("devices", "num_nodes", *(("strategy", "sync_batchnorm") if here == 1 else ())):
        trainer.pop(argument, None)
    trainer["accumulate_grad_batches"] = math.ceil(wanted / here)
    batches = trainer["accumulate_grad_batches"]
    _say(f"the recipe is for {wanted} devices, and here is {here}: gradients of {batches} batches are accumulated")


def _say_choice(
    method: str, preset: str, recipe: Recipe, facts: DataFacts, options: Mapping[str, str], gpu: bool
) -> None:
    trainer = recipe["trainer"]
    epochs = int(options.get("--trainer.max_epochs", trainer["max_epochs"]))
    length = f"{epochs} epoch{'s' * (epochs != 1)}"
    if "limit_train_batches" in trainer:
        length += f" of {trainer['limit_train_batches']} batches"
    where = "a GPU" if gpu else "no GPU" if "--trainer.accelerator" not in options else "the CPU alone"
    _say(f"recipe: {method}, preset {preset}, {length}, because there are {facts} and {where}")
    _say(f"another: --model NAME, --preset {', '.join(PRESETS)}; --print_config shows every value")


@rank_zero_only
def _say(line: str) -> None:
    print(line, file=sys.stderr)


def _config_path(name: str) -> str:
    if Path(name).is_file() or ":" in name:  # or YAML itself
        return name
    there = Path(name).name.removesuffix(".yaml") + ".yaml"
    if config(there).is_file():
        return str(config(there))
    near = difflib.get_close_matches(there, [p.name for p in config("").glob("*.yaml")], n=3)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise FileNotFoundError(f"--config {name}: there is no such file, and no recipe of that name in the package{hint}")


def config_sections(args: list[str]) -> dict[str, Any]:
    """What the config files of a command line say, of several the last by section."""
    files = [a for option, a in pairwise(args) if option in ("--config", "-c")]
    read = (yaml.safe_load(Path(file).read_text(encoding="utf-8")) for file in files if Path(file).is_file())
    return {name: section for found in read if isinstance(found, dict) for name, section in found.items()}


def _class_name(section: Any) -> str:
    """Name of the class of a section ``model`` or ``data`` of a config file; empty without."""
    path = section.get("class_path", "") if isinstance(section, dict) else section or ""
    return str(path).rpartition(".")[2]


def _words(section: str, values: Mapping[str, Any]) -> list[str]:
    """Options of a section, as words of a command line."""
    return [
        word
        for name, value in values.items()
        for word in (f"--{section}.{name}", value if isinstance(value, str) else json.dumps(value))
    ]


def _without(args: list[str], *left_out: str) -> list[str]:
    """The words without some options and their values."""
    return [a for option, a in pairwise(["", *args]) if a not in left_out and option not in left_out]
