"""FFVT: tokens of every block, chosen by mutual attention with the class token, classified by one more block."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vitrim.core.registry import RECOGNISERS, SpecError
from vitrim.core.rollout import mutual
from vitrim.recognition.base import Recogniser, aggregator, classifier, engine_of, fresh_norm, steps, tokens
from vitrim.recognition.selection import take


@RECOGNISERS.register("ffvt")
class FFVT(Recogniser):
    """Let one more block see the class token and the best tokens of all blocks.

    In every block but the last, which the added block replaces, the tokens are ranked by mutual attention weights: what the
    class token gives to a token times what it gets from it. As published, the class token is ranked too. On a reduced backbone
    a token that stands for several has the mean of their weights.

    Args:
        tokens: tokens taken from each block (12; 24 published for the dogs).
        init: start of the added block: ``random`` (as published), or ``last``, the pretrained last block.
    """

    paper = "Wang et al., Feature Fusion Vision Transformer for Fine-Grained Visual Categorization, BMVC 2021, arXiv:2107.02341"
    trained = ("aggregator", "norm", "head")

    def __init__(self, *, tokens: int = 12, init: str = "random") -> None:
        super().__init__()
        if tokens < 1:
            raise ValueError(f"tokens is a number of tokens per block; got {tokens}")
        self.tokens = tokens
        self.init = init

    def setup(self, vit: Any, classes: int) -> None:
        if len(vit.blocks) < 2:
            raise SpecError("ffvt puts a block of its own in place of the last one; it needs a model of two blocks or more")
        block = aggregator(vit, self.init)
        super().setup(vit, classes)
        self.norm = fresh_norm(vit, vit.embed_dim)
        vit.blocks = vit.blocks[:-1]
        # The published code drops the model's norm for one that is trained.
        vit.norm = vit.fc_norm = torch.nn.Identity()
        self.aggregator = block
        self.head = classifier(vit, vit.embed_dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        x = tokens(self.vit, images)
        chosen: list[Tensor] = []
        for layer, after, attention in steps(self.vit, x, range(len(self.vit.blocks))):
            assert attention is not None
            x = after
            chosen.append(take(x, self._best(layer, x, mutual(attention))))
        x = self.aggregator(torch.cat([x[:, :1], *chosen], dim=1))
        return self.head(self.norm(x[:, 0]))

    def _best(self, layer: int, x: Tensor, weight: Tensor) -> Tensor:
        """``(B, k)`` the tokens of ``x (B, n, C)`` with the largest ``weight`` of the tokens that attended in the block."""
        valid = None
        if weight.shape[1] != x.shape[1]:
            weight, valid = self._follow(layer, x, weight)
        if x.shape[1] < self.tokens:
            raise RuntimeError(f"ffvt takes {self.tokens} tokens and block {layer} leaves {x.shape[1]}; lower tokens=")
        if valid is not None:
            weight = weight.masked_fill(~valid, -1)
        best, index = weight.topk(self.tokens, dim=1)
        # Padding of a ragged reduction has no weight, and must not stand beside the tokens: repeat the best one.
        return index if valid is None else torch.where(best < 0, index[:, :1], index)

    def _follow(self, layer: int, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
        """Carry the weights through the reduction within the block."""
        engine = engine_of(self.vit)
        step = None if engine is None else engine.trace.get(layer)
        if step is None or (step.map.n, step.map.m) != (weight.shape[1], x.shape[1]):
            raise RuntimeError(
                f"ffvt: {weight.shape[1]} tokens attend in block {layer} and {x.shape[1]} leave it, so that attention does not "
                "say which to take; take prompts and caches out (a reduction alone works)"
            )
        return step.map.pool(weight.unsqueeze(-1)).squeeze(-1), step.map.valid
