"""What the engine asks of a model library. One subclass of :class:`Backbone` per library, in ``vitrim/backbones``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from vitrim.core.registry import BACKBONES, SpecError

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
    """How a family of blocks is cut in two: everything up to the attention residual, and the rest.

    Attributes:
        takes_beside: whether both halves take the keyword ``beside``, a function of what the attention or the MLP gets, whose
            result is added to the half's (:class:`vitrim.core.tuner.Tuner`).
    """

    takes_beside: ClassVar[bool] = False

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
        self, args: tuple[Any, ...], kwargs: dict[str, Any], index: Tensor, neutral: bool = False
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Block arguments with positions gathered for the patches ``index (B, patches)``.

        With ``neutral``, negative indices stand for tokens without a position.
        """
        return args, kwargs

    def class_token(self, model: nn.Module) -> Tensor | None:
        """The parameter of the class token ``(1, 1, C)``; None without one, or where it is not known."""
        return None

    def embeds_prefix(self, model: nn.Module) -> bool:
        """Whether positions are added to the class token too."""
        return False

    def embed(self, model: nn.Module, tokens: Tensor) -> Tensor:
        """What the model does to its tokens between the position embedding and the first block, for ``(B, K, C)`` more."""
        return tokens

    def final_norm(self, model: nn.Module) -> nn.Module | None:
        """The norm between the last block and the classifier, or None where it is not known."""
        return None

    def classes(self, model: nn.Module) -> int:
        """Number of classes; 0 without a classifier, or where it is not known."""
        return 0

    def classifier(self, model: nn.Module, reduction: Reduction) -> Patch:
        """The patch that lets ``reduction.classify()`` take the place of the model's own norm and classifier.

        Raises:
            SpecError: where it is not known how.
        """
        raise SpecError(f"a head of its own needs a model of timm; {type(model).__name__} is none")

    def idle_with_head(self, model: nn.Module) -> list[nn.Parameter]:
        """The parameters of the norm and the classifier that :meth:`classifier` replaces."""
        return []

    def heads(self, model: nn.Module, reduction: Reduction) -> list[Patch]:
        """Patches for the parts after the blocks that read patch tokens (pooled heads, intermediate features)."""
        return []


def find_backbone(model: nn.Module) -> Backbone:
    """The backbone that knows the model.

    Raises:
        TypeError: when none does, saying what was looked for; for a recogniser, which has the model inside.
    """
    inside = getattr(model, "inside", None)
    if isinstance(inside, str):
        name = type(model).__name__
        raise TypeError(f"{name} has passes of its own around the vision transformer; go on with the one inside, model.{inside}")
    candidates = [BACKBONES.get(name)() for name in BACKBONES.names()]
    for backbone in sorted(candidates, key=lambda b: b.last):
        if backbone.matches(model):
            return backbone
    raise TypeError(
        f"{type(model).__name__} is no model that vitrim knows ({', '.join(BACKBONES.names())}), and no list of at least two "
        "equal blocks with attention was found in it; pass the vision transformer itself, or a Backbone as backbone="
    )
