"""Exact agglomerative clustering of a batch of small problems, cut to an exact number of clusters."""

from __future__ import annotations

import torch
from torch import Tensor

LINKAGES = ("single", "complete", "average")
METRICS = ("cosine", "precomputed")
MOST = 4096


def agglomerative(x: Tensor, k: int, *, linkage: str = "average", metric: str = "cosine") -> Tensor:
    """Cluster every problem of a batch bottom-up until ``k`` clusters are left.

    The result is that of the textbook algorithm: as long as there are more than ``k`` clusters, the two closest are
    merged. A cluster is called by its lowest member; of pairs at equal distance the one with the lower first name goes
    first, then the one with the lower second name. Without equal distances the partition is SciPy's and scikit-learn's.

    Three implementations stand behind one operator (``vitrim::agglomerative``), chosen by the device of ``x``: numba on
    the CPU, Triton on CUDA, vectorised PyTorch elsewhere. On the CPU distances are computed in the precision of ``x``,
    in float32 at least, and averaged in float64; on other devices they are averaged in float32, so that near-ties (1e-7)
    may fall differently there. The operator is opaque to autograd, ``torch.compile`` and ``torch.export``.

    Args:
        x: ``(B, n, d)`` features, or ``(B, n, n)`` distances of which only the strict upper triangle is read; n at most 4096.
        k: number of clusters, 1 to n.
        linkage: ``single``, ``complete`` or ``average``: how far two clusters are apart, by their closest, their furthest
            or the mean of their pairs of members.
        metric: ``cosine`` (one minus the cosine similarity, at least 0; a zero vector is at distance 1 from all others) or
            ``precomputed``. A distance that is NaN or infinite counts as further than all others: such a point stays
            alone as long as ``k`` allows, and the rest of the batch is not affected.

    Returns:
        ``(B, n)`` int64 cluster ids in ``[0, k)``, numbered by their first member.

    Raises:
        ValueError: for an unknown linkage or metric, an ``x`` of another shape, or a ``k`` out of range.
    """
    if linkage not in LINKAGES:
        raise ValueError(f"linkage must be one of {', '.join(LINKAGES)}; got {linkage!r}")
    if metric not in METRICS:
        raise ValueError(f"metric must be one of {', '.join(METRICS)}; got {metric!r}")
    if x.dim() != 3 or not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor (B, n, d) or (B, n, n); got {tuple(x.shape)} of {x.dtype}")
    n = x.shape[1]
    if metric == "precomputed" and x.shape[2] != n:
        raise ValueError(f"metric='precomputed' takes square matrices (B, n, n); got {tuple(x.shape)}")
    if not 1 <= n <= MOST:
        raise ValueError(f"clusters sets of 1 to {MOST} points; got {n}")
    if not 1 <= k <= n:
        raise ValueError(f"cannot make {k} clusters of {n} points")
    return torch.ops.vitrim.agglomerative(x.detach(), k, linkage, metric)


def cosine_distance(features: Tensor) -> Tensor:
    """``(B, n, d) -> (B, n, n)``: one minus the cosine similarity, at least 0. A zero vector is at distance 1 from all others."""
    features = features if features.dtype == torch.float64 else features.float()
    unit = features / features.norm(dim=-1, keepdim=True).clamp_min(1e-12)
    return (1.0 - unit @ unit.transpose(1, 2)).clamp_min(0.0)


# One opaque step for torch.compile and torch.export, instead of a graph break.
@torch.library.custom_op("vitrim::agglomerative", mutates_args=())
def _agglomerative(x: Tensor, k: int, linkage: str, metric: str) -> Tensor:
    return _vectorised(x, k, linkage, metric)


def _vectorised(x: Tensor, k: int, linkage: str, metric: str) -> Tensor:
    from vitrim.kernels.linkage_torch import cluster

    return cluster(cosine_distance(x) if metric == "cosine" else _symmetric(x), k, linkage)


def _symmetric(x: Tensor) -> Tensor:
    upper = x.triu(1)
    return upper + upper.transpose(1, 2)


@_agglomerative.register_kernel("cpu")  # pyright: ignore[reportUntypedFunctionDecorator]
def _on_cpu(x: Tensor, k: int, linkage: str, metric: str) -> Tensor:
    # numba takes half a second to import: only where something is clustered.
    from vitrim.kernels.clustering_cpu import cluster

    return cluster(x, k, linkage, metric == "cosine")


@_agglomerative.register_kernel("cuda")  # pyright: ignore[reportUntypedFunctionDecorator]
def _on_cuda(x: Tensor, k: int, linkage: str, metric: str) -> Tensor:
    from vitrim.kernels import linkage_triton

    if linkage_triton.triton is None:
        return _vectorised(x, k, linkage, metric)
    return linkage_triton.gram_cluster(x, k, linkage) if metric == "cosine" else linkage_triton.cluster(_symmetric(x), k, linkage)


@_agglomerative.register_fake
def _shape(x: Tensor, k: int, linkage: str, metric: str) -> Tensor:  # noqa: ARG001 - the signature of the operator
    return x.new_empty(x.shape[:2], dtype=torch.int64)
