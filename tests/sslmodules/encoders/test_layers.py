"""Where blocks are found, and what stands before and behind them."""

import pytest
import timm
from timm.models import group_parameters
from torch import nn

from sslmodules.encoders import ConvNet, blocks_of, create_encoder, layers


def test_layers_of_a_transformer_are_timms_but_for_the_norm_behind_the_blocks():
    model = timm.create_model("vit_tiny_patch16_224", depth=3, reg_tokens=2)
    names = {id(p): name for name, p in model.named_parameters()}
    found = {names[id(p)]: i for i, layer in enumerate(layers(model)) for p in layer}
    by_name = group_parameters(model, model.group_matcher(), reverse=True)
    expected = {name: min(i, 4) for name, i in by_name.items()}
    expected |= {
        "norm.weight": 4,
        "norm.bias": 4,
    }  # with the head, as in BEiT, MAE and DINOv2; timm: with the last block
    assert found == expected


@pytest.mark.parametrize(
    ("encoder", "blocks"),
    [
        (ConvNet(widths=(2, 4, 8)), 3),
        (nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), 2),
        (create_encoder("resnet26"), 8),
        (create_encoder("convnext_atto"), 4),
    ],
    ids=["ConvNet", "Sequential", "resnet26", "convnext_atto"],
)
def test_every_parameter_lies_in_one_layer(encoder, blocks):
    assert len(blocks_of(encoder)) == blocks
    assert len(layers(encoder)) == blocks + 2
    found = [id(p) for layer in layers(encoder) for p in layer]
    assert sorted(found) == sorted(map(id, encoder.parameters()))
