"""Agglomerative clustering of a batch on a GPU: one Triton program for each image, without any synchronisation.

The greedy algorithm with a nearest-neighbour array (Anderberg 1973; Müllner, arXiv:1109.2378): ``low[i]`` bounds the
distance from cluster i to the clusters behind it from below. The cluster with the lowest bound is taken, its row is searched,
and either the bound was too low and is raised, or its nearest neighbour is merged into it. It stops after ``n - k`` merges.

A cluster is called by its lowest member; equal distances go by the first name of the pair, then by the second. Distances
are compared as integers of the same order, for which a warp has an instruction, and where ``LAST``, the value of the dead,
is above infinity: infinite distances are merged too, after all others.

The distances are copied to a workspace ``(B, n, n)`` of float32, which for the usual sizes stays in the L2 cache. Its
diagonal holds the sizes of the clusters. Products and sums are not contracted, and quotients are rounded correctly, so that
average linkage gives bit for bit the distances of the greedy algorithm in float32.
"""

# pyright: basic, reportUnknownParameterType=false, reportMissingParameterType=false
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    triton: Any = None
    tl: Any = None
    constexpr = Any
else:
    try:
        import triton
        import triton.language as tl
        from triton.language import constexpr
    except ImportError:  # wheels of PyTorch without CUDA come without Triton
        triton = tl = constexpr = None

LAST = 0x7FFFFFFF
LINKAGES = {"single": 0, "complete": 1, "average": 2}
LONGEST = 4096


def _jit(function: Any) -> Any:
    # Not specialised: neither should a k that happens to be n - 1 or n - 16 compile another kernel, nor rows that happen to be
    # aligned be loaded as vectors, since columns cannot be, and a thread must hold the same places of both.
    fixed = ["n", "merges", "source_image", "source_row"]
    return function if triton is None else triton.jit(function, do_not_specialize=fixed)


@_jit
def _ordered(value):
    """Integers in the order of the float32 values; negative zero must have been removed."""
    bits = value.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@_jit
def _load(source, work, n, source_row, source_column, cosine: constexpr, block: constexpr, rows: constexpr):
    """Fill the workspace of one image; the distance from each place to the nearest behind it."""
    at = tl.arange(0, block)
    nearest = tl.full([block], float("inf"), tl.float32)
    # Some rows at a time, so that their loads overlap.
    for start in range(0, n, rows):
        row = start + tl.arange(0, rows)[:, None]
        column = at[None, :]
        inside = (row < n) & (column < n)
        # The input may be a view with any strides.
        place = row.to(tl.int64) * source_row + column.to(tl.int64) * source_column
        value = tl.load(source + place, mask=inside, other=0.0).to(tl.float32)
        if cosine:
            # Rounding may take a product above one; NaN stays NaN.
            value = tl.where(value > 1.0, 0.0, 1.0 - value)
        # Comparisons with NaN are false.
        value = tl.where(tl.abs(value) < float("inf"), value, float("inf"))
        value = tl.where(value == 0.0, 0.0, value)
        # Symmetric: row j holds the distances from the places before j to j.
        nearest = tl.minimum(nearest, tl.min(tl.where((column < row) & inside, value, float("inf")), axis=0))
        value = tl.where(row == column, 1.0, value)
        tl.store(work + row * n + column, value, mask=inside)
    return nearest


@_jit
def _join(a, b, size_a, size_b, linkage: constexpr):
    """Distances to the union of two clusters (Lance and Williams, 1967)."""
    if linkage == 0:
        joined = tl.minimum(a, b)
    elif linkage == 1:
        joined = tl.maximum(a, b)
    else:
        # The float32 quotient, correctly rounded, at a fraction of the cost of eight divisions a thread: a quotient by a whole
        # number below 2^13 is never halfway between two float32, and never so near to it that float64 could not tell.
        inverse = 1.0 / (size_a + size_b).to(tl.float64)
        joined = ((size_a * a + size_b * b).to(tl.float64) * inverse).to(tl.float32)
    return joined


@_jit
def cluster_image(
    source,
    work,
    labels,
    n,
    merges,
    source_image,
    source_row,
    source_column,
    linkage: constexpr,
    cosine: constexpr,
    block: constexpr,
    rows: constexpr,
    last: constexpr,
):
    """Cluster one image; ``label`` names each point's cluster, and a cluster lives if its name is its own label."""
    image = tl.program_id(0).to(tl.int64)
    work += image * n * n
    labels += image * n
    at = tl.arange(0, block)
    nearest = _load(source + image * source_image, work, n, source_row, source_column, cosine, block, rows)
    low = tl.where(at < n - 1, _ordered(nearest), last)
    label = tl.where(at < n, at, -1)
    tl.debug_barrier()
    while merges > 0:
        bound = tl.min(low, axis=0)
        i = tl.min(tl.where(low == bound, at, block), axis=0)
        row_i = tl.load(work + i * n + at, mask=at < n, other=0.0)
        key = tl.where((label == at) & (at > i), _ordered(row_i), last)
        found = tl.min(key, axis=0)
        if found > bound:
            low = tl.where(at == i, found, low)
        else:
            j = tl.min(tl.where(key == found, at, block), axis=0)
            row_j = tl.load(work + j * n + at, mask=at < n, other=0.0)
            size_i = tl.load(work + i * (n + 1))
            size_j = tl.load(work + j * (n + 1))
            new = _join(row_i, row_j, size_i, size_j, linkage)
            label = tl.where(label == j, i, label)
            live = label == at
            key = _ordered(new)
            found = tl.min(tl.where(live & (at > i), key, last), axis=0)
            # Rounding an average may take the new distance just below the bound of a place before.
            low = tl.where(live & (at < i), tl.minimum(low, key), low)
            low = tl.where(at == i, found, tl.where(at == j, last, low))
            # All threads have read before any writes, and the next search reads what other threads have written.
            tl.debug_barrier()
            tl.store(work + i * n + at, tl.where(at == i, size_i + size_j, new), mask=at < n)
            tl.store(work + at * n + i, new, mask=live & (at != i))
            tl.debug_barrier()
            merges -= 1
    # Number the roots; the answer's memory carries the numbers from the roots to their members.
    number = tl.cumsum((label == at).to(tl.int32), axis=0) - 1
    tl.store(labels + at, number.to(tl.int64), mask=at < n)
    tl.debug_barrier()
    number = tl.load(labels + label, mask=at < n, other=0)
    tl.debug_barrier()
    tl.store(labels + at, number, mask=at < n)


def cluster(distance: Tensor, k: int, linkage: str) -> Tensor:
    """Cluster every image of a batch bottom-up until ``k`` clusters are left, without waiting for the GPU.

    Args:
        distance: ``(B, n, n)`` symmetric CUDA tensor with n up to 4096, not modified; computed in float32. NaN and infinity
            count as further away than anything finite, and are merged last.
        k: number of clusters, 1 to n.
        linkage: single, complete or average.

    Returns:
        ``(B, n)`` int64 ids in ``[0, k)``, numbered by first member.

    Raises:
        RuntimeError: without Triton.
        ValueError: for more than 4096 points.
    """
    batch, n, _ = distance.shape
    return _launch(distance.detach(), _workspace(batch, n, distance), k, linkage, cosine=False)


def gram_cluster(features: Tensor, k: int, linkage: str) -> Tensor:
    """Cluster by cosine distance, ``1 - u u^T`` of the unit vectors; the products are made where the kernel works.

    Args:
        features: ``(B, n, d)`` CUDA tensor with n up to 4096. The products are float32, in the precision that
            ``torch.backends.cuda.matmul`` is set to. A zero vector is at distance 1 from all others.
        k: number of clusters, 1 to n.
        linkage: single, complete or average.

    Returns:
        ``(B, n)`` int64 ids in ``[0, k)``, numbered by first member.

    Raises:
        RuntimeError: without Triton.
        ValueError: for more than 4096 points.
    """
    batch, n, _ = features.shape
    work = _workspace(batch, n, features)
    with torch.no_grad(), torch.autocast(features.device.type, enabled=False):
        unit = features.float()
        unit = unit / unit.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        torch.bmm(unit, unit.transpose(1, 2), out=work)
    return _launch(work, work, k, linkage, cosine=True)


def _workspace(batch: int, n: int, like: Tensor) -> Tensor:
    """Uninitialised ``(B, n, n)`` float32."""
    if triton is None:
        raise RuntimeError("clustering on a GPU needs Triton: pip install triton, or move the tensors to the CPU")
    if n > LONGEST:
        raise ValueError(f"the Triton kernel clusters at most {LONGEST} points, not {n}: move the tensors to the CPU")
    return torch.empty(batch, n, n, dtype=torch.float32, device=like.device)


def _launch(source: Tensor, work: Tensor, k: int, linkage: str, *, cosine: bool) -> Tensor:
    """Run the kernel on the device of its tensors; ``source`` may be ``work`` itself."""
    batch, n, _ = work.shape
    labels = torch.empty(batch, n, dtype=torch.int64, device=work.device)
    if batch == 0:
        return labels
    block = max(32, triton.next_power_of_2(n))
    # Eight places a thread: up to 256 points fit one warp, whose reductions need neither shared memory nor barriers.
    warps = max(1, block // 256)
    with torch.cuda.device_of(work):
        cluster_image[(batch,)](
            source,
            work,
            labels,
            n,
            n - k,
            *source.stride(),
            linkage=LINKAGES[linkage],
            cosine=cosine,
            block=block,
            rows=4 if warps > 8 else 8,
            last=LAST,
            num_warps=warps,
            enable_fp_fusion=False,
        )
    return labels
