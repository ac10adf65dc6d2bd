"""Density peaks and medoids: large sets in blocks give what small ones give at once."""

from __future__ import annotations

import pytest
import torch

from vitrim.kernels import density
from vitrim.kernels.density import Distances, density_peaks, farthest_first, k_medoids


def tokens(n: int = 90) -> torch.Tensor:
    return torch.randn(3, n, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("padded", [False, True])
def test_blocks_do_not_change_density_peaks(monkeypatch: pytest.MonkeyPatch, padded: bool) -> None:
    x = tokens()
    noise = torch.rand(90, generator=torch.Generator().manual_seed(1)) * 1e-6
    valid = torch.arange(90).expand(3, -1) < torch.tensor([[90], [71], [40]]) if padded else None
    whole = density_peaks(x, 20, 5, noise, valid)
    monkeypatch.setattr(density, "_KEPT", 50)
    monkeypatch.setattr(density, "_ROWS", 17)
    blocks = density_peaks(x, 20, 5, noise, valid)
    assert all(torch.equal(a, b) for a, b in zip(whole, blocks, strict=True))
    if valid is not None:
        assert valid.gather(1, whole[0]).all()


def test_blocks_do_not_change_medoids(monkeypatch: pytest.MonkeyPatch) -> None:
    x = tokens()
    weight = torch.rand(3, 90, generator=torch.Generator().manual_seed(1))
    start = torch.tensor([4, 0, 89])
    whole, far = k_medoids(Distances(x), weight.topk(20).indices, weight, 4), farthest_first(Distances(x), 9, start)
    monkeypatch.setattr(density, "_KEPT", 50)
    monkeypatch.setattr(density, "_ROWS", 17)
    blocks = k_medoids(Distances(x), weight.topk(20).indices, weight, 4)
    assert all(torch.equal(a, b) for a, b in zip(whole, blocks, strict=True))
    assert torch.equal(far, farthest_first(Distances(x), 9, start))


def test_medoids_are_the_cheapest_members() -> None:
    x = tokens()
    weight = torch.rand(3, 90, generator=torch.Generator().manual_seed(2)) + 0.1
    start = weight.topk(12).indices
    distance = torch.cdist(x, x)
    cost = (distance * weight.unsqueeze(-1)).sum(dim=-1)
    first = distance.gather(2, start.unsqueeze(1).expand(-1, 90, -1)).argmin(dim=-1)
    centres, group = k_medoids(Distances(x), start, weight, 1)
    for image in range(3):
        for cluster in range(12):
            members = torch.nonzero(first[image] == cluster).flatten()
            assert centres[image, cluster] == members[cost[image, members].argmin()]
    assert torch.equal(group, distance.gather(2, centres.unsqueeze(1).expand(-1, 90, -1)).argmin(dim=-1))


def test_an_empty_cluster_falls_back_to_the_first_token() -> None:
    x = tokens(10)
    centres, _ = k_medoids(Distances(x), torch.tensor([[3, 3, 5]] * 3), torch.ones(3, 10), 1)
    assert centres[:, 1].tolist() == [0, 0, 0]
