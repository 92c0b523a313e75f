"""Callbacks that keep the methods small: teachers, queues, probes, pictures."""

from sslmodules.callbacks.boxes import BoxWriter
from sslmodules.callbacks.collapse import Collapse
from sslmodules.callbacks.embeddings import EmbeddingProjector, EmbeddingWriter
from sslmodules.callbacks.finite import FiniteLoss, NotFiniteError
from sslmodules.callbacks.interruption import Interruption
from sslmodules.callbacks.knn import OnlineKNN
from sslmodules.callbacks.last_checkpoint import LastCheckpoint
from sslmodules.callbacks.learning_rate import LearningRate
from sslmodules.callbacks.milestones import Milestones
from sslmodules.callbacks.momentum import MomentumUpdate
from sslmodules.callbacks.pictures import Pictures
from sslmodules.callbacks.predicted import MaskWriter, PictureWriter
from sslmodules.callbacks.predictions import PredictionWriter
from sslmodules.callbacks.probe import OnlineLinearProbe
from sslmodules.callbacks.queue import FeatureQueue, QueueUpdate

__all__ = [
    "BoxWriter",
    "Collapse",
    "EmbeddingProjector",
    "EmbeddingWriter",
    "FeatureQueue",
    "FiniteLoss",
    "Interruption",
    "LastCheckpoint",
    "LearningRate",
    "MaskWriter",
    "Milestones",
    "MomentumUpdate",
    "NotFiniteError",
    "OnlineKNN",
    "OnlineLinearProbe",
    "PictureWriter",
    "Pictures",
    "PredictionWriter",
    "QueueUpdate",
]
