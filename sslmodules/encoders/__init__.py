"""Building encoders by name, reading features from any of them, and weights in and out."""

from sslmodules.encoders.build import create_encoder, without_pretrained_weights
from sslmodules.encoders.convnet import ConvNet
from sslmodules.encoders.features import feature_dim, last_map, map_shape, pool, stage_maps
from sslmodules.encoders.layers import blocks_of, layers
from sslmodules.encoders.moco_v3_vit import moco_v3_vit
from sslmodules.encoders.split_batch_norm import SplitBatchNorm2d, split_batch_norm
from sslmodules.encoders.vit import ViT
from sslmodules.encoders.weights import export_weights, load_weights

__all__ = [
    "ConvNet",
    "SplitBatchNorm2d",
    "ViT",
    "blocks_of",
    "create_encoder",
    "export_weights",
    "feature_dim",
    "last_map",
    "layers",
    "load_weights",
    "map_shape",
    "moco_v3_vit",
    "pool",
    "split_batch_norm",
    "stage_maps",
    "without_pretrained_weights",
]
