"""Parameter groups against the counts of the official code and timm's layer-wise rates; optimizers by name."""

from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import nn

import vitrim
from vitrim.core.registry import SpecError
from vitrim.training.optim import build_optimizer, drop_frozen, is_new, parameter_groups, read_optimizer, scaled_lr

DEIT = "deit_tiny_patch16_224"


def counts(model: nn.Module) -> tuple[int, ...]:
    groups = {g["name"]: len(g["params"]) for g in parameter_groups(model, lr=1e-3)}
    return tuple(groups[n] for n in ("new", "new-no-decay", "backbone", "backbone-no-decay"))


@pytest.mark.parametrize(
    ("method", "wanted"),
    [
        ("topk", (2, 3, 48, 99)),
        ("kmedoids", (2, 3, 48, 99)),
        ("dynamicvit", (14, 21, 48, 99)),
        ("dpcknn", (5, 6, 48, 99)),
        ("sinkhorn", (5, 3, 48, 99)),
        ("patchmerger", (5, 9, 48, 99)),
        ("sit", (11, 15, 48, 99)),
    ],
)
def test_published_tensor_counts(method: str, wanted: tuple[int, ...]) -> None:
    model = timm.create_model(DEIT)
    vitrim.reduce(model, method, "keep(rate=0.7, at=[3, 6, 9])")
    assert counts(model) == wanted


def tiny(**settings: object) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", img_size=32, embed_dim=12, num_heads=2, depth=3, num_classes=4, **settings)


def by_name(groups: list[dict]) -> dict[str, dict]:
    return {name: group for group in groups for name in group["param_names"]}


def test_rates_decay_and_freezing_of_each_kind() -> None:
    groups = by_name(
        parameter_groups(tiny(), lr=0.1, weight_decay=0.3, backbone_lr_scale=0.5, freeze_epochs=4, no_decay=["qkv.weight"])
    )
    kinds = {
        "head.weight": (0.1, 0.3, 0),
        "head.bias": (0.1, 0.0, 0),
        "pos_embed": (0.1, 0.0, 0),
        "patch_embed.proj.weight": (0.1, 0.3, 0),
        "cls_token": (0.05, 0.0, 4),
        "norm.weight": (0.05, 0.0, 4),
        "blocks.1.attn.proj.weight": (0.05, 0.3, 4),
    }
    assert {n: (groups[n]["lr"], groups[n]["weight_decay"], groups[n]["freeze_epochs"]) for n in kinds} == kinds


def test_every_trainable_parameter_once() -> None:
    model = tiny()
    model.blocks[0].requires_grad_(False)
    groups = parameter_groups(model, lr=0.1, constant_cls=True, constant_pos=True, new_names=["blocks.2"])
    left = {n for n, p in model.named_parameters() if p.requires_grad} - {"cls_token", "pos_embed"}
    assert sorted(n for g in groups for n in g["param_names"]) == sorted(left)
    assert all(model.get_parameter(n) is p for g in groups for n, p in zip(g["param_names"], g["params"], strict=True))
    assert by_name(groups)["blocks.2.mlp.fc1.weight"]["name"] == "new"
    model.requires_grad_(False)
    with pytest.raises(ValueError, match="no parameter of the model is trainable"):
        parameter_groups(model, lr=0.1)


def test_the_published_rule_of_names() -> None:
    assert is_new("module.head.weight", ["head.weight"])  # contains
    assert is_new("weight", ["head.weight"])  # is contained in
    assert not is_new("blocks.0.norm1.weight", ["head.weight"])


def test_layer_decay_is_timms() -> None:
    model = tiny()
    timms = {id(p): g["lr_scale"] for g in param_groups_layer_decay(model, layer_decay=0.7) for p in g["params"]}
    groups = parameter_groups(model, lr=0.1, layer_decay=0.7)
    for group in groups:
        assert all(group["lr_scale"] == pytest.approx(timms[id(p)]) for p in group["params"])
        assert group["lr"] == pytest.approx(0.1 * group["lr_scale"])
        assert group["initial_lr"] == 0.1
    vitrim.reduce(model, "sit", "keep(rate=0.5, at=[1])")
    added = {n: g for n, g in by_name(parameter_groups(model, lr=0.1, layer_decay=0.7)).items() if "reduction" in n}
    assert {g["lr_scale"] for g in added.values()} == {1.0}
    with pytest.raises(ValueError, match="layer_decay=null"):
        parameter_groups(nn.Linear(2, 2), lr=0.1, layer_decay=0.7)


def test_effective_rate() -> None:
    assert scaled_lr(1e-3, 256 * 2, 1024) == 5e-4
    assert scaled_lr(1e-3, 512, None) == 1e-3


def one_step(optimizer: torch.optim.Optimizer, model: nn.Module) -> None:
    torch.manual_seed(1)
    for p in model.parameters():
        p.grad = torch.randn_like(p)
    optimizer.step()


@pytest.mark.parametrize(
    ("text", "plain"),
    [
        ("adamw(lr=0.01, weight_decay=0.3, betas=[0.8, 0.95])", lambda g: torch.optim.AdamW(g, betas=(0.8, 0.95), foreach=False)),
        ("sgd(lr=0.01, weight_decay=0.3)", lambda g: torch.optim.SGD(g, momentum=0.9, nesterov=True, foreach=False)),
        ("sgd(lr=0.01, weight_decay=0.3, nesterov=false)", lambda g: torch.optim.SGD(g, momentum=0.9, foreach=False)),
    ],
)
def test_steps_as_pytorch(text: str, plain: object) -> None:
    ours, theirs = tiny(), tiny()
    theirs.load_state_dict(ours.state_dict())
    settings = read_optimizer(text)
    a = build_optimizer(parameter_groups(ours, lr=settings.lr, weight_decay=settings.weight_decay), settings)
    b = plain(parameter_groups(theirs, lr=0.01, weight_decay=0.3))  # type: ignore[operator]
    for _ in range(3):
        one_step(a, ours)
        one_step(b, theirs)
    for (name, p), q in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-5, atol=1e-6, msg=name)


def test_other_optimizers_of_timm() -> None:
    model = tiny()
    settings = read_optimizer("lamb(lr=0.01, weight_decay=0.02, eps=1e-7)")
    optimizer = build_optimizer(parameter_groups(model, lr=settings.lr, weight_decay=settings.weight_decay), settings)
    assert type(optimizer).__name__ == "Lamb"
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.0, 0.02}
    assert optimizer.param_groups[0]["eps"] == 1e-7
    before = model.head.weight.detach().clone()
    one_step(optimizer, model)
    assert not torch.equal(before, model.head.weight)
    optimizer.load_state_dict(optimizer.state_dict())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("adamv(lr=1)", "did you mean 'adam"),
        ("lamb", "give the rate"),
        ("adamw(rate=1)", "no setting 'rate'"),
        ("sgd(momentum=0)", "nesterov"),
    ],
)
def test_errors_name_the_remedy(text: str, message: str) -> None:
    with pytest.raises(SpecError, match=message):
        read_optimizer(text)
    groups = parameter_groups(tiny(), lr=1.0)
    with pytest.raises(SpecError, match="optimizer 'lamb'"):
        build_optimizer(groups, "lamb(lr=1, colour=3)")


def test_two_ways_to_freeze() -> None:
    """Rate 0 leaves the weights while moments collect, as published; without gradients nothing is collected."""
    for really in (False, True):
        model = tiny()
        groups = parameter_groups(model, lr=0.1, freeze_epochs=1)
        optimizer = build_optimizer(groups, "adamw")
        for group in optimizer.param_groups:
            group["lr"] = 0.0 if group["freeze_epochs"] else 0.1
        frozen, head = model.norm.weight, model.head.bias
        before = frozen.detach().clone(), head.detach().clone()
        for p in model.parameters():
            p.grad = torch.ones_like(p)
        if really:
            drop_frozen(optimizer, epoch=0)
        optimizer.step()
        assert torch.equal(before[0], frozen)
        assert not torch.equal(before[1], head)
        assert (frozen in optimizer.state) is not really
        drop_frozen(optimizer, epoch=1)
        assert head.grad is not None
