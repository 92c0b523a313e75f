"""What is known of the training data before a run: enough to choose a recipe for it."""

import inspect
import json
from collections.abc import Mapping
from itertools import pairwise
from typing import Any, Literal, NamedTuple

import numpy as np
from jsonargparse import ArgumentError, ArgumentParser
from lightning.pytorch import LightningDataModule

from sslmodules.datamodules import AudioFolder, ImageDataModule, ImageFolder
from sslmodules.datamodules.files import FileFolder
from sslmodules.datamodules.pictures import picture_size
from sslmodules.datamodules.video import VideoDataModule

Kind = Literal["picture", "recording", "clip"]
SAMPLED = 9  # files whose sizes are read


class DataFacts(NamedTuple):
    """Number and kind of the training items; height and width of the files of pictures, the median of some."""

    items: int
    kind: Kind
    size: tuple[int, int] | None = None

    def __str__(self) -> str:
        size = "" if self.size is None else f" of about {self.size[1]}x{self.size[0]} px"
        return f"{self.items:,} {self.kind}{'s' * (self.items != 1)}{size}"


def built_data(args: list[str], section: Mapping[str, Any] | None) -> LightningDataModule | None:
    """Build the DataModule that the options ``--data`` and ``--data.*`` describe.

    Args:
        args: words of a command line.
        section: what config files say under ``data``; options come on top of it.

    Returns:
        None where the options do not fit a DataModule: the parser of the command has a sentence about it.
    """
    words = [] if section is None else ["--data", json.dumps(section)]
    words += [word for pair in pairwise([*args, ""]) if pair[0].split(".")[0] == "--data" for word in pair]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data", required=True)
    try:
        return parser.instantiate_classes(parser.parse_args(words)).data
    except ArgumentError:
        return None


def kind_of(data: LightningDataModule) -> Kind:
    """What an item of the training data is."""
    if isinstance(data, AudioFolder):
        return "recording"
    return "clip" if isinstance(data, VideoDataModule) else "picture"


def facts_of(data: LightningDataModule) -> DataFacts:
    """Count the training items, and read the sizes of some pictures."""
    data.prepare_data()
    if isinstance(data, ImageDataModule):
        images = data.split("train")
    else:
        data.setup("fit")
        images = getattr(data.train_dataloader(), "dataset", None)
    count = len(images) if images is not None else 0
    if not isinstance(data, ImageFolder):
        return DataFacts(count, kind_of(data))
    files = data.files("train")
    sizes = [picture_size(files[i]) for i in np.linspace(0, count - 1, min(SAMPLED, count)).astype(int)]
    return DataFacts(count, "picture", tuple(np.median(sizes, axis=0).astype(int).tolist()))


def accepts(data: LightningDataModule, argument: str) -> bool:
    """Whether an argument of a recipe is for this DataModule: for folders of files, or it is the batch size."""
    if not isinstance(data, FileFolder) and argument != "batch_size":
        return False
    constructors = (vars(cls).get("__init__") for cls in type(data).__mro__)
    return any(argument in inspect.signature(init).parameters for init in constructors if init is not None)
