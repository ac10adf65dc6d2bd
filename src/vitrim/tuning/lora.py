"""LoRA, by peft; the model keeps its modules and the names of its weights."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor, nn

from vitrim.core.patch import Patch
from vitrim.core.registry import TUNERS, SpecError
from vitrim.core.tuner import Ground, Tuner


class LoraPatch(Patch):
    """The forward of a linear layer, with the low-rank change that a layer of peft computes."""

    def __init__(self, module: nn.Module, layer: nn.Module) -> None:
        super().__init__(module)
        self.layer = [layer]  # in a list: it belongs to the tuner
        # What peft takes for the layer is whatever was there before: another method may have changed that (ssf).
        base: Any = layer.base_layer
        base.forward = self.original

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As the layer's own, plus the change."""
        return self.layer[0](x, *args, **kwargs)


@TUNERS.register("lora")
class Lora(Tuner):
    """A change of low rank beside linear layers of the blocks, by Hugging Face peft; mergeable.

    peft would put modules of its own in place of the layers, under other names in the state dict. Here its layers belong to the
    tuning and the model's layers stay where they are.

    Args:
        r: rank.
        alpha: the change is scaled by ``alpha / r``.
        drop: dropout of the change's input.
        layers: names of the layers, as they end (``attn.qkv``, ``mlp.fc1``), or ``all`` linear layers of the blocks.
        rslora: scale by ``alpha / sqrt(r)`` (arXiv:2312.03732).
        dora: train the lengths of the weights apart from their directions (arXiv:2402.09353).
    """

    paper: ClassVar[str] = "Hu et al., LoRA, ICLR 2022, arXiv:2106.09685"
    works_in_blocks = False
    mergeable = True

    def __init__(
        self, *, r: int = 8, alpha: float = 8.0, drop: float = 0.0, layers: str | Sequence[str] = ("attn.qkv", "attn.proj"),
        rslora: bool = False, dora: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if not isinstance(r, int) or r < 1:
            raise ValueError(f"r is a rank, 1 or more; got {r!r}")
        self.r, self.alpha, self.drop, self.layers, self.rslora, self.dora = r, alpha, drop, layers, rslora, dora

    def setup(self, ground: Ground) -> None:
        found = self._found(ground)
        self.changes = nn.ModuleList(self._change(layer) for layer in found.values())

    def _found(self, ground: Ground) -> dict[str, nn.Linear]:
        every = ground.linears()
        if self.layers == "all":
            return every
        wanted = [self.layers] if isinstance(self.layers, str) else list(self.layers)
        found = {name: layer for name, layer in every.items() if any(name == w or name.endswith(f".{w}") for w in wanted)}
        if not found:
            ends = sorted({".".join(name.split(".")[-2:]) for name in every})
            raise SpecError(f"lora finds no layers called {', '.join(wanted)}; the blocks have: {', '.join(ends)}")
        return found

    def _change(self, layer: nn.Linear) -> nn.Module:
        try:
            from peft import LoraConfig
            from peft.tuners.lora.layer import Linear
        except ImportError as error:
            raise ImportError("lora needs peft; install vitrim[peft]") from error
        # A shallow copy shares the weights and knows nothing of the patch, so that the change does not call itself.
        base = copy.copy(layer)
        config = LoraConfig(r=self.r, lora_alpha=self.alpha, lora_dropout=self.drop, use_rslora=self.rslora, use_dora=self.dora)  # pyright: ignore
        change: Any = Linear(base, "default", config=config, r=self.r, lora_alpha=self.alpha)  # pyright: ignore
        # peft holds the layer as a sub-module; it would stand in the state dict twice.
        del change._modules["base_layer"]
        object.__setattr__(change, "base_layer", base)
        return change

    def patches(self, ground: Ground) -> list[Patch]:
        pairs = zip(self._found(ground).values(), self.changes, strict=True)
        return [LoraPatch(layer, change) for layer, change in pairs]

    def merge(self, ground: Ground) -> None:
        for change in self.changes:
            merge: Any = change.merge
            merge(safe_merge=True)
