"""Images for self-supervised learning: DataModules that shuffle, shard and resume exactly, and yield uint8."""

from sslmodules.datamodules.base import ImageDataModule, LabeledDataModule, UnlabeledDataModule
from sslmodules.datamodules.bolts import BoltsDataModule, from_bolts
from sslmodules.datamodules.digits import Digits
from sslmodules.datamodules.folder import ImageFolder
from sslmodules.datamodules.images import ImageSet, PairedSet, TensorImages
from sslmodules.datamodules.labels import balanced_indices
from sslmodules.datamodules.sampler import ResumableLoader, ResumableSampler
from sslmodules.datamodules.vision import CIFAR10, STL10, FashionMNIST

__all__ = [
    "CIFAR10",
    "STL10",
    "BoltsDataModule",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "ImageSet",
    "LabeledDataModule",
    "PairedSet",
    "ResumableLoader",
    "ResumableSampler",
    "TensorImages",
    "UnlabeledDataModule",
    "balanced_indices",
    "from_bolts",
]
