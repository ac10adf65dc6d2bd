"""Computing hidden layers again: the same gradients, less that is kept."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import vitrim
from tests.tuning.test_tuning import images, shaken, vit
from vitrim.core.registry import SpecError

SPECS = ("linear", "full", "ila(plus=2, at=[0, 2], dim=3)", "lora(layers=all, r=2)", "ssf", "vpt(length=3)", "bitfit")


def gradients(model: nn.Module, x: Tensor) -> dict[str, Tensor]:
    torch.manual_seed(3)  # dropout
    model.train()
    model(x).square().sum().backward()
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    return {n: g.clone() for n, g in found.items()}


def pair(spec: str, **settings: float) -> tuple[nn.Module, nn.Module]:
    plain, again = vit(**settings), vit(**settings)
    vitrim.tune(plain, spec)
    vitrim.tune(again, spec, recompute=True)
    shaken(plain)
    again.load_state_dict(plain.state_dict())
    return plain, again


@pytest.mark.parametrize("spec", SPECS)
def test_gradients_are_the_same(spec: str) -> None:
    plain, again = pair(spec, proj_drop_rate=0.1)
    want, got = gradients(plain, images()), gradients(again, images())
    assert want.keys() == got.keys()
    for name in want:
        assert torch.equal(want[name], got[name]), name


def test_with_reduction_and_cache() -> None:
    plain, again = pair("adapter(dim=3, drop=0.1)")
    for model in (plain, again):
        vitrim.reduce(model, "evit", "keep(rate=0.5, at=[1, 2])", cache="clc", seed=0)
    again.load_state_dict(plain.state_dict())
    want, got = gradients(plain, images()), gradients(again, images())
    assert want.keys() == got.keys()
    assert all(torch.equal(want[name], got[name]) for name in want)


def kept(model: nn.Module, x: Tensor) -> int:
    """Bytes that the backward pass keeps besides the weights."""
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    seen: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            seen[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model.train()(x)
    return sum(tensor.untyped_storage().nbytes() for tensor in seen.values())


def test_keeps_less() -> None:
    full = vit(depth=12)
    vitrim.tune(full, "full")
    plain, again = pair("ila(plus=2, at=[3, 7])", depth=12)
    assert kept(again, images()) < 0.75 * kept(plain, images())
    assert kept(plain, images()) < kept(full, images())


def test_evaluation_detach_and_copies() -> None:
    plain, again = pair("adapter(dim=3)")
    with torch.no_grad():
        assert torch.equal(plain.eval()(images()), again.eval()(images()))
        copied = copy.deepcopy(again)
        assert torch.equal(copied(images()), again(images()))
    again.tuning.detach()
    assert all("forward" not in module.__dict__ for module in again.modules())


def test_dropout_keeps_one_byte_per_element() -> None:
    model = vit()
    vitrim.tune(model, "adapter(dim=3, drop=0.25)")
    dropout = model.tuning.adapter.dropout
    x = torch.ones(64, 64, requires_grad=True)
    y = dropout.train()(x)
    y.sum().backward()
    assert x.grad is not None
    assert torch.equal(x.grad, y.detach())
    assert y.detach().unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert float((y == 0).float().mean()) == pytest.approx(0.25, abs=0.03)
    assert dropout.eval()(x) is x


def test_block_without_mlp_is_refused() -> None:
    class Odd(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
            self.head = nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            for block in self.blocks:
                x = block(x)
            return self.head(x.mean(1))

    with pytest.raises(SpecError, match="leave recompute out"):
        vitrim.tune(Odd(), "full", train=["all"], recompute=True)


def test_without_gradient_nothing_is_computed_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    vitrim.tune(model, "linear", train=["head"], recompute=True)

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a block in front of the classifier needs no backward pass")

    monkeypatch.setattr("vitrim.core.recompute.checkpoint", refuse)
    model.train()(images()).sum().backward()
