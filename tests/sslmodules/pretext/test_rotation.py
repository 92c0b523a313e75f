"""RotNet's oracles, and the order of flip and rotation."""

import math

import pytest
import torch
from runs import images, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader

from sslmodules import Rotation

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}}


def views_of(method, x, seed=0):
    method.generator = torch.Generator().manual_seed(seed)
    return method.make_views(x)


def test_views_are_the_crop_turned_counter_clockwise_and_turning_back_gives_it_again():
    corner = torch.zeros(1, 3, 16, 16)
    corner[..., 0, 15] = 1  # top right
    method = Rotation(**TINY, min_scale=1.0, mean=None, std=None)
    method.view.ratio = (1.0, 1.0)
    method.view.flip = 0.0
    views = views_of(method, corner)
    where = [tuple(v[0, 0].nonzero()[0].tolist()) for v in views]
    assert where == [(0, 15), (0, 0), (15, 0), (15, 15)]  # to the left, down, to the right
    for k, v in enumerate(views):
        assert torch.equal(v.rot90(-k, (2, 3)), views[0])


def test_zeroed_classifier_loses_ln_4():
    method = Rotation(**TINY)
    torch.nn.init.zeros_(method.classifier.weight)
    torch.nn.init.zeros_(method.classifier.bias)
    out = method.loss(views_of(method, images(8)[:][0]))
    assert out["loss"].item() == pytest.approx(math.log(4), abs=1e-6)


def test_targets_count_the_turns_in_the_order_of_the_views():
    method = Rotation(**TINY)
    views = views_of(method, images(5)[:][0])
    logits = method.classifier(method.encode(torch.cat(views)))
    by_hand = torch.stack([F.cross_entropy(part, torch.full((5,), k)) for k, part in enumerate(logits.chunk(4))]).mean()
    torch.testing.assert_close(method.loss(views)["loss"], by_hand)
    torch.testing.assert_close(method.loss(views)["features"], method.encode(torch.cat(views))[:5].detach())


def test_constant_images_are_told_by_chance_exactly():
    method = Rotation(**TINY).eval()
    out = method.loss(views_of(method, torch.full((6, 3, 16, 16), 90, dtype=torch.uint8)))
    assert out["rotation_accuracy"] == 0.25


def fitted_accuracy(method, x):
    """Accuracy on the last batches of a short training on one set of images."""
    optimizer = torch.optim.Adam(method.parameters(), 1e-2)
    found = []
    for step in range(150):
        out = method.loss(views_of(method, x, step))
        optimizer.zero_grad()
        out["loss"].backward()
        optimizer.step()
        found.append(out["rotation_accuracy"].item())
    return sum(found[-20:]) / 20


def test_flips_come_before_the_rotation_only():
    """On mirror-symmetric images a flip after it makes the quarter turns one: at most 75 % can be told."""

    class FlippedAfter(Rotation):
        def make_views(self, images):
            flips = torch.rand(4, len(images), generator=self.generator) < 0.5
            views = super().make_views(images)
            return [torch.where(f.view(-1, 1, 1, 1), v.flip(3), v) for v, f in zip(views, flips, strict=True)]

    half = torch.rand(64, 3, 16, 8, generator=torch.Generator().manual_seed(0))
    down = torch.linspace(0, 1, 16).view(1, 1, 16, 1)  # every quarter turn looks different
    symmetric = 0.3 * torch.cat([half, half.flip(3)], 3) + 0.7 * down
    accuracies = []
    for method_class in (Rotation, FlippedAfter):
        torch.manual_seed(0)
        # A conv net that is pooled sees which way brightness rises; crops of the whole height keep the symmetry.
        method = method_class(**TINY, min_scale=1.0).train()
        method.view.ratio = (1.0, 1.0)
        accuracies.append(fitted_accuracy(method, symmetric))
    assert accuracies[0] > 0.95
    assert 0.5 < accuracies[1] < 0.75 + 0.03


def test_images_that_are_not_square_are_refused_unless_the_views_are(tmp_path):
    x = torch.zeros(8, 3, 16, 24, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"the images are 16x24 px and a quarter turn needs square ones; pass size="):
        trainer(tmp_path, max_steps=1).fit(Rotation(**TINY), DataLoader(x, 8))
    trainer(tmp_path, max_steps=1).fit(Rotation(**TINY, size=16), DataLoader(x, 8))


def test_pictures_turn_every_view_back_by_its_prediction():
    method = Rotation(**TINY).eval()
    torch.nn.init.zeros_(method.classifier.weight)
    method.classifier.bias.data = torch.tensor([0.0, 1, 0, 0])  # always a quarter turn
    shown = method.pictures(images(3)[:][0])
    tiles = shown["turned upright"]
    views, upright = tiles.images.chunk(2, 1)
    assert views.shape == upright.shape == (3, 4, 3, 16, 16)
    assert torch.equal(upright, views.rot90(-1, (3, 4)))
    assert tiles.right.tolist() == [[-1, -1, -1, -1, 0, 1, 0, 0]] * 3
