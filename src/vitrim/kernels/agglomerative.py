"""Agglomerative clustering of a batch of small problems, cut to an exact number of clusters."""

from __future__ import annotations

import numpy as np
import torch
from scipy.cluster.hierarchy import linkage as scipy_linkage
from torch import Tensor

LINKAGES = ("single", "complete", "average")


def agglomerate(distance: Tensor, k: int, linkage: str = "average") -> Tensor:
    """Cluster every matrix of a batch bottom-up until ``k`` clusters are left.

    Args:
        distance: ``(B, n, n)``; only the strict upper triangle is read.
        k: number of clusters, 1 to n.
        linkage: single, complete or average.

    Returns:
        ``(B, n)`` int64 cluster ids in ``[0, k)``, numbered by their first member.

    Raises:
        ValueError: for an unknown linkage, a ``k`` out of range, or distances that are not finite.
    """
    if linkage not in LINKAGES:
        raise ValueError(f"linkage must be one of {', '.join(LINKAGES)}; got {linkage!r}")
    if not 1 <= k <= distance.shape[-1]:
        raise ValueError(f"cannot make {k} clusters of {distance.shape[-1]} tokens")
    return torch.ops.vitrim.agglomerate(distance, k, linkage)


# An operator of its own, so that torch.compile and torch.export see one opaque step instead of a graph break.
@torch.library.custom_op("vitrim::agglomerate", mutates_args=())
def _agglomerate(distance: Tensor, k: int, linkage: str) -> Tensor:
    batch, n, _ = distance.shape
    if n == 1:
        return torch.zeros(batch, 1, dtype=torch.int64, device=distance.device)
    rows, columns = np.triu_indices(n, 1)
    matrices = distance.detach().to(device="cpu", dtype=torch.float64).numpy()
    if not np.isfinite(matrices[:, rows, columns]).all():
        raise ValueError(
            "distances to cluster are not finite: the tokens hold NaN or infinity; check weights, inputs and precision"
        )
    labels = np.stack([_cut(scipy_linkage(m[rows, columns], linkage), n, k) for m in matrices])
    return torch.from_numpy(labels).to(distance.device)


@_agglomerate.register_fake
def _shape(distance: Tensor, k: int, linkage: str) -> Tensor:  # noqa: ARG001 - the signature of the operator
    return distance.new_empty(distance.shape[:2], dtype=torch.int64)


def _cut(tree: np.ndarray, n: int, k: int) -> np.ndarray:
    """Cluster ids after the first ``n - k`` merges of a SciPy linkage tree."""
    merges = n - k
    parent = np.arange(n + merges)
    parent[tree[:merges, :2].astype(np.int64)] = np.arange(n, n + merges)[:, None]
    root = parent
    while not np.array_equal(root, root[root]):
        root = root[root]
    _, first, label = np.unique(root[:n], return_index=True, return_inverse=True)
    # np.unique numbers by root; number by first member instead, so that tokens stay in spatial order.
    order = np.empty_like(first)
    order[np.argsort(first)] = np.arange(k)
    return order[label].astype(np.int64)


def cosine_distance(features: Tensor) -> Tensor:
    """``(B, n, d) -> (B, n, n)``: one minus the cosine similarity. A zero vector is at distance 1 from all others."""
    features = features if features.dtype == torch.float64 else features.float()
    unit = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return 1.0 - unit @ unit.transpose(1, 2)
