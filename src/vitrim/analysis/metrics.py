"""What features are measured by, summed over batches: each metric sees every block of every batch and keeps sums only."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

import torch
from torch import Tensor

from vitrim.analysis.hsic import BatchCKA, gram
from vitrim.analysis.layer import Layer
from vitrim.analysis.spread import attention_distance, attention_entropy, distances, effective_rank, pooled_rows
from vitrim.core.tokenmap import TokenMap


class Metric:
    """Sums of one metric over the images.

    A batch counts when it is whole: what :meth:`see` found is kept apart until :meth:`close`, so that the state is that of
    whole batches at any time.

    Args:
        depth: number of blocks.
        heads: of the attention, for metrics that tell heads apart.

    Attributes:
        attention: whether the metric reads attention.
        names: of the columns that :meth:`values` gives.
    """

    attention: ClassVar[bool] = False
    names: ClassVar[tuple[str, ...]] = ()

    def __init__(self, depth: int, heads: int) -> None:
        self.depth = depth
        self.heads = heads

    def see(self, layer: Layer) -> None:
        """Take a block of the batch under way."""
        raise NotImplementedError

    def close(self, images: int) -> None:
        """End the batch, of so many images."""
        raise NotImplementedError

    def drop(self) -> None:
        """Forget the batch under way."""
        raise NotImplementedError

    def state(self) -> dict[str, Tensor]:
        """The sums."""
        raise NotImplementedError

    def load(self, state: dict[str, Tensor]) -> None:
        """Go on from the sums of :meth:`state`."""
        raise NotImplementedError

    def values(self) -> dict[str, Tensor]:
        """By the name of the column: ``(depth,)``, ``(depth, heads)`` or ``(depth, depth)`` float64."""
        raise NotImplementedError


class FeatureCKA(Metric):
    """CKA between the features of the blocks, on the original tokens."""

    names = ("cka",)

    def __init__(self, depth: int, heads: int) -> None:
        super().__init__(depth, heads)
        self.sums = BatchCKA(depth)
        self._grams: list[Tensor] = []

    def see(self, layer: Layer) -> None:
        self._grams.append(gram(layer.features))

    def close(self, images: int) -> None:
        self.sums.add(self._grams)
        self.drop()

    def drop(self) -> None:
        self._grams = []

    def state(self) -> dict[str, Tensor]:
        return {"total": self.sums.total, "counts": torch.tensor([self.sums.images, self.sums.left_out])}

    def load(self, state: dict[str, Tensor]) -> None:
        self.sums.total = state["total"].clone()
        self.sums.images, self.sums.left_out = (int(x) for x in state["counts"])

    def values(self) -> dict[str, Tensor]:
        return {self.names[0]: self.sums.cka()}


class AttentionCKA(FeatureCKA):
    """CKA between the attention maps of the blocks, lifted to the original tokens; head by head, so that one is held."""

    attention = True
    names = ("attention_cka",)

    def see(self, layer: Layer) -> None:
        # The inner product of two images is the sum over the heads.
        grams = [gram(layer.lifted(head)) for head in range(layer.see().queries.shape[1])]
        self._grams.append(torch.stack(grams).sum(dim=0))


class _Means(Metric):
    """Means over the images of numbers that each image, or each batch, has for itself."""

    def __init__(self, depth: int, heads: int) -> None:
        super().__init__(depth, heads)
        self._sums: dict[str, Tensor] = {}
        self._now: dict[str, list[Tensor]] = {}
        self.images = 0

    def measure(self, layer: Layer) -> dict[str, Tensor]:
        """By name, the mean over the batch: of any shape, the same for all blocks."""
        raise NotImplementedError

    def see(self, layer: Layer) -> None:
        for name, value in self.measure(layer).items():
            self._now.setdefault(name, []).append(value.detach().double().cpu())

    def close(self, images: int) -> None:
        for name, values in self._now.items():
            more = images * torch.stack(values)
            self._sums[name] = self._sums[name] + more if name in self._sums else more
        self.images += images
        self.drop()

    def drop(self) -> None:
        self._now = {}

    def state(self) -> dict[str, Tensor]:
        return {**self._sums, "images": torch.tensor(self.images)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.images = int(state["images"])
        self._sums = {name: value.clone() for name, value in state.items() if name != "images"}

    def values(self) -> dict[str, Tensor]:
        return {name: total / max(self.images, 1) for name, total in self._sums.items()}


class AttentionDistance(_Means):
    """Mean distance of what is attended to, in patches, by block and head."""

    attention = True
    names = ("distance",)

    def measure(self, layer: Layer) -> dict[str, Tensor]:
        found = []
        for part, weights in layer.weights():
            origin = None if layer.attended is None else _some(layer.attended, part)
            found.append(attention_distance(weights, layer.grid, layer.prefix, origin))
        return {"distance": torch.cat(found).mean(dim=0)}


class AttentionEntropy(_Means):
    """Mean entropy of the attention rows in nats, by block and head."""

    attention = True
    names = ("entropy",)

    def measure(self, layer: Layer) -> dict[str, Tensor]:
        found, valid = [], layer.see().valid
        for part, weights in layer.weights():
            mass = None if layer.mass is None else layer.mass[part]
            found.append(attention_entropy(weights, mass, None if valid is None else valid[part]))
        return {"entropy": torch.cat(found).mean(dim=0)}


class EffectiveRank(_Means):
    """Effective rank of the tokens of an image, as they are and with their mean taken away."""

    names = ("rank", "rank_centred")

    def measure(self, layer: Layer) -> dict[str, Tensor]:
        plain, centred = (effective_rank(layer.features, layer.present, c).mean() for c in (False, True))
        return {"rank": plain, "rank_centred": centred}


class Norms(_Means):
    """Distances between the tokens of a batch, pooled to 7 x 7, and their length."""

    names = ("dist", "dist_norm", "l2_norm")

    def measure(self, layer: Layer) -> dict[str, Tensor]:
        keep = 0 if layer.cls is None else 1
        found = distances(pooled_rows(layer.features, layer.prefix, layer.grid, layer.present, keep=keep))
        return {name: torch.tensor(getattr(found, name)) for name in self.names}


METRICS: dict[str, type[Metric]] = {
    "cka": FeatureCKA,
    "attention_cka": AttentionCKA,
    "distance": AttentionDistance,
    "entropy": AttentionEntropy,
    "rank": EffectiveRank,
    "norms": Norms,
}


def _some(map: TokenMap, part: slice) -> TokenMap:
    """The map of some images of the batch."""
    fields = {name: getattr(map, name) for name in ("group", "weight", "valid", "source")}
    return replace(map, **{name: value[part] for name, value in fields.items() if value is not None})
