"""Laws of tracing: torch.compile without graph breaks, torch.export."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import images, run
from laws import METHODS, reduced_model

QUICK = ("topk", "tome")
each = pytest.mark.parametrize("method", [pytest.param(m, marks=() if m in QUICK else pytest.mark.heavy) for m in METHODS])

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")


@each
def test_compile_without_graph_breaks(method: str) -> None:
    model = reduced_model("timm_vit", method)
    torch.compiler.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        expected = run(model)
        torch.testing.assert_close(run(compiled), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(run(compiled), expected, rtol=1e-4, atol=1e-5)  # again, with guards


@each
def test_export(method: str) -> None:
    model = reduced_model("timm_vit", method)
    with torch.no_grad():
        expected = run(model)
        exported = torch.export.export(model, (images(),), strict=False)
        torch.testing.assert_close(exported.module()(images()), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.heavy
@pytest.mark.parametrize("family", ["timm_dinov3", "timm_beit", "timm_avg", "timm_siglip", "torchvision_vit", "hf_vit"])
def test_compile_other_families(family: str) -> None:
    model = reduced_model(family, "tome")
    torch.compiler.reset()
    compiled: Any = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        torch.testing.assert_close(run(compiled), run(model), rtol=1e-4, atol=1e-5)
