"""Reading a method back from its checkpoint without naming its class."""

from argparse import ArgumentError
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import instantiate_module
from torch import Tensor

import sslmodules
from sslmodules.hyperparameters import class_path, without_downloads
from sslmodules.module import SSLModule
from sslmodules.reading import read_weights, some

PARTS = ("state_dict", "hyper_parameters")  # besides the entry that says whose they are


def load(path: str | Path, **kwargs: Any) -> SSLModule:
    """Load a method from a checkpoint without naming its class, in eval mode.

    Nothing is downloaded: weights that the encoder began with, such as those of ``pretrained=True``, are in the file.
    Call ``.train()`` to train on.

    Args:
        path: a checkpoint that a Trainer wrote.
        kwargs: arguments to override, such as ``encoder=...`` where the encoder had been given as an object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this package, a broken one, of a class that is not imported, or one that the
            arguments do not fit.
    """
    checkpoint = read_checkpoint(path)
    with naming(path):
        cls = method_class(checkpoint["sslmodules"]["class_path"])
        arguments = checkpoint["hyper_parameters"] | kwargs
        return cls.load_from_checkpoint(path, map_location="cpu", weights_only=True, **arguments).eval()


def method_class(name: str) -> Any:
    """The class of a method by its dotted path, as checkpoints note it.

    Raises:
        ValueError: it is not imported.
    """
    for public in sslmodules.__all__:  # the package imports its classes when they are first asked for
        getattr(sslmodules, public)
    known = {class_path(c): c for c in (SSLModule, *subclasses(SSLModule))}
    if name not in known:
        raise ValueError(f"the checkpoint holds a {name}, which is not imported; import it first")
    return known[name]


def built(cls: Any, arguments: Mapping[str, Any]) -> SSLModule:
    """A method from the arguments that its checkpoint notes, as it was before training."""
    arguments = dict(arguments)
    from_command_line = arguments.pop("_instantiator", None) is not None
    if arguments.pop("_class_path", None) is not None:
        arguments["_class_path"] = class_path(cls)  # whatever a file names would be imported
    return instantiate_module(cls, arguments) if from_command_line else cls(**arguments)


def own_checkpoint(path: str | Path) -> dict[str, Any] | None:
    """As :func:`read_checkpoint`; None for a file that holds tensors of another code base.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a broken checkpoint, or a file of something else than tensors.
    """
    content = read_weights(path, ignore_objects=True)
    if "sslmodules" in content:
        return read_checkpoint(path)
    if not _holds_tensors(content):
        raise ValueError(f"{path} holds no tensor (its keys: {some(map(str, content)) or 'none'}), expected weights")
    return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a Trainer wrote of an SSLModule, its tensors left on disk until they are used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a checkpoint of something else, or one of which a part is missing.
    """
    content = read_weights(path)
    saved = content.get("sslmodules")
    if saved is None:
        raise ValueError(
            f"{path} is not an sslmodules checkpoint: the key 'sslmodules' is missing (it has "
            f"{some(map(str, content)) or 'none'}); for published weights there is sslmodules.encoders.load_weights"
        )
    if not isinstance(saved, Mapping) or not {"class_path", "seed"} <= saved.keys():
        raise ValueError(f"{path} is a damaged checkpoint: its entry 'sslmodules' does not say of which class it is")
    missing = [part for part in PARTS if not isinstance(content.get(part), Mapping)]
    if missing:
        raise ValueError(f"{path} is a checkpoint of {saved['class_path']} without its {' and '.join(missing)}")
    return {**content, "hyper_parameters": without_downloads(dict(content["hyper_parameters"]))}


@contextmanager
def naming(path: str | Path) -> Iterator[None]:
    """Name the file in errors that come of its content."""
    try:
        yield
    except ValueError as error:
        raise (error if str(path) in str(error) else ValueError(f"{path}: {error}")) from error
    except (TypeError, ArgumentError) as error:  # of a constructor, or of the command line's parser
        reason = " ".join(str(error).split())[:300]
        raise ValueError(f"{path}: its arguments do not fit its class ({reason})") from error


def _holds_tensors(content: Any) -> bool:
    if isinstance(content, Mapping):
        return any(map(_holds_tensors, content.values()))
    return isinstance(content, Tensor)


def subclasses(cls: type) -> Iterator[Any]:
    """All imported subclasses of a class, those of its subclasses included."""
    sub: type
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)
