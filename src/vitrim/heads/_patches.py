"""The base of heads that read the patch tokens after the last block."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vitrim.core.cache import Head, Place
from vitrim.core.registry import SpecError


class PatchHead(Head):
    """A classifier of the patch tokens after the last block and the model's final norm.

    Class token, registers and other leading tokens are left out; the published models have none. Where the engine gives the
    weights of merged tokens, they count by the patches that they stand for, and padding does not count.
    """

    uses_norm = True

    def setup(self, place: Place) -> None:
        if not place.classes:
            raise SpecError(f"{self.spec_name} replaces a classifier, and this model has none; create it with num_classes=...")
        self.taps = [place.depth - 1]
        self._prefix, self._dim = place.prefix, place.dim
        # In a tuple, or the model's own norm would be a part of the head too, and twice in its state dict.
        self._norm: tuple[nn.Module, ...] = () if place.norm is None else (place.norm,)

    def take(self, layer: int, x: Tensor, cls: int | None, guests: Tensor | None, mass: Tensor | None = None) -> Tensor:
        """The patch tokens of ``x (B, n, C)``; their weights ``mass (B, patches)`` travel as one more channel."""
        patches = x[:, self._prefix :]
        if not patches.shape[1]:
            raise ValueError(f"{self.spec_name} reads patch tokens, and none is left after block {layer}; keep one at least")
        return patches if mass is None else torch.cat([patches, mass.unsqueeze(-1).to(x.dtype)], dim=-1)

    def read(self, taps: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Normed patch tokens ``(B, n, C)``, and the share of each ``(B or 1, n, 1)`` in an average, float32 at least."""
        taken = taps[0]
        x = taken[..., : self._dim]
        for norm in self._norm:
            x = norm(x)
        exact = torch.promote_types(x.dtype, torch.float32)
        if taken.shape[-1] == self._dim:
            return x, torch.full((1, x.shape[1], 1), 1 / x.shape[1], dtype=exact, device=x.device)
        mass = taken[..., self._dim :].to(exact)
        return x, mass / mass.sum(dim=1, keepdim=True)
