"""The ONNX Loop gives the labels of the kernel, ties included."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from vitrim.export.onnx import OnnxModel, export_onnx
from vitrim.kernels.clustering import LINKAGES, agglomerative


class Cluster(nn.Module):
    def __init__(self, k: int, linkage: str, metric: str) -> None:
        super().__init__()
        self.options: dict[str, Any] = {"k": k, "linkage": linkage, "metric": metric}

    def forward(self, x: Tensor) -> Tensor:
        return agglomerative(x, **self.options)


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(k: int, linkage: str, metric: str, n: int, d: int) -> OnnxModel:
        path: Path = tmp_path_factory.mktemp("onnx") / "cluster.onnx"
        export_onnx(Cluster(k, linkage, metric).eval(), torch.zeros(2, n, d), path, dynamic_batch=True)
        return OnnxModel(path)

    return make


def noise(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize(("n", "k"), [(196, 98), (17, 1), (17, 17), (17, 5)])
def test_features(session: Any, n: int, k: int, linkage: str) -> None:
    x = noise(5, n, 16)
    assert torch.equal(session(k, linkage, "cosine", n, 16)(x), agglomerative(x, k, linkage=linkage))


@pytest.mark.parametrize("linkage", LINKAGES)
def test_ties(session: Any, linkage: str) -> None:
    """Distances out of three values: nearly every merge has rivals."""
    draw = torch.randint(1, 4, (20, 30, 30), generator=torch.Generator().manual_seed(1)).float()
    found = session(9, linkage, "precomputed", 30, 30)(draw)
    assert torch.equal(found, agglomerative(draw, 9, linkage=linkage, metric="precomputed"))


@pytest.mark.parametrize("linkage", LINKAGES)
def test_zero_vectors(session: Any, linkage: str) -> None:
    x = noise(2, 17, 16)
    x[0, 3:9] = 0
    assert torch.equal(session(5, linkage, "cosine", 17, 16)(x), agglomerative(x, 5, linkage=linkage))


@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
def test_a_broken_image_leaves_the_others_alone(session: Any, linkage: str, broken: float) -> None:
    x = noise(3, 17, 16)
    expected = agglomerative(x, 5, linkage=linkage)
    x[1, 4:] = broken
    found = session(5, linkage, "cosine", 17, 16)(x)
    assert torch.equal(found[[0, 2]], expected[[0, 2]])
    assert sorted(set(found[1].tolist())) == [0, 1, 2, 3, 4]
