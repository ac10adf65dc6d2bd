"""A pretrained DINOv2 ViT-S/14 on photographs: the class token survives training-free reduction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import vitrim
from benchmarks.dinov2 import load
from tests.outside.places import dinov2
from tests.parity import golden


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return load(dinov2(), 224)


@pytest.fixture(scope="module")
def dense(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(golden.images())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "rate", "at_least"),
    [("tome", 0.7, 0.93), ("atc", 0.7, 0.93), ("atc(linkage=complete)", 0.7, 0.93), ("evit", 0.9, 0.90), ("kmedoids", 0.9, 0.85)],
)
def test_class_token_agreement(model: nn.Module, dense: Tensor, method: str, rate: float, at_least: float) -> None:
    with vitrim.reduced(model, method, f"keep(rate={rate}, at=[3, 6, 9])"), torch.no_grad():
        same = F.cosine_similarity(model(golden.images()), dense)
    assert same.min() > at_least, same


@pytest.mark.slow
def test_photographs_differ_more_than_reductions(model: nn.Module, dense: Tensor) -> None:
    """A sanity check of the measure itself: other photographs are far away."""
    between = F.cosine_similarity(dense[:, None], dense[None], dim=-1)
    assert np.max(between[~torch.eye(len(dense), dtype=torch.bool)].numpy()) < 0.8
