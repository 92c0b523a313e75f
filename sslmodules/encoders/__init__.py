"""Building encoders by name, and reading features from any of them."""

from sslmodules.encoders.build import create_encoder
from sslmodules.encoders.convnet import ConvNet
from sslmodules.encoders.features import feature_dim, last_map, map_shape, pool, stage_maps
from sslmodules.encoders.split_batch_norm import SplitBatchNorm2d, split_batch_norm
from sslmodules.encoders.vit import moco_v3_vit

__all__ = [
    "ConvNet",
    "SplitBatchNorm2d",
    "create_encoder",
    "feature_dim",
    "last_map",
    "map_shape",
    "moco_v3_vit",
    "pool",
    "split_batch_norm",
    "stage_maps",
]
