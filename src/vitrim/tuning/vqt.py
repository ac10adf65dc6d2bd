"""Visual query tuning: learned queries that summarise every block, for the head alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vitrim.core.cache import Head
from vitrim.core.registry import TUNERS, SpecError
from vitrim.core.tuner import Ground, Tuner
from vitrim.tuning.adapter import check_compat
from vitrim.tuning.vpt import check_length, new_prompts


class QueryHead(Head):
    """A linear classifier of the queries of all blocks and the class token, each of length one.

    Args:
        ground: the model.
        blocks: blocks with queries.
        length: queries of each.
        normed: the final norm comes before the class token's feature.
    """

    uses_norm = True

    def __init__(self, ground: Ground, blocks: Sequence[int], length: int, *, normed: bool) -> None:
        super().__init__()
        self.taps = sorted({*blocks, ground.depth - 1})
        self.blocks, self.last = list(blocks), ground.depth - 1
        self.normed = normed
        # In a list: the norm is the model's, not a part of this head.
        self._norm = [ground.backbone.final_norm(ground.model) or nn.Identity()]
        width = (len(self.blocks) * length + 1) * ground.dim
        self.classifier = nn.Linear(width, ground.backbone.classes(ground.model))
        nn.init.xavier_uniform_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def take(self, layer: int, x: Tensor, cls: int | None, guests: Tensor | None, mass: Tensor | None = None) -> Tensor:
        found: list[Tensor] = []
        if layer in self.blocks and guests is not None:
            found.append(F.normalize(guests.flatten(1), dim=1))
        if layer == self.last:
            token = x[:, cls or 0]
            found.append(F.normalize(self._norm[0](token) if self.normed else token, dim=1))
        return torch.cat(found, dim=1)

    def features(self, taps: Sequence[Tensor]) -> Tensor:
        return torch.cat(list(taps), dim=1)

    def logits(self, features: Tensor) -> Tensor:
        return self.classifier(features)


@TUNERS.register("vqt")
class VisualQueries(Tuner):
    """Learned queries in every block that attend to its tokens while no token attends to them; a linear head reads them all.

    The model's own features do not change, so that nothing needs a backward pass through the blocks but the queries.

    Args:
        length: queries per block.
        at: blocks with queries; all of them when None.
        drop: dropout of the queries.
        compat: ``official`` takes the first tokens, class token and patches, for the queries, as the code of CLCA does.
    """

    paper: ClassVar[str] = "Tu et al., Visual Query Tuning, CVPR 2023, arXiv:2212.03220"
    asks_only = True

    def __init__(
        self,
        *,
        length: int = 5,
        at: Sequence[int] | None = None,
        drop: float = 0.0,
        compat: Literal["paper", "official"] = "paper",
    ) -> None:
        super().__init__()
        check_length(length, "queries")
        check_compat(compat)
        self.length, self.at, self.drop, self.compat = length, at, drop, compat
        self.asks_first = compat == "official"

    def setup(self, ground: Ground) -> None:
        if not ground.backbone.classes(ground.model):
            raise SpecError("vqt replaces a classifier, and this model has none; create it with num_classes=...")
        blocks = list(range(ground.depth)) if self.at is None else sorted(self.at)
        if blocks[-1] >= ground.depth:
            raise SpecError(f"block {blocks[-1]} does not exist: the model has {ground.depth} blocks, numbered from 0")
        self._set = {layer: i for i, layer in enumerate(blocks)}
        self.queries = new_prompts(ground, len(blocks), self.length)
        self.head = QueryHead(ground, blocks, self.length, normed=not self.asks_first)

    def guest_count(self, layer: int) -> int:
        return self.length if layer in self._set else 0

    def guests(self, layer: int, left: Tensor | None, batch: int) -> Tensor | None:
        if layer not in self._set:
            return None
        return F.dropout(self.queries[self._set[layer]].expand(batch, -1, -1), self.drop, self.training)
