"""Any other model: the longest list of equal blocks with attention, reduced after each block."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from vitrim.core.backbone import Backbone, Halves, Layout
from vitrim.core.registry import BACKBONES

PREFIX_COUNTS = ("num_prefix_tokens", "num_extra_tokens", "num_tokens_prefix")
CLASS_TOKENS = ("cls_token", "class_token", "class_embedding", "cls_embedding", "cls")
OTHER_TOKENS = (
    "dist_token", "distillation_token", "reg_token", "reg_tokens", "register_token", "register_tokens", "registers",
)  # fmt: skip
WIDTHS = ("embed_dim", "hidden_dim", "hidden_size", "d_model", "dim", "width")


@BACKBONES.register("generic")
class Generic(Backbone):
    """A model of no known library.

    What is guessed, and from where:

    * **blocks**: the longest ``ModuleList`` or ``Sequential`` of at least two blocks of one class that contain attention (a
      sub-module whose class or name speaks of attention). Every block takes tokens ``(B, n, C)`` and returns them.
    * **prefix**: ``num_prefix_tokens`` (or a like count) of the module that holds the list or of one around it; else one
      for a parameter called like a class token, and as many as it holds for distillation and register tokens.
    * **grid**: ``patch_embed.grid_size`` or ``grid_size``; a square when there is none.
    * **width**: ``embed_dim`` (or a like name); else the width of the first norm of a block.

    Blocks of a class that another backbone can cut, as in the many models written around timm's ``Block``, are cut;
    others are reduced after the block. A head that averages patch tokens is not known here, so it averages them without
    sizes; a class token's head needs nothing.
    """

    last = True

    def matches(self, model: nn.Module) -> bool:
        return _find_blocks(model) is not None

    def blocks(self, model: nn.Module) -> list[nn.Module]:
        found = _find_blocks(model)
        assert found is not None
        blocks = list(found[1])  # pyright: ignore[reportArgumentType]
        for module in blocks[0].modules():
            if isinstance(module, nn.MultiheadAttention) and not module.batch_first:
                raise TypeError(
                    f"the blocks of {type(model).__name__} run tokens first, (n, B, C); build them with batch_first=True"
                )
        return blocks

    def layout(self, model: nn.Module) -> Layout:
        found = _find_blocks(model)
        assert found is not None
        owners = _owners(model, found[0])
        prefix, cls = _prefix(owners)
        grid = _first(owners, lambda m: getattr(getattr(m, "patch_embed", m), "grid_size", None) or getattr(m, "grid_size", None))
        square = isinstance(grid, tuple | list) and len(grid) == 2
        return Layout(prefix, cls, (int(grid[0]), int(grid[1])) if square else None, _width(owners, found[1]))

    def halves(self, block: nn.Module) -> type[Halves] | None:
        for name in BACKBONES.names():
            known = BACKBONES.get(name)()
            if not known.last and not known.positional(block) and (cut := known.halves(block)) is not None:
                return cut
        return None


def _find_blocks(model: nn.Module) -> tuple[str, nn.Module] | None:
    """Name and list of the blocks."""
    best: tuple[str, nn.Module] | None = None
    for name, module in model.named_modules():
        if not isinstance(module, nn.ModuleList | nn.Sequential) or len(module) < 2:
            continue
        if len({type(child) for child in module}) > 1 or not _has_attention(module[0]):
            continue
        if best is None or len(module) > len(best[1]):  # pyright: ignore[reportArgumentType]
            best = name, module
    return best


def _has_attention(block: nn.Module) -> bool:
    # The block itself does not count: a list of bare attention modules is no list of blocks.
    return any(
        part and ("attn" in part.lower() or "attention" in part.lower() or "attention" in type(m).__name__.lower())
        for part, m in block.named_modules()
    )


def _owners(model: nn.Module, name: str) -> list[Any]:
    """The module that holds the list ``name`` and those around it, innermost first."""
    parts = name.split(".")[:-1] if name else []
    return [model.get_submodule(".".join(parts[:i])) for i in range(len(parts), -1, -1)]


def _first(owners: list[Any], read: Any) -> Any:
    return next((value for value in map(read, owners) if value is not None), None)


def _prefix(owners: list[Any]) -> tuple[int, int | None]:
    """Number of prefix tokens and position of the class token."""

    def count(owner: Any, names: tuple[str, ...]) -> int:
        tokens = [t for t in (getattr(owner, n, None) for n in names) if isinstance(t, Tensor)]
        return sum(t.shape[-2] if t.dim() > 1 else 1 for t in tokens)

    has_cls = any(count(owner, CLASS_TOKENS) for owner in owners)
    for name in PREFIX_COUNTS:
        given = _first(owners, lambda m, name=name: getattr(m, name, None))
        if isinstance(given, int):
            return given, 0 if has_cls and given else None
    others = max(count(owner, OTHER_TOKENS) for owner in owners)
    return int(has_cls) + others, 0 if has_cls else None


def _width(owners: list[Any], blocks: nn.Module) -> int:
    for name in WIDTHS:
        given = _first(owners, lambda m, name=name: getattr(m, name, None))
        if isinstance(given, int):
            return given
    for part, module in blocks.named_modules():
        weight = getattr(module, "weight", None)
        if "norm" in (part + type(module).__name__).lower() and isinstance(weight, Tensor) and weight.dim() == 1:
            return weight.shape[0]
    raise TypeError(f"cannot tell the width of the tokens; give the model an attribute named one of {', '.join(WIDTHS)}")
