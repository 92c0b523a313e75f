"""CPC: its loss against a loop, contexts that see no future, and what it looks at."""

import math

import pytest
import torch
from runs import clips, images, loader, sounds, trainer
from torch import nn
from torch.nn import functional as F

from sslmodules import CPC
from sslmodules.contrastive.cpc_loss import future_cross_entropy
from sslmodules.contrastive.cpc_networks import CONTEXTS, AudioEncoder, patch_resnet
from sslmodules.contrastive.cpc_views import overlapping_patches, random_windows
from sslmodules.tiles import grid

MODES = ("batch", "batch_excl_self", "same_sequence")
every_mode = pytest.mark.parametrize("negatives", MODES)
B, T, S, K, D = 3, 6, 2, 2, 4


def tiny(**kwargs):
    torch.manual_seed(0)
    encoder_args = {"widths": (8, 8), "kernels": (8, 4), "strides": (4, 2)}
    return CPC(encoder_args=encoder_args, context_args={"dim": 6}, steps=3, **kwargs)


def tensors(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def slow(predictions, latents, skip, negatives, draws, temperature):
    """Entropy, and whether the right one came first, by (step, sequence, time, place): one candidate after another."""
    b, t, s, steps, _ = predictions.shape
    m = t * s
    where = [(i, u, v) for i in range(b) for u in range(t) for v in range(s)]
    result = {}
    for k in range(steps):
        for i, u, v in where:
            if u + skip + k + 1 >= t:
                continue
            right = (i, u + skip + k + 1, v)
            if negatives == "same_sequence":
                ring = [w for w in where if w[0] == i]
                start, others = ring.index(right) + 1, m - 1
            elif negatives == "batch":
                ring, start, others = where, where.index(right) + 1, b * m - 1
            else:
                ring, start, others = where, (i + 1) * m, b * m - m
            chosen = range(others) if draws is None else [int(x * others) for x in draws[i].tolist()]
            candidates = [right] + [ring[(start + o) % len(ring)] for o in chosen]
            scores = torch.stack([predictions[i, u, v, k] @ latents[w] / temperature for w in candidates])
            result[k, i, u, v] = -scores.log_softmax(0)[0], bool(scores[0] == scores.max())
    return result


@every_mode
@pytest.mark.parametrize("drawn", [False, True])
@pytest.mark.parametrize("skip", [0, 1])
def test_loss_is_that_of_a_loop(negatives, drawn, skip):
    predictions, latents = tensors(B, T, S, K, D).double(), tensors(B, T, S, D, seed=1).double()
    draws = torch.rand(B, 5, generator=torch.Generator().manual_seed(2)) if drawn else None
    expected = slow(predictions, latents, skip, negatives, draws, temperature=0.5)
    terms = future_cross_entropy(predictions, latents, skip=skip, negatives=negatives, draws=draws, temperature=0.5)
    assert [entropy.shape for entropy, _ in terms] == [(B, T - skip - 1 - k, S) for k in range(K)]
    for (k, i, u, v), (entropy, correct) in expected.items():
        torch.testing.assert_close(terms[k][0][i, u, v], entropy)
        assert terms[k][1][i, u, v] == correct
    assert sum(entropy.numel() for entropy, _ in terms) == len(expected)


@pytest.mark.parametrize(
    ("negatives", "draws", "candidates"),
    [
        ("batch", None, 3 * 100),
        ("batch_excl_self", None, 1 + 2 * 100),
        ("same_sequence", None, 100),
        ("batch", torch.rand(3, 128), 129),
    ],
)
def test_zero_predictors_give_the_logarithm_of_the_number_of_candidates(negatives, draws, candidates):
    latents = tensors(3, 50, 2, D)
    predictions = torch.zeros(3, 50, 2, K, D)
    for entropy, _ in future_cross_entropy(predictions, latents, negatives=negatives, draws=draws):
        torch.testing.assert_close(entropy, torch.full_like(entropy, math.log(candidates)))


@every_mode
def test_a_drawn_negative_is_never_the_latent_itself_nor_of_an_excluded_sequence(negatives):
    latents = torch.eye(B * T).view(B, T, 1, B * T)
    predictions = torch.zeros(B, T, 1, 1, B * T)
    predictions[:, :-1, 0, 0] = 100 * latents[:, 1:, 0]  # the right one scores 100
    own = latents.sum(1, keepdim=True)[:, :, :, None]  # (B, 1, 1, 1, B·T)
    if negatives == "batch_excl_self":
        predictions = predictions + 200 * own  # and all of its sequence 200 more
    elif negatives == "same_sequence":
        predictions = predictions + 200 * (1 - own)  # all of other sequences 200
    draws = torch.rand(B, 200, generator=torch.Generator().manual_seed(0))
    ((entropy, correct),) = future_cross_entropy(predictions, latents, negatives=negatives, draws=draws)
    assert entropy.max() < 1e-6
    assert correct.all()


def test_one_sequence_alone_has_no_negatives_in_others_and_costs_nothing():
    latents = tensors(1, T, D)
    for draws in (None, torch.rand(1, 5)):
        terms = future_cross_entropy(tensors(1, T, K, D), latents, negatives="batch_excl_self", draws=draws)
        assert all(entropy.abs().max() < 1e-6 for entropy, _ in terms)


def test_mean_scores_are_dot_products_over_the_length_of_the_latents():
    x = sounds(4)[:][0]
    mean, dot = tiny(score="mean"), tiny(score="dot")
    mean.predictor.weight.data *= 8  # latents of 8 numbers
    torch.testing.assert_close(mean.loss([x])["loss"], dot.loss([x])["loss"])


@pytest.mark.parametrize("name", ["gru", "lstm", "convolution"])
def test_contexts_see_the_past_and_no_later_latent(name):
    torch.manual_seed(0)
    context = CONTEXTS[name](5, dim=4)
    z = tensors(2, 9, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(context(z)[:, 4].square().sum(), z)
    reached = gradient.abs().sum((0, 2)) > 0
    assert reached.tolist() == [True] * 5 + [False] * 4


def test_contexts_of_patches_see_rows_above_and_their_own_and_none_below():
    torch.manual_seed(0)
    context = CONTEXTS["masked_rows"](5, dim=4, layers=5, hidden=8)
    z = tensors(2, 7, 7, 5).requires_grad_()
    (gradient,) = torch.autograd.grad(context(z)[:, 3, 3].square().sum(), z)
    reached = gradient.abs().sum((0, 3)) > 0
    assert reached[:4].all()  # five blocks of three columns reach all seven
    assert not reached[4:].any()


def test_latents_of_audio_are_as_many_as_in_the_paper():
    for padding, length in ((True, 128), (False, 126)):
        encoder = AudioEncoder(widths=(2,) * 5, padding=padding).eval()
        assert encoder(torch.zeros(1, 1, 20480)).shape == (1, length, 2)
        for samples in (465, 479, 480, 20479):
            assert encoder(torch.zeros(1, 1, samples)).shape[1] == encoder.length(samples)
    with pytest.raises(ValueError, match="sounds of 464 samples are too short for one latent"):
        encoder(torch.zeros(1, 1, 464))
    with pytest.raises(ValueError, match="2 widths, 5 kernels and 5 strides"):
        AudioEncoder(widths=(2, 2))


def test_the_patches_encoder_has_no_norm():
    kinds = {type(module).__name__ for module in patch_resnet(layers=(1, 1)).modules()}
    assert not any("Norm" in kind for kind in kinds)


@pytest.mark.parametrize(("side", "patch"), [(256, 64), (64, 16), (32, 8)])
def test_patches_share_half_with_their_neighbours(side, patch):
    x = tensors(2, 3, side, side)
    cut = overlapping_patches(x, patch)
    unfolded = F.unfold(x, patch, stride=patch // 2).view(2, 3, patch, patch, 7, 7)
    assert torch.equal(cut, unfolded.permute(0, 4, 5, 1, 2, 3))


def test_a_jittered_patch_is_a_smaller_part_in_the_middle_of_zeros():
    x = torch.arange(1.0, 32 * 32 + 1).view(1, 1, 32, 32)
    cut = overlapping_patches(x, 16, jitter=2, generator=torch.Generator().manual_seed(0))
    assert cut.shape == (1, 3, 3, 1, 16, 16)
    inner = cut[0, :, :, 0, 1:-1, 1:-1]
    assert cut.sum() == inner.sum()
    corners = inner[..., 0, 0] - 1  # of which row and column
    shift = corners - overlapping_patches(x, 16)[0, :, :, 0, 0, 0] + 1
    assert {float(s) for s in shift.flatten()} <= {32.0 * i + j for i in range(3) for j in range(3)}
    assert len(shift.unique()) > 3
    assert (inner[..., 1:] - inner[..., :-1] == 1).all()


def test_windows_are_pieces_of_their_sounds_at_places_of_their_own():
    x = torch.arange(100.0).view(1, 1, 100) + 1000 * torch.arange(8).view(8, 1, 1)
    cut = random_windows(x, 60, torch.Generator().manual_seed(0))
    start = cut[:, 0, 0] - 1000 * torch.arange(8)
    assert torch.equal(cut - cut[:, :, :1], torch.arange(60.0).expand(8, 1, 60))
    assert len(start.unique()) > 4
    assert start.min() >= 0
    assert start.max() <= 40
    assert random_windows(x, 100) is x


def test_int16_is_the_same_sound_as_floats():
    method = tiny().eval()
    x = torch.randint(-(2**15), 2**15, (2, 1, 256), dtype=torch.int16)
    assert torch.equal(method(x), method(x / 2**15))


def test_all_frames_of_a_clip_are_cut_alike():
    x = images(4)[:][0][:, None].expand(-1, 3, -1, -1, -1)  # still
    method = CPC.video("conv4", size=8, encoder_args={"widths": [4]}, min_scale=0.3)
    (views,) = method.make_views(x)
    assert views.shape == (4, 3, 3, 8, 8)
    torch.testing.assert_close(views[:, 0], views[:, 2])


def test_images_lose_their_colours_before_they_are_normalised():
    method = CPC.image("conv4", size=16, encoder_args={"widths": [4]}, mean=None, std=None)
    for patches in (method.make_views(images(2)[:][0])[0], method.preprocess(images(2)[:][0])):
        assert patches.shape == (2, 7, 7, 3, 4, 4)
        torch.testing.assert_close(patches[:, :, :, 0], patches[:, :, :, 2])


def test_the_representation_is_the_mean_of_contexts_or_of_latents():
    x = sounds(3)[:][0]
    method = tiny().eval()
    assert method.frames(x).shape == (3, 32, 6)
    torch.testing.assert_close(method(x), method.frames(x).mean(1))
    torch.testing.assert_close(method.loss([x])["features"], method(x))
    method = tiny(representation="latents").eval()
    assert method.feature_dim == 8
    torch.testing.assert_close(method(x), method.encoder(x).mean(1))
    method = CPC.image("conv4", size=16, encoder_args={"widths": [4]}).eval()
    x = images(2)[:][0]
    torch.testing.assert_close(method(x), method.encode_map(method.preprocess(x)).mean((2, 3)))
    assert method.frames(x).shape == (2, 49, 4)


def test_any_encoder_of_sequences_and_any_context_will_do():
    class Strokes(nn.Module):
        num_features = 5

        def __init__(self):
            super().__init__()
            self.network = nn.Linear(2, 5)

        def forward(self, x):  # (B, 2, T)
            return self.network(x.transpose(1, 2))

    class Sum(nn.Module):
        num_features = 5

        def forward(self, z):
            return z.cumsum(1)

    method = CPC(Strokes(), context=Sum(), in_channels=2, steps=2)
    assert method(torch.zeros(3, 2, 7)).shape == (3, 5)
    assert method.loss(method.make_views(torch.rand(3, 2, 7)))["loss"] > 0


def test_accuracy_is_told_by_step():
    x = sounds(4)[:][0]
    out = tiny().loss([x])
    assert {k for k in out if k[:-1] == "prediction_accuracy_"} == {f"prediction_accuracy_{k}" for k in (1, 2, 3)}
    mean = sum(out[f"prediction_accuracy_{k}"] for k in (1, 2, 3)) / 3
    torch.testing.assert_close(out["prediction_accuracy"], mean)
    assert CPC(encoder_args={"widths": [2] * 5}).reported == [1, 2, 4, 8, 12]


def test_too_short_sequences_get_one_sentence_before_the_first_step_and_nothing_is_written(tmp_path):
    for method, x in [
        (tiny(size=24), sounds(8)[:][0]),  # windows of three latents
        (CPC.image("conv4", size=16, encoder_args={"widths": [4]}, patch=8), images(8)[:][0]),  # three rows
        (CPC.video("conv4", size=16, encoder_args={"widths": [4]}), clips(8, frames=3)[:][0]),
    ]:
        with pytest.raises(ValueError, match=r"sequences of 3 latents are too short to predict \d of them ahead"):
            trainer(tmp_path, max_steps=1, enable_checkpointing=True).fit(method, torch.utils.data.DataLoader(x, 8))
    assert not list(tmp_path.rglob("*"))


def test_unknown_contexts_are_refused_with_those_there_are():
    with pytest.raises(ValueError, match="context is 'grru', expected a module or one of gru, lstm"):
        tiny(context="grru")


def test_pictures_show_how_probable_the_future_was():
    shown = tiny().eval().pictures(sounds(4)[:][0])["predicted"]
    tiles = shown.images
    assert tiles.shape == (4, 1, 1, 15, 32)  # three steps, five pixels each, and 32 latents
    assert (tiles[..., -1] == 0.5).all()  # from the last latent on nothing is predicted
    assert tiles.min() >= 0
    assert tiles.max() <= 1
    assert grid(shown).shape[0] == 3


def test_predictable_sounds_are_predicted(tmp_path):
    method = tiny(num_negatives=20, learning_rate=1e-2, size=200)
    run = trainer(tmp_path, max_epochs=6)
    run.fit(method, loader(64, 16, kind="sound"), loader(16, 16, kind="sound", seed=1))
    assert run.callback_metrics["val/prediction_accuracy"] > 3 / 21
