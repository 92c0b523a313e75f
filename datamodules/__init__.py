"""Images, sounds and videos for self-supervised learning: DataModules that shuffle, shard and resume exactly."""

from sslmodules.datamodules.audio import AudioFolder
from sslmodules.datamodules.base import ImageDataModule, LabeledDataModule, UnlabeledDataModule
from sslmodules.datamodules.bolts import BoltsDataModule, from_bolts
from sslmodules.datamodules.boxes import COCOBoxes, VOCBoxes
from sslmodules.datamodules.digits import Digits
from sslmodules.datamodules.folder import ImageFolder
from sslmodules.datamodules.images import ImageSet, PairedSet, TensorImages
from sslmodules.datamodules.labels import balanced_indices
from sslmodules.datamodules.masks import MaskFolder
from sslmodules.datamodules.sampler import ResumableLoader, ResumableSampler
from sslmodules.datamodules.video import VideoFolder, VideoFrames
from sslmodules.datamodules.vision import CIFAR10, STL10, FashionMNIST

__all__ = [
    "CIFAR10",
    "STL10",
    "AudioFolder",
    "BoltsDataModule",
    "COCOBoxes",
    "Digits",
    "FashionMNIST",
    "ImageDataModule",
    "ImageFolder",
    "ImageSet",
    "LabeledDataModule",
    "MaskFolder",
    "PairedSet",
    "ResumableLoader",
    "ResumableSampler",
    "TensorImages",
    "UnlabeledDataModule",
    "VOCBoxes",
    "VideoFolder",
    "VideoFrames",
    "balanced_indices",
    "from_bolts",
]
