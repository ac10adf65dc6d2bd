"""Laws of caches and heads: what holds for every method and family with tokens that cross layers."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from families import DEPTH, FAMILIES, PATCHES, images, make, run
from laws import METHODS, SCHEDULE
from torch import Tensor, nn

import vitrim
from vitrim.core.schedule import START
from vitrim.measure.flops import count_flops

EVERY = [*METHODS, "none"]
CARRIERS = (
    "timm_vit", "timm_deit3", "timm_clip", "timm_avg", "timm_dinov2", "timm_parallel_scaling", "timm_eva02", "timm_dinov3",
    "timm_beit", "timm_beit_shared",
)  # fmt: skip
SOME = ("ats", "tome")  # padding and sizes; the rest of the matrix is heavy


def _pair(family: str, method: str) -> Any:
    common = family == "timm_vit" or method in SOME
    return pytest.param(family, method, id=f"{family}-{method}", marks=() if common else pytest.mark.heavy)


every_pair = pytest.mark.parametrize(("family", "method"), [_pair(f, m) for f in CARRIERS for m in EVERY])
some_pairs = pytest.mark.parametrize(
    ("family", "method"),
    [_pair(f, m) for f in CARRIERS for m in EVERY if f == "timm_vit" or m in SOME],
)
every_method = pytest.mark.parametrize("method", EVERY)
pytestmark = pytest.mark.filterwarnings("ignore:.*cannot remove so many tokens")  # ToMe, at low rates


def carrying(family: str, method: str, schedule: str = SCHEDULE, cache: str = "clc", head: str | None = "cla") -> Any:
    """A fresh model of the family at work; learned parameters are the same each time."""
    model = make(family)
    torch.manual_seed(0)
    vitrim.reduce(model, method, schedule, cache=cache, head=head)
    return model


def lengths_of(model: Any, x: Tensor | None = None) -> tuple[Tensor, list[int]]:
    """The output, and the length of the sequence that left each block."""
    found: list[int] = []

    def note(_module: nn.Module, _inputs: Any, out: Any) -> None:
        found.append((out[0] if isinstance(out, tuple) else out).shape[1])

    handles = [block.register_forward_hook(note) for block in model.reduction.backbone.blocks(model)]
    out = run(model, x)
    for handle in handles:
        handle.remove()
    return out, found


def check_lengths(model: Any, found: list[int]) -> None:
    reduction = model.reduction
    joins = reduction.cache.joins()
    rows = reduction.lengths(PATCHES)
    ragged = any(step.map.valid is not None for step in reduction.trace.values())
    if reduction.site == "after":  # what a block sees is known, what leaves the last one is in the plan alone
        expected = [attention for attention, _ in rows[1:]]
    else:
        expected = [mlp + joins.get(layer, 0) for layer, (_, mlp) in enumerate(rows)]
    for layer, (have, want) in enumerate(zip(found, expected, strict=False)):
        assert have <= want if ragged else have == want, f"block {layer}"


# -- counts ------------------------------------------------------------------------------------------------------------


@every_pair
def test_lengths_are_as_planned(family: str, method: str) -> None:
    model = carrying(family, method)
    with torch.no_grad():
        out, found = lengths_of(model)
    assert out.shape == (len(images()), 7)
    assert torch.isfinite(out).all()
    check_lengths(model, found)


SCHEDULES = [
    "keep(rate=0.7, at=[0, 3])", "keep(rate=0.7, at=[1, 3])", "keep(rate=0.5, at=[2])", "share(rate=0.6, at=[1, 2])",
    "share(rate=[0.9, 0.5], at=[0, 2])", "r(n=5)", "r(n=12, inflect=-1)", "counts(tokens=[9, 20], at=[1, 2])",
]  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@every_method
def test_schedules(method: str, schedule: str) -> None:
    if method == "kmedoids" and (schedule.startswith("r(") or "at=[0" in schedule):
        pytest.skip("reads the attention of the block before the reducing one")
    model = carrying("timm_vit", method, schedule)
    with torch.no_grad():
        out, found = lengths_of(model)
    assert torch.isfinite(out).all()
    check_lengths(model, found)


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("cache", ["clc", "clc(protect=true)", "clc(num_clr=0)"])
@pytest.mark.parametrize(
    "schedule", ["keep(rate=0.02, at=[1, 2], least=0)", "keep(rate=0.02, at=[1, 2])", "share(rate=0.02, at=[1, 2])"]
)
@every_method
def test_extreme_rates_give_numbers(method: str, schedule: str, cache: str, train: bool) -> None:
    model = carrying("timm_vit", method, schedule, cache).train(train)
    out, found = lengths_of(model)
    assert torch.isfinite(out).all()
    if not train:
        check_lengths(model, found)


@pytest.mark.parametrize("method", ["topk", "sit", "patchmerger", "dynamicvit"])
def test_the_published_mean_of_nothing(method: str) -> None:
    """With ``compat=official`` the mean of no token is no number, which the law above would not notice otherwise."""
    schedule = "keep(rate=0.02, at=[1, 2], least=0)"
    with torch.no_grad():
        assert run(carrying("timm_vit", method, schedule, "clc(compat=official)")).isnan().all()
        assert run(carrying("timm_vit", method, schedule)).isfinite().all()


OPTIONS = {
    "clc(recover=never)": {START: 1},
    "clc(recover=reductions)": {START: 1, 1: 2},
    "clc": {START: 1, 1: 2, 2: 2},
    "clc(num_clr=0)": {1: 1, 2: 1},
    "clc(num_clr=3)": {START: 3, 1: 4, 2: 4},
    "clc(gap=false)": {START: 1, 1: 1, 2: 1},
    "clc(pool_cls=true, pool_clr=true)": {START: 1, 1: 2, 2: 2},
    "clc(num_clr=3, protect=true)": {START: 3, 1: 4, 2: 4},
}


@pytest.mark.parametrize("cache", list(OPTIONS))
@every_method
def test_options(method: str, cache: str) -> None:
    model = carrying("timm_dinov2", method, "keep(rate=0.5, at=[1])", cache)
    assert model.reduction.cache.joins() == OPTIONS[cache]
    with torch.no_grad():
        out, found = lengths_of(model)
    assert torch.isfinite(out).all()
    check_lengths(model, found)


@every_method
def test_what_share_counts(method: str) -> None:
    """Of the tokens that reach a location, those that joined included."""
    model = carrying("timm_vit", method, "share(rate=0.5, at=[1, 3])")
    protected = carrying("timm_vit", method, "share(rate=0.5, at=[1, 3])", "clc(protect=true)")
    plan = model.reduction.plan(PATCHES)
    if method == "topk":  # 37 -> 19, and then 2 join at block 1 and 2 at block 2
        assert plan == {1: 19, 3: 12}
        assert protected.reduction.plan(PATCHES) == {1: 18, 3: 9}
    if method == "evit":
        assert plan == {1: 20, 3: 13}
    assert all(count > 0 for count in plan.values())


# -- the backbone --------------------------------------------------------------------------------------------------------


@every_pair
def test_detach_gives_the_dense_model_back(family: str, method: str) -> None:
    model = make(family)
    next(model.parameters()).requires_grad_(False)
    wanted = [p.requires_grad for p in model.parameters()]
    keys = list(model.state_dict())
    with torch.no_grad():
        dense = run(model)
        reduction = vitrim.reduce(model, method, SCHEDULE, cache="clc", head="cla")
        added = [k for k in model.state_dict() if k not in keys]
        assert [k for k in model.state_dict() if k in keys] == keys
        assert all(k.startswith("reduction.") for k in added)
        assert not torch.equal(run(model), dense)
        assert not model.head.weight.requires_grad
        reduction.detach()
        assert torch.equal(run(model), dense)
    assert not hasattr(model, "reduction")
    assert [p.requires_grad for p in model.parameters()] == wanted


@some_pairs
def test_copies_are_independent(family: str, method: str) -> None:
    model = carrying(family, method).train()
    run(model).square().mean().backward()  # a copy in the middle of training, as averages of weights make it
    model.eval()
    with torch.no_grad():
        before = run(model)
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert torch.equal(run(twin), before)
            for parameter in twin.parameters():
                parameter.zero_()
            assert torch.equal(run(model), before)
            twin.reduction.detach()
            assert torch.equal(run(model), before)


def test_a_copy_right_after_a_step_of_training() -> None:
    model = carrying("timm_vit", "tome").train()
    run(model).square().mean().backward()
    twin = copy.deepcopy(model)
    assert torch.equal(twin.reduction.cache.clr, model.reduction.cache.clr)


@every_pair
def test_weights_survive_a_round_trip(family: str, method: str) -> None:
    model, other = carrying(family, method), carrying(family, method)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.add_(0.1)
        other.load_state_dict(model.state_dict())
        assert torch.equal(run(other), run(model))


@pytest.mark.parametrize("family", CARRIERS)
def test_counting_flops(family: str) -> None:
    """The counter tracks modules and their gradients; it must not change the answer, nor stumble over the carriers."""
    model = carrying(family, "evit")
    plain = make(family)
    vitrim.reduce(plain, "evit", SCHEDULE)
    with torch.no_grad():
        assert count_flops(model, images(1)).flops > count_flops(plain, images(1)).flops


@every_method
def test_trace_and_intermediate_features(method: str) -> None:
    model = carrying("timm_vit", method)
    with torch.no_grad():
        features = model.forward_intermediates(images(), intermediates_only=True)
        assert [f.shape for f in features] == [(3, 32, 6, 6)] * DEPTH
        total = model.reduction.trace.total
        plain = carrying("timm_vit", method, cache="none")
        plain_features = plain.forward_intermediates(images(), intermediates_only=True)
        assert [f.shape for f in plain_features] == [f.shape for f in features]
    if method == "none":
        assert total is None
        return
    joined = model.reduction.cache.joins()
    late = sum(count for at, count in joined.items() if at >= max(model.reduction.trace))
    # From the tokens of the dense model to the last ones; those that joined stand for no patch.
    assert total.n == PATCHES + 1
    final = model.reduction.final
    assert total.m in (final.n, final.n - late)
    assert torch.isfinite(total.lift(torch.randn(3, total.m, 4))).all()


@pytest.mark.parametrize("method", ["topk", "tome", "evit", "none"])
def test_intermediate_features_lie_where_their_tokens_do(method: str) -> None:
    """A kept token's feature comes back at its own place; nothing comes back from tokens that joined."""
    model = carrying("timm_vit", method, "counts(tokens=[36, 20], at=[1, 2])", "clc(protect=true)", None)
    outputs: list[Tensor] = []
    model.blocks[1].register_forward_hook(lambda _m, _i, out: outputs.append(out))
    with torch.no_grad():
        features = model.forward_intermediates(images(), indices=[1], intermediates_only=True)[0]
    # After block 1 all patches are left, in order.
    wanted = outputs[0][:, 1 : PATCHES + 1].transpose(1, 2).reshape(3, 32, 6, 6)
    assert torch.equal(features, wanted)


# -- gradients -----------------------------------------------------------------------------------------------------------


def _loss(model: nn.Module, x: Tensor) -> Tensor:
    torch.manual_seed(3)
    return run(model, x).float().square().mean()


@every_pair
def test_gradients_reach_carriers_head_and_inputs(family: str, method: str) -> None:
    model = carrying(family, method).train()
    x = images().clone().requires_grad_()
    _loss(model, x).backward()
    assert x.grad is not None
    assert torch.isfinite(x.grad).all()
    assert x.grad.abs().sum() > 0
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and name.startswith(("reduction.cache", "reduction.head")):
            assert parameter.grad is not None, name
            assert torch.isfinite(parameter.grad).all(), name
    assert model.reduction.cache.clr.grad.abs().sum() > 0
    assert model.reduction.head.classifier.weight.grad.abs().sum() > 0
    missing = [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert not [n for n in missing if n.startswith(("norm.", "head.", "fc_norm."))], "an idle head asks for gradients"


@some_pairs
def test_checkpointing_changes_nothing(family: str, method: str) -> None:
    plain = carrying(family, method).train()
    saving = copy.deepcopy(plain)
    saving.set_grad_checkpointing()
    x, y = images().clone().requires_grad_(), images().clone().requires_grad_()
    one, two = _loss(plain, x), _loss(saving, y)
    torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-7)
    one.backward()
    two.backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-7)
    for (name, p), q in zip(plain.named_parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")


# -- numbers -------------------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # torch, of the RMS norm of a block
@some_pairs
def test_half_precision_is_finite(family: str, method: str) -> None:
    model = carrying(family, method)
    with torch.no_grad():
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.isfinite(run(model)).all()
        out = run(model.to(torch.bfloat16), images().to(torch.bfloat16))
    assert out.dtype == torch.bfloat16
    assert torch.isfinite(out).all()


@every_pair
def test_a_sample_does_not_depend_on_its_neighbours(family: str, method: str) -> None:
    model = carrying(family, method)
    with torch.no_grad():
        together = run(model)
        alone = torch.cat([run(model, x.unsqueeze(0)) for x in images()])
        turned = run(model, images().flip(0)).flip(0)
        assert torch.equal(run(model), together)
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=2e-5)
    torch.testing.assert_close(turned, together, rtol=1e-4, atol=2e-5)


def test_the_published_mean_depends_on_neighbours() -> None:
    """Otherwise the law above would say nothing about padding: with it in the mean, as published, images mix."""
    model = carrying("timm_vit", "ats", cache="clc(compat=official)")
    with torch.no_grad():
        together = run(model)
        alone = torch.cat([run(model, x.unsqueeze(0)) for x in images()])
    assert (alone - together).abs().max() > 1e-4


QUICK = ("topk", "tome")
traced_methods = pytest.mark.parametrize(
    "method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.heavy) for m in EVERY]
)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@traced_methods
def test_compile_without_graph_breaks(method: str) -> None:
    model = carrying("timm_vit", method)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = run(model)
        torch.testing.assert_close(run(compiled), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run(compiled), expected, rtol=1e-4, atol=1e-5)  # again, with guards


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
@traced_methods
def test_export(method: str) -> None:
    model = carrying("timm_vit", method)
    with torch.no_grad():
        expected = run(model)
        exported = torch.export.export(model, (images(),), strict=False)
        torch.testing.assert_close(exported.module()(images()), expected, rtol=1e-4, atol=1e-5)


# -- protection ----------------------------------------------------------------------------------------------------------


@every_pair
def test_protected_tokens_survive_every_stage(family: str, method: str) -> None:
    model = carrying(family, method, cache="clc(num_clr=2, protect=true)")
    with torch.no_grad():
        run(model)
    count, joins = 0, model.reduction.cache.joins()
    for layer in range(START, DEPTH):
        step = model.reduction.trace.get(layer)
        if step is not None:
            assert count > 0
            rows = step.map.dense()
            eye = torch.eye(count).expand(len(rows), -1, -1)
            assert torch.equal(rows[:, -count:, -count:], eye)
            assert (rows[:, :-count, -count:] == 0).all()
            assert (rows[:, -count:, :-count] == 0).all()
            assert step.map.valid is None or step.map.valid[:, -count:].all()
        count += joins.get(layer, 0)
    bare = make(family)
    vitrim.reduce(bare, method, SCHEDULE)
    assert model.reduction.plan(PATCHES) == bare.reduction.plan(PATCHES), "protected tokens are none of the schedule's"


# DPC-KNN leaves joined tokens alone, as published; K-Medoids reads an attention that has not seen them; fixed counts patches.
CANDIDATES = [m for m in METHODS if m not in ("dpcknn", "kmedoids", "fixed")]


@pytest.mark.parametrize("method", CANDIDATES)
def test_unprotected_tokens_are_candidates(method: str) -> None:
    """The counterpart, as published: with one token to be left of all, the carrier goes like any other."""
    model = carrying("timm_vit", method, "counts(tokens=[3, 1], at=[1, 2])", head=None)
    with torch.no_grad():
        run(model)
    trace = model.reduction.trace
    if method != "tome":  # that halves at most
        assert trace[2].map.n > trace[2].map.m
    rows = trace[1].map.dense()
    assert not torch.equal(rows[:, -1:, -1:], torch.ones(len(rows), 1, 1))


# -- refusals ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options", "message"),
    [
        ("timm_siglip", {"cache": "clc"}, r"carriers start as copies of the class token, .* use clc\(num_clr=0\)"),
        ("timm_siglip", {"head": "cla"}, "cla reads the class token, which this model does not have"),
        ("timm_vit", {"cache": "clc", "site": "around:attn"}, "not around a sub-module"),
        ("timm_vit", {"head": "cla", "site": "around:attn"}, "not around a sub-module"),
        ("timm_vit", {"cache": "clc(num_clr=0, gap=false)"}, "there is nothing to cache; set num_clr=1 or more"),
        ("timm_vit", {"cache": "clc(num_clr=0, recover=never)"}, "there is nothing to cache"),
        ("timm_vit", {"cache": "clc(num_clr=-1)"}, "num_clr is a number of tokens, 0 or more; got -1"),
        ("timm_vit", {"cache": "clc(recover=last)"}, "recover must be one of all, reductions, never; got 'last'"),
        ("timm_vit", {"cache": "clc(compat=old)"}, "compat must be paper or official; got 'old'"),
        ("timm_vit", {"cache": "clc(clr=1)"}, "clc has no setting 'clr'"),
        ("timm_vit", {"cache": "clk"}, "unknown cache 'clk'; did you mean 'clc'"),
        ("timm_vit", {"head": "cla(groups=-1)"}, "groups is a number of outputs per channel, 0 or more; got -1"),
        ("timm_vit", {"head": "clb"}, "unknown head 'clb'; did you mean 'cla'"),
        ("torchvision_vit", {"head": "cla"}, "this model has none|needs a model of timm"),
        ("open_clip_vit", {"head": "cla"}, "this model has none|needs a model of timm"),
        ("hf_vit", {"cache": "clc"}, r"carriers start as copies of the class token, .* use clc\(num_clr=0\)"),
    ],
)
def test_refusals(family: str, options: dict[str, str], message: str) -> None:
    if family not in FAMILIES:
        pytest.skip("library not installed")
    model = make(family)
    with torch.no_grad():
        dense = run(model)
        with pytest.raises(vitrim.SpecError, match=message):
            vitrim.reduce(getattr(model, "visual", model), "tome", SCHEDULE, **options)
        assert not hasattr(model, "reduction")
        assert torch.equal(run(model), dense)


def test_a_model_without_a_classifier() -> None:
    model: Any = make("timm_vit")
    model.reset_classifier(0)
    with pytest.raises(vitrim.SpecError, match=r"cla replaces a classifier, and this model has none; create it with num_classes"):
        vitrim.reduce(model, "tome", SCHEDULE, head="cla")


def test_recovery_without_reductions() -> None:
    model = make("timm_vit")
    with pytest.raises(vitrim.SpecError, match="recover=reductions needs a schedule with blocks that reduce"):
        vitrim.reduce(model, "tome", "r(n=0)", cache="clc(recover=reductions)")
    reduction = vitrim.reduce(model, "tome", "r(n=0)", cache="clc")  # once, after the last block but one
    assert reduction.cache is not None
    assert reduction.cache.joins() == {START: 1, DEPTH - 2: 2 * (DEPTH - 2)}
    with torch.no_grad():
        assert torch.isfinite(run(model)).all()


def test_training_the_head_wants_two_images() -> None:
    model = carrying("timm_vit", "tome").train()
    with pytest.raises(ValueError, match="train with batches of two images or more"):
        run(model, images(1))
    carrying("timm_vit", "tome", head="cla(groups=0)").train()(images(1)).sum().backward()


# -- other libraries -----------------------------------------------------------------------------------------------------

OTHERS = [name for name, family in FAMILIES.items() if family.library not in ("timm",)]


@pytest.mark.parametrize("name", OTHERS)
def test_other_libraries(name: str) -> None:
    model: Any = make(name)
    part = getattr(model, "visual", model)
    reduction = vitrim.reduce(part, "tome", SCHEDULE, cache="clc(num_clr=0)")
    with torch.no_grad():
        assert torch.isfinite(run(model)).all()
        assert reduction.final is not None
        assert reduction.final.n == reduction.lengths(PATCHES)[-1][1]
        reduction.detach()
        run(model)
