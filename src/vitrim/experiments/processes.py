"""The processes that evaluate together, as ``accelerate launch`` or ``torchrun`` start them."""

from __future__ import annotations

import os
from datetime import timedelta
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist

_PATIENCE = timedelta(hours=6)  # the others wait while the first one measures the speed


class Processes:
    """This process among others; used with ``with`` when a launcher may have started several.

    Attributes:
        rank: number of this process.
        world: number of processes.
    """

    def __init__(self) -> None:
        self.rank, self.world = 0, 1
        self._mine = False

    def __enter__(self) -> Processes:
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not dist.is_initialized():
            # Only small Python objects travel, so gloo serves GPUs as well.
            dist.init_process_group("gloo", timeout=_PATIENCE)
            self._mine = True
        if dist.is_available() and dist.is_initialized():
            self.rank, self.world = dist.get_rank(), dist.get_world_size()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._mine:
            dist.destroy_process_group()

    @property
    def main(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def device(self, device: torch.device) -> torch.device:
        """The device of this process: its own GPU where there are several processes."""
        if str(device) == "cuda" and self.world > 1:
            return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        return device

    def gather(self, own: Any) -> list[Any]:
        """What each process gives, by rank."""
        if self.world == 1:
            return [own]
        found: list[Any] = [None] * self.world
        dist.all_gather_object(found, own)
        return found

    def wait(self) -> None:
        """Until all are here."""
        if self.world > 1:
            dist.barrier()
