"""How public code bases name an encoder's tensors in their files."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from torch import Tensor

Names = tuple[tuple[str, str], ...]  # (pattern, replacement)


@dataclass(frozen=True)
class Layout:
    """Where an encoder lies in a file, and what else does.

    Args:
        name: for the eye.
        marks: patterns; a file is of this layout where each of them is found at the start of some name in it.
        student: prefixes of the trained encoder; the first that occurs in the file counts.
        teacher: prefixes of its moving average, or of what supplies the keys.
        default: which of the two the field uses.
        heads: pattern of names behind the prefix that are no part of the encoder; those that it has are loaded.
        names: further names behind the prefix that are not timm's, in the order of replacement.
        num_heads: width of a transformer -> its attention heads, where the usual 64 channels a head do not hold; None
            where the file does not tell.
        small_stem_padding: of a ResNet's 3x3 stem.
        interpolation: of a transformer's positions; see :class:`~sslmodules.encoders.ViT`.
    """

    name: str
    marks: tuple[str, ...]
    student: tuple[str, ...] = ("",)
    teacher: tuple[str, ...] = ()
    default: str = "student"
    heads: str = r"(fc|heads?)\.|mask_token$"
    names: Names = ()
    num_heads: Mapping[int, int | None] = field(default_factory=dict)
    small_stem_padding: int = 1
    interpolation: str = "antialiased"

    def fits(self, names: Collection[str]) -> bool:
        """Whether the names of a file's tensors and entries are of this layout."""
        return all(any(re.match(mark, name) for name in names) for mark in self.marks)

    def prefix(self, names: Collection[str], which: str) -> str | None:
        """Prefix of the student or the teacher in a file of such names, None where it holds none."""
        prefixes: Sequence[str] = getattr(self, which)
        return next((p for p in prefixes if any(name.startswith(p) for name in names)), None)


PLAIN = Layout("timm or torchvision", marks=(r"(patch_embed\.proj|conv1|conv_proj|4\.0\.conv1)\.weight$",))

# The first that fits counts: those that are known by more come before those that are known by less. "module." of
# (Distributed)DataParallel and "_orig_mod." of torch.compile are left out of all names before.
LAYOUTS = (
    # sslmodules/module.py (on_save_checkpoint); ViT-S has 12 heads for MoCo v3, else 6
    Layout(
        "sslmodules",
        marks=(r"sslmodules$",),
        student=("encoder.",),
        teacher=("teacher_encoder.",),
        num_heads={384: None},
    ),
    # facebookresearch/vissl: extra_scripts/convert_vissl_to_torchvision.py, vissl/models/trunks/resnext.py
    Layout(
        "VISSL",
        marks=(r"(classy_state_dict\.base_model\.model\.trunk\.)?_feature_blocks\.",),
        student=("classy_state_dict.base_model.model.trunk._feature_blocks.", "_feature_blocks."),
    ),
    # facebookresearch/dinov2: dinov2/train/ssl_meta_arch.py, dinov2/train/train.py (eval/*/teacher_checkpoint.pth)
    Layout(
        "DINOv2 training",
        marks=(r"(student|teacher)\.(dino|ibot)_head\.",),
        student=("student.backbone.",),
        teacher=("teacher.backbone.",),
        default="teacher",
        interpolation="dino",
    ),
    # facebookresearch/dino: main_dino.py (save_dict), utils.py (MultiCropWrapper)
    Layout(
        "DINO",
        marks=(r"(student|teacher)\.backbone\.",),
        student=("student.backbone.",),
        teacher=("teacher.backbone.",),
        default="teacher",
        interpolation="dino",
    ),
    # facebookresearch/moco-v3: moco/builder.py, vits.py (12 heads at both widths)
    Layout(
        "MoCo v3",
        marks=(r"(base|momentum)_encoder\.",),
        student=("base_encoder.",),
        teacher=("momentum_encoder.",),
        num_heads={384: 12},
    ),
    # facebookresearch/moco: moco/builder.py, main_lincls.py; lightning-bolts: moco/moco_module.py
    Layout("MoCo v1 or v2", marks=(r"encoder_[qk]\.",), student=("encoder_q.",), teacher=("encoder_k.",)),
    # lightning-bolts: byol/byol_module.py, byol/models.py, simsiam/simsiam_module.py
    Layout(
        "lightning-bolts BYOL or SimSiam",
        marks=(r"(online|target)_network\.encoder\.",),
        student=("online_network.encoder.",),
        teacher=("target_network.encoder.",),
    ),
    # Separius/SimCLRv2-Pytorch: convert.py, resnet.py (those without selective kernels are plain ResNets)
    Layout(
        "SimCLR v2, converted",
        marks=(r"resnet\.net\.0\.",),
        student=("resnet.",),
        names=(
            (r"^net\.0\.0\.", "conv1."),
            (r"^net\.0\.1\.0\.", "bn1."),
            (r"^net\.(\d)\.blocks\.(\d+)\.", r"layer\1.\2."),
            (r"\.net\.0\.weight$", ".conv1.weight"),
            (r"\.net\.1\.0\.", ".bn1."),
            (r"\.net\.2\.weight$", ".conv2.weight"),
            (r"\.net\.3\.0\.", ".bn2."),
            (r"\.net\.4\.weight$", ".conv3.weight"),
            (r"\.net\.5\.0\.", ".bn3."),
            (r"\.projection\.shortcut\.", ".downsample.0."),
            (r"\.projection\.bn\.0\.", ".downsample.1."),
        ),
    ),
    # facebookresearch/swav: src/resnet50.py, main_swav.py; lightning-bolts: swav/swav_resnet.py, which pads twice
    Layout(
        "SwAV",
        marks=(r"(model\.)?prototypes\.",),
        student=("model.", ""),
        heads=r"(projection_head|prototypes)\.",
        small_stem_padding=2,
    ),
    # facebookresearch/mae: models_mae.py, util/misc.py (save_model)
    Layout("MAE", marks=(r"decoder_embed\.", r"mask_token$", r"blocks\."), heads=r"decoder_|mask_token$"),
    # facebookresearch/dinov2: dinov2/models/vision_transformer.py, dinov2/hub/backbones.py
    Layout("DINOv2", marks=(r"mask_token$", r"blocks\."), interpolation="dino"),
    # sthalles/SimCLR: models/resnet_simclr.py, simclr.py
    Layout("SimCLR of sthalles", marks=(r"backbone\.fc\.",), student=("backbone.",)),
    # vturrisi/solo-learn: solo/methods/base.py (`encoder` in older releases; 3x3 stems are padded by 2), and
    # solo/backbones/vit: its ViT-Ti and ViT-S have 12 heads for MAE and MoCo v3, else 3 and 6.
    Layout(
        "solo-learn",
        marks=(r"(backbone|encoder)\.", r"classifier\.(weight|bias)$", r"pytorch-lightning_version$"),
        student=("backbone.", "encoder."),
        teacher=("momentum_backbone.", "momentum_encoder."),
        num_heads={192: None, 384: None},
        small_stem_padding=2,
    ),
    # lightly-ai/lightly: examples/pytorch_lightning/dino.py and dinov2.py, benchmarks/imagenet (there `backbone` is the
    # teacher of DINO), lightly/models/modules/masked_vision_transformer_timm.py (`vit`)
    Layout(
        "lightly with a student and a teacher",
        marks=(r"student_backbone\.",),
        student=("student_backbone.vit.", "student_backbone."),
        teacher=("teacher_backbone.vit.", "teacher_backbone.", "backbone.vit.", "backbone."),
        default="teacher",
    ),
    # lightly-ai/lightly: examples/pytorch_lightning/simclr.py, moco.py, byol.py, mae.py, benchmarks/imagenet/resnet50
    Layout(
        "lightly",
        marks=(r"backbone\.",),
        student=("backbone.vit.", "backbone."),
        teacher=("backbone_momentum.", "teacher_backbone."),
    ),
    # lightning-bolts: simclr/simclr_module.py, resnets.py
    Layout("lightning-bolts SimCLR", marks=(r"encoder\.conv1\.", r"projection\.model\."), student=("encoder.",)),
    # Spijkervet/SimCLR: simclr/simclr.py; state_dict() of a method of this package. torchvision's own ViT has
    # "encoder.layers." and "encoder.pos_embedding".
    Layout(
        "a module with an encoder",
        marks=(r"encoder\.(conv1|patch_embed|conv_proj|stages)\.",),
        student=("encoder.",),
        teacher=("teacher_encoder.",),
        num_heads={384: None},
    ),
    # timm and torchvision themselves, the encoders alone of DINO and MAE, tonylins/simclr-converter (convert.py)
    PLAIN,
)

TIMM_NAMES: Names = (
    # DINOv2: blocks.chunk.block, numbered through; SwiGLU
    (r"^blocks\.\d+\.(\d+)\.", r"blocks.\1."),
    (r"\.mlp\.w12\.", ".mlp.fc1."),
    (r"\.mlp\.w3\.", ".mlp.fc2."),
    # torchvision's ViT, whose MLP had other names before 0.13
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^encoder\.ln\.", "norm."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"^(blocks\.\d+)\.ln_([12])\.", r"\1.norm\2."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"^(blocks\.\d+)\.mlp\.(?:0|linear_1)\.", r"\1.mlp.fc1."),
    (r"^(blocks\.\d+)\.mlp\.(?:3|linear_2)\.", r"\1.mlp.fc2."),
    # nn.Sequential(*list(resnet.children())[:-1]) of torchvision's ResNet
    (r"^0\.", "conv1."),
    (r"^1\.", "bn1."),
    (r"^4\.", "layer1."),
    (r"^5\.", "layer2."),
    (r"^6\.", "layer3."),
    (r"^7\.", "layer4."),
)

TORCHVISION_NAMES: Names = (
    (r"^patch_embed\.proj\.", "conv_proj."),
    (r"^cls_token$", "class_token"),
    (r"^pos_embed$", "encoder.pos_embedding"),
    (r"^norm\.", "encoder.ln."),
    (r"^(blocks\.\d+)\.norm([12])\.", r"\1.ln_\2."),
    (r"^(blocks\.\d+)\.attn\.qkv\.", r"\1.self_attention.in_proj_"),
    (r"^(blocks\.\d+)\.attn\.proj\.", r"\1.self_attention.out_proj."),
    (r"^(blocks\.\d+)\.mlp\.fc1\.", r"\1.mlp.0."),
    (r"^(blocks\.\d+)\.mlp\.fc2\.", r"\1.mlp.3."),
    (r"^blocks\.(\d+)\.", r"encoder.layers.encoder_layer_\1."),
)


def renamed(state: Mapping[str, Tensor], names: Names) -> dict[str, Tensor]:
    """Replace names, one pattern after the other.

    >>> list(renamed({"conv_proj.bias": Tensor()}, TIMM_NAMES))
    ['patch_embed.proj.bias']
    """
    out = {}
    for name, tensor in state.items():
        for pattern, replacement in names:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    return out


def as_timm(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give an encoder's tensors timm's names; what has them already keeps them."""
    out = renamed(state, TIMM_NAMES)
    if "mask_token" in out:  # (1, D) of DINOv2, (1, 1, D) of a ViT of ours
        out["mask_token"] = out["mask_token"].reshape(1, 1, -1)
    if {"register_tokens", "cls_token", "pos_embed"} <= out.keys():
        # DINOv2 adds a position to the class token, none to the registers; timm has none for both and holds the sum.
        positions = out["pos_embed"]  # (1, 1 + N, D)
        out["reg_token"] = out.pop("register_tokens")
        out["cls_token"] = out["cls_token"] + positions[:, :1]
        out["pos_embed"] = positions[:, 1:]
    return out


def as_torchvision(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Give tensors with timm's names those of torchvision; a ResNet's are the same in both."""
    return renamed(state, TORCHVISION_NAMES)
