"""MAE's oracles: which patches are seen, which are scored, and what the encoder is afterwards."""

import math

import pytest
import timm
import torch
from runs import images, trainer
from torch import nn
from torch.utils.data import DataLoader

from sslmodules.encoders import ViT
from sslmodules.reconstruction.mae import MAE, TokenDecoder, patchify, sincos_positions, unpatchify

ENCODER = {"patch_size": 4, "embed_dim": 24, "depth": 1}
DECODER = {"decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}


def built(encoder="vit_tiny_patch16_224", encoder_args=None, seed=0, **kwargs):
    torch.manual_seed(seed)
    arguments = {"size": 16, **DECODER, **kwargs}
    if isinstance(encoder, str):
        arguments["encoder_args"] = {**ENCODER, **(encoder_args or {})}
    return MAE(encoder, **arguments).eval()


def views_of(method, x, seed=0):
    method.generator = torch.Generator().manual_seed(seed)
    return method.make_views(x)


def changed(x, shuffle, which, patch=4):
    """The same images with other pixels in the patches ``shuffle[which]``."""
    patches = patchify(x, (patch, patch))
    noise = 3 * torch.randn(patches.shape, generator=torch.Generator().manual_seed(5))
    index = shuffle[:, which, None].expand(-1, -1, patches.shape[2])
    patches = patches.scatter(1, index, noise.gather(1, index))
    return unpatchify(patches, (x.shape[2] // patch, x.shape[3] // patch), (patch, patch))


def test_patches_are_rows_then_columns_then_channels_and_go_back_to_the_bit():
    x = torch.randn(2, 5, 12, 8)
    patches = patchify(x, (4, 2))
    assert patches.shape == (2, 12, 40)
    for n in range(12):
        i, j = n // 4, n % 4
        by_hand = x[:, :, 4 * i : 4 * i + 4, 2 * j : 2 * j + 2].permute(0, 2, 3, 1).flatten(1)  # (p, q, c)
        assert torch.equal(patches[:, n], by_hand)
    assert torch.equal(unpatchify(patches, (3, 4), (4, 2)), x)


def test_each_image_has_its_own_order_of_all_patches():
    _, shuffle = views_of(built(), images(64)[:][0])
    assert shuffle.dtype == torch.int64
    assert torch.equal(shuffle.sort(1).values, torch.arange(16).expand(64, 16))
    assert torch.equal(shuffle.gather(1, shuffle.argsort(1)), torch.arange(16).expand(64, 16))
    assert len(shuffle.unique(dim=0)) == 64
    counts = torch.zeros(64, 16).scatter(1, shuffle[:, 4:], 1)
    assert (counts.sum(1) == 12).all()
    assert 0.6 < counts.mean(0).min() < counts.mean(0).max() < 0.9  # no place is favoured
    again, other = views_of(built(), images(64)[:][0])[1], views_of(built(), images(64)[:][0], seed=1)[1]
    assert torch.equal(shuffle, again)
    assert not torch.equal(shuffle, other)


@pytest.mark.parametrize(
    ("patches", "ratio", "visible"), [(196, 0.75, 49), (10, 0.9, 1), (16, 0.75, 4), (7, 0.5, 3), (9, 0.0, 9)]
)
def test_count_of_visible_patches(patches, ratio, visible):
    assert built(mask_ratio=ratio).visible(patches) == visible


def test_encoder_computes_visible_patches_only_and_decoder_all():
    method, seen = built(), []
    for block in (method.encoder.blocks[0], method.decoder.blocks[0]):
        block.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    method.loss(views_of(method, images(3)[:][0]))
    assert seen == [1 + 4, 1 + 16]


def test_prediction_does_not_know_what_is_masked():
    method = built()
    x, shuffle = views_of(method, images(3)[:][0])
    prediction = method.predict(x, shuffle)
    assert torch.equal(method.predict(changed(x, shuffle, slice(4, None)), shuffle), prediction)
    assert not torch.allclose(method.predict(changed(x, shuffle, slice(4)), shuffle), prediction)


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_loss_is_the_mean_over_masked_patches(norm_pix_loss):
    method = built(norm_pix_loss=norm_pix_loss)
    x, shuffle = views_of(method, images(3)[:][0])
    prediction, target = method.predict(x, shuffle), patchify(x, (4, 4))
    if norm_pix_loss:
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    by_hand = torch.stack(
        [(prediction[b, n] - target[b, n]).square().mean() for b in range(3) for n in shuffle[b, 4:].tolist()]
    ).mean()
    torch.testing.assert_close(method.loss([x, shuffle])["loss"], by_hand)
    assert sorted(method.loss([x, shuffle])) == ["loss"]  # the encoder saw a quarter: not the image's features
    halves = [method.loss([x[i : i + 1], shuffle[i : i + 1]])["loss"] for i in range(3)]
    torch.testing.assert_close(torch.stack(halves).mean(), by_hand)


def test_visible_patches_are_no_target():
    method = built()
    x, shuffle = views_of(method, images(3)[:][0])
    fixed = method.predict(x, shuffle).detach().requires_grad_()
    method.predict = lambda x, shuffle: fixed
    loss = method.loss([x, shuffle])["loss"]
    assert method.loss([changed(x, shuffle, slice(4)), shuffle])["loss"] == loss
    assert method.loss([changed(x, shuffle, slice(4, None)), shuffle])["loss"] != loss
    loss.backward()
    for b in range(3):
        assert (fixed.grad[b, shuffle[b, :4]] == 0).all()
        assert (fixed.grad[b, shuffle[b, 4:]] != 0).any(1).all()


def test_predicting_zero_loses_one_less_the_reciprocal_of_the_values_in_a_patch():
    method = built(encoder_args={"patch_size": 8}, size=32)  # D = 192
    nn.init.zeros_(method.decoder.head.weight)
    noise = torch.randint(0, 256, (8, 3, 32, 32), dtype=torch.uint8)
    assert method.loss(views_of(method, noise))["loss"].item() == pytest.approx(191 / 192, abs=1e-5)


def test_a_patch_of_one_colour_is_finite():
    method = built()
    loss = method.loss(views_of(method, torch.full((2, 3, 16, 16), 90, dtype=torch.uint8)))["loss"]
    loss.backward()
    assert loss.isfinite()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)


def test_nothing_masked_is_no_loss():
    method = built(mask_ratio=0.0)
    x, shuffle = views_of(method, images(3)[:][0])
    loss = method.loss([x, shuffle])["loss"]
    loss.backward()
    assert loss == 0
    trained = [p for p in method.parameters() if p.requires_grad]
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in trained)
    torch.testing.assert_close(
        method.encoder.forward_tokens(x, shuffle)[:, 0], method.encode(x), rtol=1e-4, atol=1e-5
    )  # fmt: skip


def test_every_weight_takes_part():
    method = built(encoder_args={"reg_tokens": 2}, fixed_positions=False)
    method.loss(views_of(method, images(3)[:][0]))["loss"].backward()
    assert all(p.grad.abs().sum() > 0 for p in method.parameters())


def test_decoder_puts_tokens_and_gaps_where_they_belong():
    torch.manual_seed(0)
    decoder = TokenDecoder(in_dim=6, grid=(2, 3), prefix=2, out=5, dim=8, depth=0, heads=2)
    tokens, shuffle = torch.randn(2, 2 + 2, 6), torch.tensor([[4, 1, 0, 5, 3, 2], [0, 3, 5, 4, 2, 1]])
    out = decoder(tokens, shuffle.argsort(1), (2, 3))
    for b in range(2):
        for n in range(6):
            rank = shuffle[b].tolist().index(n)
            token = decoder.embed(tokens[b, 2 + rank]) if rank < 2 else decoder.mask_token[0, 0]
            by_hand = decoder.head(decoder.norm(token + sincos_positions((2, 3), 8)[0, n]))
            torch.testing.assert_close(out[b, n], by_hand)


@pytest.mark.parametrize("grid", [(4, 4), (2, 5)])
def test_positions_are_waves_of_the_column_then_of_the_row(grid):
    table = sincos_positions(grid, 16).double()
    for n in range(grid[0] * grid[1]):
        row, column = n // grid[1], n % grid[1]
        waves = [f(p / 10000 ** (k / 4)) for p in (column, row) for f in (math.sin, math.cos) for k in range(4)]
        torch.testing.assert_close(table[0, n], torch.tensor(waves, dtype=torch.float64), rtol=0, atol=1e-6)


def test_initial_values_are_the_authors():
    encoder = built(encoder_args={"embed_dim": 96, "reg_tokens": 3}).encoder
    assert not encoder.pos_embed.requires_grad
    assert torch.equal(encoder.pos_embed[:, :4], torch.zeros(1, 4, 96))
    assert torch.equal(encoder.pos_embed[:, 4:], sincos_positions((4, 4), 96))
    for weight, fans in [(encoder.patch_embed.proj.weight, 48 + 96), (encoder.blocks[0].attn.qkv.weight, 4 * 96)]:
        assert weight.abs().max().item() == pytest.approx(math.sqrt(6 / fans), rel=0.01)
    assert encoder.cls_token.std().item() == pytest.approx(0.02, rel=0.3)
    learned = built(fixed_positions=False).encoder
    assert learned.pos_embed.requires_grad
    assert learned.pos_embed.std().item() == pytest.approx(0.02, rel=0.2)


def test_encoders_with_weights_of_their_own_are_left_alone(tmp_path):
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, **ENCODER)
    weights = {k: v.clone() for k, v in plain.state_dict().items()}
    torch.save(weights, tmp_path / "weights.pth")
    for method in (built(ViT.of(plain)), built(encoder_args={"checkpoint_path": str(tmp_path / "weights.pth")})):
        assert all(torch.equal(v, weights[k]) for k, v in method.encoder.state_dict().items())
        assert method.encoder.pos_embed.requires_grad


def test_the_representation_is_that_of_timm_with_these_weights():
    method = built(encoder_args={"depth": 3})
    plain = timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, **{**ENCODER, "depth": 3}).eval()
    plain.load_state_dict(method.encoder.state_dict(), strict=True)
    x = images(5)[:][0]
    torch.testing.assert_close(method(x), plain(method.preprocess(x)), rtol=0, atol=3e-6)
    assert method(x).shape == (5, method.feature_dim) == (5, 24)
    torch.testing.assert_close(method(x), plain.forward_features(method.preprocess(x))[:, 0], rtol=0, atol=3e-6)


@pytest.mark.parametrize(
    "encoder_args",
    [
        {"reg_tokens": 4, "no_embed_class": True},
        {"class_token": False, "global_pool": "avg", "fc_norm": False},
        {"global_pool": "avg", "fc_norm": False, "init_values": 0.1},
        {"dynamic_img_size": False},
        {"uniform_drop_path": 0.2},
    ],
    ids=str,
)
def test_variants_of_the_transformer_train(encoder_args):
    method = built(encoder_args=encoder_args).train()
    views = views_of(method, images(4)[:][0])
    method.loss(views)["loss"].backward()
    assert all(p.grad.isfinite().all() for p in method.parameters() if p.grad is not None)
    assert method(images(4)[:][0]).shape == (4, 24)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.parametrize("sides", [(16, 16), (24, 40)])
def test_any_channels_and_size(channels, sides):
    method = built(size=None, in_channels=channels, mean=None, std=None, encoder_args={"img_size": 16})
    x = torch.randint(0, 256, (3, channels, *sides), dtype=torch.uint8)
    crops, shuffle = views_of(method, x)
    assert crops.shape == x.shape
    assert shuffle.shape == (3, sides[0] * sides[1] // 16)
    assert method.predict(crops, shuffle).shape == (3, shuffle.shape[1], 16 * channels)
    method.loss([crops, shuffle])["loss"].backward()
    assert method.pictures(x)["reconstruction"].images.shape == (3, 3, channels, *sides)


def test_bf16_scores_in_fp32():
    method = built()
    views = views_of(method, images(8)[:][0])
    with torch.autocast("cpu", torch.bfloat16):
        loss = method.loss(views)["loss"]
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, method.loss(views)["loss"], rtol=0.02, atol=0.02)


def test_recipe_decays_tokens_but_no_norms_and_no_positions():
    method = built()
    optimizer = method.recipe_optimizer(method.parameter_groups(), 1e-3)
    assert optimizer.defaults["betas"] == (0.9, 0.95)
    decayed = {id(p) for g in optimizer.param_groups for p in g["params"] if g["weight_decay"] == 0.05}
    spared = {id(p) for g in optimizer.param_groups for p in g["params"] if g["weight_decay"] == 0}
    assert {id(method.encoder.cls_token), id(method.decoder.mask_token)} <= decayed
    assert {id(method.encoder.norm.weight), id(method.decoder.head.bias)} <= spared
    assert id(method.encoder.pos_embed) not in decayed | spared


@pytest.mark.parametrize("norm_pix_loss", [True, False])
def test_pictures_show_what_was_seen_and_the_prediction_in_its_gaps(norm_pix_loss):
    method = built(norm_pix_loss=norm_pix_loss)
    x = images(3)[:][0]
    views = views_of(method, x)
    method.make_views = lambda images: views
    method.predict = lambda x, shuffle: torch.zeros(3, 16, 48)
    tiles = method.pictures(x)["reconstruction"].images  # (3, 3, C, H, W)
    seen, filled, truth = (patchify(t, (4, 4)) for t in tiles.unbind(1))
    torch.testing.assert_close(tiles[:, 2], method.denormalize(views[0]))
    for b, order in enumerate(views[1].tolist()):
        for n in order[:4]:
            assert torch.equal(seen[b, n], truth[b, n])
            torch.testing.assert_close(filled[b, n], truth[b, n])
        for n in order[4:]:
            assert (seen[b, n] == 0.5).all()
            # Zero is the patch's own mean where it is normalised, else the mean of the data.
            target = patchify(views[0], (4, 4))[b, n].mean().expand(48) if norm_pix_loss else torch.zeros(48)
            expected = method.denormalize(target.view(1, 4, 4, 3).permute(0, 3, 1, 2))
            torch.testing.assert_close(filled[b, n], patchify(expected, (4, 4))[0, 0])

    target = patchify(views[0], (4, 4))
    if norm_pix_loss:
        target = (target - target.mean(2, keepdim=True)) / (target.var(2, keepdim=True) + 1e-6).sqrt()
    method.predict = lambda x, shuffle: target
    tiles = method.pictures(x)["reconstruction"].images
    torch.testing.assert_close(tiles[:, 1], tiles[:, 2], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: MAE("conv4", size=16), r"the encoder is a ConvNet; pass a name like 'vit_base_patch16_224'"),
        (
            lambda: built(timm.create_model("vit_tiny_patch16_224", num_classes=0, img_size=16, **ENCODER)),
            r"the encoder is a VisionTransformer; .* or ViT.of\(...\)",
        ),
        (lambda: built(encoder_args={"global_pool": "avg"}), r"does not reach the encoder's fc_norm.weight.*fc_norm=F"),
        (lambda: built(encoder_args={"mask_token": True}), r"does not reach the encoder's mask_token,"),
        (lambda: built(ViT(img_size=16, patch_size=4)), r"does not reach the encoder's head.weight, head.bias"),
        (lambda: built(mask_ratio=1.0), r"mask_ratio is 1.0, expected a share"),
        (lambda: built(decoder_dim=18), r"18 sines and cosines were asked for; expected a multiple of 4"),
        (lambda: built(decoder_dim=16, decoder_heads=3), r"decoder_dim is 16 and decoder_heads 3"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(make, sentence):
    with pytest.raises(ValueError, match=sentence):
        make()


def test_a_mask_over_everything_is_refused_before_the_first_step(tmp_path):
    x = torch.zeros(8, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"mask_ratio of 0.95 leaves none of 4x4 patches visible"):
        trainer(tmp_path, max_steps=1).fit(built(mask_ratio=0.95, warmup_epochs=0), DataLoader(x, 8))
    method = built(size=None, warmup_epochs=0, encoder_args={"img_size": 16})
    with pytest.raises(ValueError, match=r"the views are 16x18 px and the encoder cuts patches of 4x4"):
        trainer(tmp_path, max_steps=1).fit(method, DataLoader(torch.zeros(8, 3, 16, 18, dtype=torch.uint8), 8))
