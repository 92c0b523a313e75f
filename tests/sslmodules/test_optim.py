import pytest
import timm.optim
import torch
from timm.layers import LayerNorm2d
from torch import nn

from sslmodules.optim import LARS, cosine_momentum, parameter_groups, warmup_cosine


def test_lars_takes_the_step_of_its_formula():
    w = nn.Parameter(torch.tensor([[3.0, 4.0]]))  # norm 5
    optimizer = LARS([w], lr=0.5, momentum=0.9, weight_decay=0.1, trust_coefficient=0.01)
    buffer, p = torch.zeros(1, 2), w.detach().clone()
    for g in (torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])):
        w.grad = g
        optimizer.step()
        update = g + 0.1 * p
        buffer = 0.9 * buffer + 0.01 * p.norm() / update.norm() * update
        p = p - 0.5 * buffer
        torch.testing.assert_close(w.detach(), p)


@pytest.mark.parametrize("weight_decay", [0.0, 0.05])
def test_lars_equals_timms_with_always_adapt_on_matrices(weight_decay):
    torch.manual_seed(0)
    ours, theirs = nn.Parameter(torch.randn(4, 3)), nn.Parameter(torch.empty(4, 3))
    theirs.data.copy_(ours.data)
    a = LARS([ours], lr=0.3, weight_decay=weight_decay)
    b = timm.optim.Lars([theirs], lr=0.3, momentum=0.9, weight_decay=weight_decay, always_adapt=True, eps=0.0)
    for _ in range(5):
        g = torch.randn(4, 3)
        if weight_decay:  # timm's denominator is |g| + λ|p|, ours |g + λp|: equal for parallel g and p
            g = ours.detach() * 0.7
        ours.grad, theirs.grad = g.clone(), g.clone()
        a.step(), b.step()
        torch.testing.assert_close(ours.data, theirs.data)


def test_lars_adapts_without_weight_decay_and_leaves_biases_plain():
    w, b = nn.Parameter(torch.ones(2, 2)), nn.Parameter(torch.ones(2))
    w.grad, b.grad = torch.full((2, 2), 100.0), torch.full((2,), 100.0)
    LARS([w, b], lr=1.0, weight_decay=0.0, trust_coefficient=0.1).step()
    torch.testing.assert_close(w.data, torch.full((2, 2), 0.9))  # 1 - η·|w|/|g|·g
    torch.testing.assert_close(b.data, torch.full((2,), -99.0))  # 1 - g


def test_lars_moves_a_parameter_of_zeros():
    w = nn.Parameter(torch.zeros(2, 2))
    w.grad = torch.ones(2, 2)
    LARS([w], lr=0.1).step()
    torch.testing.assert_close(w.data, torch.full((2, 2), -0.1))


def test_weight_decay_spares_norms_and_biases_whatever_they_are_called():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.bias = nn.Linear(2, 3)  # a Linear by the name of bias
            self.weight = LayerNorm2d(3)
            self.token = nn.Parameter(torch.zeros(1, 1, 3))
            self.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)

    module = Odd()
    decayed, spared = parameter_groups(module, module.bias)
    assert {id(p) for p in decayed["params"]} == {id(module.bias.weight), id(module.token)}
    assert {id(p) for p in spared["params"]} == {id(module.bias.bias), *map(id, module.weight.parameters())}
    assert spared["weight_decay"] == 0
    assert "weight_decay" not in decayed


def test_warmup_cosine_by_hand():
    assert [warmup_cosine(s, 4, 12) for s in (0, 1, 4, 8, 12, 20)] == pytest.approx([0, 0.25, 1, 0.5, 0, 0])
    assert warmup_cosine(5, 0, float("inf")) == 1
    assert warmup_cosine(0, 0, 10) == 1


def test_momentum_rises_and_never_reaches_one():
    values = [cosine_momentum(t, 50, 0.996) for t in range(50)]
    assert values[0] == 0.996
    assert values == sorted(values)
    assert values[-1] == pytest.approx(0.99999605, abs=5e-9)
    assert cosine_momentum(7, float("inf"), 0.9) == 0.9
