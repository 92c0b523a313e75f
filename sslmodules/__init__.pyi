from .contrastive import CPC, MoCo, MoCoV3, SimCLR
from .distillation import DINO, DINOv2
from .evaluation import Detection, FineTune, LinearProbe, SemanticSegmentation
from .loading import load
from .module import SSLModule
from .pretext import Jigsaw, RelativePatch, Rotation
from .reconstruction import MAE, Colorization, Inpainting, SplitBrain, VideoColorization

__all__ = [
    "CPC",
    "DINO",
    "MAE",
    "Colorization",
    "DINOv2",
    "Detection",
    "FineTune",
    "Inpainting",
    "Jigsaw",
    "LinearProbe",
    "MoCo",
    "MoCoV3",
    "RelativePatch",
    "Rotation",
    "SSLModule",
    "SemanticSegmentation",
    "SimCLR",
    "SplitBrain",
    "VideoColorization",
    "load",
]

__version__: str
