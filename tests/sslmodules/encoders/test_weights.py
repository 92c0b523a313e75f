"""Layouts written out by hand as the code bases write them; what is loaded gives the same outputs."""

import argparse
import copy
import pickle
from functools import partial

import numpy as np
import pytest
import timm
import torch
import torchvision
from runs import loader, trainer
from safetensors.torch import load_file, save_file
from timm.layers import resample_abs_pos_embed
from timm.models.vision_transformer import VisionTransformer
from torch import nn
from torch.nn import functional as F
from torchvision.models.resnet import BasicBlock, Bottleneck

from sslmodules import MoCo, MoCoV3, Rotation
from sslmodules.encoders import ConvNet, ViT, create_encoder
from sslmodules.encoders.layouts import LAYOUTS
from sslmodules.encoders.vit import dino_positions
from sslmodules.encoders.weights import export_weights, load_weights

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

THIN = partial(timm.models.ResNet, timm.models.resnet.BasicBlock, (1, 1, 1, 1), channels=(8, 8, 8, 8), num_classes=0)


def shaken(model, seed=1):
    """The same with weights and statistics that all show in the output, in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point():
            noise = 0.4 * torch.rand(tensor.shape, generator=generator) - 0.2
            scale = name.endswith(("weight", "running_var", "gamma"))
            fan_in = tensor[0].numel() if len(tensor) > 1 else 1  # positions and tokens are (1, N, D)
            tensor.copy_(noise + float(scale) if tensor.ndim == 1 else 8 * noise / fan_in**0.5)
    return model.eval()


def vit(width=128, heads=None, depth=2, side=32, **kwargs):
    kwargs = {"patch_size": 8, "num_classes": 0, "num_heads": heads or width // 64, **kwargs}
    return shaken(VisionTransformer(img_size=side, embed_dim=width, depth=depth, **kwargs))


def resnet(block=BasicBlock, width=8, blocks=1, kernel=7, padding=None, seed=1):
    """torchvision's ResNet, thin, with a stem of its own: that of SimCLR's and VISSL's wide ones and of CIFAR's."""
    with torch.device("meta"):
        net = torchvision.models.ResNet(block, [1, 1, 1, 1])
    net.inplanes = width
    net.conv1 = nn.Conv2d(3, width, kernel, 2 if kernel == 7 else 1, kernel // 2 if padding is None else padding)
    net.conv1.bias = None
    net.bn1 = nn.BatchNorm2d(width)
    for i in range(4):
        setattr(net, f"layer{i + 1}", net._make_layer(block, width * 2**i, blocks, stride=1 if i == 0 else 2))
    net.fc = nn.Identity()
    if kernel == 3:
        net.maxpool = nn.Identity()
    return shaken(net, seed)


def after(prefix, model_or_state):
    state = model_or_state if isinstance(model_or_state, dict) else model_or_state.state_dict()
    return {prefix + name: tensor for name, tensor in state.items()}


def head(prefix, *names):
    return {prefix + name: torch.zeros(3, 2) for name in names}


def saved(tmp_path, content, name="weights.pth"):
    torch.save(content, tmp_path / name)
    return tmp_path / name


def assert_same(a, b, images=IMAGES):
    a, b = a.eval(), b.eval()
    with torch.no_grad():
        one, two = a(images), b(images)
    assert one.shape == two.shape
    assert one.std(0).mean() > 1e-3  # the images differ in it
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


# --- one file of every layout -----------------------------------------------------------------------------------------


def mae(model):
    decoder = ("decoder_pos_embed", "decoder_embed.weight", "decoder_blocks.0.norm1.weight", "decoder_pred.bias")
    state = {**model.state_dict(), **head("", "mask_token", "decoder_norm.weight", *decoder)}
    return {"model": state, "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}}, "epoch": 3, "scaler": {}}


def moco(model):
    state = after("module.encoder_q.", model) | head("module.encoder_q.", "fc.0.weight", "fc.0.bias", "fc.2.weight")
    key = after("module.encoder_k.", resnet(Bottleneck, seed=2)) | head("module.encoder_k.", "fc.0.weight")
    return {"epoch": 200, "arch": "resnet50", "state_dict": state | key | head("module.", "queue", "queue_ptr")}


def moco_v1(model):  # as published: the query encoder alone, one layer behind it
    return {"state_dict": after("module.encoder_q.", model) | head("module.encoder_q.", "fc.weight", "fc.bias")}


def moco_v3(model):
    heads = ("head.0.weight", "head.1.running_mean", "head.7.num_batches_tracked")
    state = after("module.base_encoder.", model) | head("module.base_encoder.", *heads)
    other = after("module.momentum_encoder.", shaken(copy.deepcopy(model), 2)) | head(
        "module.momentum_encoder.", *heads
    )
    return {"epoch": 300, "arch": "vit_small", "state_dict": state | other | head("module.predictor.", "0.weight")}


def moco_v3_resnet(model):
    state = after("module.base_encoder.", model) | head("module.base_encoder.", "fc.0.weight", "fc.4.running_var")
    return {"state_dict": state}


def dino(model):
    heads = ("head.mlp.0.weight", "head.last_layer.weight_g", "head.last_layer.weight_v")
    student = after("module.backbone.", shaken(copy.deepcopy(model), 2)) | head("module.", *heads)
    teacher = after("backbone.", model) | head("", *heads)  # without DDP where it has no batch norm
    return {
        "student": student,
        "teacher": teacher,
        "optimizer": {"state": {}, "param_groups": [{"lr": np.float64(0.1), "params": [0]}]},
        "epoch": 100,
        "args": argparse.Namespace(arch="vit_small", lr=5e-4),
        "dino_loss": {"center": torch.zeros(1, 8)},
    }


def dino_resnet(model):  # with batch norm the teacher too is wrapped
    return {"teacher": after("module.backbone.", model), "student": after("module.backbone.", resnet(seed=2))}


def simclr_v2(model):
    """Separius/SimCLRv2-Pytorch: Stem, Blocks and Projection, each Sequential, batch norms in a Sequential of two."""
    there = {"conv1": "net.0.0", "bn1": "net.0.1.0"}
    for stage in range(1, 5):
        for block in range(len(getattr(model, f"layer{stage}"))):
            ours, theirs = f"layer{stage}.{block}", f"net.{stage}.blocks.{block}"
            inside = {"conv1": "net.0", "bn1": "net.1.0", "conv2": "net.2", "bn2": "net.3.0", "conv3": "net.4"}
            inside |= {"bn3": "net.5.0", "downsample.0": "projection.shortcut", "downsample.1": "projection.bn.0"}
            there |= {f"{ours}.{name}": f"{theirs}.{other}" for name, other in inside.items()}
    state = {f"{there[k.rsplit('.', 1)[0]]}.{k.rsplit('.', 1)[1]}": v for k, v in model.state_dict().items()}
    return {"resnet": state | head("fc.", "weight", "bias"), "head": head("layers.0.", "weight")}


def lightly(model, prefix="backbone."):
    """nn.Sequential(*list(resnet.children())[:-1]), and the projection head."""
    number = {"conv1": "0", "bn1": "1", "layer1": "4", "layer2": "5", "layer3": "6", "layer4": "7"}
    state = {prefix + ".".join([number[k.split(".")[0]], *k.split(".")[1:]]): v for k, v in model.state_dict().items()}
    return {"state_dict": state | head("projection_head.layers.0.", "weight"), "pytorch-lightning_version": "2.2"}


def sthalles(model):
    state = after("backbone.", model) | head("backbone.fc.", "0.weight", "0.bias", "2.weight", "2.bias")
    return {"epoch": 200, "arch": "resnet18", "state_dict": state, "optimizer": {"state": {}, "param_groups": []}}


def lightning(prefix, *others):
    def write(model):
        state = after(prefix, model) | head("", *others)
        return {"state_dict": state, "pytorch-lightning_version": "1.9.5", "callbacks": {}, "hyper_parameters": {}}

    return write


def vissl(model):
    trunk = {k: v for k, v in after("_feature_blocks.", model).items() if not k.endswith("num_batches_tracked")}
    state = {"model": {"trunk": trunk, "heads": head("0.clf.0.", "weight")}, "meters": {}}
    return {"phase_idx": 1, "classy_state_dict": {"base_model": state, "train": True}, "iteration": 5}


FILES = {
    "MAE": (mae, vit, "MAE"),
    "MAE, encoder alone": (lambda m: {"model": m.state_dict()}, vit, "timm or torchvision"),
    "MAE, fine-tuned": (
        lambda m: {"model": {**m.state_dict(), **head("head.", "weight", "bias")}, "args": argparse.Namespace(lr=1)},
        partial(vit, global_pool="avg"),
        "timm or torchvision",
    ),
    "MoCo v1": (moco_v1, resnet, "MoCo v1 or v2 (student)"),
    "MoCo v2": (moco, partial(resnet, Bottleneck), "MoCo v1 or v2 (student)"),
    "MoCo v3, ViT-S": (moco_v3, partial(vit, 384, 12, depth=1), "MoCo v3 (student)"),
    "MoCo v3, ResNet": (moco_v3_resnet, partial(resnet, Bottleneck, 16), "MoCo v3 (student)"),
    "DINO": (dino, vit, "DINO (teacher)"),
    "DINO, ResNet": (dino_resnet, resnet, "DINO (teacher)"),
    "DINO, backbone": (lambda m: m.state_dict(), partial(vit, 192, 3), "timm or torchvision"),
    "SimCLR v1, converted, wide": (
        lambda m: {"state_dict": m.state_dict() | head("fc.", "weight", "bias")},
        partial(resnet, Bottleneck, 12, blocks=2),
        "timm or torchvision",
    ),
    "SimCLR v2, converted, wide": (simclr_v2, partial(resnet, Bottleneck, 16, blocks=2), "SimCLR v2, converted"),
    "SimCLR of sthalles": (sthalles, resnet, "SimCLR of sthalles"),
    "SimCLR of Spijkervet": (
        lambda m: after("module.encoder.", m) | head("module.projector.", "0.weight", "2.weight"),
        resnet,
        "a module with an encoder (student)",
    ),
    "lightning-bolts SimCLR": (
        lightning("encoder.", "encoder.fc.weight", "encoder.fc.bias", "projection.model.0.weight"),
        partial(resnet, kernel=3),
        "lightning-bolts SimCLR",
    ),
    "lightning-bolts MoCo": (
        lightning("encoder_q.", "encoder_q.fc.weight", "queue.representations", "encoder_k.conv1.weight"),
        resnet,
        "MoCo v1 or v2 (student)",
    ),
    "lightning-bolts BYOL": (
        lightning("online_network.encoder.", "online_network.encoder.fc.bias", "target_network.projector.model.0.bias"),
        resnet,
        "lightning-bolts BYOL or SimSiam (student)",
    ),
    "lightning-bolts SwAV": (
        lightning("model.", "model.projection_head.0.weight", "model.prototypes.weight"),
        partial(resnet, kernel=3, padding=2),
        "SwAV",
    ),
    "SwAV": (
        lambda m: after("module.", m) | head("module.", "projection_head.3.bias", "prototypes.weight"),
        partial(resnet, Bottleneck),
        "SwAV",
    ),
    "solo-learn": (
        lightning("backbone.", "classifier.weight", "momentum_backbone.conv1.weight", "projector.0.weight"),
        partial(resnet, kernel=3, padding=2),
        "solo-learn (student)",
    ),
    "solo-learn, older": (
        lightning("encoder.", "classifier.bias", "projector.0.weight"),
        resnet,
        "solo-learn (student)",
    ),
    "lightly": (lightly, resnet, "lightly (student)"),
    "lightly DINO": (partial(lightly, prefix="teacher_backbone."), resnet, None),
    "lightly benchmark": (lightning("backbone.", "online_classifier.linear.weight"), resnet, "lightly (student)"),
    "lightly MAE": (
        lightning("backbone.vit.", "backbone.mask_token", "decoder.mask_token"),
        vit,
        "lightly (student)",
    ),
    "VISSL": (vissl, partial(resnet, Bottleneck, 12), "VISSL"),
    "VISSL, consolidated": (lambda m: {"model_state_dict": after("_feature_blocks.", m)}, resnet, "VISSL"),
    "timm": (
        lambda m: m.state_dict(),
        partial(vit, reg_tokens=2, class_token=False, global_pool="avg", fc_norm=False, qkv_bias=False),
        "timm or torchvision",
    ),
    "torchvision": (lambda m: m.state_dict(), partial(resnet, blocks=2), "timm or torchvision"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_this_layout_gives_the_same_outputs(name, tmp_path):
    write, make, recognised = FILES[name]
    original = make()
    content = write(original)
    if name == "lightly DINO":
        content["state_dict"] |= head("student_backbone.", "0.weight", "4.0.conv1.weight")
        recognised = "lightly with a student and a teacher (teacher)"
    path = saved(tmp_path, content)
    built = load_weights(path)
    assert built.weights_layout == recognised
    assert isinstance(built, (VisionTransformer, timm.models.ResNet))
    assert_same(built, original)
    given = load_weights(path, shaken(make(), 9))
    assert type(given) is type(original)
    assert_same(given, original)


def test_every_layout_stands_in_the_list_above():
    named = {recognised.split(" (")[0] for *_, recognised in FILES.values() if recognised}
    elsewhere = {"sslmodules", "DINOv2", "DINOv2 training", "lightly with a student and a teacher"}
    assert {layout.name for layout in LAYOUTS} == named | elsewhere


def test_torchvisions_vit_is_loaded_into_timms_and_the_other_way_round(tmp_path):
    original = shaken(torchvision.models.VisionTransformer(32, 8, 2, 2, 128, 200))
    original.heads = nn.Identity()
    state = original.state_dict()
    path = saved(tmp_path, state | head("heads.head.", "weight", "bias"))
    built = load_weights(path)
    assert isinstance(built, VisionTransformer)
    assert_same(built, original)
    older = {k.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): v for k, v in state.items()}
    assert_same(load_weights(saved(tmp_path, older)), original)
    inside = after("backbone.vit.", state) | head("backbone.", "mask_token")
    assert_same(load_weights(saved(tmp_path, {"state_dict": inside})), original)
    again = shaken(torchvision.models.VisionTransformer(32, 8, 2, 2, 128, 200), 5)
    again.heads = nn.Identity()
    assert_same(load_weights(saved(tmp_path, built.state_dict()), again), original)


def test_an_encoder_of_any_class_takes_the_names_that_it_wrote(tmp_path):
    numbered = nn.Sequential(*list(resnet().children())[:-1])
    other = nn.Sequential(*list(resnet(seed=4).children())[:-1])
    assert_same(load_weights(saved(tmp_path, lightly(resnet())), other), numbered)
    convnext = shaken(timm.create_model("convnext_atto", num_classes=0))
    path = saved(tmp_path, convnext.state_dict())
    assert_same(load_weights(path, timm.create_model("convnext_atto", num_classes=0)), convnext)


# --- DINOv2, after its own description --------------------------------------------------------------------------------


class DINOv2Block(nn.Module):
    def __init__(self, width, heads, swiglu):
        super().__init__()
        self.heads, self.swiglu = heads, swiglu
        self.norm1, self.norm2 = nn.LayerNorm(width, 1e-6), nn.LayerNorm(width, 1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        hidden = (int(4 * width * 2 / 3) + 7) // 8 * 8
        names = {"w12": (width, 2 * hidden), "w3": (hidden, width)}
        names = names if swiglu else {"fc1": (width, 4 * width), "fc2": (4 * width, width)}
        self.mlp = nn.ModuleDict({name: nn.Linear(*sizes) for name, sizes in names.items()})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x):
        b, n, d = x.shape
        q, k, v = self.attn["qkv"](self.norm1(x)).view(b, n, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(b, n, d)
        x = x + self.ls1["gamma"] * self.attn["proj"](attended)
        y = self.norm2(x)
        if self.swiglu:
            gate, value = self.mlp["w12"](y).chunk(2, -1)
            y = self.mlp["w3"](F.silu(gate) * value)
        else:
            y = self.mlp["fc2"](F.gelu(self.mlp["fc1"](y)))
        return x + self.ls2["gamma"] * y


class DINOv2ViT(nn.Module):
    def __init__(self, registers=0, swiglu=False, chunks=0, width=128, heads=2, depth=4, grid=4, patch=8):
        super().__init__()
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, patch, patch)})
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + grid**2, width))
        self.register_tokens = nn.Parameter(torch.zeros(1, registers, width)) if registers else None
        self.mask_token = nn.Parameter(torch.zeros(1, width))
        blocks = [DINOv2Block(width, heads, swiglu) for _ in range(depth)]
        if chunks:  # each chunk begins with as many identities as there are blocks before it
            size = depth // chunks
            parts = [[nn.Identity()] * i + blocks[i : i + size] for i in range(0, depth, size)]
            self.blocks = nn.ModuleList(nn.Sequential(*part) for part in parts)
        else:
            self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(width, 1e-6)

    def forward(self, x):
        x = self.patch_embed["proj"](x).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), x], 1) + self.pos_embed
        if self.register_tokens is not None:
            x = torch.cat([x[:, :1], self.register_tokens.expand(len(x), -1, -1), x[:, 1:]], 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)[:, 0]


@pytest.mark.parametrize("chunks", [0, 2])
@pytest.mark.parametrize("swiglu", [False, True])
@pytest.mark.parametrize("registers", [0, 4])
def test_dinov2_with_registers_swiglu_and_chunks(registers, swiglu, chunks, tmp_path):
    original = shaken(DINOv2ViT(registers, swiglu, chunks))
    state = original.state_dict()
    assert ("blocks.1.3.mlp.w12.weight" in state) == (swiglu and chunks == 2)
    built = load_weights(saved(tmp_path, state))
    assert built.weights_layout == "DINOv2"
    assert_same(built, original)
    assert built.num_prefix_tokens == 1 + registers
    assert_same(load_weights(tmp_path / "weights.pth", DINOv2ViT(registers, swiglu, chunks)), original)
    training = {"teacher": after("backbone.", state) | head("dino_head.", "mlp.0.weight") | head("ibot_head.", "x")}
    built = load_weights(saved(tmp_path, training))
    assert built.weights_layout == "DINOv2 training (teacher)"
    assert_same(built, original)


def test_dinov2_training_file_holds_both_and_the_teacher_is_taken(tmp_path):
    student, teacher = shaken(DINOv2ViT(chunks=2), 1), shaken(DINOv2ViT(chunks=2), 2)
    state = after("student.backbone.", student) | after("teacher.backbone.", teacher)
    path = saved(tmp_path, {"model": state | head("student.dino_head.", "last_layer.weight"), "iteration": 7})
    assert_same(load_weights(path), teacher)
    assert_same(load_weights(path, which="student"), student)


# --- student and teacher ----------------------------------------------------------------------------------------------


def test_which_chooses_and_what_is_not_there_is_refused(tmp_path):
    query, key = resnet(Bottleneck), resnet(Bottleneck, seed=2)
    path = saved(tmp_path, moco(query))
    built = load_weights(path, which="teacher")
    assert built.weights_layout == "MoCo v1 or v2 (teacher)"
    assert_same(built, key)
    path = saved(tmp_path, moco_v1(query))
    with pytest.raises(ValueError, match="MoCo v1 or v2.* holds no teacher .*encoder_q.conv1.weight"):
        load_weights(path, which="teacher")
    with pytest.raises(ValueError, match="which is 'both', expected 'student', 'teacher' or None"):
        load_weights(path, which="both")
    path = saved(tmp_path, {"student": dino(vit())["student"]})  # no teacher: the only one is taken
    assert load_weights(path).weights_layout == "DINO (student)"


# --- what this package writes -----------------------------------------------------------------------------------------


def test_own_checkpoints_give_the_encoder_by_its_name_with_its_heads(tmp_path):
    method = MoCoV3.vit(encoder_args={"patch_size": 4, "depth": 1}, size=16, output_dim=8, hidden_dim=16)
    run = trainer(tmp_path, max_steps=1)
    run.fit(method, loader(8, 4))
    run.save_checkpoint(tmp_path / "run.ckpt")
    images = torch.rand(2, 3, 16, 16)
    built = load_weights(tmp_path / "run.ckpt")
    assert built.weights_layout == "sslmodules (student)"
    assert built.blocks[0].attn.num_heads == 12  # which the width alone would make 6
    assert_same(built, method.encoder, images)
    assert_same(load_weights(tmp_path / "run.ckpt", which="teacher"), method.teacher_encoder, images)
    with pytest.raises(ValueError, match="384 wide.*pass num_heads"):
        load_weights(saved(tmp_path, method.state_dict()))
    assert_same(load_weights(tmp_path / "weights.pth", num_heads=12), method.encoder, images)


def test_own_state_dicts_give_a_conv_net(tmp_path):
    for make in (MoCo, Rotation):
        kwargs = {"output_dim": 8, "queue_size": 16} if make is MoCo else {}
        method = make("conv4", encoder_args={"widths": (8, 16)}, in_channels=1, mean=None, std=None, **kwargs)
        shaken(method)
        built = load_weights(saved(tmp_path, method.state_dict()))
        assert isinstance(built, ConvNet)
        assert_same(built, method.encoder, IMAGES[:, :1])


# --- sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("registers", [0, 4])
def test_positions_are_resampled_to_the_size_of_the_encoder(registers, tmp_path):
    original = shaken(DINOv2ViT(registers))
    size = {"reg_tokens": registers, "no_embed_class": bool(registers), "init_values": 1.0}
    encoder = load_weights(saved(tmp_path, original.state_dict()), vit(side=48, depth=4, **size))
    table = original.pos_embed[:, 1:]
    expected = resample_abs_pos_embed(table, [6, 6], [4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(encoder.pos_embed[:, -36:], expected)
    encoder.set_input_size(img_size=32)
    assert encoder.pos_embed.shape[1] == (16 if registers else 17)
    wide = load_weights(tmp_path / "weights.pth", vit(side=(32, 64), depth=4, **size))
    expected = resample_abs_pos_embed(table, [4, 8], [4, 4], num_prefix_tokens=0)
    torch.testing.assert_close(wide.pos_embed[:, -32:], expected)
    if not registers:
        torch.testing.assert_close(wide.pos_embed[:, :1], original.pos_embed[:, :1])


def test_positions_are_resampled_and_read_as_the_code_base_does(tmp_path):
    original = vit(side=64)  # 8 x 8 patches
    encoder = ViT(img_size=32, patch_size=8, embed_dim=128, depth=2, num_heads=2, num_classes=0, interpolation="dino")
    load_weights(saved(tmp_path, dino(original)), encoder)
    expected = dino_positions(original.pos_embed[:, 1:], (8, 8), (4, 4))
    torch.testing.assert_close(encoder.pos_embed, torch.cat([original.pos_embed[:, :1], expected], 1))
    assert load_weights(tmp_path / "weights.pth").interpolation == "dino"
    assert load_weights(saved(tmp_path, mae(original))).interpolation == "antialiased"
    for registers, interpolation in {0: "dino", 4: "antialiased"}.items():
        path = saved(tmp_path, DINOv2ViT(registers).state_dict())
        assert load_weights(path).interpolation == interpolation


def test_a_mask_token_is_loaded_where_the_file_has_the_encoders_and_else_left(tmp_path):
    masked = ViT.of(vit(depth=4, init_values=1.0), mask_token=True)
    original = shaken(DINOv2ViT())
    load_weights(saved(tmp_path, original.state_dict()), masked)
    assert_same(masked, original)
    torch.testing.assert_close(masked.mask_token[0], original.mask_token)
    other = ViT.of(vit(), mask_token=True)
    load_weights(saved(tmp_path, mae(vit())), other)  # whose mask token is the decoder's
    assert (other.mask_token == 0).all()
    export_weights(masked, tmp_path / "out.pth")
    vit(depth=4, init_values=1.0).load_state_dict(torch.load(tmp_path / "out.pth"))


def test_a_built_vit_takes_other_image_sizes(tmp_path):
    assert load_weights(saved(tmp_path, vit().state_dict()))(torch.zeros(1, 3, 48, 64)).shape == (1, 128)


@pytest.mark.parametrize(("width", "heads"), [(192, 3), (384, 6), (768, 12), (1280, 16)])
def test_heads_are_64_wide_but_in_the_largest(width, heads, tmp_path):
    path = saved(tmp_path, vit(width, heads, depth=1, mlp_ratio=0.5).state_dict())
    assert load_weights(path).blocks[0].attn.num_heads == heads


def test_heads_that_the_file_does_not_tell_must_be_given(tmp_path):
    original = vit(24, 3)
    with pytest.raises(ValueError, match=r"24 wide.*pass num_heads=\.\.\."):
        load_weights(saved(tmp_path, original.state_dict()))
    assert_same(load_weights(tmp_path / "weights.pth", num_heads=3), original)
    solo = lightning("backbone.", "classifier.weight", "decoder.mask_token")(vit(192, 12, depth=1))  # its MAE
    with pytest.raises(ValueError, match=r"solo-learn.*192 wide.*pass num_heads"):
        load_weights(saved(tmp_path, solo))


@pytest.mark.parametrize(
    ("block", "kwargs"),
    [
        (timm.models.resnet.Bottleneck, {"cardinality": 4, "base_width": 32}),  # ResNeXt
        (timm.models.resnet.Bottleneck, {"base_width": 128}),  # wide within the blocks
        (timm.models.resnet.BasicBlock, {"in_chans": 1}),
    ],
)
def test_groups_and_widths_of_resnets_show_in_their_tensors(block, kwargs, tmp_path):
    original = timm.models.ResNet(block, (1, 2, 1, 2), num_classes=0, channels=(8, 16, 16, 24), **kwargs)
    built = load_weights(saved(tmp_path, original.state_dict()))
    assert [str(m) for m in built.modules() if not list(m.children())] == [
        str(m) for m in original.modules() if not list(m.children())
    ]


# --- what is refused --------------------------------------------------------------------------------------------------


def test_an_unknown_layout_is_refused_with_its_names_and_the_known_ones(tmp_path):
    path = saved(tmp_path, {f"trunk.net{i}.kernel": torch.zeros(2) for i in range(9)})
    with pytest.raises(ValueError, match=r"trunk\.net0\.kernel, trunk\.net1.* and 4 more") as error:
        load_weights(path)
    assert all(layout.name in str(error.value) for layout in LAYOUTS)
    with pytest.raises(ValueError, match="fit no known layout"):
        load_weights(saved(tmp_path, {"epoch": 3}))


def test_what_does_not_fit_is_named_and_the_encoder_left_alone(tmp_path):
    encoder = vit(depth=3)
    before = {k: v.clone() for k, v in encoder.state_dict().items()}
    path = saved(tmp_path, vit(depth=2).state_dict() | {"extra": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"the file lacks blocks\.2\..* and 7 more; the encoder has no extra"):
        load_weights(path, encoder)
    with pytest.raises(ValueError, match="num_classes=0"):
        load_weights(saved(tmp_path, resnet().state_dict()), torchvision.models.resnet18())
    path = saved(tmp_path, vit(patch_size=16).state_dict())
    with pytest.raises(
        ValueError, match=r"patch_embed\.proj\.weight is \(128, 3, 16, 16\) in the file and \(128, 3, 8, 8\) in the enc"
    ):
        load_weights(path, encoder)
    assert all(torch.equal(before[k], v) for k, v in encoder.state_dict().items())


def test_what_cannot_be_built_asks_for_an_encoder(tmp_path):
    for model in (THIN(stem_type="deep"), timm.create_model("convnext_atto")):
        with pytest.raises(ValueError, match=r"no plain ViT or ResNet.*pass encoder=\.\.\."):
            load_weights(saved(tmp_path, after("backbone.", model)))
    squeezed = after("backbone.", resnet()) | head("backbone.", "layer1.0.se.fc1.weight")
    with pytest.raises(ValueError, match=r"ResNet: the encoder has no layer1\.0\.se\.fc1\.weight\. Pass an encoder"):
        load_weights(saved(tmp_path, squeezed))


def test_selective_kernels_and_conv_stems_ask_for_an_encoder(tmp_path):
    state = simclr_v2(resnet(Bottleneck))
    moved = {k.replace("net.2.weight", "net.2.main_conv.0.weight"): v for k, v in state["resnet"].items()}
    with pytest.raises(ValueError, match=r"lacks 'layer1\.0\.conv2\.weight'; pass encoder"):
        load_weights(saved(tmp_path, {"resnet": moved}))
    stem = {k.replace("patch_embed.proj", "patch_embed.proj.0"): v for k, v in vit(depth=1).state_dict().items()}
    with pytest.raises(ValueError, match=r"no plain ViT or ResNet"):
        load_weights(saved(tmp_path, {"state_dict": after("module.base_encoder.", stem)}))


class Trap:
    ran = False

    def __setstate__(self, state):
        type(self).ran = True

    def __reduce__(self):
        return Trap, (), {"a": 1}


class Settings(dict):
    pass


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_object_is_refused_and_never_made(zipped, tmp_path):
    content = moco_v1(resnet()) | {"config": Trap()}
    torch.save(content, tmp_path / "moco.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"moco\.pth.*test_weights\.Trap"):
        load_weights(tmp_path / "moco.pth")
    assert not Trap.ran


def test_objects_are_left_out_on_request_without_making_them(tmp_path):
    original = resnet()
    foreign = {"hyper_parameters": Settings(lr=0.1), "callbacks": {Trap: {"best": 1}}, "cfg": [Trap()]}
    path = saved(tmp_path, moco_v1(original) | foreign)
    with pytest.raises(ValueError, match=r"Settings.*Trap.*pass ignore_objects=True"):
        load_weights(path)
    assert_same(load_weights(path, ignore_objects=True), original)
    assert not Trap.ran


def test_what_was_allowed_before_is_allowed_after(tmp_path):
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals([argparse.Namespace])
    try:
        load_weights(saved(tmp_path, dino(vit())))
        assert set(torch.serialization.get_safe_globals()) == {*before, argparse.Namespace}
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def test_files_of_the_old_format_are_read(tmp_path):
    original = resnet()
    torch.save(moco_v1(original), tmp_path / "moco.pth.tar", _use_new_zipfile_serialization=False)
    assert_same(load_weights(tmp_path / "moco.pth.tar"), original)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(ValueError, match=r"text\.pth is a text file that begins with"):
        load_weights(tmp_path / "text.pth")
    (tmp_path / "short.safetensors").write_bytes(b"\xff\0\0\0\0\0\0\0{}")
    with pytest.raises(ValueError, match=r"short\.safetensors is a damaged safetensors file"):
        load_weights(tmp_path / "short.safetensors")
    np.savez(tmp_path / "weights.npz", a=np.zeros(3))
    with pytest.raises(ValueError, match=r"weights\.npz is a zip archive"):
        load_weights(tmp_path / "weights.npz")
    with pytest.raises(ValueError, match="holds a Tensor, expected a state dict"):
        load_weights(saved(tmp_path, torch.zeros(3)))
    (tmp_path / "plain.pkl").write_bytes(pickle.dumps({"a": 1}, protocol=2))
    with pytest.raises(ValueError, match=r"plain\.pkl"):
        load_weights(tmp_path / "plain.pkl")
    with pytest.raises(FileNotFoundError):
        load_weights(tmp_path / "nowhere.pth")


# --- out --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_resnet_loads_strictly_into_timms_and_torchvisions(ending, tmp_path):
    path = tmp_path / f"out.{ending}"
    encoder = shaken(create_encoder("resnet18"))
    read = torch.load if ending == "pth" else load_file
    plain, other = timm.create_model("resnet18", num_classes=0), torchvision.models.resnet18()
    other.fc = nn.Identity()
    for layout, model in {"timm": plain, "torchvision": other}.items():
        export_weights(encoder, path, layout)
        model.load_state_dict(read(path), strict=True)
        assert_same(model, encoder)
    assert_same(load_weights(path), encoder)


@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_a_vit_loads_strictly_into_timms_and_torchvisions(ending, tmp_path):
    path = tmp_path / f"out.{ending}"
    encoder = shaken(create_encoder("vit_tiny_patch16_224", image_size=32, patch_size=8, depth=2))
    read = torch.load if ending == "pth" else load_file
    export_weights(encoder, path)
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=32, patch_size=8, depth=2)
    plain.load_state_dict(read(path), strict=True)
    assert_same(plain, encoder)
    assert_same(load_weights(path), encoder)
    export_weights(encoder, path, "torchvision")
    other = torchvision.models.VisionTransformer(32, 8, 2, 3, 192, 768)
    other.heads = nn.Identity()
    other.load_state_dict(read(path), strict=True)
    assert_same(other, encoder)
    export_weights(other, path, "timm")
    plain.load_state_dict(read(path), strict=True)
    assert_same(plain, encoder)


def test_a_method_gives_its_encoder_and_a_model_loses_its_classifier(tmp_path):
    method = MoCo("resnet18-cifar", output_dim=8, queue_size=16)
    export_weights(method, tmp_path / "out.pth", "torchvision")
    assert_same(load_weights(tmp_path / "out.pth"), method.encoder)
    shaken(method.teacher_encoder)
    export_weights(method.teacher_encoder, tmp_path / "out.pth")
    assert_same(load_weights(tmp_path / "out.pth"), method.teacher_encoder)
    thin = THIN(num_classes=5)
    export_weights(thin, tmp_path / "out.pth")
    thin.fc = nn.Identity()
    thin.load_state_dict(torch.load(tmp_path / "out.pth"))
    convnext = timm.create_model("convnext_atto", num_classes=5)  # whose head has a norm too
    export_weights(convnext, tmp_path / "out.pth")
    convnext.reset_classifier(0)
    convnext.load_state_dict(torch.load(tmp_path / "out.pth"))


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (partial(vit, init_values=1e-5), "LayerScale"),
        (partial(vit, reg_tokens=4), "reg_token"),
        (partial(vit, no_embed_class=True), "no position"),
        (partial(vit, global_pool="avg", fc_norm=False), "pools otherwise"),
        (partial(vit, qkv_bias=False), "without bias"),
        (partial(vit, qk_norm=True), "q_norm"),
        (partial(vit, norm_layer=partial(nn.LayerNorm, eps=1e-5)), "another eps"),
        (partial(vit, act_layer=nn.SiLU), "SiLU"),
        (partial(vit, side=(16, 32)), "no squares"),
        (partial(THIN, avg_down=True), "AvgPool2d"),
        (partial(THIN, aa_layer=timm.layers.BlurPool2d), "BlurPool2d"),
        (partial(THIN, block_args={"attn_layer": "se"}), "SEModule"),
        (partial(THIN, output_stride=8), "dilated"),
        (partial(THIN, global_pool="max"), "pools otherwise"),
    ],
)
def test_what_torchvision_would_compute_otherwise_is_refused(make, why, tmp_path):
    with pytest.raises(ValueError, match=f"cannot be written as a model of torchvision.*{why}.*layout='timm'"):
        export_weights(make(), tmp_path / "out.pth", "torchvision")
    assert not (tmp_path / "out.pth").exists()
    export_weights(make(), tmp_path / "out.pth", "timm")


def test_what_has_no_public_layout_is_refused(tmp_path):
    for model in (ConvNet(), nn.Sequential(nn.Conv2d(3, 8, 3)), Rotation("conv4")):
        with pytest.raises(ValueError, match="is no model of timm or torchvision"):
            export_weights(model, tmp_path / "out.pth")
    with pytest.raises(ValueError, match="the layout is 'caffe', expected 'timm' or 'torchvision'"):
        export_weights(create_encoder("resnet18"), tmp_path / "out.pth", "caffe")


def test_safetensors_are_known_by_their_content(tmp_path):
    original = vit()
    save_file(original.state_dict(), tmp_path / "weights.bin")
    assert_same(load_weights(tmp_path / "weights.bin"), original)
