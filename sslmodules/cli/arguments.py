"""What the command line leaves out: names in any spelling, the default recipe, the model that a checkpoint holds."""

import difflib
import shlex

from lightning.pytorch import LightningDataModule

import sslmodules
import sslmodules.datamodules  # so that its classes are known by their names
from sslmodules.cli.going_on import with_paths, with_run
from sslmodules.cli.presets import config, with_config_paths, with_preset
from sslmodules.loading import subclasses
from sslmodules.module import SSLModule

DEFAULT_CONFIG = "simclr_digits.yaml"
BASES: dict[str, type] = {"model": SSLModule} | dict.fromkeys(
    ("data", "transfer", "masks", "boxes"), LightningDataModule
)
# Classes around something that only Python can hand over, and the base of the others.
NEED_OBJECTS = {"BoltsDataModule", "ImageDataModule", "LabeledDataModule", "UnlabeledDataModule"}

for _name in sslmodules.__all__:  # subclasses are known as soon as they are imported
    getattr(sslmodules, _name)


def names_of(kind: str) -> list[str]:
    """Names of the package's classes that the command line can build for ``--model`` or ``--data``."""
    public = sslmodules if kind == "model" else sslmodules.datamodules
    found = {c.__name__ for c in subclasses(BASES[kind])} & set(public.__all__) - NEED_OBJECTS
    return sorted(found, key=str.lower)


def completed(command: str, args: list[str]) -> list[str]:
    """Fill in what a command line leaves out: a recipe, or what a checkpoint and the run beside it hold.

    ``--model simclr`` and ``--data image_folder`` name classes too.

    Args:
        command: such as ``"fit"``.
        args: what follows it.

    Raises:
        ValueError: no class of that name.
    """
    args = with_config_paths(with_class_names(args))
    if any(a in ("-h", "--help") or a.startswith("--model.help") or a.startswith("--data.help") for a in args):
        return args
    args = with_paths(args)
    if command == "fit":
        args = with_preset(args)
    given = dict(zip(args, [*args[1:], ""], strict=False))
    if "--ckpt_path" in given:
        return with_run(command, args)
    if command == "fit" and not {"--config", "-c", "--model", "--data"} & given.keys():
        return ["--config", str(config(DEFAULT_CONFIG)), *args]
    return args


def with_class_names(args: list[str]) -> list[str]:
    """Put the names of classes in the place of what a person types for them, such as ``--data image_folder``.

    Raises:
        ValueError: no class of that name.
    """
    args = [word for arg in args for word in _split(arg)]
    for place, option in enumerate(args[:-1]):
        kind = option.removeprefix("--")
        if kind in BASES and option.startswith("--"):
            args[place + 1] = _class_name(kind, args[place + 1])
    return args


def going_on(command: str, args: list[str], checkpoint: str) -> str:
    """Return the command line that goes on from a checkpoint where another one, with ``args``, was interrupted.

    >>> going_on("fit", ["--ckpt_path=old.ckpt", "--data.root", "my photos"], "last.ckpt")
    "sslmodules fit --data.root 'my photos' --ckpt_path last.ckpt"
    """
    words = [word for arg in args for word in _split(arg)]
    if "--ckpt_path" in words:
        place = words.index("--ckpt_path")
        del words[place : place + 2]
    return shlex.join(["sslmodules", command, *words, "--ckpt_path", checkpoint])


def _split(arg: str) -> list[str]:
    """``--model=x`` as two words, as all others are."""
    option, equals, value = arg.partition("=")
    return [option, value] if equals and option.startswith("--") else [arg]


def _class_name(kind: str, value: str) -> str:
    """The class that a name means in any case, with or without underscores and hyphens; a path or JSON as it is."""
    if not value.replace("-", "_").isidentifier():
        return value
    known = [c.__name__ for c in subclasses(BASES[kind])]
    spellings = {_plain(name): name for name in known}
    if value in known:
        return value
    if _plain(value) in spellings:
        return spellings[_plain(value)]
    near = difflib.get_close_matches(_plain(value), map(_plain, names_of(kind)), n=3)
    hint = (
        f"did you mean {' or '.join(spellings[n] for n in near)}?" if near else f"there are {', '.join(names_of(kind))}"
    )
    raise ValueError(f"--{kind} {value}: there is no such class; {hint}")


def _plain(name: str) -> str:
    return name.lower().replace("_", "").replace("-", "")
