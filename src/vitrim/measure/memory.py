"""Peak memory of a call."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak_memory(run: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Bytes that a call adds at its peak to what is allocated before it: activations, without weights and input.

    On CUDA it is what the allocator handed out (``max_memory_allocated``). On the CPU there is no such counter: the
    bytes of all tensors alive at once are added up after every operator. Buffers inside an operator, and inside
    libraries other than PyTorch, are not seen there, so compare CPU numbers with CPU numbers only.

    Args:
        run: the call, such as ``lambda: model(images)``; gradients are not recorded.
        device: where it runs.
    """
    device = torch.device(device)
    if device.type == "cuda":
        with torch.no_grad():
            torch.cuda.synchronize(device)
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            run()
            torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with torch.no_grad(), _LiveBytes() as live:
        run()
    return live.peak


class _LiveBytes(TorchDispatchMode):
    """Adds up the storages that operators make, and takes them off when they are freed."""

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._now = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {_address(x) for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            # Views and operators in place give back the storage of an argument: nothing new.
            if isinstance(x, Tensor) and _address(x) not in given:
                self._add(x)
        self.peak = max(self.peak, self._now)
        return out

    def _add(self, x: Tensor) -> None:
        address, storage = _address(x), x.untyped_storage()
        if address in self._alive:
            return
        self._alive.add(address)
        self._now += storage.nbytes()
        weakref.finalize(storage, self._free, address, storage.nbytes()).atexit = False

    def _free(self, address: int, size: int) -> None:
        self._alive.discard(address)
        self._now -= size


def _address(x: Tensor) -> int:
    """What tells storages apart: their Python objects live as long as they do. Empty ones share data pointers."""
    return id(x.untyped_storage())
