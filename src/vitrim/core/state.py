"""What the blocks of a reduced model leave for each other."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Attention
from vitrim.core.trace import Step


@dataclass(frozen=True)
class State:
    """The tokens between two blocks.

    Attributes:
        n: sequence length.
        patches: patch tokens of the input.
        size: ``(B, n)``, or None while nothing has been reduced.
        valid: ``(B, n)`` bool, or None when there is no padding.
        bias: ``(B, n)`` what later blocks add to the logits of each key, or None.
        policy: ``(B, n)`` keep decisions of mask-based training, or None.
        maps: maps of the stages so far.
        positions: ``(B, n)`` original token that each token represents; only for models that use positions in blocks.
        attention: attention of the block just left, when the next stage reads it.
        suffix: trailing tokens that joined the sequence and are protected.
        window: where the tokens end that a cross-layer cache pools, or None without one.
        carried: ``(B, n)`` bool, True for tokens that the cache put back, with ``compat=official`` alone; else None.
        grid: patch grid of the input, or what a down-sampling tuner left of it; None when unknown.
        whole: how many of the maps were there when the grid last had a token in every cell.
    """

    n: int
    patches: int
    size: Tensor | None = None
    valid: Tensor | None = None
    bias: Tensor | None = None
    policy: Tensor | None = None
    maps: tuple[TokenMap, ...] = ()
    positions: Tensor | None = None
    attention: Attention | None = None
    suffix: int = 0
    window: int | None = None
    carried: Tensor | None = None
    grid: tuple[int, int] | None = None
    whole: int = 0

    def mass(self, prefix: int) -> Tensor | None:
        """``(B, n - prefix)``: how much each patch token counts in an average; None when all count the same."""
        if self.size is None or self.policy is None:
            mass = self.policy if self.size is None else self.size
        else:
            mass = self.size * self.policy
        return None if mass is None else mass[:, prefix:]


@dataclass
class Memory:
    """What blocks leave for each other, keyed by layer and overwritten.

    Keyed, because gradient checkpointing runs blocks twice and backwards; overwritten, because people call
    ``forward_features`` or single blocks, so that no model hook could reset it. A plain object, because attributes of
    a module that change in ``forward`` confuse ``torch.export``. Every key is there from the start, with None: for a
    dictionary that is empty only before the first pass, ``torch.compile`` would compile a second time.
    """

    states: dict[int, State | None] = field(default_factory=dict)
    steps: dict[int, Step | None] = field(default_factory=dict)
    plans: dict[int, dict[int, int]] = field(default_factory=dict)
    groups: dict[int, Tensor | None] = field(default_factory=dict)  # what a cache took at each block
    taps: dict[int, Tensor | None] = field(default_factory=dict)  # what a head reads at each block
    guests: dict[int, Tensor | None] = field(default_factory=dict)  # what a block left of a tuner's guests
    patches: int = 0
    inputs: dict[int, int] = field(default_factory=dict)
    last: int = -1

    def __getstate__(self) -> dict[str, object]:
        # For copies and pickles: no tokens of a forward pass. In training they belong to its graph and cannot be copied.
        kept: dict[str, object] = dict(vars(self))
        for name in ("states", "steps", "groups", "taps", "guests"):
            kept[name] = dict.fromkeys(getattr(self, name))
        return kept | {"inputs": {}, "last": -1}

    def guard(self, layer: int, x: Tensor) -> None:
        """Refuse a recomputation whose forward pass is no longer the last one.

        Gradient checkpointing hands a block the very tensor of its forward pass. Another tensor, at a block whose
        predecessor was not recomputed just before, means that a later pass has overwritten what the blocks left.

        Raises:
            RuntimeError: in that case; the gradients would be silently wrong.
        """
        recomputing = torch._C._current_graph_task_id() != -1  # pyright: ignore[reportPrivateUsage] - there is no public way to ask
        if not recomputing:
            self.inputs[layer] = x.data_ptr()
        elif self.last != layer - 1 and self.inputs.get(layer) != x.data_ptr():
            raise RuntimeError(
                f"block {layer} is recomputed for a forward pass that is not the last one; with gradient checkpointing, run "
                "backward before the next forward pass, or give all images to one pass"
            )
        self.last = layer if recomputing else -1
