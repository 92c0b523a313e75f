"""Hyperparameters as plain data, so that a checkpoint is read back without arguments and without unpickling objects."""

import inspect
import types
from typing import Any

from lightning.pytorch import LightningModule

_MARK = "<an object: "


def save_init_arguments(module: LightningModule) -> None:
    """Save what the class that was instantiated was given; call it first thing in the base's ``__init__``.

    An argument that is no plain data (a module, a callable) leaves a mark in its place. Under the CLI the arguments are
    the configuration itself, modules as class_path and init_args.

    Raises:
        ValueError: an argument is such a mark: the checkpoint cannot be loaded without the object.
    """
    frame: types.FrameType | None = inspect.currentframe()
    outermost = None
    while frame is not None:  # the constructor that was called first, not those of its bases
        if frame.f_code.co_name == "__init__" and frame.f_locals.get("self") is module:
            outermost = frame
        frame = frame.f_back
    if outermost is None:
        raise RuntimeError("save_init_arguments is to be called from __init__, with `self` as the module's name there")
    names, _, keywords, values = inspect.getargvalues(outermost)
    given = {n: values[n] for n in names if n != "self"} | (values[keywords] if keywords else {})
    for name, value in given.items():
        if isinstance(value, str) and value.startswith(_MARK):
            raise ValueError(
                f"the checkpoint was saved with {name} given as the object {value[len(_MARK) : -1]}, which it does not "
                f"hold; pass {name}=... when loading it"
            )
    objects = [name for name, value in given.items() if not is_plain(value)]
    module.save_hyperparameters(frame=outermost, ignore=["self", *objects])
    if "_instantiator" in module.hparams:  # the CLI's configuration, plain data throughout
        module.save_hyperparameters(frame=outermost)
    elif objects:
        module.save_hyperparameters({**module.hparams, **{name: _mark(given[name]) for name in objects}})


def is_plain(value: Any) -> bool:
    """Whether a value is made of None, bool, numbers and strings, in lists, tuples and dicts."""
    if isinstance(value, (list, tuple)):
        return all(map(is_plain, value))
    if isinstance(value, dict):
        return all(isinstance(k, str) and is_plain(v) for k, v in value.items())
    return value is None or isinstance(value, (str, int, float, bool))


def without_downloads(value: Any) -> Any:
    """Saved arguments whose modules, given as class_path and init_args, ask for no weights of their own.

    >>> without_downloads({"class_path": "torchvision.models.resnet18", "init_args": {"weights": "DEFAULT"}})
    {'class_path': 'torchvision.models.resnet18', 'init_args': {'weights': None}}
    """
    if isinstance(value, list):
        return [without_downloads(v) for v in value]
    if not isinstance(value, dict):
        return value
    value = {k: without_downloads(v) for k, v in value.items()}
    if "class_path" in value and isinstance(value.get("init_args"), dict):
        off = {"pretrained": False, "weights": None}
        value["init_args"] |= {k: off[k] for k in off if isinstance(value["init_args"].get(k), (bool, str))}
    return value


def class_path(named: Any) -> str:
    """Dotted path of a class or function."""
    return f"{named.__module__}.{named.__qualname__}"


def _mark(value: Any) -> str:
    return f"{_MARK}{class_path(value if hasattr(value, '__qualname__') else type(value))}>"
