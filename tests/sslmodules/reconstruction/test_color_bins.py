import math

import pytest
import torch

from sslmodules.reconstruction.color_bins import annealed_mean, class_weights, color_bins, soft_encode
from sslmodules.views.lab import rgb_to_lab


def colour(a, b):
    return torch.tensor([float(a), float(b)]).view(1, 2, 1, 1)


def number(a, b):
    """Number of the bin with this centre."""
    return (color_bins() == torch.tensor([float(a), float(b)])).all(1).nonzero().item()


def decoded(index, weight):
    """Mean colour of a code, (B, 2, h, w)."""
    return (color_bins()[index] * weight[..., None]).sum(1).movedim(-1, 1)


def all_distances(ab):
    """(N, 313) from each colour to each bin, in double precision."""
    return (ab.double().movedim(1, -1).reshape(-1, 1, 2) - color_bins()).square().sum(2).sqrt()


def test_there_are_313_bins_in_the_order_of_the_authors_file():
    bins = color_bins()
    assert bins.shape == (313, 2)
    assert bins[:3].tolist() == [[-90, 50], [-90, 60], [-90, 70]]
    assert bins[-3:].tolist() == [[100, -20], [100, -10], [100, 0]]
    assert bins.tolist() == sorted(bins.tolist())
    assert torch.equal(bins, (bins / 10).round() * 10)
    assert bins.aminmax(dim=0).min.tolist() == [-90, -110]
    assert bins.aminmax(dim=0).max.tolist() == [100, 100]


def test_bins_are_the_neighbours_of_the_233_in_the_hull_of_srgb():
    bins = {tuple(b) for b in color_bins().tolist()}
    around = [(a, b) for a in (-10, 0, 10) for b in (-10, 0, 10)]
    core = {(a, b) for a, b in bins if all((a + da, b + db) in bins for da, db in around)}
    assert len(core) == 233
    assert {(a + da, b + db) for a, b in core for da, db in around} == bins


def test_every_colour_of_srgb_lies_within_a_step_of_a_bin():
    levels = torch.linspace(0, 1, 24)
    ab = rgb_to_lab(torch.cartesian_prod(levels, levels, levels).T.view(1, 3, 24, -1))[:, 1:]
    assert all_distances(ab).min(1).values.max() <= math.sqrt(50)


def test_soft_codes_at_a_bin_and_between_four():
    index, weight = soft_encode(colour(0, 0), neighbours=5)
    assert index.flatten()[0] == number(0, 0)
    assert set(index.flatten().tolist()) == {number(*c) for c in [(0, 0), (10, 0), (-10, 0), (0, 10), (0, -10)]}
    assert weight.flatten().tolist() == pytest.approx([0.64879] + 4 * [0.08780], abs=1e-5)
    index, weight = soft_encode(colour(5, 5), neighbours=4)
    assert set(index.flatten().tolist()) == {number(*c) for c in [(0, 0), (10, 0), (0, 10), (10, 10)]}
    assert weight.flatten().tolist() == pytest.approx(4 * [0.25])


@pytest.mark.parametrize("neighbours", [1, 4, 5, 9, 10, 40, 313])
def test_neighbours_are_the_nearest_of_all_bins_also_outside_the_gamut(neighbours):
    generator = torch.Generator().manual_seed(neighbours)
    ab = torch.rand(4, 2, 32, 32, generator=generator) * 260 - 130
    ab[0] = (ab[0] / 5).round() * 5  # bins' centres, and ties between them
    ab[1] /= 4  # among the bins, as nearly all colours of photographs
    index, weight = soft_encode(ab, neighbours)
    expected = all_distances(ab).topk(neighbours, largest=False).values  # (N, k); of ties any may be taken
    found = all_distances(ab).gather(1, index.movedim(1, -1).flatten(0, 2))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    assert all(len(set(row)) == neighbours for row in index.movedim(1, -1).flatten(0, 2)[::50].tolist())
    density = (-expected.square() / 50).softmax(1).float()
    torch.testing.assert_close(weight.movedim(1, -1).flatten(0, 2), density, rtol=0, atol=1e-4)
    assert index.shape == weight.shape == (4, neighbours, 32, 32)


def test_colours_far_outside_and_nan_do_no_harm():
    index, weight = soft_encode(torch.tensor([1e4, -1e9, torch.inf, torch.nan]).expand(1, 2, 1, 4))
    assert ((index >= 0) & (index < 313)).all()
    assert weight[..., :2].isfinite().all()


@pytest.mark.parametrize("neighbours", [1, 5, 9])
def test_encoding_a_bins_centre_and_decoding_gives_it_back(neighbours):
    inner = torch.tensor([[0.0, 0], [30, -20], [-20, 40], [50, 10]]).T.view(1, 2, 2, 2)
    torch.testing.assert_close(decoded(*soft_encode(inner, neighbours)), inner, rtol=0, atol=1e-5)


def test_sigma_widens_the_code():
    narrow, wide = (soft_encode(colour(0, 0), 5, sigma)[1].flatten()[0] for sigma in (1.0, 50.0))
    assert narrow == pytest.approx(1)
    assert wide == pytest.approx(0.2, abs=0.01)


def test_annealed_mean_sharpens_between_mean_and_mode():
    logits = torch.full((1, 313, 1, 1), -torch.inf)
    near, far = number(0, 0), number(50, -60)
    logits[0, near], logits[0, far] = math.log(0.8), math.log(0.2)
    at = {t: annealed_mean(logits, t).flatten().tolist() for t in (0.38, 1.0, 1e-3)}
    assert at[0.38] == pytest.approx([0.02538 * 50, 0.02538 * -60], abs=1e-3)
    assert at[1.0] == pytest.approx([10, -12])
    assert at[1e-3] == pytest.approx([0, 0])


def test_annealed_mean_is_not_rounded_by_autocast_and_carries_gradients():
    logits = torch.randn(1, 313, 2, 2, requires_grad=True)
    expected = annealed_mean(logits)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(annealed_mean(logits), expected)
    expected.sum().backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0


def test_a_uniform_prior_weighs_all_colours_alike():
    torch.testing.assert_close(class_weights(torch.full((313,), 1 / 313)), torch.ones(313), rtol=0, atol=1e-5)


def test_weights_are_those_of_the_paper():
    prior = torch.rand(313, generator=torch.Generator().manual_seed(0)) ** 4
    kernel = torch.exp(-(torch.cdist(color_bins().double(), color_bins().double()) ** 2) / (2 * 5.0**2))
    smooth = kernel @ prior.double() / kernel.sum(1)
    smooth /= smooth.sum()
    weights = class_weights(prior, uniform=0.5)
    assert (smooth * weights).sum() == pytest.approx(1)
    unscaled = 1 / (0.5 * smooth + 0.5 / 313)
    torch.testing.assert_close(weights / weights[0], (unscaled / unscaled[0]).float(), rtol=1e-4, atol=0)
    torch.testing.assert_close(class_weights(7 * prior), weights)  # counts serve as well
    torch.testing.assert_close(class_weights(prior, uniform=1.0), torch.ones(313))


def test_the_commoner_a_colour_the_smaller_its_weight():
    prior = torch.full((313,), 1e-6)
    prior[number(0, 0)], prior[number(60, 40)] = 0.9, 0.01
    weights = class_weights(prior)
    grey, red, never = (weights[number(*c)] for c in [(0, 0), (60, 40), (-80, 80)])
    assert grey < red < never
    assert never / grey > 50


@pytest.mark.parametrize(
    "call",
    [
        lambda: soft_encode(colour(0, 0), neighbours=0),
        lambda: soft_encode(colour(0, 0), neighbours=314),
        lambda: soft_encode(colour(0, 0), sigma=0),
        lambda: annealed_mean(torch.zeros(1, 313, 1, 1), temperature=0),
        lambda: class_weights(torch.ones(313), uniform=0),
        lambda: class_weights(torch.ones(313), sigma=-1),
    ],
)
def test_arguments_out_of_range_are_refused(call):
    with pytest.raises(ValueError, match="expected"):
        call()


def test_what_inference_mode_keeps_serves_in_training():
    color_bins.cache_clear()
    with torch.inference_mode():
        annealed_mean(torch.zeros(1, 313, 1, 1))
        soft_encode(colour(1, 2), neighbours=3)
    logits = torch.zeros(1, 313, 1, 1, requires_grad=True)
    annealed_mean(logits).sum().backward()
    index, weight = soft_encode(colour(1, 2), neighbours=3)
    (logits.gather(1, index) * weight).sum().backward()
