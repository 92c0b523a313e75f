"""Our ViT beside timm's: the same network, and what it adds to it."""

import copy

import pytest
import timm
import torch
from timm.models.vision_transformer import Block, VisionTransformer
from torch.nn import functional as F

from sslmodules.encoders import ViT, create_encoder, last_map, map_shape, moco_v3_vit, stage_maps

SMALL = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 3, "num_heads": 3}
VARIANTS = {
    "plain": {},
    "registers without position": {"reg_tokens": 4, "no_embed_class": True},
    "registers with position": {"reg_tokens": 2},
    "without class token": {"class_token": False, "global_pool": "avg", "fc_norm": False},
    "norm before, layer scale, normed queries": {"pre_norm": True, "init_values": 0.1, "qk_norm": True},
    "one size": {"dynamic_img_size": False},
}
every_variant = pytest.mark.parametrize("variant", VARIANTS)


def built(seed=0, **kwargs):
    """A small ViT whose parameters are all random: timm starts class tokens near 0 and biases at 0."""
    torch.manual_seed(seed)
    vit = create_encoder("vit_tiny_patch16_224", **{**SMALL, **kwargs})
    with torch.no_grad():
        for name, p in vit.named_parameters():
            if "mask_token" not in name:
                p.add_(0.05 * torch.randn_like(p))
    return vit.eval()


def timms(vit, **kwargs):
    """timm's own model with the same weights, read strictly."""
    options = {"num_classes": 0, "dynamic_img_size": True, **SMALL, **kwargs}
    plain = timm.create_model("vit_tiny_patch16_224", **options).eval()
    plain.load_state_dict(vit.state_dict(), strict=True)
    assert type(plain) is VisionTransformer
    return plain


def images(count=2, height=32, width=32, seed=1):
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(seed))


@every_variant
def test_all_tokens_are_those_of_timm(variant):
    vit, x = built(**VARIANTS[variant]), images()
    plain = timms(vit, **VARIANTS[variant])
    with torch.no_grad():
        assert torch.equal(vit.forward_tokens(x), plain.forward_features(x))
        assert torch.equal(vit(x), plain(x))
        assert all(map(torch.equal, stage_maps(vit, x), stage_maps(plain, x)))
        assert torch.equal(last_map(vit, x), last_map(plain, x))


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_224.dino", "vit_base_patch14_reg4_dinov2"])
def test_a_name_gives_our_class_with_the_weights_of_timm(name):
    torch.manual_seed(0)
    ours = create_encoder(name, image_size=28, patch_size=14, depth=1)
    torch.manual_seed(0)
    plain = timm.create_model(name, num_classes=0, img_size=28, patch_size=14, depth=1)
    assert type(ours) is ViT
    assert ours.state_dict().keys() == plain.state_dict().keys()
    assert all(map(torch.equal, ours.state_dict().values(), plain.state_dict().values()))


def test_the_constructor_builds_what_the_name_does():
    torch.manual_seed(0)
    by_name = create_encoder("vit_tiny_patch16_224", mask_token=True, uniform_drop_path=0.3, **SMALL)
    torch.manual_seed(0)
    by_class = ViT(mask_token=True, uniform_drop_path=0.3, num_classes=0, dynamic_img_size=True, **SMALL)
    assert str(by_name) == str(by_class)
    by_class.load_state_dict(by_name.state_dict())
    x = images()
    torch.testing.assert_close(by_class.eval()(x), by_name.eval()(x))


def test_a_copy_is_one_too():
    vit = built(mask_token=True, interpolation="dino", uniform_drop_path=0.2)
    twin = copy.deepcopy(vit)
    assert torch.equal(twin.forward_tokens(images(2, 24, 40)), vit.forward_tokens(images(2, 24, 40)))


def test_moco_v3_is_our_class_with_its_own_positions():
    vit = moco_v3_vit("small", img_size=32, patch_size=8, depth=1).eval()
    assert not vit.pos_embed.requires_grad
    assert torch.equal(vit.forward_tokens(images()), vit.forward_features(images()))


@every_variant
def test_kept_patches_come_in_the_order_asked_for(variant):
    vit, x = built(**VARIANTS[variant]), images()
    order = torch.stack([torch.randperm(16), torch.randperm(16)])
    every, p = vit.forward_tokens(x), vit.num_prefix_tokens
    shuffled = vit.forward_tokens(x, keep=order)
    torch.testing.assert_close(shuffled[:, :p], every[:, :p], rtol=1e-4, atol=1e-5)
    for one, other, o in zip(shuffled, every, order, strict=True):
        torch.testing.assert_close(one[p:], other[p:][o], rtol=1e-4, atol=1e-5)
    assert vit.forward_tokens(x, keep=order[:, :5]).shape == (2, p + 5, 24)


def test_patches_that_are_not_kept_are_neither_computed_nor_read():
    vit, x = built(), images()
    keep = torch.tensor([[0, 5, 10], [15, 1, 2]])
    seen = []
    for block in vit.blocks:
        block.register_forward_hook(lambda module, args, out: seen.append(out.shape[1]))
    before = vit.forward_tokens(x, keep)
    assert seen == [1 + 3] * 3
    changed = x.unfold(2, 8, 8).unfold(3, 8, 8).clone()  # (B, C, 4, 4, 8, 8)
    for i, kept in enumerate(keep.tolist()):
        for n in set(range(16)) - set(kept):
            changed[i, :, n // 4, n % 4] = 100.0
    changed = changed.permute(0, 1, 2, 4, 3, 5).reshape(x.shape)
    assert not torch.equal(vit(changed), vit(x))
    assert torch.equal(vit.forward_tokens(changed, keep), before)


def test_mask_tokens_stand_in_for_patches_and_have_their_positions():
    vit, x = built(mask_token=True), images()
    assert torch.equal(vit.mask_token, torch.zeros(1, 1, 24))
    torch.nn.init.normal_(vit.mask_token)
    mask = torch.zeros(2, 16, dtype=torch.bool)
    assert torch.equal(vit.forward_tokens(x, mask=mask), vit.forward_tokens(x))
    mask[0, 3] = True
    assert torch.equal(vit.forward_tokens(x, mask=mask)[1], vit.forward_tokens(x)[1])
    # By hand: the patch projection's output is replaced, before positions are added.
    hook = vit.patch_embed.register_forward_hook(
        lambda module, args, out: out.flatten(1, 2).index_put(
            (torch.tensor([0]), torch.tensor([3])), vit.mask_token[0]
        ).view_as(out)
    )  # fmt: skip
    by_hand = vit.forward_features(x)
    hook.remove()
    torch.testing.assert_close(vit.forward_tokens(x, mask=mask), by_hand)
    everything = vit.forward_tokens(x, mask=torch.ones_like(mask))
    assert torch.equal(everything[0], everything[1])
    assert not torch.allclose(everything[0, 1], everything[0, 2])
    both = vit.forward_tokens(x, keep=torch.tensor([[3, 4], [3, 4]]), mask=mask)
    both.sum().backward()
    assert vit.mask_token.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("options", "arguments", "sentence"),
    [
        ({}, {"mask": torch.ones(2, 16, dtype=torch.bool)}, r"build the ViT with mask_token=True"),
        ({"mask_token": True}, {"mask": torch.ones(2, 9, dtype=torch.bool)}, r"the mask is \(2, 9\).*\(2, 16\)"),
        ({}, {"keep": torch.zeros(1, 4, dtype=torch.long)}, r"keep is \(1, 4\), expected indices \(2, K\)"),
        ({}, {"keep": torch.zeros(2, 17, dtype=torch.long)}, r"keep is \(2, 17\).* at most 16 patches"),
    ],
)
def test_tokens_that_do_not_fit_are_refused(options, arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        built(**options).forward_tokens(images(), **arguments)


@pytest.mark.parametrize(
    ("name", "options", "sentence"),
    [
        ("vit_tiny_patch16_224", {"interpolation": "linear"}, r"'linear', expected 'antialiased' or 'dino'"),
        ("vit_tiny_patch16_224", {"uniform_drop_path": 1.0}, r"uniform_drop_path is 1.0, expected a rate"),
        (
            "vit_tiny_patch16_224",
            {"uniform_drop_path": 0.2, "block_fn": timm.models.vision_transformer.ResPostBlock},
            r"the encoder has ResPostBlock; pass drop_path_rate",
        ),
        ("vit_medium_patch16_rope_reg1_gap_256", {"mask_token": True}, r"as Eva, which does not take mask_token"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(name, options, sentence):
    with pytest.raises(ValueError, match=sentence):
        create_encoder(name, depth=1, **options)


def test_only_the_transformer_of_timm_becomes_ours():
    with pytest.raises(ValueError, match="the encoder is a ResNet, expected timm's VisionTransformer"):
        ViT.of(timm.create_model("resnet18"))


@pytest.mark.parametrize("variant", ["plain", "registers without position", "registers with position"])
@pytest.mark.parametrize("size", [(32, 32), (24, 40), (16, 16), (64, 48)])
def test_dino_positions_are_a_plain_interpolation_by_factors_of_a_tenth_more(variant, size):
    vit = built(interpolation="dino", **VARIANTS[variant])
    h, w = size[0] // 8, size[1] // 8
    table = vit.pos_embed if vit.no_embed_class else vit.pos_embed[:, vit.num_prefix_tokens :]
    maps = table.reshape(1, 4, 4, 24).permute(0, 3, 1, 2)
    if (h, w) != (4, 4):
        maps = F.interpolate(maps, scale_factor=((h + 0.1) / 4, (w + 0.1) / 4), mode="bicubic")
    positions = maps.permute(0, 2, 3, 1).reshape(1, h * w, 24)
    x = images(2, *size)
    prefix = [t for t in (vit.cls_token, vit.reg_token) if t is not None]
    prefix = torch.cat(prefix, 1).expand(2, -1, -1)
    if not vit.no_embed_class:
        prefix = prefix + vit.pos_embed[:, : vit.num_prefix_tokens]
    tokens = torch.cat([prefix, vit.patch_embed(x).flatten(1, 2) + positions], 1)
    by_hand = vit.norm(vit.blocks(tokens))
    torch.testing.assert_close(vit.forward_tokens(x), by_hand, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(vit.forward_features(x), by_hand, rtol=1e-5, atol=1e-5)
    plain = timms(vit, **VARIANTS[variant])
    assert torch.allclose(plain.forward_features(x), by_hand, atol=1e-5) == (size == (32, 32))


@pytest.mark.parametrize("interpolation", ["antialiased", "dino"])
def test_maps_of_odd_sizes(interpolation):
    vit = built(interpolation=interpolation)
    x = images(3, 40, 56)
    assert last_map(vit, x).shape == (3, 24, 5, 7)
    assert [m.shape for m in stage_maps(vit, x)] == [(3, 24, 5, 7)] * 3
    assert map_shape(vit, image_size=72) == (24, 9, 9)
    assert vit.forward_tokens(x, keep=torch.tensor([[34, 0]] * 3)).shape == (3, 3, 24)


@pytest.mark.parametrize("variant", ["plain", "registers without position", "norm before, layer scale, normed queries"])
@pytest.mark.parametrize("index", [-1, 0, 1])
def test_attention_sums_to_1_and_gives_the_output_of_its_block(variant, index):
    vit, x = built(**VARIANTS[variant]), images()
    weights = vit.attention(x, index)
    tokens = 16 + vit.num_prefix_tokens
    assert weights.shape == (2, 3, tokens, tokens)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, tokens))
    passed = {}
    block = vit.blocks[index]
    hook = block.register_forward_hook(lambda module, args, out: passed.update(before=args[0], after=out))
    vit(x)
    hook.remove()
    v = block.attn.qkv(block.norm1(passed["before"])).reshape(2, tokens, 3, 3, 8)[:, :, 2].transpose(1, 2)
    mixed = (weights @ v).transpose(1, 2).reshape(2, tokens, 24)
    out = passed["before"] + block.ls1(block.attn.proj(mixed))
    out = out + block.ls2(block.mlp(block.norm2(out)))
    torch.testing.assert_close(out, passed["after"], rtol=1e-5, atol=1e-5)


def test_attention_of_no_such_block_or_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="block 3 was asked for, the encoder has 3"):
        built().attention(images(), 3)
    other = built(block_fn=timm.models.vision_transformer.ParallelThingsBlock)
    with pytest.raises(ValueError, match="not from a ParallelThingsBlock"):
        other.attention(images())


def test_attention_keeps_fused_attention_and_larger_images():
    vit = built()
    fused = [b.attn.fused_attn for b in vit.blocks]
    assert vit.attention(images(1, 48, 64)).shape == (1, 3, 49, 49)
    assert [b.attn.fused_attn for b in vit.blocks] == fused


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3, 0.9])
def test_drop_path_is_uniform_and_off_in_evaluation(rate):
    vit = built(uniform_drop_path=rate)
    assert [b.drop_path1.drop_prob for b in vit.blocks] == [b.drop_path2.drop_prob for b in vit.blocks] == [rate] * 3
    assert all(isinstance(b, Block) and (type(b) is Block) == (rate <= 0.1) for b in vit.blocks)
    plain, x = timms(vit), images()
    assert torch.equal(vit(x), plain(x))
    assert not torch.equal(vit.train()(x), plain(x))


def test_without_a_uniform_rate_the_ramp_of_timm_stays():
    vit = built(drop_path_rate=0.2)
    assert [getattr(b.drop_path1, "drop_prob", 0.0) for b in vit.blocks] == pytest.approx([0, 0.1, 0.2])


@pytest.mark.parametrize(("batch", "rate", "kept"), [(10, 0.4, 6), (7, 0.5, 3), (3, 0.9, 1), (10, 0.9, 1), (4, 0.2, 3)])
def test_a_branch_is_computed_for_its_part_of_the_batch(batch, rate, kept):
    vit, seen = built(uniform_drop_path=rate, depth=1).train(), []
    block = vit.blocks[0]
    for branch in (block.attn, block.mlp):
        branch.register_forward_hook(lambda module, args, out: seen.append(len(out)))
    x = torch.randn(batch, 5, 24)
    out = block(x)
    assert seen == [kept, kept]
    untouched = (out == x).flatten(1).all(1).sum()
    assert max(0, batch - 2 * kept) <= untouched <= batch - kept


def test_a_part_of_the_batch_gives_the_branch_of_the_whole_on_average():
    block = built(uniform_drop_path=0.5, depth=1).blocks[0].train()
    torch.nn.init.zeros_(block.mlp.fc2.weight)
    torch.nn.init.zeros_(block.mlp.fc2.bias)  # one branch: the expectation of both in a row is not that of the plain
    x = torch.randn(4, 5, 24)
    with torch.no_grad():
        whole = copy.deepcopy(block).eval()(x) - x
        draws = torch.stack([block(x) - x for _ in range(2000)])
    # Each image's branch comes at half of the draws, twice as strong.
    torch.testing.assert_close(draws[0].abs().amax((1, 2)) > 0, (draws[0] - 2 * whole).abs().amax((1, 2)) < 1e-4)
    assert ((draws.abs().amax((2, 3)) > 0).sum(1) == 2).all()
    torch.testing.assert_close(draws.mean(0), whole, rtol=0.1, atol=0.1 * whole.abs().max().item())


def test_subsets_follow_the_seed_and_mix_with_checkpointing():
    vit, x = built(uniform_drop_path=0.5).train(), images(6)

    def gradients(checkpointing):
        vit.set_grad_checkpointing(checkpointing)
        vit.zero_grad()
        torch.manual_seed(3)
        vit.forward_tokens(x).square().sum().backward()
        return [p.grad.clone() for p in vit.parameters()]

    for one, other in zip(gradients(False), gradients(True), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_bf16_autocast_works_everywhere(rate):
    vit, x = built(mask_token=True, uniform_drop_path=rate, interpolation="dino").train(), images(4, 40, 40)
    with torch.autocast("cpu", torch.bfloat16):
        out = vit.forward_tokens(x, keep=torch.tensor([[0, 9, 3]] * 4), mask=torch.ones(4, 25, dtype=torch.bool))
        weights = vit.attention(x)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]), rtol=1e-2, atol=1e-2)
    out.float().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in vit.parameters())


@pytest.mark.parametrize("name", ["vit_relpos_small_patch16_224", "deit_tiny_patch16_224"])
def test_transformers_of_other_files_of_timm_are_built_too(name):
    assert create_encoder(name, 3, 32, depth=1, patch_size=8)(torch.zeros(1, 3, 32, 32)).ndim == 2
