"""How the images of a checkpoint were made decides how new ones are read, unless the command line tells otherwise."""

from collections.abc import Sequence
from pydoc import locate
from typing import Any

from sslmodules.datamodules.base import ImageDataModule
from sslmodules.datamodules.files import FileFolder
from sslmodules.evaluation.base import Evaluation
from sslmodules.inputs import InputFormat
from sslmodules.loading import own_checkpoint, read_checkpoint

DEFAULTS = {"size": None, "mode": "RGB", "sample_rate": None}  # of our DataModules' arguments
KEYWORDS = ("best", "last", "hpc")  # that a Trainer resolves


def read_as_trained(section: Any, subcommand: str) -> str | None:
    """Complete the parsed arguments of ``sslmodules fit|validate|test|predict``, before they are instantiated.

    Args:
        section: of the subcommand: ``data`` and ``model`` (class_path and init_args), ``ckpt_path`` where there is one.
        subcommand: its name.

    Returns:
        A sentence that says what was filled in; None where nothing was.

    Raises:
        FileNotFoundError: no such checkpoint.
        ValueError: a file that is no checkpoint of this package, or a broken one.
    """
    ckpt, model = section.get("ckpt_path"), section.model
    cls: Any = locate(model.class_path)
    if ckpt is not None:
        if ckpt in KEYWORDS or "://" in ckpt or section.get("weights_only") is False:
            return None
        read_checkpoint(ckpt)
        full_size = subcommand == "predict" and getattr(cls, "predicts_on", None) == "full size"
        return fill_in(section.data, [ckpt], full_size)
    ckpt = model.init_args.get("ckpt") if issubclass(cls, Evaluation) else None
    return None if ckpt is None else fill_in(section.data, [ckpt])


def fill_in(data: Any, checkpoints: Sequence[str], full_size: bool = False) -> str | None:
    """Give the arguments of a DataModule that were left out the values of the training data.

    Args:
        data: what was parsed, class_path and init_args. Nothing is filled in for a DataModule of another code base.
        checkpoints: files; those of published weights do not tell how images were made.
        full_size: leave out the size, for a module that predicts on pictures of their own.

    Returns:
        A sentence that says what was filled in, or that it could not be; None where there was nothing to do.
    """
    cls: Any = locate(data.class_path)
    if not issubclass(cls, ImageDataModule):
        return None
    first, *others = map(_arguments, checkpoints)
    if any(other != first for other in others):
        several = "the checkpoints were trained on images of several formats; --data.size gives all of them one size"
        return several if "size" in data.init_args and data.init_args["size"] is None else None
    if full_size or (isinstance(first["size"], tuple) and not issubclass(cls, FileFolder)):  # others are square
        del first["size"]
    filled = {
        name: value
        for name, value in first.items()
        if name in data.init_args and data.init_args[name] == DEFAULTS[name] and value not in (None, DEFAULTS[name])
    }
    for name, value in filled.items():
        data.init_args[name] = value
    shown = ", ".join(f"--data.{name} {value}" for name, value in filled.items())
    return f"{shown}, as in the training of {checkpoints[0]}" if filled else None


def _arguments(ckpt: str) -> dict[str, Any]:
    """The arguments that the training data of a checkpoint amount to, None where it does not note them."""
    checkpoint = own_checkpoint(ckpt)
    inputs = None if checkpoint is None else checkpoint["sslmodules"].get("inputs")
    if inputs is None:
        return dict.fromkeys(DEFAULTS)
    made = InputFormat(**inputs)
    square = made.size is not None and made.size[0] == made.size[1]
    return {
        "size": made.size[0] if made.size and square else made.size,
        "mode": made.mode,
        "sample_rate": made.sample_rate,
    }
