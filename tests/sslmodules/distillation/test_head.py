import copy

import pytest
import torch
from torch import nn

from sslmodules.distillation.head import DINOHead


def test_scores_are_cosines():
    torch.manual_seed(0)
    head = DINOHead(6, 20, hidden_dim=16, bottleneck_dim=8)
    x = 100 * torch.randn(50, 6)
    z = head.project(x)
    torch.testing.assert_close(z.norm(dim=1), torch.ones(50))
    rows = nn.functional.normalize(head.prototypes.weight, dim=1)
    torch.testing.assert_close(head(x), z @ rows.T)
    assert head(x).abs().max() <= 1 + 1e-6


def test_network_and_initial_values_are_the_papers():
    head = DINOHead(384)
    kinds = [type(part) for part in head.mlp]
    assert kinds == [nn.Linear, nn.GELU, nn.Linear, nn.GELU, nn.Linear]
    assert [part.out_features for part in head.mlp if isinstance(part, nn.Linear)] == [2048, 2048, 256]
    assert head.mlp[2].weight.std().item() == pytest.approx(0.02, rel=0.02)
    assert head.mlp[2].bias.eq(0).all()
    assert head.prototypes.weight.shape == (65536, 256)
    torch.testing.assert_close(head.prototypes.weight.norm(dim=1), torch.ones(65536))


@pytest.mark.parametrize("train_gain", [False, True])
def test_gain_is_learned_only_where_asked(train_gain):
    head = DINOHead(4, 5, hidden_dim=8, bottleneck_dim=3, train_gain=train_gain)
    head(torch.randn(7, 4))[:, 0].sum().backward()
    torch.optim.SGD([p for p in head.parameters() if p.requires_grad], 0.1).step()
    lengths = head.prototypes.weight.norm(dim=1)
    assert torch.allclose(lengths, torch.ones(5), atol=1e-6) != train_gain


def test_a_teacher_is_copied_also_after_a_forward_pass():
    head = DINOHead(4, 5, hidden_dim=8, bottleneck_dim=3)
    x = torch.randn(2, 4)
    expected = head(x)
    teacher = copy.deepcopy(head).requires_grad_(False)
    assert torch.equal(teacher(x), expected)
    nn.init.zeros_(head.mlp[0].weight)
    assert torch.equal(teacher(x), expected)
    assert not teacher(x).requires_grad


def test_batch_norm_stands_in_front_of_each_gelu_and_one_layer_has_none():
    head = DINOHead(4, 5, hidden_dim=8, norm=True)
    assert [type(part) for part in head.mlp][:3] == [nn.Linear, nn.BatchNorm1d, nn.GELU]
    assert [part.bias is None for part in head.mlp if isinstance(part, nn.Linear)] == [True, True, False]
    assert len(DINOHead(4, 5, layers=1, norm=True).mlp) == 1
    with pytest.raises(ValueError, match="0 layers, expected at least 1"):
        DINOHead(4, 5, layers=0)
