"""Where a block reduces: the site asked for, and the one that is possible."""

from __future__ import annotations

from torch import nn

from vitrim.core.backbone import Backbone
from vitrim.core.registry import SpecError


def resolve_site(site: str, backbone: Backbone, blocks: list[nn.Module]) -> tuple[str, str]:
    """The site that is possible, and the name of the inner module for ``around``."""
    name, _, inner = site.partition(":")
    if name == "around":
        if not inner:
            raise SpecError("site 'around' needs the name of a sub-module of the blocks, as in around:attn")
        return name, inner
    if name not in ("before", "inside", "after") or inner:
        raise SpecError(f"unknown site '{site}'; it is before, inside, after or around:NAME")
    if name == "inside" and any(backbone.halves(b) is None for b in blocks):
        return "after", ""
    return name, ""


def inner_module(block: nn.Module, name: str) -> nn.Module:
    """The sub-module ``name`` of a block."""
    try:
        return block.get_submodule(name)
    except AttributeError as error:
        names = ", ".join(n for n, _ in block.named_children())
        raise SpecError(f"{type(block).__name__} has no sub-module '{name}'; it has: {names}") from error
