"""Measuring what an encoder is worth, and showing what it looks at."""

from sslmodules.evaluation.attention import (
    activation_attention,
    attention_tiles,
    class_attention,
    enlarged,
    mass_mask,
    pca_colors,
    shows_attention,
)
from sslmodules.evaluation.base import Evaluation, classification_loss
from sslmodules.evaluation.davis import boundary_accuracy, region_similarity
from sslmodules.evaluation.detection import Detection
from sslmodules.evaluation.features import Features, extract, features_of
from sslmodules.evaluation.finetune import FineTune
from sslmodules.evaluation.frames import probe_frames
from sslmodules.evaluation.linear_probe import LinearProbe, stage_vectors
from sslmodules.evaluation.probe import ProbeResult, probe
from sslmodules.evaluation.propagation import propagate_labels, propagate_mask
from sslmodules.evaluation.robustness import (
    accuracy_by_severity,
    corruption_errors,
    mean_corruption_error,
    relative_mean_corruption_error,
)
from sslmodules.evaluation.segmentation import SemanticSegmentation, intersection_over_union, segmentation_loss

__all__ = [
    "Detection",
    "Evaluation",
    "Features",
    "FineTune",
    "LinearProbe",
    "ProbeResult",
    "SemanticSegmentation",
    "accuracy_by_severity",
    "activation_attention",
    "attention_tiles",
    "boundary_accuracy",
    "class_attention",
    "classification_loss",
    "corruption_errors",
    "enlarged",
    "extract",
    "features_of",
    "intersection_over_union",
    "mass_mask",
    "mean_corruption_error",
    "pca_colors",
    "probe",
    "probe_frames",
    "propagate_labels",
    "propagate_mask",
    "region_similarity",
    "relative_mean_corruption_error",
    "segmentation_loss",
    "shows_attention",
    "stage_vectors",
]
