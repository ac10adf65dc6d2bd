import pytest
import timm
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torchvision.models.vision_transformer import VisionTransformer as TorchvisionViT

import vitrim
from vitrim.measure.flops import closed_form, count_flops, parameters

GEOMETRY = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 4, "num_heads": 2, "num_classes": 5}
IMAGES = torch.randn(2, 3, 32, 32)


def vit(**changes):
    torch.manual_seed(0)
    return VisionTransformer(**{**GEOMETRY, **changes}).eval()


def test_deit_small_is_4_6_gflops():
    with torch.device("meta"):
        model = timm.create_model("deit_small_patch16_224")
    assert round(closed_form(model).gflops, 1) == 4.6
    assert round(parameters(model) / 1e6, 1) == 22.1


def test_macs_are_half_of_flops():
    counted = count_flops(torch.nn.Linear(3, 5), torch.randn(7, 3))
    assert (counted.macs, counted.flops, counted.gflops) == (105, 210, 105e-9)


@pytest.mark.parametrize("changes", [{}, {"global_pool": "avg"}, {"reg_tokens": 3}, {"mlp_ratio": 3}, {"qkv_bias": False}])
def test_dense_count_equals_closed_form(changes):
    model = vit(**changes)
    assert count_flops(model, IMAGES).flops == 2 * closed_form(model).flops


@pytest.mark.parametrize("site", ["before", "inside", "after"])
@pytest.mark.parametrize("schedule", ["keep(rate=0.5, at=[1, 3])", "counts(tokens=[9, 4], at=[0, 2])", "r(n=2)"])
def test_reduced_count_equals_closed_form(site, schedule):
    model = vit()
    reduction = vitrim.reduce(model, Evenly(), schedule, site=site)
    counted = count_flops(model, IMAGES)
    assert counted.flops == 2 * closed_form(model).flops
    assert closed_form(model, reduction.lengths(16)).macs == closed_form(model).macs
    reduction.detach()
    assert counted.flops < count_flops(model, IMAGES).flops


class Evenly(vitrim.Scorer):
    """Computes nothing, so that the count is the backbone's."""

    paper = "none"

    def score(self, t):
        return -torch.arange(t.patches.shape[1]).float().expand(t.x.shape[0], -1)


Evenly.spec_name = "evenly"


def test_overhead_of_a_method_is_the_difference():
    model = vit()
    vitrim.reduce(model, "tome", "keep(rate=0.5, at=[1])")
    # Similarity of 8 odd with 9 even tokens, class token included, in 16 channels.
    assert count_flops(model, IMAGES).macs - 2 * closed_form(model).macs == 2 * 8 * 9 * 16


@pytest.mark.parametrize("mask", [None, "keys", "full"])
@pytest.mark.parametrize("grad", [False, True])
def test_attention_counts_the_same_with_masks_and_gradients(mask, grad):
    q, k, v = (torch.randn(2, 3, n, 8, requires_grad=grad) for n in (5, 7, 7))
    bias = {None: None, "keys": torch.zeros(2, 1, 1, 7), "full": torch.zeros(2, 3, 5, 7)}[mask]
    counted = count_flops(F.scaled_dot_product_attention, q, k, v, attn_mask=bias)
    assert counted.macs == 2 * 2 * 3 * 5 * 7 * 8


def test_eager_and_fused_attention_count_the_same():
    fused, eager = vit(), vit()
    for block in eager.blocks:
        block.attn.fused_attn = False
    assert count_flops(fused, IMAGES).flops == count_flops(eager, IMAGES).flops


def test_attention_hidden_in_the_fast_path_is_counted():
    model = TorchvisionViT(32, 8, 2, 2, 32, 64, num_classes=5).eval()
    counted = count_flops(model, torch.randn(1, 3, 32, 32))
    n, width, mlp = 17, 32, 64
    block = 4 * n * width**2 + 2 * n * n * width + 2 * n * width * mlp
    assert counted.macs == 16 * 3 * 64 * width + 2 * block + 5 * width
    assert torch.backends.mha.get_fastpath_enabled()


def test_layers_follow_the_lengths():
    layers = closed_form(vit(), [(17, 17), (17, 9), (9, 9), (9, 5)]).layers
    assert [layer.tokens for layer in layers] == [(17, 17), (17, 9), (9, 9), (9, 5)]
    assert layers[1].attention == layers[0].attention == 4 * 17 * 32**2 + 2 * 17**2 * 32
    assert layers[3].mlp == 2 * 4 * 5 * 32**2
    assert layers[0].macs == layers[0].attention + layers[0].mlp


def test_gated_mlp_counts_all_its_layers():
    model = timm.create_model("vit_small_patch16_dinov3", img_size=32, depth=2, embed_dim=32, num_heads=2, num_classes=5).eval()
    gated = timm.create_model(
        "eva02_tiny_patch14_224", img_size=28, depth=2, embed_dim=32, num_heads=2, num_classes=5, swiglu_mlp=True
    ).eval()
    assert count_flops(model, torch.randn(1, 3, 32, 32)).flops == closed_form(model).flops
    assert count_flops(gated, torch.randn(1, 3, 28, 28)).flops == closed_form(gated).flops


def test_refusals_name_the_remedy():
    with pytest.raises(TypeError, match="count_flops counts any model"):
        closed_form(TorchvisionViT(32, 8, 2, 2, 32, 64, num_classes=5))
    with pytest.raises(ValueError, match="3 lengths for 4 blocks"):
        closed_form(vit(), [(17, 17)] * 3)
    model = vit()
    vitrim.reduce(model, "tome(metric=tokens)", "keep(rate=0.5, at=[1])", site="around:attn")
    with pytest.raises(ValueError, match="count_flops"):
        closed_form(model)


def test_parameters_count_learned_reducers_and_trainable_ones():
    model = vit()
    before = parameters(model)
    for p in model.parameters():
        p.requires_grad_(False)
    vitrim.reduce(model, "dynamicvit", "keep(rate=0.5, at=[1])")
    assert parameters(model) > before
    assert parameters(model, trainable=True) == parameters(model) - before
