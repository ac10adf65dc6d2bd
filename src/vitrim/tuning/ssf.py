"""SSF: scale and shift what every layer gives."""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrim.core.patch import Patch
from vitrim.core.registry import TUNERS, SpecError
from vitrim.core.tuner import Ground, Tuner
from vitrim.tuning.adapter import check_compat

_KINDS = (nn.Linear, nn.LayerNorm, nn.Conv2d)


class ScaleShift(nn.Module):
    """``x * scale + shift``, per channel.

    Args:
        width: number of channels.
        official: start with the noise of the published code, N(1, 0.02) and N(0, 0.02), not as the identity.
    """

    def __init__(self, width: int, *, official: bool = False) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))
        self.shift = nn.Parameter(torch.zeros(width))
        if official:
            nn.init.normal_(self.scale, mean=1.0, std=0.02)
            nn.init.normal_(self.shift, std=0.02)

    def forward(self, x: Tensor, dim: int) -> Tensor:
        """``x`` with its channels in dimension ``dim``."""
        shape = [1] * x.dim()
        shape[dim] = -1
        return x * self.scale.view(shape) + self.shift.view(shape)


class ScaleShiftPatch(Patch):
    """The forward of a layer, scaled and shifted."""

    def __init__(self, module: nn.Module, change: ScaleShift) -> None:
        super().__init__(module)
        self.change = [change]  # in a list: it belongs to the tuner

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the layer's own, then scale and shift."""
        out = self.original(x, *args, **kwargs)
        return self.change[0](out, 1 if isinstance(self.module, nn.Conv2d) else -1)


@TUNERS.register("ssf")
class ScaleAndShift(Tuner):
    """A factor and an offset per channel behind every linear layer, norm and convolution but the head; mergeable.

    Args:
        compat: ``official`` starts with noise of 0.02, as published; ``paper`` from the unchanged model.
    """

    paper: ClassVar[str] = "Lian et al., Scaling and Shifting Your Features, NeurIPS 2022, arXiv:2210.08823"
    works_in_blocks = False
    mergeable = True

    def __init__(self, *, compat: Literal["paper", "official"] = "paper") -> None:
        super().__init__()
        check_compat(compat)
        self.compat = compat

    def setup(self, ground: Ground) -> None:
        layers = self._layers(ground)
        if not layers:
            raise SpecError(f"ssf finds no linear layer or norm in {type(ground.model).__name__}")
        self.changes = nn.ModuleList(ScaleShift(_width(layer), official=self.compat == "official") for layer in layers)

    def patches(self, ground: Ground) -> list[Patch]:
        return [ScaleShiftPatch(layer, change) for layer, change in self._pairs(ground)]

    def _pairs(self, ground: Ground) -> list[tuple[nn.Module, ScaleShift]]:
        return list(zip(self._layers(ground), self.changes, strict=True))  # pyright: ignore[reportReturnType]

    def _layers(self, ground: Ground) -> list[nn.Module]:
        classifier: Any = getattr(ground.model, "get_classifier", None)
        head: Any = classifier() if callable(classifier) else None
        skipped = {id(m) for m in head.modules()} if isinstance(head, nn.Module) else set[int]()
        named = [(n, m) for n, m in ground.model.named_modules() if isinstance(m, _KINDS) and id(m) not in skipped]
        return [m for n, m in named if n.split(".")[0] not in ("tuning", "reduction", "head", "heads", "classifier")]

    def merge(self, ground: Ground) -> None:
        for layer, _ in self._pairs(ground):
            if getattr(layer, "bias", None) is None:
                raise SpecError(f"a shift cannot be merged into a {type(layer).__name__} without a bias")
        with torch.no_grad():
            for layer, change in self._pairs(ground):
                weight, bias = layer.weight, layer.bias
                assert isinstance(weight, Tensor)
                assert isinstance(bias, Tensor)
                weight.mul_(change.scale.view(-1, *[1] * (weight.dim() - 1)))
                bias.mul_(change.scale).add_(change.shift)


def _width(layer: nn.Module) -> int:
    if isinstance(layer, nn.Conv2d):
        return layer.out_channels
    return layer.out_features if isinstance(layer, nn.Linear) else int(layer.normalized_shape[-1])  # pyright: ignore
