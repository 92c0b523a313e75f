"""Published weights into encoders, and encoders out into weights that others read."""

import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import safetensors.torch
import torch
from timm.layers import Mlp, SwiGLUPacked, resample_abs_pos_embed
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import Tensor, nn

from sslmodules.encoders.build import create_encoder
from sslmodules.encoders.convnet import ConvNet
from sslmodules.encoders.layouts import LAYOUTS, PLAIN, Layout, as_timm, as_torchvision, renamed
from sslmodules.encoders.vit import ViT, dino_positions
from sslmodules.reading import read_weights, some

# Width -> heads of the published ViTs that have no 64 channels a head: ViT-H, g and G.
NUM_HEADS = {1280: 16, 1408: 16, 1664: 16}


def load_weights(
    path: str | Path,
    encoder: nn.Module | None = None,
    *,
    which: str | None = None,
    num_heads: int | None = None,
    ignore_objects: bool = False,
) -> nn.Module:
    """Load the encoder out of a file that this or another code base wrote, whose layout is known by its names.

    Known are the files of this package, MoCo v1 to v3, MAE, DINO, DINOv2 (training and backbones), SimCLR (converted
    from TensorFlow; sthalles'), SwAV, VISSL, lightning-bolts, solo-learn, lightly, and state dicts with the names of
    timm or torchvision; see :data:`sslmodules.encoders.layouts.LAYOUTS`. Heads are left out. File and encoder must
    agree in all names and shapes; only a position table of another image size is resampled to the encoder's (bicubic
    with antialiasing as in timm, or as in DINO for a :class:`~sslmodules.encoders.ViT` with that interpolation), and a
    mask token that the file lacks stays as it is.

    Args:
        path: a checkpoint of PyTorch, read with ``weights_only=True``, or a safetensors file.
        encoder: takes the weights in place, whatever its class; None builds a :class:`~sslmodules.encoders.ViT`, a
            ResNet of timm or a :class:`~sslmodules.encoders.ConvNet` by the tensors' sizes. What these do not tell is
            as usual: a 3x3 stem has stride 1 and no pooling behind it, positions are interpolated as in timm (as in
            DINO for the files with its heads, and DINOv2 without registers).
        which: ``"student"`` (the query encoder, the online network) or ``"teacher"`` (the key encoder, the moving
            average) where a file holds both; None takes the one that the layout's evaluation uses, or the only one.
        num_heads: attention heads of a ViT that is built; None takes 64 channels a head, and those of the layout where
            they are others. They do not show in a file.
        ignore_objects: leave out objects that are no tensors or plain values, such as solo-learn's configuration,
            without importing or running what they name; otherwise such a file is refused.

    Returns:
        The encoder without classifier. Its attribute ``weights_layout`` says what was recognised, such as
        ``"DINO (teacher)"``.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no checkpoint, objects in it, an unknown layout, no such encoder in it, or one that does not fit;
            the message lists the names.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/moco.pth"
    >>> state = create_encoder("vit_tiny_patch16_224", depth=1).state_dict()
    >>> torch.save({"state_dict": {f"module.base_encoder.{name}": tensor for name, tensor in state.items()}}, path)
    >>> load_weights(path).weights_layout
    'MoCo v3 (student)'
    """
    checkpoint = read_weights(path, ignore_objects)
    tensors = _tensors(checkpoint)
    own = {} if encoder is None else encoder.state_dict()
    layout = next((known for known in LAYOUTS if known.fits([*tensors, *checkpoint])), None)
    if layout is None and own.keys() & tensors.keys():
        layout = PLAIN
    if layout is None:
        raise ValueError(
            f"{path}: its names fit no known layout (the first: {some(tensors)}); known are "
            f"{', '.join(dict.fromkeys(known.name for known in LAYOUTS))}. Load such a file yourself and save the "
            "encoder's own state_dict()"
        )
    which, prefix = _chosen(path, layout, list(tensors), which)
    state = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    state = renamed(state, layout.names)
    recognised = f"{layout.name} ({which})" if layout.teacher else layout.name
    if encoder is None:
        encoder = _built(f"{path} ({recognised})", as_timm(state), layout, checkpoint, num_heads)
        own = encoder.state_dict()
    # As they are for an encoder of the code base that wrote them, else by the names of timm or torchvision.
    forms = [state, as_timm(state), as_torchvision(as_timm(state))]
    state = max(forms, key=lambda form: sum(_fits(name, form, own) for name in form))
    state = {n: tensor for n, tensor in state.items() if _fits(n, state, own) or not re.match(layout.heads, n)}
    state = _resampled(state, own, encoder)
    _check(f"{path} ({recognised})", state, own, encoder)
    encoder.load_state_dict(own | state)
    encoder.weights_layout = recognised  # type: ignore[assignment]
    return encoder


def export_weights(model: nn.Module, path: str | Path, layout: str = "timm") -> None:
    """Write an encoder as a plain state dict that loads strictly into a model without classifier.

    Args:
        model: an encoder that is a model of timm or torchvision, or an :class:`~sslmodules.SSLModule` that has one. For
            a teacher pass it itself, ``module.teacher_encoder``.
        path: ``.safetensors`` writes that format, any other ending PyTorch's.
        layout: ``"timm"``, for ``timm.create_model(..., num_classes=0)``, or ``"torchvision"``, for a ResNet whose
            ``fc`` or a ViT whose ``heads`` is ``nn.Identity()``. The model that reads it must have the same sizes, and
            a 3x3 stem where the encoder has one.

    Raises:
        ValueError: another layout, or an encoder that it cannot express to give the same outputs.

    >>> import tempfile, timm
    >>> path = tempfile.mkdtemp() + "/vit.safetensors"
    >>> export_weights(create_encoder("vit_tiny_patch16_224", depth=1), path, "torchvision")
    >>> sorted(safetensors.torch.load_file(path))[:2]
    ['class_token', 'conv_proj.bias']
    """
    from sslmodules.module import SSLModule  # which imports this package

    if layout not in ("timm", "torchvision"):
        raise ValueError(f"the layout is {layout!r}, expected 'timm' or 'torchvision'")
    encoder: Any = model.encoder if isinstance(model, SSLModule) else model
    roots = {c.__module__.split(".")[0] for c in type(encoder).__mro__}
    if not roots & {"timm", "torchvision"}:
        raise ValueError(
            f"{type(encoder).__name__} is no model of timm or torchvision, so its weights have no layout that those "
            "read; save its state_dict(), or the whole method by Trainer.save_checkpoint"
        )
    not_theirs = r"(fc|head|head\.fc|heads\.head)\.\w+$|mask_token$"
    state = {name: tensor for name, tensor in encoder.state_dict().items() if not re.match(not_theirs, name)}
    if layout not in roots:
        obstacles = _obstacles(encoder, as_timm(state))
        if obstacles:
            raise ValueError(
                f"{type(encoder).__name__} cannot be written as a model of {layout} with the same outputs: "
                f"{'; '.join(obstacles)}; write it with layout={'timm' if layout == 'torchvision' else 'torchvision'!r}"
            )
        state = as_timm(state) if layout == "timm" else as_torchvision(state)
    state = {name: tensor.detach().cpu().contiguous() for name, tensor in state.items()}
    if Path(path).suffix == ".safetensors":
        safetensors.torch.save_file(state, path, metadata={"format": "pt"})
    else:
        torch.save(state, path)


# --- reading ----------------------------------------------------------------------------------------------------------


def _tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """All tensors of the weights by their dotted names; those of optimizers and callbacks lie beside the weights."""
    weights, names = checkpoint, ("state_dict", "model", "model_state_dict")
    while inner := next((weights[n] for n in names if isinstance(weights.get(n), Mapping)), None):
        weights = inner
    return dict(_flat(weights))


def _flat(entries: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for name, value in entries.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            parts = f"{prefix}{name}".split(".")
            yield ".".join(part for part in parts if part not in ("module", "_orig_mod")), value


def _chosen(path: str | Path, layout: Layout, names: list[str], which: str | None) -> tuple[str, str]:
    if which not in (None, "student", "teacher"):
        raise ValueError(f"which is {which!r}, expected 'student', 'teacher' or None")
    order = [which] if which else [layout.default, *{"student", "teacher"} - {layout.default}]
    for one in order:
        prefix = layout.prefix(names, one)
        if prefix is not None:
            return one, prefix
    raise ValueError(f"{path} ({layout.name}) holds no {which or 'encoder'} (its first names: {some(names)})")


# --- fitting ----------------------------------------------------------------------------------------------------------


def _fits(name: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> bool:
    return name in own and own[name].shape == state[name].shape


def _resampled(state: dict[str, Tensor], own: Mapping[str, Tensor], encoder: nn.Module) -> dict[str, Tensor]:
    """The same with a position table (1, prefix + H·W, D) of the encoder's grid."""
    for name in {"pos_embed", "encoder.pos_embedding"} & state.keys() & own.keys():
        new = own[name].shape[1]
        side = math.isqrt(new)
        grid = getattr(getattr(encoder, "patch_embed", None), "grid_size", (side, side))
        prefix = new - grid[0] * grid[1]  # of the tokens before the patches
        old = _side(state[name].shape[1] - prefix)
        if old and (old, old) != tuple(grid):
            table = state[name]
            if getattr(encoder, "interpolation", None) == "dino":
                table = torch.cat([table[:, :prefix], dino_positions(table[:, prefix:], (old, old), tuple(grid))], 1)
            else:
                table = resample_abs_pos_embed(table, list(grid), [old, old], num_prefix_tokens=prefix)
            state = state | {name: table}
    return state


def _side(number: int) -> int:
    """Side of a square of so many patches, 0 where they make none."""
    side = math.isqrt(max(number, 0))
    return side if side**2 == number else 0


def _check(source: str, state: Mapping[str, Tensor], own: Mapping[str, Tensor], encoder: nn.Module) -> None:
    # Old and converted files count no batches, and few have a mask token; the encoder's own stay.
    missing = [name for name in own if name not in state and not re.search(r"num_batches_tracked$|^mask_token$", name)]
    unexpected = [name for name in state if name not in own]
    shapes = [
        f"{name} is {tuple(state[name].shape)} in the file and {tuple(own[name].shape)} in the encoder"
        for name in own.keys() & state.keys()
        if not _fits(name, state, own)
    ]
    problems = [f"the file lacks {some(missing)}"] * bool(missing)
    problems += [f"the encoder has no {some(unexpected)}"] * bool(unexpected)
    problems += [some(sorted(shapes))] * bool(shapes)
    if problems:
        raise ValueError(
            f"{source} does not fit {type(encoder).__name__}: {'; '.join(problems)}. Pass an encoder of the file's "
            "architecture and sizes, without classifier (num_classes=0), or none to have it built from the file"
        )


# --- building ---------------------------------------------------------------------------------------------------------


def _built(
    source: str, state: Mapping[str, Tensor], layout: Layout, checkpoint: Mapping[str, Any], num_heads: int | None
) -> nn.Module:
    given = checkpoint.get("hyper_parameters", {}) if layout.name == "sslmodules" else {}
    name = given.get("encoder")
    if isinstance(name, str) and not name.startswith("<"):  # else a mark in the place of an object
        channels = next(tensor.shape[1] for tensor in state.values() if tensor.ndim == 4)
        kwargs = {k: v for k, v in (given.get("encoder_args") or {}).items() if k != "pretrained"}
        return create_encoder(name, channels, given.get("size"), **kwargs)
    try:
        if {"patch_embed.proj.weight", "pos_embed", "blocks.0.attn.qkv.weight"} <= state.keys():
            return _vit(source, state, layout, num_heads)
        if {"conv1.weight", "layer4.0.conv1.weight"} <= state.keys():
            return _resnet(state, layout.small_stem_padding)
        if "stages.0.0.weight" in state:
            weights = [state[f"stages.{i}.0.weight"] for i in range(_count(state, "stages."))]
            return ConvNet(weights[0].shape[1], [len(weight) for weight in weights])
    except KeyError as error:
        raise ValueError(
            f"{source} looks like a common architecture but lacks {error}; pass encoder=..., a model with these names"
        ) from error
    raise ValueError(
        f"{source} holds no plain ViT or ResNet (the first names: {some(state)}), so its sizes are not known; pass "
        "encoder=..., a model with these names"
    )


def _count(state: Mapping[str, Tensor], prefix: str) -> int:
    """Number of numbered modules behind a prefix."""
    return len({name.removeprefix(prefix).split(".")[0] for name in state if name.startswith(prefix)})


def _vit(source: str, state: Mapping[str, Tensor], layout: Layout, num_heads: int | None) -> ViT:
    width, channels, *patch = state["patch_embed.proj.weight"].shape
    usual = NUM_HEADS | dict(layout.num_heads)
    num_heads = num_heads or usual.get(width, width // 64 if width % 64 == 0 else None)
    if num_heads is None:
        raise ValueError(
            f"{source} holds a ViT {width} wide, whose attention heads can be of different numbers and do not show in "
            "the file; pass num_heads=..."
        )
    class_token, registers = "cls_token" in state, state["reg_token"].shape[1] if "reg_token" in state else 0
    positions = state["pos_embed"].shape[1]
    embedded = next((n for n in (class_token, class_token + registers, 0) if _side(positions - n)), None)
    if embedded is None:
        raise ValueError(
            f"{source} has a table of {positions} positions, those of no square grid; pass encoder=..., with its size"
        )
    side = _side(positions - embedded)
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    gated = hidden == 2 * state["blocks.0.mlp.fc2.weight"].shape[1]
    mlp, act = cast(Any, (SwiGLUPacked, nn.SiLU) if gated else (Mlp, nn.GELU))
    pooled = "fc_norm.weight" in state
    return ViT(
        # DINOv2 with registers reads its positions as timm does
        interpolation="antialiased" if registers else layout.interpolation,  # type: ignore[arg-type]
        img_size=(side * patch[0], side * patch[1]),
        patch_size=(patch[0], patch[1]),
        in_chans=channels,
        num_classes=0,
        global_pool="avg" if pooled or not class_token else "token",
        embed_dim=width,
        depth=_count(state, "blocks."),
        num_heads=num_heads,
        mlp_ratio=(hidden + 0.5) / width,  # of which timm takes the integer part
        qkv_bias="blocks.0.attn.qkv.bias" in state,
        init_values=1.0 if "blocks.0.ls1.gamma" in state else None,
        class_token=class_token,
        no_embed_class=not embedded,
        reg_tokens=registers,
        fc_norm=pooled,
        dynamic_img_size=True,
        weight_init="skip",
        mlp_layer=mlp,
        act_layer=act,
    )


def _resnet(state: Mapping[str, Tensor], small_stem_padding: int) -> ResNet:
    stem, middle = state["conv1.weight"], state["layer1.0.conv2.weight"]
    deep = "layer1.0.conv3.weight" in state
    last, expansion = ("conv3", 4) if deep else ("conv2", 1)
    channels = [len(state[f"layer{i}.0.{last}.weight"]) // expansion for i in range(1, 5)]
    groups = len(middle) // middle.shape[1] if deep else 1
    model: Any = ResNet(
        cast(Any, Bottleneck if deep else BasicBlock),
        tuple(_count(state, f"layer{i}.") for i in range(1, 5)),
        num_classes=0,
        cardinality=groups,
        base_width=len(middle) * 64 // (channels[0] * groups),
        channels=tuple(channels),
    )
    out, in_, kernel, _ = stem.shape
    if out != 64:  # the wider stems of SimCLR and VISSL; timm's has 64 channels
        first = model.layer1[0]
        inner = first.conv1
        first.conv1 = nn.Conv2d(out, inner.out_channels, inner.kernel_size, padding=inner.padding, bias=False)
        shortcut = state.get("layer1.0.downsample.0.weight")
        first.downsample = None
        if shortcut is not None:
            projection = nn.Conv2d(out, len(shortcut), 1, bias=False)
            first.downsample = nn.Sequential(projection, nn.BatchNorm2d(len(shortcut)))
        model.bn1 = nn.BatchNorm2d(out)
        model.feature_info[0]["num_chs"] = out
    if kernel == 3:
        model.conv1, model.maxpool = nn.Conv2d(in_, out, 3, padding=small_stem_padding, bias=False), nn.Identity()
    else:
        model.conv1 = nn.Conv2d(in_, out, kernel, stride=2, padding=kernel // 2, bias=False)
    return model


# --- exporting --------------------------------------------------------------------------------------------------------

# What timm and torchvision compute alike: the parts, and the tensors by timm's names.
ALIKE = (
    r"ResNet|BasicBlock|Bottleneck|(Split|Sync)?BatchNorm(2d)?|ReLU|MaxPool2d|(Adaptive|SelectAdaptive|FastAdaptive)"
    r"AvgPool(2d)?|SelectAdaptivePool2d|Flatten|VisionTransformer|ViT|PatchEmbed|Encoder|(Encoder|Subset)?Block|LayerNorm|"
    r"(Multihead)?Attention|Mlp|MLPBlock|GELU|(NonDynamicallyQuantizable)?Linear|Conv2d|Sequential|Identity|Drop(out|Path)"
)
ALIKE_NAMES = (
    r"(conv1|bn1|layer[1-4]\.\d+\.(conv[123]|bn[123]|downsample\.[01]))\.\w+$|"
    r"(cls_token|pos_embed)$|(patch_embed\.proj|norm|blocks\.\d+\.(norm[12]|attn\.(qkv|proj)|mlp\.fc[12]))\.\w+$"
)


def _obstacles(encoder: Any, state: Mapping[str, Tensor]) -> list[str]:
    """Why a model of timm cannot be one of torchvision with the same outputs, or the other way round."""
    modules: list[Any] = list(encoder.modules())
    strange = {
        "parts": sorted({n for m in modules if not re.fullmatch(ALIKE, n := type(m).__name__)}),
        "tensors": [name for name in state if not re.match(ALIKE_NAMES, name)],
    }
    found = [f"it has {kind} that the other has not ({some(names)})" for kind, names in strange.items() if names]
    norms = [m for m in modules if isinstance(m, (nn.LayerNorm, nn.modules.batchnorm._BatchNorm))]
    if any(m.eps != (1e-6 if isinstance(m, nn.LayerNorm) else 1e-5) for m in norms):
        found.append("its norms have another eps")
    if any(m.dilation != (1, 1) for m in modules if isinstance(m, nn.Conv2d)):
        found.append("it has dilated convolutions")
    if any(m.bias is None for m in modules if isinstance(m, nn.Linear)):
        found.append("it has layers without bias")
    pooling = getattr(encoder, "global_pool", "token")  # of timm
    if getattr(pooling, "pool_type", pooling) != ("avg" if isinstance(encoder, ResNet) else "token"):
        found.append("it pools otherwise")
    if getattr(encoder, "no_embed_class", False):
        found.append("its class token has no position")
    patches = getattr(encoder, "patch_embed", None)  # of timm
    if patches is not None and len({*patches.grid_size}) + len({*patches.patch_size}) > 2:
        found.append("its images or patches are no squares")
    return found
