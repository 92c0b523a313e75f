"""Reading a method back from its checkpoint without naming its class."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import instantiate_module

from sslmodules.hyperparameters import class_path
from sslmodules.module import SSLModule


def load(path: str | Path, **kwargs: Any) -> SSLModule:
    """Load a method from a checkpoint without naming its class.

    Args:
        path: a checkpoint that a Trainer wrote.
        kwargs: arguments to override, such as ``encoder=...`` where the encoder had been given as an object.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not a checkpoint of this package, or of a class that is not imported.
    """
    saved = read_checkpoint(path)["sslmodules"]
    return method_class(saved["class_path"]).load_from_checkpoint(path, map_location="cpu", weights_only=True, **kwargs)


def method_class(name: str) -> Any:
    """The class of a method by its dotted path, as checkpoints note it.

    Raises:
        ValueError: it is not imported.
    """
    known = {class_path(c): c for c in (SSLModule, *subclasses(SSLModule))}
    if name not in known:
        raise ValueError(f"the checkpoint holds a {name}, which is not imported; import it first")
    return known[name]


def built(cls: Any, arguments: Mapping[str, Any]) -> SSLModule:
    """A method from the arguments that its checkpoint notes, as it was before training."""
    arguments = dict(arguments)
    if arguments.pop("_instantiator", None) is None:
        return cls(**arguments)
    return instantiate_module(cls, arguments)  # from the command line: modules are still class_path and init_args


def own_checkpoint(path: str | Path) -> dict[str, Any] | None:
    """As :func:`read_checkpoint`; None for a file of something else.

    Raises:
        FileNotFoundError: no such file.
    """
    try:
        return read_checkpoint(path)
    except FileNotFoundError:
        raise
    except Exception:  # torch.load has many ways to say that it is none
        return None


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a Trainer wrote of an SSLModule, its tensors left on disk until they are used.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a checkpoint of something else.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: there is no such file")
    checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if "sslmodules" not in checkpoint:
        raise ValueError(f"{path} is no checkpoint of an SSLModule: it has no entry 'sslmodules'")
    return checkpoint


def subclasses(cls: type) -> Iterator[Any]:
    """All imported subclasses of a class, those of its subclasses included."""
    sub: type
    for sub in cls.__subclasses__():
        yield sub
        yield from subclasses(sub)
