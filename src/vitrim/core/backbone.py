"""What the engine asks of a model library. One subclass of :class:`Backbone` per library, in ``vitrim/backbones``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from vitrim.core.registry import BACKBONES

if TYPE_CHECKING:
    from vitrim.core.patch import Patch
    from vitrim.core.reduction import Reduction

Arguments = tuple[Any, ...]
Keywords = dict[str, Any]


@dataclass(frozen=True)
class Layout:
    """How a model lays out its token sequence.

    Attributes:
        prefix: number of leading tokens that are no patches (class, distillation, registers).
        cls: position of the class token, or None.
        grid: patch grid ``(height, width)`` at the model's own image size, or None when unknown.
        dim: width of the tokens.
    """

    prefix: int
    cls: int | None
    grid: tuple[int, int] | None
    dim: int


class Halves:
    """How a family of blocks is cut in two: everything up to the attention residual, and the rest."""

    @staticmethod
    def attention(block: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The attention half with its residual; arguments as the block's own forward takes them."""
        raise NotImplementedError

    @staticmethod
    def mlp(block: Any, x: Tensor) -> Tensor:
        """The MLP half with its residual."""
        raise NotImplementedError


class Backbone:
    """A library of vision transformers.

    Attributes:
        last: tried only when no other backbone knows the model.
    """

    last: ClassVar[bool] = False

    def matches(self, model: nn.Module) -> bool:
        """Whether this backbone knows the model."""
        raise NotImplementedError

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        """The transformer blocks, in order."""
        raise NotImplementedError

    def layout(self, model: nn.Module) -> Layout:
        """Prefix, class token, grid and width."""
        raise NotImplementedError

    def halves(self, block: nn.Module) -> type[Halves] | None:
        """How to cut this block in two, or None when it cannot be cut: reduction then happens after it."""
        return None

    def positional(self, block: nn.Module) -> bool:
        """Whether the block is told positions (rotary, relative) that must follow the tokens that stay."""
        return False

    def move_positions(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Block arguments with positions gathered for the patches ``index (B, patches)``."""
        return args, kwargs

    def heads(self, model: nn.Module, reduction: Reduction) -> list[Patch]:
        """Patches for the parts after the blocks that read patch tokens (pooled heads, intermediate features)."""
        return []


def find_backbone(model: nn.Module) -> Backbone:
    """The backbone that knows the model.

    Raises:
        TypeError: when none does, saying what was looked for.
    """
    candidates = [BACKBONES.get(name)() for name in BACKBONES.names()]
    for backbone in sorted(candidates, key=lambda b: b.last):
        if backbone.matches(model):
            return backbone
    raise TypeError(
        f"{type(model).__name__} is no model that vitrim knows ({', '.join(BACKBONES.names())}), and no list of at least two "
        "equal blocks with attention was found in it; pass the vision transformer itself, or a Backbone as backbone="
    )
