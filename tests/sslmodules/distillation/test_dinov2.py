"""DINOv2: three losses, masks, rates by layer, and what its heads share."""

import copy
import math

import pytest
import torch
from lightning.pytorch import Callback
from runs import images, loader, same_bits, trainer
from torch import nn
from torch.nn import functional as F

from sslmodules.distillation import DINOv2
from sslmodules.distillation.losses import koleo, sinkhorn_knopp
from sslmodules.encoders import create_encoder

SMALL = {"patch_size": 4, "depth": 2, "embed_dim": 24}
TINY = {
    "encoder": "vit_tiny_patch16_224", "encoder_args": SMALL, "size": 16, "local_size": 8, "local_crops": 2,
    "hidden_dim": 16, "bottleneck_dim": 8, "output_dim": 16,
}  # fmt: skip


def built(**kwargs):
    torch.manual_seed(0)
    return DINOv2(**{**TINY, **kwargs})


def views_of(method, count=8, seed=0):
    method.generator = torch.Generator().manual_seed(seed)
    return method.make_views(images(count)[:][0])


# --- views and loss -------------------------------------------------------------------------------------------------


def test_half_of_the_global_crops_are_masked_and_the_masks_stay_on_the_host():
    method = built()
    views = views_of(method)
    assert [tuple(v.shape) for v in views] == [(8, 3, 16, 16)] * 2 + [(8, 3, 8, 8)] * 2 + [(8, 2, 16)]
    mask = views[-1]
    assert mask.dtype == torch.bool
    assert mask.device.type == "cpu"
    assert 6 <= mask.any(2).sum() <= 8  # of 8 crops that get a mask, those of 1 patch may find no block
    assert mask.sum(2).max() <= 8


@pytest.mark.parametrize("untied", [False, True])
@pytest.mark.parametrize("targets", ["centering", "sinkhorn_knopp"])
def test_loss_by_hand(targets, untied):
    method = built(targets=targets, patch_bottleneck_dim=4 if untied else None).eval()
    *crops, mask = views_of(method)
    student, teacher, n = method.encoder, method.teacher_encoder, len(mask)
    patch_head = method.patch_head if untied else method.head
    teacher_patch_head = method.teacher_patch_head if untied else method.teacher_head
    if targets == "centering":
        method.center.value.normal_()
        method.patch_center.value.normal_()

    def probabilities(scores, center):
        return sinkhorn_knopp(scores, 0.07) if center is None else ((scores - center.value) / 0.07).softmax(1)

    masked = [student.forward_tokens(crops[i], mask=mask[:, i]) for i in range(2)]
    plain = [student.forward_tokens(crop) for crop in crops[2:]]
    scores = [method.head(t[:, 0]) for t in (*masked, *plain)]
    seen = [teacher.forward_tokens(crop) for crop in crops[:2]]
    answers = probabilities(torch.cat([method.teacher_head(t[:, 0]) for t in seen]), method.center).chunk(2)
    dino = torch.stack(
        [-(answers[g] * F.log_softmax(scores[v] / 0.1, 1)).sum(1).mean() for g in range(2) for v in range(4) if g != v]
    )
    assert len(dino) == 2 + 2 * 2

    # The patches of all crops at once, dense: zero weight where nothing is masked.
    where = torch.cat([mask[:, 0], mask[:, 1]])  # (2B, N)
    patches = torch.cat([t[:, 1:] for t in masked])
    patch_answers = probabilities(teacher_patch_head(torch.cat([t[:, 1:] for t in seen])[where]), method.patch_center)
    per_patch = torch.zeros(2 * n, 16)
    per_patch[where] = -(patch_answers * F.log_softmax(patch_head(patches)[where] / 0.1, 1)).sum(1)
    ibot = (per_patch.sum(1) / where.sum(1).clamp(min=1)).mean()

    out = method.loss([*crops, mask])
    torch.testing.assert_close(out["dino"], dino.mean().detach())
    torch.testing.assert_close(out["ibot"], ibot.detach())
    spread = sum(koleo(t[:, 0]) for t in masked)
    torch.testing.assert_close(out["koleo"], spread.detach())
    torch.testing.assert_close(out["loss"], dino.mean() + ibot + 0.1 * spread)
    first = built(koleo_crops=1).eval().loss([*crops, mask])
    torch.testing.assert_close(first["koleo"], koleo(masked[0][:, 0]).detach())


def test_masked_patches_are_hidden_from_the_student_and_not_from_the_teacher():
    method = built(local_crops=0).train()
    first, second, mask = views_of(method)
    h, w = 4, 4
    pixels = mask.view(8, 2, 1, h, w).repeat_interleave(4, 3).repeat_interleave(4, 4)
    changed = [torch.where(pixels[:, i], 9.0, view) for i, view in enumerate((first, second))]
    tokens = method.encoder.forward_tokens(first, mask=mask[:, 0])
    torch.testing.assert_close(tokens, method.encoder.forward_tokens(changed[0], mask=mask[:, 0]))
    losses = [method.loss([a, b, mask])["ibot"] for a, b in ((first, second), changed)]
    assert (losses[0] - losses[1]).abs() > 1e-5  # the targets are others


def test_gradient_reaches_everything_of_the_student_and_nothing_of_the_teachers():
    encoder_args = {**SMALL, "reg_tokens": 2, "init_values": 1e-5, "uniform_drop_path": 0.4}
    for kwargs in ({}, {"patch_bottleneck_dim": 4}):
        method = built(encoder_args=encoder_args, **kwargs).train()
        method.loss(views_of(method))["loss"].backward()
        teachers = {id(p) for _, teacher in method.momentum_pairs for p in teacher.parameters()}
        for name, p in method.named_parameters():
            assert (p.grad is None) == (id(p) in teachers), name
        assert method.encoder.mask_token.grad.abs().sum() > 0


def test_no_masks_and_no_local_crops_leave_dino_of_two_crops():
    method = built(mask_share=0.0, local_crops=0)
    views = views_of(method)
    out = method.train().loss(views)
    assert out["ibot"] == 0
    out["loss"].backward()
    method.patch_center.commit()
    assert method.patch_center.value.eq(0).all()


def test_one_image_has_no_neighbour_and_trains(tmp_path):
    trainer(tmp_path, max_steps=1).fit(built(), loader(1, batch_size=1))


def test_centres_of_images_and_patches_move_apart_and_validation_moves_neither(tmp_path):
    method = built()
    run = trainer(tmp_path, max_steps=1)
    run.fit(method, loader(8))
    centers = [method.center.value.clone(), method.patch_center.value.clone()]
    assert all(c.abs().sum() > 0 for c in centers)
    assert not torch.equal(*centers)
    run.validate(method, loader(8), verbose=False)
    assert torch.equal(centers[0], method.center.value)
    assert built(targets="sinkhorn_knopp").center is None


def test_gram_loss_is_0_where_nothing_is_masked_and_the_student_is_still_the_anchor():
    method = built(mask_share=0.0, gram_weight=2.0).eval()
    views = views_of(method)
    assert method.loss(views)["gram"].item() == pytest.approx(0, abs=1e-10)
    nn.init.normal_(method.encoder.blocks[0].attn.qkv.weight)
    found = method.loss(views)
    without = built(mask_share=0.0).eval()
    without.load_state_dict({k: v for k, v in method.state_dict().items() if not k.startswith("gram.")})
    assert found["gram"] > 1e-4
    assert found["loss"].item() == pytest.approx((without.loss(views)["loss"] + 2 * found["gram"]).item(), abs=1e-6)


def test_the_anchor_sees_the_same_crops_larger():
    method = built(gram_weight=1.0, gram_scale=2)
    views = views_of(method)
    assert [tuple(v.shape[1:]) for v in views[-2:]] == [(3, 32, 32)] * 2
    torch.testing.assert_close(views[1], F.avg_pool2d(views[-1], 2))
    assert method.crops(images(2)[:][0])[0].shape[-1] == 32
    assert method.loss(views)["gram"] > 0
    with pytest.raises(ValueError, match="gram_scale is 2, with size=16 and gram_weight=0"):
        built(gram_scale=2)


def test_the_anchor_is_the_teacher_of_the_start_and_anew_when_due(tmp_path):
    plain, seen = built(warmup_epochs=0), []
    run = trainer(tmp_path, max_steps=1)
    run.fit(plain, loader(8))
    run.save_checkpoint(tmp_path / "plain.ckpt")

    class Note(Callback):
        def on_train_batch_start(self, trainer, module, *args):
            seen.append([copy.deepcopy(e.norm.state_dict()) for e in (module.gram.encoder, module.teacher_encoder)])

    method = built(
        warmup_epochs=0, gram_weight=1.0, gram_every=2, momentum=0.5, start_from=str(tmp_path / "plain.ckpt")
    )
    trainer(tmp_path, max_steps=4, callbacks=[Note()]).fit(method, loader(32))
    anchors, teachers = zip(*seen, strict=True)
    assert all(same_bits(anchors[step], plain.teacher_encoder.norm.state_dict()) for step in (0, 1, 2))
    assert same_bits(anchors[3], teachers[2])  # that of two steps
    assert not same_bits(teachers[2], teachers[0])
    assert not any(p.requires_grad for p in method.gram.parameters())


# --- optimizer ------------------------------------------------------------------------------------------------------


def groups_of(method):
    """Parameter id -> (rate's factor, whether its weight decay follows the schedule, whether it is a prototype)."""
    found = {}
    for g in method.parameter_groups():
        for p in g["params"]:
            assert id(p) not in found
            found[id(p)] = (g["lr_scale"], g["decays"], g["last_layer"])
    return found


def test_rates_fall_by_layer_and_for_the_patch_projection_more():
    method = built(layer_decay=0.5, patch_embed_scale=0.2, patch_bottleneck_dim=4)
    vit, found = method.encoder, groups_of(method)
    assert set(found) == {id(p) for p in method.parameters() if p.requires_grad}
    assert found[id(vit.patch_embed.proj.weight)] == (pytest.approx(0.5**3 * 0.2), True, False)
    assert found[id(vit.patch_embed.proj.bias)] == (pytest.approx(0.5**3 * 0.2), False, False)
    for token in (vit.cls_token, vit.pos_embed, vit.mask_token):
        assert found[id(token)] == (0.5**3, True, False)
    assert found[id(vit.blocks[0].attn.qkv.weight)] == (0.5**2, True, False)
    assert found[id(vit.blocks[1].norm1.weight)] == (0.5, False, False)
    assert found[id(vit.norm.weight)] == (1.0, False, False)
    for head in (method.head, method.patch_head):
        assert found[id(head.mlp[0].weight)] == (1.0, True, False)
        assert found[id(head.prototypes.direction)] == (1.0, True, True)


class Rates(Callback):
    def __init__(self):
        self.rates, self.prototypes = [], []

    def on_train_batch_start(self, trainer, pl_module, *args):
        self.rates.append({g["lr_scale"]: g["lr"] for g in trainer.optimizers[0].param_groups})
        self.prototypes.append(pl_module.head.prototypes.weight.detach().clone())


def test_rates_by_layer_reach_the_optimizer_and_scale_with_the_root_of_the_batch(tmp_path):
    seen = Rates()
    method = built(layer_decay=0.5, warmup_epochs=0, min_learning_rate=0.0)
    trainer(tmp_path, max_steps=2, callbacks=[seen]).fit(method, loader(32, batch_size=16))
    peak = 4e-3 * math.sqrt(16 / 1024)
    for step, rates in enumerate(seen.rates):
        factor = 0.5 * (1 + math.cos(math.pi * step / 2))
        assert sorted(rates) == pytest.approx([0.025, 0.125, 0.25, 0.5, 1.0])
        for scale, rate in rates.items():
            assert rate == pytest.approx(scale * peak * factor)


def test_prototypes_stand_still_for_the_first_epoch_and_keep_their_rate(tmp_path):
    seen = Rates()
    method = built(warmup_epochs=0)
    run = trainer(tmp_path, max_epochs=3, callbacks=[seen])
    run.fit(method, loader(16))  # 2 steps an epoch
    a, b, c, d, e, _ = seen.prototypes
    assert torch.equal(a, b)
    assert torch.equal(b, c)
    assert not torch.equal(c, d)
    assert not torch.equal(d, e)
    assert all(len({r for s, r in rates.items() if s == 1.0}) == 1 for rates in seen.rates)


def test_encoder_and_heads_are_clipped_each_by_its_own_norm(tmp_path):
    class Big(DINOv2):
        def loss(self, views):
            out = super().loss(views)
            return {**out, "loss": out["loss"] * 1e4}

    norms = {}

    class Grads(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            for name in ("encoder", "head", "patch_head"):
                grads = [p.grad for p in getattr(pl_module, name).parameters()]
                norms[name] = torch.stack(torch._foreach_norm(grads)).norm().item()

    torch.manual_seed(0)
    method = Big(**TINY, patch_bottleneck_dim=4)
    trainer(tmp_path, max_steps=1, callbacks=[Grads()]).fit(method, loader(8))
    assert norms == pytest.approx({"encoder": 3.0, "head": 3.0, "patch_head": 3.0}, rel=1e-4)
    trainer(tmp_path, max_steps=1, callbacks=[Grads()], gradient_clip_val=0.5).fit(method, loader(8))
    assert math.hypot(*norms.values()) == pytest.approx(0.5, rel=1e-4)


# --- what is refused, and shown -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kwargs", "sentence"),
    [
        ({"encoder": "conv4", "encoder_args": {}}, "a ConvNet, expected one that has a token for masked patches"),
        ({"encoder": nn.Conv2d(3, 8, 3)}, "the encoder is a Conv2d, expected one that has a token for masked patches"),
        ({"encoder": create_encoder("vit_tiny_patch16_224", image_size=16, **SMALL)}, "the encoder is a ViT, expec"),
        ({"encoder_args": {**SMALL, "global_pool": "avg"}}, "pooled by 'avg', expected by its class token"),
        ({"targets": "centring"}, "targets is 'centring' and koleo_crops 2; expected 'centering' or 'sinkhorn_knopp'"),
        ({"koleo_crops": 3}, "koleo_crops 3"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(kwargs, sentence):
    with pytest.raises(ValueError, match=sentence):
        built(**kwargs)


def test_pictures_show_the_masks():
    shown = built(mask_share=1.0, mask_ratio=(0.5, 0.5), mean=None, std=None).eval().pictures(images(3)[:][0])
    grey = (shown["views"].images == 0.5).all(2).float().mean((2, 3))  # (3, 2)
    assert grey.shape == (3, 2)
    assert (grey > 0.3).all()
    assert (grey <= 0.5).all()
    assert shown["local views"].images.shape == (3, 2, 3, 8, 8)
