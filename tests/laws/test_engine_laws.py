"""Laws of the engine: identity, detaching, state dict, copies."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch
from families import FAMILIES, make, run
from laws import METHODS, SCHEDULE, every_family, every_method, every_pair, pairs, reduced_model, traced
from torch import Tensor

import vitrim
from vitrim.core.schedule import Course


@every_pair
def test_identity_without_stages(family: str, method: str) -> None:
    model = make(family)
    with torch.no_grad():
        dense = run(model)
        reduction = vitrim.reduce(model, method, "r(n=0)")
        assert torch.equal(run(model), dense)
    assert len(reduction.trace) == 0
    assert reduction.trace.total is None


# Merging methods may reorder the tokens, soft ones mix them, and ATS samples: only these promise identity.
PRUNE = [m for m in METHODS if vitrim.describe(m).family == "prune" and m != "ats"]


class KeepAll(vitrim.Scorer):
    """A stage that is at work and removes nothing; registered methods leave such stages out of their plan."""

    spec_name = "keep_all"
    needs = ("attention",)

    def plan(self, course: Course) -> dict[int, int]:
        return dict(course)

    def score(self, t: vitrim.Tokens) -> Tensor:
        return t.class_attention().mean(dim=1)[:, t.prefix :]


@every_family
def test_identity_when_all_tokens_are_kept(family: str) -> None:
    model = make(family)
    dense = run(model)
    with torch.no_grad():
        fast = run(model)
    reduction = vitrim.reduce(model, KeepAll(), "keep(rate=1.0, at=[1, 2])")
    assert torch.equal(run(model), dense)
    assert list(reduction.trace) == [1, 2]
    with torch.no_grad():
        torch.testing.assert_close(run(model), fast, rtol=0, atol=0 if FAMILIES[family].exact else 1e-5)


@pairs(list(FAMILIES), PRUNE)
def test_identity_when_the_schedule_keeps_all(family: str, method: str) -> None:
    model = make(family)
    dense = run(model)
    vitrim.reduce(model, method, "keep(rate=1.0, at=[1, 2])")
    assert torch.equal(run(model), dense)


@every_pair
def test_detach_gives_the_dense_model_back(family: str, method: str) -> None:
    model = make(family)
    with torch.no_grad():
        dense = run(model)
        instance = {n: set(m.__dict__) for n, m in model.named_modules()}
        reduction = vitrim.reduce(model, method, SCHEDULE)
        assert not torch.equal(run(model), dense)
        reduction.detach()
        assert torch.equal(run(model), dense)
    assert not hasattr(model, "reduction")
    assert {n: set(m.__dict__) for n, m in model.named_modules()} == instance


@every_pair
def test_state_dict_keys_of_the_backbone_stay(family: str, method: str) -> None:
    model = make(family)
    keys, weights = list(model.state_dict()), model.state_dict()
    vitrim.reduce(model, method, SCHEDULE)
    added = [k for k in model.state_dict() if k not in keys]
    assert [k for k in model.state_dict() if k in keys] == keys
    assert all(k.startswith("reduction.") for k in added)
    assert bool(added) == ("parameters" in vitrim.describe(method).needs)
    answer = model.load_state_dict(weights, strict=False)  # a dense checkpoint loads
    assert answer.missing_keys == added
    assert not answer.unexpected_keys


@every_pair
def test_deepcopy_is_independent(family: str, method: str) -> None:
    model = reduced_model(family, method)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        before = run(model)
        assert torch.equal(run(twin), before)
        assert torch.equal(before, traced(family, method).output)
        for parameter in twin.parameters():
            parameter.zero_()
        assert torch.equal(run(model), before)
        assert not torch.equal(run(twin), before)
    twin.reduction.detach()  # pyright: ignore
    assert not hasattr(twin, "reduction")
    with torch.no_grad():
        assert torch.equal(run(model), before)


@every_pair
def test_pickle_round_trip(family: str, method: str) -> None:
    model = reduced_model(family, method)
    twin = pickle.loads(pickle.dumps(model))
    with torch.no_grad():
        assert torch.equal(run(twin), run(model))
        assert list(twin.reduction.trace) == list(model.reduction.trace)  # pyright: ignore
        twin.reduction.detach()
        assert torch.equal(run(twin), run(make(family)))


@every_family
def test_layout(family: str) -> None:
    model = make(family)
    layout = vitrim.reduce(model, "topk", "r(n=0)").layout
    facts = FAMILIES[family]
    assert (layout.prefix, layout.cls, layout.dim) == (facts.prefix, facts.cls, 32)
    assert layout.grid == (6, 6)


@every_family
def test_site(family: str) -> None:
    reduction = vitrim.reduce(make(family), "topk", SCHEDULE)
    assert reduction.site == ("inside" if FAMILIES[family].halves else "after")


@every_method
def test_reading_attention_before_the_first_block_is_refused(method: str) -> None:
    model = make("timm_vit")
    if "attention" not in vitrim.describe(method).needs:
        reduction = vitrim.reduce(model, method, "keep(rate=0.5, at=[0, 1])", site="before")
        run(model)
        assert list(reduction.trace) == list(reduction.plan(36))
        return
    with pytest.raises(vitrim.SpecError, match="reads the attention of the block before; block 0 has none: start at block 1"):
        vitrim.reduce(model, method, "keep(rate=0.5, at=[0, 1])", site="before")
    assert not hasattr(model, "reduction")
