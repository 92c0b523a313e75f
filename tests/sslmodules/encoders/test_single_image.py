import pytest
import torch
from runs import loader, trainer
from torch import nn

from sslmodules import FineTune, LinearProbe, MoCoV3
from sslmodules.encoders.single_image import single_image_statistics


def test_norms_of_one_value_a_channel_use_their_running_statistics_and_others_their_own():
    flat, wide = nn.BatchNorm1d(3, affine=False), nn.BatchNorm2d(3, affine=False)
    x = torch.randn(1, 3, 4, 4)
    expected = nn.BatchNorm2d(3, affine=False)(x)
    with single_image_statistics(nn.ModuleList([flat, wide]), [x, torch.tensor([0])]):
        torch.testing.assert_close(wide(x), expected)
        torch.testing.assert_close(flat(x.mean((2, 3))), x.mean((2, 3)), rtol=1e-4, atol=1e-4)
    assert flat.training
    assert wide.training
    assert not flat._forward_pre_hooks
    flat(torch.randn(2, 3))
    with pytest.raises(ValueError, match="more than 1 value"):
        flat(torch.randn(1, 3))


def test_frozen_norms_stay_frozen():
    norm = nn.BatchNorm1d(3).eval()
    with single_image_statistics(norm, {"image": torch.zeros(1, 3, 4, 4)}):
        norm(torch.ones(1, 3))
    assert not norm.training


@pytest.mark.parametrize(
    "make",
    [
        lambda: MoCoV3("conv4", encoder_args={"widths": (8, 16)}, hidden_dim=16, output_dim=8),
        lambda: LinearProbe(encoder="conv4", num_classes=4, batch_norm=True, learning_rates=[0.1]),
        lambda: FineTune(encoder="resnet18", num_classes=4, size=32),  # its last map is 1x1
    ],
)
def test_an_odd_last_batch_of_a_single_image_trains(tmp_path, make):
    module = make()
    run = trainer(tmp_path, max_epochs=1)
    run.fit(module, loader(3, 2))
    assert run.global_step == 2
    assert all(p.isfinite().all() for p in module.parameters())
