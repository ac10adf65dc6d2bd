"""The engine on one model: public surface, sites, trace, refusals."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitrim
from vitrim import Scorer, SpecError, TokenMap, Tokens
from vitrim.core.backbone import Backbone, Layout

timm = pytest.importorskip("timm")
SCHEDULE = "keep(rate=0.5, at=[1, 2])"


@pytest.fixture
def model() -> Any:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    return timm.models.VisionTransformer(
        img_size=48, patch_size=8, embed_dim=32, depth=4, num_heads=4, num_classes=5, init_values=1.0
    ).eval()


@pytest.fixture
def x() -> Tensor:
    return torch.randn(2, 3, 48, 48, generator=torch.Generator().manual_seed(1))


def test_trace(model: Any, x: Tensor) -> None:
    reduction = vitrim.reduce(model, "tome", "r(n=5)")
    assert model.reduction is reduction
    assert len(reduction.trace) == 0, "nothing has run yet"
    model(x)
    trace = reduction.trace
    assert list(trace) == [0, 1, 2, 3]
    assert [step.map.n for step in trace.values()] == [37, 32, 27, 22]
    assert [step.map.m for step in trace.values()] == [32, 27, 22, 17]
    assert all(step.policy is None for step in trace.values())
    assert trace[3].size.sum(dim=1).tolist() == [37, 37]
    total, first = trace.total, trace.upto(0)
    assert total is not None
    assert (total.n, total.m) == (37, 17)
    assert first is not None
    assert torch.equal(first.dense(), trace[0].map.dense())
    patches = trace.patches()
    assert patches is not None
    assert (patches.n, patches.m) == (36, 16)
    assert trace.upto(-1) is None
    assert reduction.plan(36) == {0: 31, 1: 26, 2: 21, 3: 16}
    assert reduction.lengths(36) == [(37, 32), (32, 27), (27, 22), (22, 17)]


def test_trace_is_overwritten_by_the_next_pass(model: Any, x: Tensor) -> None:
    reduction = vitrim.reduce(model, "topk", SCHEDULE)
    model(x)
    before = reduction.trace[1].map
    model.forward_features(x.flip(0))
    assert list(reduction.trace) == [1, 2]
    assert torch.equal(reduction.trace[1].map.dense(), before.dense().flip(0))


def test_other_image_sizes(x: Tensor) -> None:
    model = timm.models.VisionTransformer(
        img_size=48, patch_size=8, embed_dim=32, depth=4, num_heads=4, dynamic_img_size=True
    ).eval()
    reduction = vitrim.reduce(model, "topk", SCHEDULE)
    model(x)
    model(torch.randn(2, 3, 64, 80))
    assert [s.map.m - 1 for s in reduction.trace.values()] == [40, 20]
    model(x)
    assert [s.map.m - 1 for s in reduction.trace.values()] == [18, 9]


def test_context_manager(model: Any, x: Tensor) -> None:
    dense = model(x)
    with vitrim.reduced(model, "topk", SCHEDULE) as reduction:
        assert not torch.equal(model(x), dense)
        assert list(reduction.trace) == [1, 2]
    assert torch.equal(model(x), dense)
    with pytest.raises(ZeroDivisionError), vitrim.reduced(model, "topk", SCHEDULE):
        raise ZeroDivisionError
    assert not hasattr(model, "reduction")


def test_one_reduction_at_a_time(model: Any) -> None:
    vitrim.reduce(model, "topk", SCHEDULE)
    with pytest.raises(ValueError, match=r"reduced already; call model.reduction.detach\(\) first"):
        vitrim.reduce(model, "tome", SCHEDULE)
    model.reduction.detach()
    vitrim.reduce(model, "tome", SCHEDULE).detach()


def test_an_attribute_of_that_name(model: Any) -> None:
    model.reduction = "mean"
    with pytest.raises(ValueError, match="has an attribute 'reduction' of its own; wrap the model"):
        vitrim.reduce(model, "topk", SCHEDULE)


def test_attention_without_the_fused_kernel(model: Any, x: Tensor) -> None:
    for block in model.blocks:
        block.attn.fused_attn = False
    vitrim.reduce(model, "topk", SCHEDULE)
    with pytest.raises(RuntimeError, match=r"no call of scaled_dot_product_attention was seen in timm.*Block; .*fused_attn=True"):
        model(x)


@pytest.mark.parametrize(
    ("site", "message"),
    [
        ("between", "unknown site 'between'; it is before, inside, after or around:NAME"),
        ("inside:attn", "unknown site 'inside:attn'"),
        ("around", "site 'around' needs the name of a sub-module of the blocks, as in around:attn"),
        ("around:atn", "Block has no sub-module 'atn'; it has: norm1, attn, "),
    ],
)
def test_unknown_sites(model: Any, site: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        vitrim.reduce(model, "tome(metric=tokens)", SCHEDULE, site=site)
    assert not hasattr(model, "reduction")


def test_refused_specs_leave_the_model_alone(model: Any, x: Tensor) -> None:
    dense = model(x)
    with pytest.raises(SpecError, match="unknown method"):
        vitrim.reduce(model, "nothing", SCHEDULE)
    with pytest.raises(ValueError, match="block 9 does not exist: the model has 4 blocks"):
        vitrim.reduce(model, "topk", "keep(rate=0.5, at=[9])")
    with pytest.raises(SpecError, match="block 0 has none: start at block 1"):
        vitrim.reduce(model, "kmedoids", "keep(rate=0.5, at=[0])")
    with pytest.raises(SpecError, match="not there yet around a module; use metric=tokens"):
        vitrim.reduce(model, "tome", SCHEDULE, site="around:attn")
    with pytest.raises(TypeError, match="method must be a spec or a Reducer, got int"):
        vitrim.reduce(model, 3, SCHEDULE)  # pyright: ignore
    with pytest.raises(TypeError, match="schedule must be a spec or a Schedule, got float"):
        vitrim.reduce(model, "topk", 0.5)  # pyright: ignore
    assert torch.equal(model(x), dense)


def test_around_attention(model: Any, x: Tensor) -> None:
    lengths: list[int] = []
    dense = model(x)
    model.blocks[1].attn.register_forward_hook(lambda m, i, o: lengths.append(o.shape[1]))
    model.blocks[1].register_forward_hook(lambda m, i, o: lengths.append(o.shape[1]))
    model.blocks[1].attn.qkv.register_forward_hook(lambda m, i, o: lengths.append(o.shape[1]))
    reduction = vitrim.reduce(model, "tome(metric=tokens)", "keep(rate=0.5, at=[1])", site="around:attn")
    out = model(x)
    assert out.shape == dense.shape
    assert not torch.equal(out, dense)
    seen = reduction.plan(36)[1] + 1
    assert lengths == [seen, 37, 37], "fewer tokens inside, all of them outside"
    assert reduction.trace[1].map.n == 37
    reduction.detach()
    assert torch.equal(model(x), dense)


@pytest.mark.parametrize("site", ["before", "inside", "after"])
def test_sites(model: Any, x: Tensor, site: str) -> None:
    seen: list[tuple[int, int]] = []
    for block in model.blocks:
        block.attn.qkv.register_forward_hook(lambda m, i, o: seen.append((o.shape[1], 0)))
        block.mlp.register_forward_hook(lambda m, i, o: seen.append((seen.pop()[0], o.shape[1])))
    reduction = vitrim.reduce(model, "tome(metric=tokens)", SCHEDULE, site=site)
    model(x)
    assert reduction.site == site
    assert seen == reduction.lengths(36)


def test_a_method_of_ones_own(model: Any, x: Tensor) -> None:
    class Loudest(Scorer):
        """Keep the largest tokens."""

        spec_name = "loudest"

        def score(self, t: Tokens) -> Tensor:
            assert t.layer in (1, 2)
            assert (t.depth, t.prefix, t.cls, t.grid) == (4, 1, 0, (6, 6))
            assert t.origin.n == 37
            assert t.origin.m == t.x.shape[1]
            return t.patches.norm(dim=-1)

    reduction = vitrim.reduce(model, Loudest(), SCHEDULE)
    model(x)
    assert repr(reduction).startswith("Reduction(\n  loudest, keep(at=[1, 2]), site=inside")
    assert isinstance(reduction.trace[1].map, TokenMap)
    copy.deepcopy(model)(x)


def test_a_backbone_of_ones_own(x: Tensor) -> None:
    class Tower(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Conv2d(3, 32, 8, 8)
            self.one, self.two = (timm.models.vision_transformer.Block(32, 4) for _ in range(2))

        def forward(self, x: Tensor) -> Tensor:
            return self.two(self.one(self.embed(x).flatten(2).transpose(1, 2))).mean(dim=1)

    class Mine(Backbone):
        def blocks(self, model: Any) -> list[nn.Module]:
            return [model.one, model.two]

        def layout(self, model: Any) -> Layout:
            return Layout(0, None, None, 32)

    tower = Tower()
    with pytest.raises(TypeError, match="Tower is no model that vitrim knows"):
        vitrim.reduce(tower, "topk", "keep(rate=0.5, at=[0])")
    reduction = vitrim.reduce(tower, "topk", "keep(rate=0.5, at=[0])", backbone=Mine())
    tower(x)
    assert reduction.site == "after"
    assert reduction.trace[0].map.m == 18


def test_blocks_out_of_order(model: Any, x: Tensor) -> None:
    vitrim.reduce(model, "topk", SCHEDULE)
    with pytest.raises(RuntimeError, match="block 2 was run without block 1 before it; run the model from its first block"):
        model.blocks[2](torch.randn(2, 37, 32))
    model(x)
    with pytest.raises(RuntimeError, match="block 3 got 37 tokens where block 2 left 10"):
        model.blocks[3](torch.randn(2, 37, 32))


def test_train_and_eval_reach_the_reduction(model: Any) -> None:
    reduction = vitrim.reduce(model, "dynamicvit", SCHEDULE)
    assert not reduction.training
    model.train()
    assert all(stage.training for stage in reduction.stages)
    assert {n.split(".")[0] for n, _ in reduction.named_parameters()} == {"stages"}


def test_mask_based_training_keeps_all_tokens(model: Any, x: Tensor) -> None:
    reduction = vitrim.reduce(model.train(), "dynamicvit", SCHEDULE)
    model(x)
    for step in reduction.trace.values():
        assert step.policy is not None
        assert step.policy.shape == (2, 37)
        assert (step.policy[:, 0] == 1).all()
        assert step.map.m == 37
    one, two = (s.policy for s in reduction.trace.values())
    assert one is not None
    assert two is not None
    assert (two <= one).all(), "what was dropped stays dropped"


def test_the_public_names() -> None:
    assert set(vitrim.__all__) <= set(dir(vitrim))
    assert all(getattr(vitrim, name) is not None for name in vitrim.__all__)
    with pytest.raises(AttributeError, match="module 'vitrim' has no attribute 'nothing'"):
        _ = vitrim.nothing  # pyright: ignore


@pytest.mark.parametrize("schedule", ["keep(rate=[0.6, 0.6], at=[1, 2])", "counts([20, 20], at=[1, 2])", "r(n=15)"])
def test_around_starts_from_all_tokens_at_every_block(model: Any, x: Tensor, schedule: str) -> None:
    reduction = vitrim.reduce(model, "tome(metric=tokens)", schedule, site="around:attn")
    with torch.no_grad():
        model(x)
    for block, step in reduction.trace.items():
        assert step.map.n == 37
        assert step.map.m == reduction.plan(36)[block] + 1
    assert len(reduction.trace) >= 2


def test_checkpointing_refuses_a_pass_that_is_not_the_last(model: Any, x: Tensor) -> None:
    """Two passes, then one backward: recomputed blocks would read the sizes of the other images."""
    model.train()
    model.set_grad_checkpointing()
    vitrim.reduce(model, "tome", SCHEDULE)
    first, _ = model(x), model(x.flip(0))
    with pytest.raises(RuntimeError, match="run backward before the next forward pass"):
        first.sum().backward()


def test_checkpointing_of_several_blocks_at_once(model: Any, x: Tensor) -> None:
    from torch.utils.checkpoint import checkpoint

    model.train()
    vitrim.reduce(model, "tome", SCHEDULE)
    tokens = model._pos_embed(model.patch_embed(x))
    plain = torch.autograd.grad(model.blocks(tokens).sum(), model.blocks[0].attn.qkv.weight)[0]
    tokens = model._pos_embed(model.patch_embed(x))
    saved = torch.autograd.grad(checkpoint(model.blocks, tokens, use_reentrant=False).sum(), model.blocks[0].attn.qkv.weight)[0]
    torch.testing.assert_close(plain, saved)


def test_parameters_for_another_number_of_patches_are_refused() -> None:
    model = timm.models.VisionTransformer(
        img_size=32, patch_size=8, embed_dim=16, depth=2, num_heads=2, num_classes=3, dynamic_img_size=True
    ).eval()
    vitrim.reduce(model, "sit", "keep(rate=0.5, at=[1])")
    assert model(torch.randn(1, 3, 32, 32)).shape == (1, 3)
    with pytest.raises(ValueError, match="inputs of 16 patches; this one has 36"):
        model(torch.randn(1, 3, 48, 48))


def test_a_reducer_without_a_name(model: Any, x: Tensor) -> None:
    class Longest(Scorer):
        def score(self, t: Tokens) -> Tensor:
            return t.patches.norm(dim=-1)

    reduction = vitrim.reduce(model, Longest(), SCHEDULE)
    assert model(x).shape == (2, 5)
    assert "Longest" in repr(reduction)
