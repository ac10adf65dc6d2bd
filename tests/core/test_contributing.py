"""The example method of CONTRIBUTING.md, run as it stands there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch

import vitrim
from vitrim.core.registry import METHODS

GUIDE = Path(__file__).parents[2] / "CONTRIBUTING.md"


@pytest.fixture
def norm() -> object:
    code = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.S)
    assert code is not None
    space: dict[str, object] = {"__name__": "norm"}
    exec(code.group(1), space)
    yield space["Norm"]
    del METHODS._entries["norm"]


def test_the_example_method_works_everywhere(norm: object) -> None:
    model = timm.models.VisionTransformer(img_size=32, patch_size=4, embed_dim=24, depth=3, num_heads=2, num_classes=5).eval()
    x = torch.randn(2, 3, 32, 32)
    reduction = vitrim.reduce(model, "norm(p=1)", "keep(rate=0.5, at=[1])")
    logits = model(x)
    step = reduction.trace[1]
    kept = step.map.without_prefix(1).kept()
    assert logits.shape == (2, 5)
    assert kept.sum(dim=1).tolist() == [32, 32]
    assert vitrim.spec(reduction.stages[0]) == "norm(p=1)"
    assert "order of the norm" in str(vitrim.describe("norm"))
    assert "norm" in vitrim.list_methods()


def test_it_keeps_the_longest_tokens(norm: type) -> None:
    tokens = torch.zeros(1, 5, 2)
    tokens[0, :, 0] = torch.tensor([9.0, 1.0, 5.0, 3.0, 4.0])
    t = vitrim.Tokens(tokens, torch.ones(1, 5), prefix=1, cls=0, grid=(2, 2), layer=0, depth=1)
    assert norm()(t, 2).source.tolist() == [[0, 2, 4]]
