"""What a forward pass did to every patch, read from its token maps alone, and the features after its blocks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from vitrim.core.backbone import find_backbone
from vitrim.core.reduction import Reduction
from vitrim.core.tokenmap import TokenMap
from vitrim.core.trace import Step

_UNCHANGED = 1e-3
_AT = (0.25, 0.5, 0.75)  # of the depth: blocks 3, 6 and 9 of 12, and the last, as in the paper


@dataclass(frozen=True, eq=False)
class Stage:
    """The patches after one reducing block, and after what a cache put back there.

    Attributes:
        block: the block.
        map: from the patches of the image to the tokens, class token and the like left out.
        source: ``(B, m)`` int64: the patch that a token still is, alone or as the medoid of a cluster; -1 for averages, sums,
            tokens of a cache, and padding.
        tokens: ``(B,)`` int64: tokens of each image, without padding.
    """

    block: int
    map: TokenMap
    source: Tensor
    tokens: Tensor


def stages(reduction: Reduction) -> Iterator[Stage]:
    """The stages of the last forward pass, each composed with those before it.

    Around a sub-module nothing adds up: each stage stands for itself there.
    """
    trace = reduction.trace
    prefix = trace.prefix
    total: TokenMap | None = None
    source = torch.empty(0)
    for block in range(max(trace, default=-1) + 1):
        step = trace.get(block)
        if step is not None:
            before = None if reduction.site == "around" else total
            if before is None:
                total, source = _start(step, prefix, sum(c for at, c in trace.joins.items() if at < block))
            else:
                total = before.then(step.map)
            source = _follow(step.map, source)
        if total is None:
            continue
        count = trace.joins.get(block, 0)
        if count:
            total = total.then(TokenMap.joined(total.batch, total.m, count, total.device))
            source = torch.nn.functional.pad(source, (0, count), value=-1)
        if step is not None:
            valid = step.map.valid
            real = torch.full((total.batch,), step.map.m, device=total.device) if valid is None else valid.sum(1)
            yield Stage(block, total.without_prefix(prefix), source[:, prefix:], real - prefix + count)


def _start(step: Step, prefix: int, early: int) -> tuple[TokenMap, Tensor]:
    """The first map, from the original tokens on, and the patch that each token is which enters it."""
    first = step.map
    patches = torch.arange(first.n - prefix - early, device=first.device)
    source = torch.nn.functional.pad(patches, (prefix, early), value=-1).expand(first.batch, -1)
    if early:
        first = TokenMap.joined(first.batch, first.n - early, early, first.device).then(first)
    return first, source


def _follow(step: TokenMap, source: Tensor) -> Tensor:
    """The patch that each new token is: of its copy, or of the only token that went into it unchanged."""
    if step.source is not None:
        found = source.gather(1, step.source)
    elif step.group is not None:
        home = torch.where(step.group < 0, step.m, step.group)
        # A weight far from one makes another token of it (EViT's fused token with a single member); DPC-KNN's has an epsilon.
        alone = torch.ones_like(home) if step.weight is None else torch.where((step.weight - 1).abs() < _UNCHANGED, 1, 2)
        empty = home.new_zeros(step.batch, step.m + 1)
        members = empty.scatter_add(1, home, alone)[:, : step.m]
        found = torch.where(members == 1, empty.scatter_add(1, home, source)[:, : step.m], -1)
    else:
        found = torch.nn.functional.pad(source[:, : step.head], (0, step.m - step.head), value=-1)
    return found if step.valid is None else torch.where(step.valid, found, -1)


def feature_blocks(text: str, depth: int) -> list[int]:
    """The blocks of a list such as ``3,6,9,11``; ``auto`` is a quarter, half and three quarters of the depth and the last.

    Raises:
        ValueError: for blocks that the model does not have.
    """
    if text in ("none", "all", "auto"):
        quarters = sorted({*(min(round(share * depth), depth - 1) for share in _AT), depth - 1})
        return {"none": [], "all": list(range(depth)), "auto": quarters}[text]
    try:
        blocks = sorted({int(word) for word in text.replace(",", " ").split()})
    except ValueError:
        raise ValueError(f"blocks are numbers such as 3,6,9,11, or auto, all, none; got '{text}'") from None
    if not blocks or blocks[0] < 0 or blocks[-1] >= depth:
        raise ValueError(f"the model has the blocks 0 to {depth - 1}; got '{text}'")
    return blocks


class FeatureTaps:
    """Within ``with``, collects features after chosen blocks of a model, reduced or not.

    ``cls`` is the class token in the residual stream; ``mean`` the mean of the tokens after the prefix, each counted as often as
    it stands for patches (tokens of a cache once, padding never), which is the plain mean of the dense model.

    Args:
        model: the model.
        blocks: after which blocks.
        kinds: ``cls`` and ``mean``, or one of them.

    Raises:
        ValueError: for ``cls`` and a model without a class token.
    """

    def __init__(self, model: nn.Module, blocks: Sequence[int], kinds: Sequence[str]) -> None:
        backbone = find_backbone(model)
        self.layout = backbone.layout(model)
        if "cls" in kinds and self.layout.cls is None:
            raise ValueError(f"{type(model).__name__} has no class token; record the mean of the patches: --features mean")
        self.model = model
        self.kinds = kinds
        self.found: dict[str, Tensor] = {}
        self._modules = backbone.blocks(model)
        self._blocks = blocks
        self._hooks: list[Any] = []

    def __enter__(self) -> FeatureTaps:
        for block in self._blocks:
            self._hooks.append(self._modules[block].register_forward_hook(self._hook(block)))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _hook(self, block: int) -> Any:
        def take(module: nn.Module, inputs: Any, output: Any) -> None:  # noqa: ARG001 - the signature of PyTorch
            x = output[0] if isinstance(output, tuple) else output
            if "cls" in self.kinds:
                # A copy: a view would keep all tokens of every block alive.
                self.found[f"block{block}.cls"] = x[:, self.layout.cls or 0].float()
            if "mean" in self.kinds:
                self.found[f"block{block}.mean"] = self._mean(block, x)

        return take

    def _mean(self, block: int, x: Tensor) -> Tensor:
        tokens = x[:, self.layout.prefix :].float()
        reduction = getattr(self.model, "reduction", None)
        state = reduction.state_after(block) if isinstance(reduction, Reduction) else None
        if state is None or state.size is None:
            return tokens.mean(dim=1)
        mass = state.size[:, self.layout.prefix :].float()
        if state.valid is not None:
            mass = mass * state.valid[:, self.layout.prefix :]
        return (tokens * mass.unsqueeze(-1)).sum(dim=1) / mass.sum(dim=1, keepdim=True).clamp_min(1e-12)
