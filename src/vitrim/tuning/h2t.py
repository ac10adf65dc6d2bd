"""Head-to-Toe: a linear head on features of all layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.cache import Head
from vitrim.core.patch import Patch
from vitrim.core.registry import TUNERS, SpecError
from vitrim.core.tuner import Ground, Tuner


class Means:
    """Means over the tokens of what modules gave in the last forward pass, by name. A plain object, as patches need it."""

    def __init__(self, names: Sequence[str]) -> None:
        self.of: dict[str, Tensor | None] = dict.fromkeys(names)

    def get(self, name: str) -> Tensor:
        """The mean ``(B, C)``.

        Raises:
            RuntimeError: when the model has not been run.
        """
        mean = self.of[name]
        if mean is None:
            raise RuntimeError("the head reads all layers, which have not been run; call the model from its input on")
        return mean

    def __getstate__(self) -> dict[str, object]:
        # For copies and pickles: no tensors of a forward pass, which belong to its graph.
        return {"of": dict.fromkeys(self.of)}


class MeanPatch(Patch):
    """The forward of a module, whose mean over the tokens is remembered."""

    def __init__(self, module: nn.Module, means: Means, name: str) -> None:
        super().__init__(module)
        self.means = means
        self.key = name

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the module's own."""
        out = self.original(x, *args, **kwargs)
        self.means.of[self.key] = out.mean(dim=1)
        return out


class ToeHead(Head):
    """A linear classifier of the normalised means of all layers.

    Args:
        ground: the model.
        blocks: blocks whose layers are read.
        means: where they are remembered.
        width: features in all.
    """

    uses_norm = True

    def __init__(self, ground: Ground, blocks: Sequence[int], means: Means, width: int) -> None:
        super().__init__()
        self.taps = [ground.depth - 1]
        self.blocks = list(blocks)
        self._means = means
        self._norm = [ground.backbone.final_norm(ground.model) or nn.Identity()]  # the model's, not a part of this head
        self.classifier = nn.Linear(width, ground.backbone.classes(ground.model))

    def take(self, layer: int, x: Tensor, cls: int | None, guests: Tensor | None, mass: Tensor | None = None) -> Tensor:
        return self._norm[0](x).mean(dim=1)

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        found = [F.normalize(self._means.get("embedded"), dim=1)]
        for layer in self.blocks:
            parts = [self._means.get(f"{layer}.{name}") for name in ("norm1", "attn", "act", "mlp")]
            found.append(F.normalize(torch.cat(parts, dim=1), dim=1))
        return torch.cat([*found, F.normalize(taps[0], dim=1)], dim=1)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(features)


@TUNERS.register("h2t")
class HeadToToe(Tuner):
    """A linear head on the mean of the input, of norm, attention, activation and MLP of every block, and of the output.

    Nothing in the model changes, so that no backward pass through the blocks is needed. The selection of features of the paper is
    not part of it; a group lasso on the head (``--lasso`` in recipes) takes its place, as in the code of CLCA.

    Args:
        at: blocks whose layers are read; all of them when None.
    """

    paper: ClassVar[str] = "Evci et al., Head2Toe, ICML 2022, arXiv:2201.03529"
    works_in_blocks = False

    def __init__(self, *, at: Sequence[int] | None = None) -> None:
        super().__init__()
        self.at = at

    def setup(self, ground: Ground) -> None:
        if not ground.backbone.classes(ground.model):
            raise SpecError("h2t replaces a classifier, and this model has none; create it with num_classes=...")
        lost = [n for n in ("norm1", "attn", "mlp.act", "mlp.fc1", "drop_path1", "drop_path2") if not _has(ground.blocks[0], n)]
        if lost or not hasattr(ground.model, "norm_pre"):
            raise SpecError(f"h2t reads the layers of timm's VisionTransformer; {type(ground.model).__name__} is built otherwise")
        blocks = list(range(ground.depth)) if self.at is None else sorted(self.at)
        if blocks[-1] >= ground.depth:
            raise SpecError(f"block {blocks[-1]} does not exist: the model has {ground.depth} blocks, numbered from 0")
        names = [f"{layer}.{name}" for layer in blocks for name in ("norm1", "attn", "act", "mlp")]
        self._means = Means(["embedded", *names])
        inner: Any = ground.blocks[0].get_submodule("mlp.fc1")
        width = len(blocks) * (3 * ground.dim + inner.out_features) + 2 * ground.dim
        self.head = ToeHead(ground, blocks, self._means, width)

    def patches(self, ground: Ground) -> list[Patch]:
        assert isinstance(self.head, ToeHead)
        found: list[Patch] = [MeanPatch(ground.model.get_submodule("norm_pre"), self._means, "embedded")]
        for layer in self.head.blocks:
            for name, module in (("norm1", "norm1"), ("attn", "drop_path1"), ("act", "mlp.act"), ("mlp", "drop_path2")):
                found.append(MeanPatch(ground.blocks[layer].get_submodule(module), self._means, f"{layer}.{name}"))
        return found


def _has(module: nn.Module, name: str) -> bool:
    try:
        module.get_submodule(name)
    except AttributeError:
        return False
    return True
