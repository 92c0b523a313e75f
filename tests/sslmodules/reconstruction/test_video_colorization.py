"""Video colorization's oracles: pointers, labels, which colours there are, and that it learns to follow what moves."""

import math

import pytest
import torch
from lightning.pytorch import seed_everything
from runs import clips, loader, same_bits, snapshot, trainer
from torch.nn import functional as F
from torch.utils.data import DataLoader, IterableDataset

import sslmodules
from sslmodules.reconstruction.clip_head import ClipHead
from sslmodules.reconstruction.video_colorization import VideoColorization, cell_means, copied, nearest
from sslmodules.views.lab import lab_to_rgb, lightness, rgb_to_lab

TINY = {"encoder": "conv4", "encoder_args": {"widths": (8, 16)}, "head_width": 16, "head_depth": 2}


def method(**kwargs):
    seed_everything(0, verbose=False)
    return VideoColorization(**{**TINY, **kwargs})


def views_of(module, x, seed=0):
    module.generator = torch.Generator().manual_seed(seed)
    return module.make_views(x)


def one_hot(labels, count):
    return F.one_hot(labels, count).movedim(-1, -3).float()


# --- pointing -------------------------------------------------------------------------------------------------------


def test_copying_is_the_sum_over_all_references_weighted_by_the_softmax():
    features, values = torch.randn(2, 4, 5, 3, 2), torch.randn(2, 3, 7, 3, 2)
    expected = torch.zeros(2, 7, 3, 2)
    for b in range(2):
        for y in range(3):
            for x in range(2):
                places = [(t, i, j) for t in range(3) for i in range(3) for j in range(2)]
                products = torch.stack([features[b, t, :, i, j] @ features[b, 3, :, y, x] for t, i, j in places])
                for a, (t, i, j) in zip((products / 0.5).softmax(0), places, strict=True):
                    expected[b, :, y, x] += a * values[b, t, :, i, j]
    torch.testing.assert_close(copied(features, values, temperature=0.5), expected)


def test_what_is_copied_of_one_hot_codes_sums_to_one():
    values = one_hot(torch.randint(0, 4, (2, 3, 4, 5)), 4)
    out = copied(3 * torch.randn(2, 4, 8, 4, 5), values)
    torch.testing.assert_close(out.sum(1), torch.ones(2, 4, 5))


def test_the_order_of_references_does_not_matter():
    features, values = torch.randn(2, 4, 8, 3, 3), torch.randn(2, 3, 2, 3, 3)
    order = torch.tensor([2, 0, 1])
    torch.testing.assert_close(copied(features[:, [*order, 3]], values[:, order]), copied(features, values))
    assert not torch.allclose(copied(features, values[:, order]), copied(features, values))


def test_features_without_content_give_the_histogram_of_the_references():
    labels = torch.tensor([0, 0, 0, 1, 2, 2]).view(1, 3, 1, 2)
    out = copied(torch.ones(1, 4, 8, 1, 2), one_hot(labels, 4))
    torch.testing.assert_close(out[0, :, 0, 0], torch.tensor([3, 1, 2, 0]) / 6)
    torch.testing.assert_close(out[..., 0], out[..., 1])


def test_long_one_hot_features_copy():
    still = one_hot(torch.arange(9).view(1, 1, 3, 3), 9) * 10  # each position has a feature of its own
    values = torch.randn(1, 1, 5, 3, 3)
    torch.testing.assert_close(copied(torch.cat([still, still], 1), values), values[:, 0])


def test_half_precision_features_are_compared_in_full_precision():
    features, values = (10 * torch.randn(1, 2, 8, 4, 4)).bfloat16(), torch.randn(1, 1, 2, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        out = copied(features, values)
    torch.testing.assert_close(out, copied(features.float(), values))


# --- the loss -------------------------------------------------------------------------------------------------------


class Given(torch.nn.Module):
    """A head that gives embeddings made elsewhere."""

    def __init__(self, embeddings):
        super().__init__()
        self.embeddings = embeddings

    def forward(self, maps):
        return self.embeddings


def pointing(embeddings, labels, colors):
    """The loss of given embeddings (B, T, d, h, w) on clips whose cells have the colours of `labels` (B, T, h, w)."""
    module = method(colors=colors)
    module.head = Given(embeddings)
    ab = module.colors[labels].movedim(-1, 2).repeat_interleave(2, 3).repeat_interleave(2, 4)  # the map has stride 2
    return module.loss([torch.zeros(*ab.shape[:2], 1, *ab.shape[3:]), ab])


COLORS = [[0.0, 0.0], [60.0, 0.0], [0.0, 60.0], [-60.0, 0.0]]


def test_a_copy_of_the_reference_found_by_its_features_loses_nothing():
    labels = torch.arange(16).view(1, 1, 4, 4).expand(1, 2, 4, 4) % 4
    still = one_hot(torch.arange(16).view(1, 1, 4, 4), 16)
    found = pointing(10 * still.expand(1, 2, 16, 4, 4), labels, COLORS)
    assert found["loss"] < 1e-6  # a second softmax would leave ln(1 + 3 / e) = 0.744
    assert found["color_accuracy"] == found["color_accuracy_still"] == 1


def test_the_loss_is_the_surprise_at_the_colour_among_the_references():
    labels = torch.tensor([[0, 0, 0, 1], [0, 1, 1, 1]]).view(1, 2, 2, 2)
    found = pointing(torch.ones(1, 2, 8, 2, 2), labels, COLORS)
    expected = -(math.log(3 / 4) + 3 * math.log(1 / 4)) / 4
    assert found["loss"].item() == pytest.approx(expected, abs=1e-5)
    assert found["color_accuracy"] == 0.25  # all point to the commonest colour
    assert found["color_accuracy_still"] == 0.5


def test_the_still_accuracy_is_that_of_the_last_reference():
    labels = torch.tensor([[0, 1], [2, 3], [2, 0]]).view(1, 3, 1, 2)
    assert pointing(torch.ones(1, 3, 8, 1, 2), labels, COLORS)["color_accuracy_still"] == 0.5


def test_a_colour_that_no_reference_shows_counts_nothing():
    labels = torch.tensor([[0, 0, 0, 1], [0, 1, 3, 3]]).view(1, 2, 2, 2)
    embeddings = torch.ones(1, 2, 8, 2, 2).requires_grad_()
    found = pointing(embeddings, labels, COLORS)
    expected = -(math.log(3 / 4) + math.log(1 / 4)) / 4
    assert found["loss"].item() == pytest.approx(expected, abs=1e-5)
    found["loss"].backward()
    assert embeddings.grad.isfinite().all()


def test_a_surely_wrong_pointer_still_learns():
    labels = torch.tensor([0, 1, 0, 0]).view(1, 2, 1, 2).repeat_interleave(2, 2)
    points_wrong = torch.tensor([0.0, 9, 9, 9]).view(1, 2, 1, 1, 2).repeat_interleave(2, 3)
    embeddings = points_wrong.clone().requires_grad_()  # the right colour has a probability of exp(-81)
    found = pointing(embeddings, labels, COLORS)
    found["loss"].backward()
    assert found["loss"].item() == pytest.approx(81, abs=0.1)
    assert embeddings.grad.abs().max() > 1


def test_halves_of_a_batch_average_to_the_whole():
    module = method()
    views = views_of(module, clips(8)[:][0])
    module.eval()
    whole = module.loss(views)["loss"]
    halves = [module.loss([v[part] for v in views])["loss"] for part in (slice(0, 4), slice(4, 8))]
    torch.testing.assert_close(sum(halves) / 2, whole)


def test_labels_are_the_nearest_colours_of_the_cells_means():
    colors = torch.tensor([[0.0, 0.0], [50.0, 0.0], [100.0, 0.0]])
    ab = torch.zeros(1, 1, 2, 4, 4)
    ab[:, :, 0, :2, 2:] = torch.tensor([100.0, 20])  # two columns: their mean, 60, is nearest to 50
    ab[:, :, 0, 2:] = 90
    assert nearest(cell_means(ab, (2, 2)), colors).tolist() == [[[[0, 1], [2, 2]]]]


# --- views and features ---------------------------------------------------------------------------------------------


def test_views_are_one_crop_for_all_frames_of_a_clip():
    still = clips(6)[:][0][:, :1].expand(-1, 4, -1, -1, -1)
    module = method()
    light, ab = views_of(module, still, seed=3)
    for view in (light, ab):
        assert all(torch.equal(view[:, t], view[:, 0]) for t in range(4))
    crops = module.view(still[:, 0], torch.Generator().manual_seed(3))
    lab = rgb_to_lab(crops)
    assert not torch.equal(crops, still[:, 0] / 255)
    torch.testing.assert_close(light[:, 0], (lab[:, :1] - 50) / 50)
    torch.testing.assert_close(ab[:, 0], lab[:, 1:])


def test_no_frame_shows_its_colours_to_the_network():
    module = method().eval()
    x = clips(2)[:][0]
    grey = lab_to_rgb(F.pad(lightness(x.flatten(0, 1)), (0, 0, 0, 0, 0, 2))).view_as(x)
    assert module.preprocess(x).shape == (2, 4, 1, 16, 16)
    torch.testing.assert_close(
        module.encode_map(module.preprocess(grey)), module.encode_map(module.preprocess(x)), rtol=1e-3, atol=1e-4
    )


def test_a_frame_alone_is_embedded_as_a_clip_that_stands_still():
    module = method().eval()
    frame = clips(2)[:][0][:, 0]
    still = frame[:, None].expand(-1, 3, -1, -1, -1)
    alone, within = (module.encode_map(module.preprocess(x)) for x in (frame, still))
    assert alone.shape == (2, 64, 8, 8)
    assert within.shape == (2, 3, 64, 8, 8)
    for t in range(3):
        torch.testing.assert_close(within[:, t], alone, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module(still), module(frame))


def test_the_head_knows_the_place_and_the_neighbouring_frames():
    head = ClipHead(dim=4, out=3, width=8, depth=1)
    maps = torch.zeros(1, 3, 4, 5, 5)
    flat = head(maps)
    assert not torch.allclose(flat[..., 1, 1], flat[..., 3, 3])
    maps[:, 2] = 1
    changed = (head(maps) - flat).abs().amax((0, 2, 3, 4)) > 1e-6
    assert changed.tolist() == [False, True, True]


def test_features_are_those_of_the_frames_averaged():
    module = method().eval()
    x = clips(2)[:][0]
    frames = torch.stack([module(x[:, t]) for t in range(4)])
    torch.testing.assert_close(module(x), frames.mean(0))
    of_clips, of_frames = module.features(x), [module.features(x[:, t]) for t in range(4)]
    assert [tuple(m.shape) for m in of_clips] == [(2, 8, 16, 16), (2, 16, 8, 8)]
    for stage, m in enumerate(of_clips):
        torch.testing.assert_close(m, sum(maps[stage] for maps in of_frames) / 4)
    torch.testing.assert_close(module.loss(views_of(module, x))["features"].shape, module(x).shape)


def test_resnet18_keeps_its_map_at_an_eighth():
    frame = torch.zeros(1, 1, 32, 32)
    assert VideoColorization(head_depth=1).eval().encode_map(frame).shape == (1, 64, 4, 4)
    assert VideoColorization(encoder_args={}, head_depth=1).eval().encode_map(frame).shape == (1, 64, 1, 1)


# --- which colours there are ----------------------------------------------------------------------------------------


def painted(count=24, seed=0):
    """Clips of squares that jump in every frame, of four colours, each with its own stripes; these colours (a, b)."""
    generator = torch.Generator().manual_seed(seed)
    colors = torch.tensor([[40.0, 30.0], [-30.0, 30.0], [10.0, -40.0], [0.0, 0.0]])
    kinds = torch.rand(count, 4, 16, generator=generator).argsort(-1) % 4  # four of each kind in every frame
    stripes = torch.tensor([[[0, 1, 0, 1]] * 4, [[0, 0, 1, 1]] * 4]) * 20.0 + 50  # (2, 4, 4)
    lightness = torch.cat([stripes, stripes.mT])[kinds][:, :, :, None]  # (B, T, 16, 1, 4, 4)
    ab = colors[kinds][..., None, None].expand(-1, -1, -1, -1, 4, 4)
    squares = torch.cat([lightness, ab], 3).unflatten(2, (4, 4))  # (B, T, 4, 4, 3, 4, 4)
    lab = squares.permute(0, 1, 4, 2, 5, 3, 6).reshape(count * 4, 3, 16, 16)
    return (lab_to_rgb(lab) * 255).round().to(torch.uint8).unflatten(0, (count, 4)), colors


@pytest.mark.parametrize("kind", ["uint8", "float", "labels", "mapping", "views"])
def test_the_colours_of_the_data_are_found_in_any_kind_of_batch(kind):
    x, colors = painted()
    module = method(num_colors=4)
    batch = {
        "uint8": x,
        "float": x / 255,
        "labels": [x, torch.zeros(24, dtype=torch.long)],
        "mapping": {"video": x},
        "views": {"views": [torch.zeros(24, 4, 1, 16, 16), rgb_to_lab(x.flatten(0, 1))[:, 1:].unflatten(0, (24, 4))]},
    }[kind]
    module.fit_colors([batch[:10], batch[10:]] if isinstance(batch, torch.Tensor) else [batch])
    assert module.color_frames == 24
    assert torch.cdist(colors, module.colors).amin(1).max() < 1
    labels = nearest(cell_means(rgb_to_lab(x[:, 0])[:, None, 1:], (4, 4)), module.colors)
    assert labels.unique().tolist() == [0, 1, 2, 3]


def test_a_run_finds_the_colours_before_its_first_step_and_a_resumed_run_keeps_them(tmp_path):
    x, colors = painted()
    module = method(num_colors=4)
    run = trainer(tmp_path, max_steps=1)
    run.fit(module, DataLoader(x, 8))
    assert module.color_frames == 24
    assert torch.cdist(colors, module.colors).amin(1).max() < 1
    run.save_checkpoint(tmp_path / "c.ckpt")
    assert same_bits(snapshot(sslmodules.load(tmp_path / "c.ckpt")), snapshot(module))
    resumed = method(num_colors=4)
    trainer(tmp_path, max_steps=2).fit(resumed, DataLoader(x.flip(2), 8), ckpt_path=tmp_path / "c.ckpt")
    assert torch.equal(resumed.colors, module.colors)


def test_finding_colours_takes_no_random_number_of_the_run(tmp_path):
    x, results = painted()[0], []
    for by_hand in (False, True):
        module = method(num_colors=4)
        module._seed = 5
        if by_hand:
            module.fit_colors([x])
        trainer(tmp_path, max_steps=2).fit(module, DataLoader(x, 8, shuffle=True))
        results.append(snapshot(module))
    assert same_bits(*results)


def test_given_colours_stay(tmp_path):
    module = method(colors=COLORS)
    trainer(tmp_path, max_steps=1).fit(module, loader(16, kind="video"))
    assert module.colors.tolist() == COLORS
    assert module.color_frames == 0


def test_a_training_set_that_cannot_be_read_ahead_asks_for_the_colours(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(painted(16)[0])

    with pytest.raises(ValueError, match=r"cannot be read from a Stream.*fit_colors\(batches\).*colors="):
        trainer(tmp_path, max_steps=1).fit(method(), DataLoader(Stream(), 8))
    module = method(num_colors=4)
    module.fit_colors(DataLoader(Stream(), 8))
    trainer(tmp_path, max_steps=1).fit(module, DataLoader(Stream(), 8))
    assert module.color_frames == 16


def test_grey_videos_are_refused(tmp_path):
    grey = clips(8)[:][0][:, :, :1].expand(-1, -1, 3, -1, -1)
    with pytest.raises(ValueError, match=r"8 training clips show 1 different colours, fewer than the 16.*num_colors"):
        trainer(tmp_path, max_steps=1).fit(method(), DataLoader(grey, 8))
    with pytest.raises(ValueError, match="0 training clips"):
        method().fit_colors([])


# --- learning -------------------------------------------------------------------------------------------------------


def test_the_pointer_learns_to_find_squares_that_jumped():
    x, colors = painted(64)
    module = method(colors=colors.tolist(), min_scale=1.0)
    optimizer = torch.optim.Adam(module.parameters(), 1e-2)
    for step in range(60):
        loss = module.loss(views_of(module, x[:48][step % 6 :: 6], step))["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    found = module.eval().loss(views_of(module, x[48:]))
    assert found["color_accuracy_still"] < 0.35  # chance is 0.25
    assert found["color_accuracy"] > 0.9


# --- for the eye, and what is refused -------------------------------------------------------------------------------


def test_pictures_have_the_targets_lightness_and_the_colours_that_are_pointed_to():
    x, _ = painted(3)
    x = x[:, :, :, :12]
    module = method(size=None).eval()
    shown = module.pictures(x)["colours"].images
    assert shown.shape == (3, 4, 3, 12, 16)
    torch.testing.assert_close(shown[:, 0], x[:, 2] / 255)
    torch.testing.assert_close(shown[:, 3], x[:, 3] / 255)
    assert rgb_to_lab(shown[:, 1])[:, 1:].abs().max() < 0.1
    module.head = Given(torch.ones(3, 4, 8, 6, 8))  # all point everywhere: the mean colour of the references
    mean = rgb_to_lab(x[:, :3].flatten(0, 1))[:, 1:].unflatten(0, (3, 3)).mean((1, 3, 4))
    colored = rgb_to_lab(module.pictures(x)["colours"].images[:, 2])
    torch.testing.assert_close(colored[:, 1:].mean((2, 3)), mean, rtol=0, atol=0.1)
    torch.testing.assert_close(colored[:, :1], lightness(x[:, 3]), rtol=0, atol=0.1)


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"in_channels": 1}, "learns from the colours of RGB images, got in_channels=1"),
        ({"mean": (0.5,), "std": (0.5,)}, r"scales lightness and colours by itself, got mean=\[0.5\]"),
        ({"num_colors": 1}, "got 1 colors"),
        ({"colors": [[1.0, 2.0, 3.0]] * 3}, r"colors=\[\[1.0, 2.0, 3.0\]"),
        ({"temperature": 0.0}, "temperature=0.0"),
        ({"head_depth": 0}, "depth of the head is 0"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        method(**kwargs)


def test_clips_without_a_reference_and_grey_clips_are_refused(tmp_path):
    for x, sentence in (
        (clips(8, frames=1)[:][0], r"the clips have 1 frame, and a target needs at least one reference.*frames=4"),
        (clips(8, channels=1)[:][0], "the images have 1 channels, VideoColorization takes RGB"),
    ):
        with pytest.raises(ValueError, match=sentence):
            trainer(tmp_path, max_steps=1).fit(method(), DataLoader(x, 8))
