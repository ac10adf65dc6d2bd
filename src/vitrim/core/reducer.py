"""The base classes of a method: Reducer, and Scorer and Clusterer for the two common cases."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from vitrim.core.registry import METHODS, settings_of
from vitrim.core.schedule import Course
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Tokens

Site = Literal["before", "inside", "after"]


@dataclass(frozen=True, eq=False)
class Policy:
    """The answer of a method that trains with masks: no token leaves, attention is masked instead.

    Attributes:
        keep: ``(B, n)`` keep decisions over the whole sequence, 1 for prefix tokens; may carry a straight-through
            gradient. Later blocks use the masked softmax of DynamicViT (arXiv:2106.02034) with it.
    """

    keep: Tensor


class Reducer(nn.Module):
    """A token reduction method.

    One instance serves one block. The keyword-only constructor arguments are the hyper-parameters, each stored under
    its own name.

    Attributes:
        family: prune, merge, soft or fixed.
        site: where the method reduces by default: ``before`` a block, ``inside`` it (between attention and MLP) or
            ``after`` it.
        paper: where the method comes from.
        needs: what the method asks for, in words of ``attention``, ``class token``, ``parameters``, ``patch count`` (parameters
            that fit one number of patches only).
        without_cls: what the method does on a model without a class token.
        carriers: whether tokens that joined the sequence (:mod:`vitrim.caching`) are ``candidates`` like the patches, or
            ``protected``, out of the method's sight, as published for CLCA; a setting of the cache protects them everywhere.
        official_prefix: whether the published code with such tokens keeps the whole prefix or the class token alone.
        fewest: the smallest number of patch tokens that a stage can leave; 1 for methods that cluster.
        proportional: add log-sizes to the attention logits of later blocks (proportional attention).
        weighted: average merged tokens by their sizes.
    """

    spec_name: ClassVar[str]
    family: ClassVar[Literal["prune", "merge", "soft", "fixed"]]
    site: ClassVar[Site] = "inside"
    paper: ClassVar[str] = ""
    needs: ClassVar[tuple[str, ...]] = ()
    without_cls: ClassVar[str] = "the same; it does not use the class token"
    carriers: ClassVar[Literal["candidates", "protected"]] = "candidates"
    official_prefix: ClassVar[Literal["prefix", "class token"]] = "class token"
    fewest: ClassVar[int] = 0
    proportional: bool = False
    weighted: bool = False

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        """Say how the tokens are reduced; the engine applies it.

        Args:
            t: the tokens, prefix first.
            keep: number of patch tokens that must be left; the map covers the prefix as well
                (:meth:`TokenMap.with_prefix`).
        """
        raise NotImplementedError

    def setup(self, dim: int, keep: int) -> None:
        """Create the parameters of this stage; nothing by default.

        Args:
            dim: width of the tokens.
            keep: number of patch tokens that this stage leaves.
        """

    def value(self, patches: Tensor) -> Tensor:
        """The features that the map pools, ``(B, n, C) -> (B, n, C)``; the tokens themselves by default."""
        return patches

    def plan(self, course: Course) -> dict[int, int]:
        """Tokens after each reducing block, ``{block: count}``: what the schedule asks for and the method can do.

        Blocks that have nothing to do are left out.
        """
        counts: dict[int, int] = {}
        for block, target in course:
            if target < course.left:
                counts[block] = course.left = course.at_least(target)
        return counts

    def fresh(self) -> Reducer:
        """A new instance with the same settings."""
        return type(self)(**self.settings())

    def settings(self) -> dict[str, Any]:
        """The hyper-parameters as given."""
        return {name: getattr(self, name) for name in settings_of(type(self))}

    @property
    def reads_attention(self) -> bool:
        """Whether the method reads ``Tokens.attention``."""
        return "attention" in self.needs


class Scorer(Reducer):
    """A pruning method: write :meth:`score`; the highest-scoring patch tokens stay, in their order."""

    family = "prune"

    def score(self, t: Tokens) -> Tensor:
        """``(B, patches)``: higher stays."""
        raise NotImplementedError

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        index = self.score(t).topk(keep, dim=1, sorted=False).indices.sort(dim=1).values
        return TokenMap.select(index, t.x.shape[1] - t.prefix).with_prefix(t.prefix)


class Clusterer(Reducer):
    """A merging method: write :meth:`assign`; every cluster becomes the (size-weighted) mean of its tokens."""

    family = "merge"
    fewest = 1
    weighted = True

    def features(self, t: Tokens) -> Tensor:
        """``(B, patches, d)`` features to cluster; the keys averaged over heads by default."""
        return t.attention.mean_key()[:, t.prefix :]

    def assign(self, features: Tensor, k: int) -> Tensor:
        """``(B, patches)`` int64 cluster ids in ``[0, k)``."""
        raise NotImplementedError

    def forward(self, t: Tokens, keep: int) -> TokenMap | Policy:
        with torch.no_grad():
            group = self.assign(self.features(t), keep)
        return TokenMap.merge(group, keep).with_prefix(t.prefix)


@METHODS.register("none")
class KeepAll(Reducer):
    """Keep all tokens: the plain model, for a cache or a head that work on it too. Its schedule says at which blocks."""

    family = "fixed"

    def plan(self, course: Course) -> dict[int, int]:
        return {}
