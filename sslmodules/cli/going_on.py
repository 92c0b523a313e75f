"""Checkpoints by name, ``last`` and ``best``, and what the run beside a checkpoint knows."""

import json
import sys
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_only

from sslmodules.cli.presets import config_sections
from sslmodules.evaluation import Evaluation
from sslmodules.loading import read_checkpoint, subclasses
from sslmodules.runs import CONFIG, NAMES, find_checkpoint, run_config, run_of

OPTIONS = ("--ckpt_path", "--ckpt", "--model.ckpt", "--model.init_args.ckpt")


def with_paths(args: list[str]) -> list[str]:
    """Put the newest checkpoint of a name in the place of ``last`` and ``best``, and say on stderr which it is.

    ``--ckpt_path last`` is of the method that ``--model`` or ``--config`` names. For ``--model.ckpt last``, the encoder
    of an evaluation, other evaluations do not count. The runs are those in ``--trainer.default_root_dir``, or of the
    working directory; with ``--checkpoint.dirpath`` it is the file there.

    Args:
        args: of the command.

    Raises:
        FileNotFoundError: there is no such checkpoint.
    """
    words = [word for arg in args for word in (arg.split("=", 1) if arg.startswith(OPTIONS) else [arg])]
    given = dict(zip(words, [*words[1:], ""], strict=False))
    option, found = "", []
    for word in words:
        option = word if word.startswith("-") else option
        if option in OPTIONS and word in NAMES:
            path = _named(option, word, given, config_sections(words))
            if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
                print(f"{option} {word}: {path}", file=sys.stderr)
            found.append(str(path))
        else:
            found.append(word)
    return found


def _named(option: str, name: str, given: dict[str, str], settings: dict[str, Any]) -> Path:
    folder = given.get("--last_checkpoint.dirpath" if name == "last" else "--checkpoint.dirpath")
    folder = folder or given.get("--checkpoint.dirpath")
    if folder is not None and option == "--ckpt_path":
        if not (Path(folder) / f"{name}.ckpt").is_file():
            raise FileNotFoundError(f"{option} {name}: there is no {name}.ckpt in {folder}; start a run without it")
        return Path(folder) / f"{name}.ckpt"
    root = given.get("--trainer.default_root_dir") or (settings.get("trainer") or {}).get("default_root_dir") or "."
    evaluations = {c.__name__ for c in subclasses(Evaluation)}
    if option.startswith("--model"):
        return find_checkpoint(name, root, lambda method: method not in evaluations, "a pretrained method", option)
    model = given.get("--model") or settings.get("model") or {}
    if isinstance(model, str) and model.startswith("{"):
        model = json.loads(model)
    path = model if isinstance(model, str) else model.get("class_path", "")
    method = path.rsplit(".", 1)[-1]
    return find_checkpoint(name, root, method.__eq__ if method else None, method, option)


def with_run(command: str, args: list[str]) -> list[str]:
    """Fill in what a command line with ``--ckpt_path`` leaves out, from the run that wrote the checkpoint.

    ``fit`` takes all its settings from ``config.yaml``, which further options override; the other commands take the
    data. The model is that of the checkpoint.

    Args:
        command: ``"fit"``, ``"validate"``, ``"test"`` or ``"predict"``.
        args: what follows it, with a path for ``--ckpt_path``.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: it is not a checkpoint of this package.
    """
    given = dict(zip(args, [*args[1:], ""], strict=False))
    path = given["--ckpt_path"]
    run = run_of(path)
    has_config = bool({"--config", "-c"} & given.keys())
    if command == "fit" and run is not None and not has_config and not {"--model", "--data"} <= given.keys():
        read_checkpoint(path)  # a file that is missing or something else is told first
        return ["--config", str(run / CONFIG), *args]
    added = []
    if "--model" not in given and not has_config:
        checkpoint = read_checkpoint(path)
        arguments = {k: v for k, v in checkpoint["hyper_parameters"].items() if not k.startswith("_")}
        model = {"class_path": checkpoint["sslmodules"]["class_path"], "init_args": arguments}
        added = ["--model", json.dumps(model)]
    if command != "fit" and run is not None and "--data" not in given and not has_config:
        added += ["--data", json.dumps(run_config(run)["data"])]
    return [*added, *args]
