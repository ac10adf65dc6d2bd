"""torch.compile makes one graph of a tuned model, forward and with gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import vitrim
from tests.tuning.test_tuning import images, shaken, vit

QUICK = ("ila(plus=2, at=[0, 2], dim=3, drop=0.0)", "vpt(length=3, deep=true)", "lora(layers=all, r=2)")
OTHERS = ("linear", "full", "adapter(dim=3, drop=0.0)", "convpass(dim=3)", "vqt", "ssf", "bitfit", "h2t")
each = pytest.mark.parametrize("spec", [*QUICK, *(pytest.param(other, marks=pytest.mark.heavy) for other in OTHERS)])

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@each
def test_one_graph_with_the_same_gradients(spec: str) -> None:
    model = vit()
    vitrim.tune(model, spec)
    shaken(model)
    model.eval()
    found: list[dict[str, torch.Tensor]] = []
    torch.compiler.reset()
    for run in (model, torch.compile(model, fullgraph=True, backend="eager")):
        called: Any = run
        out = called(images())
        out.square().sum().backward()
        found.append({"": out.detach(), **{n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}})
        model.zero_grad()
    plain, compiled = found
    assert plain.keys() == compiled.keys()
    for name, value in plain.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.heavy
def test_with_inductor() -> None:
    model = vit()
    vitrim.tune(model, QUICK[0])
    shaken(model)
    model.eval()
    torch.compiler.reset()
    compiled: Any = torch.compile(model)
    with torch.no_grad():
        torch.testing.assert_close(compiled(images()), model(images()), rtol=1e-4, atol=1e-5)
