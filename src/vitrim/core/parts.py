"""Parts of a model by name, for training some of them."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any

from torch import nn

from vitrim.core.registry import SpecError

if TYPE_CHECKING:
    from vitrim.core.tuner import Ground

PARTS = {
    "head": "the classifier",
    "class_token": "class token (and distillation token)",
    "registers": "register tokens",
    "pos_embed": "position embeddings",
    "patch_embed": "patch embedding",
    "norm": "the norm after the last block",
    "norms": "all norms",
    "attention": "the attention layers",
    "mlp": "the MLPs",
    "biases": "all biases",
    "last_block": "the last block",
    "first_block": "the first block",
    "block:N": "block N, counted from 0",
    "all": "everything",
}

_HEADS = ("head", "heads", "head_dist", "classifier", "fc")
_NORMS = (nn.LayerNorm, nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.RMSNorm)


def parameters_of(ground: Ground, part: str) -> set[str]:
    """Names of the parameters of a part of the model.

    Args:
        ground: the model.
        part: one of ``PARTS``.

    Raises:
        SpecError: for an unknown part, with those that there are. One that the model does not have is empty.
    """
    model = ground.model
    names = {n: n.split(".") for n, _ in model.named_parameters() if n.split(".")[0] not in ("tuning", "reduction")}
    if part == "head":
        return _head(model, names)
    if part == "all":
        return set(names)
    if part in ("last_block", "first_block") or re.fullmatch(r"block:\d+", part):
        index = {"last_block": ground.depth - 1, "first_block": 0}.get(part)
        index = int(part.partition(":")[2]) if index is None else index
        if index >= ground.depth:
            raise SpecError(
                f"block {index} does not exist: the model has {ground.depth} blocks, numbered 0 to {ground.depth - 1}"
            )
        inside = {id(p) for p in ground.blocks[index].parameters()}
        return {n for n, p in model.named_parameters() if id(p) in inside}
    last = {
        "class_token": ("cls_token", "dist_token", "class_token"),
        "registers": ("reg_token",),
        "pos_embed": ("pos_embed", "pos_embedding"),
    }
    if part in last:
        return {n for n, path in names.items() if path[-1] in last[part]}
    if part == "biases":
        return {n for n, path in names.items() if path[-1].endswith("bias")}
    if part == "norms":
        return {
            f"{m}.{p}"
            for m, module in model.named_modules()
            if isinstance(module, _NORMS)
            for p, _ in module.named_parameters()
            if f"{m}.{p}" in names
        }
    if part == "norm":
        return {n for n, path in names.items() if path[0] in ("norm", "fc_norm", "ln_post")}
    segment = {"attention": ("attn", "attention", "self_attention"), "mlp": ("mlp",), "patch_embed": ("patch_embed", "conv_proj")}
    if part in segment:
        return {n for n, path in names.items() if any(s in path for s in segment[part])}
    near = difflib.get_close_matches(part, PARTS, n=1)
    raise SpecError(f"unknown part '{part}'; " + (f"did you mean '{near[0]}'?" if near else f"known: {', '.join(PARTS)}"))


def _head(model: Any, names: dict[str, list[str]]) -> set[str]:
    classifier = getattr(model, "get_classifier", None)
    found = classifier() if callable(classifier) else None
    own = {id(p) for p in found.parameters()} if isinstance(found, nn.Module) else set[int]()
    return {n for n, p in model.named_parameters() if n in names and (id(p) in own or names[n][0] in _HEADS)}
