"""Costs of tuning: the rules of the ILA paper, and the parts of the count of multiply-adds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from vitrim.measure.tuned import both_macs, costs, total_trained, trained_parameters

OTHERS = {"vit_small_patch16_224": 254_776, "vit_tiny_patch16_224": 127_864, "vit_large_patch16_224": 1_095_800}


@pytest.mark.parametrize(("model", "wanted"), OTHERS.items())
def test_other_sizes(model: str, wanted: int) -> None:
    assert trained_parameters("ila(plus=2)", 200, f"timm/{model}") == wanted


def test_frozen_rows_count_the_mean_over_ten_data_sets_five_times() -> None:
    # 3,526 classes in the five sets of the table, 4,516 in the ten of the mean.
    assert total_trained(lambda classes: 1000 + 10 * classes) == (5 * 1000 + 5 * 4516, 5 * 1000 + 10 * 3526)


def test_fully_tuned_rows_count_two_hundred_classes_five_times() -> None:
    assert total_trained(lambda classes: 1000 + classes, full=True)[0] == 5 * 1200


def test_multiply_adds_by_both_conventions() -> None:
    layer = nn.Sequential(nn.Linear(4, 6), nn.LayerNorm(6), nn.GELU())
    x = torch.randn(3, 4)
    assert both_macs(layer, x) == (3 * 4 * 6, 3 * 4 * 6 + 3 * 6)
    assert both_macs(nn.AvgPool2d(2), torch.randn(1, 2, 4, 4)) == (0, 2 * 2 * 2)


def test_costs_of_a_small_model() -> None:
    model = "timm/vit_tiny_patch16_224(img_size=64, patch_size=8, embed_dim=24, depth=4, num_heads=2)"
    plain, shrunk = costs(["linear", "ila(at=[0, 2])"], model, 5)
    assert plain.gmacs == plain.dense_gmacs < plain.paper_gmacs
    assert plain.trained == 5 * 24 + 5 + 24
    assert shrunk.gmacs < plain.gmacs
    assert (plain.tokens, shrunk.tokens) == (65, 17)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("spec", "wanted"),
    [("ila", 13.096210), ("ila(plus=1) + adapter", 13.160281), ("adapter(path=sequential)", 17.597861)],
)
def test_multiply_adds_are_those_of_torchprofile(spec: str, wanted: float) -> None:
    assert costs([spec])[0].paper_gmacs == pytest.approx(wanted, rel=1e-5)
