"""Clustering on the CPU: one image a thread, on as many threads as PyTorch uses."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache

import numpy as np
import torch
from torch import Tensor

from vitrim.kernels.linkage_cpu import LINKAGES, cluster_images

# A batch with fewer distances than this is done before another thread has woken up.
_SMALL = 100_000
_LINE = 64


def cluster(x: Tensor, k: int, linkage: str, cosine: bool) -> Tensor:
    """Cluster every problem of a batch on as many threads as PyTorch uses; they hold no lock while they work.

    Args:
        x: ``(B, n, d)`` features if ``cosine``, else ``(B, n, n)`` distances; on the CPU.
        k: number of clusters, 1 to n.
        linkage: single, complete or average.
        cosine: whether ``x`` holds features.

    Returns:
        ``(B, n)`` int64 labels, numbered by first member.
    """
    data = x.detach()
    data = (data if data.dtype == torch.float64 else data.float()).contiguous().numpy()
    batch, n = data.shape[:2]
    labels = np.empty((batch, n), np.int64)
    threads = 1 if batch * n * n < _SMALL else min(torch.get_num_threads(), batch)
    # Short turns from one queue: a core that is busy with something else gets fewer of them.
    step = max(1, batch // (32 * threads)) if threads > 1 else max(1, batch)
    turns = iter(range(0, batch, step))

    def work() -> None:
        room = _workspace(n, data.shape[2] if cosine else 0, data.dtype)
        for start in turns:
            part = slice(start, start + step)
            cluster_images(data[part], labels[part], k, LINKAGES[linkage], cosine, *room)

    others = [_pool(threads, os.getpid()).submit(work) for _ in range(threads - 1)]
    work()
    for other in others:
        other.result()
    return torch.from_numpy(labels)


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:  # noqa: ARG001 - part of the key
    """Helper threads, kept for the next call; a forked process needs its own, since threads do not survive a fork."""
    return ThreadPoolExecutor(max(1, threads - 1), thread_name_prefix="vitrim-cluster")


def _workspace(n: int, dim: int, number: np.dtype) -> tuple[np.ndarray, ...]:
    """Room for one image: unit vectors as columns, a tile of their products, the distances twice over, rows of numbers.

    Distances are in double precision: it costs a tenth, near-ties of average linkage fall as they do in SciPy, and there is
    one program to compile.
    """
    matrix = _aligned(n, n, np.float64)
    # Channels are padded with zeros to a multiple of 8.
    unit = _aligned(-(-dim // 8) * 8, n, number)
    unit[:] = 0
    return unit, _aligned(16, 256, number), matrix, matrix.view(np.int64), _aligned(6, n, np.int64)


def _aligned(rows: int, columns: int, number: type | np.dtype) -> np.ndarray:
    """``(rows, columns or a few more)``; rows start on a cache line, so that vectors do not straddle two.

    They are an odd number of lines apart: columns would otherwise fall into few sets of the cache.
    """
    line = _LINE // np.dtype(number).itemsize
    width = (-(-columns // line) | 1) * line
    raw = np.empty((rows * width + line) * np.dtype(number).itemsize, np.uint8)
    start = -raw.ctypes.data % _LINE
    return raw[start : start + rows * width * np.dtype(number).itemsize].view(number).reshape(rows, width)
