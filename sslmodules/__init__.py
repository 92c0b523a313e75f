"""Self-supervised learning methods as small LightningModules."""

from pathlib import Path

__version__ = "0.1.0"

# In a checkout the folders `callbacks`, `datamodules` and `configs` lie beside this one; an installed package has them
# inside. Our own setup.cfg beside the folder tells the two apart, so that a user's folders are never taken for ours.
_root = Path(__file__).resolve().parent.parent
_setup = _root / "setup.cfg"
if _setup.is_file() and "name = sslmodules\n" in _setup.read_text(encoding="utf-8"):
    __path__.append(str(_root))

from sslmodules.contrastive import CPC, MoCo, MoCoV3, SimCLR  # noqa: E402
from sslmodules.distillation import DINO, DINOv2  # noqa: E402
from sslmodules.evaluation import Detection, FineTune, LinearProbe, SemanticSegmentation  # noqa: E402
from sslmodules.loading import load  # noqa: E402
from sslmodules.module import SSLModule  # noqa: E402
from sslmodules.pretext import Jigsaw, RelativePatch, Rotation  # noqa: E402
from sslmodules.reconstruction import MAE, Colorization, Inpainting, SplitBrain, VideoColorization  # noqa: E402

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
