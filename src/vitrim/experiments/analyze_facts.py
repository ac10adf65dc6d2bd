"""What a run's token maps do to patches, read from its trace alone: which kind of reduction it is, and how deep patches get."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from vitrim.analysis.depth import TokenStatistics
from vitrim.analysis.view import token_sizes
from vitrim.experiments.tracestore import TraceStore

VERSION = 1  # of what is measured here; results of another version are not used again
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class StageFacts:
    """The patches after one stage, over all images; shares are of all patches.

    Attributes:
        block: the block.
        tokens: mean number of patch tokens.
        tokens_std: its standard deviation over images (of the population).
        kept: mean share of patches that are tokens of their own.
        dropped: mean share of patches that no token stands for.
        shared: mean share of patches that share a token with others.
    """

    block: int
    tokens: float
    tokens_std: float
    kept: float
    dropped: float
    shared: float


@dataclass(frozen=True)
class RunFacts:
    """A run, over all images.

    Attributes:
        prunes: whether its tokens are patches: kept ones, medoids, and beside them at most one fused token for each stage.
        merges: whether patches are put together: more tokens of several patches than one fused token for each stage.
        mixed: whether no patch stays a token of its own, so that it has no depth.
        stages: of each stage.
        depth: ``(patches,)`` mean block at which a patch stops being a token of its own; empty for a dense model.
        depth_std: its standard deviation over images.
        size: ``(patches,)`` mean number of patches in the token that a patch ends up in.
        broken: block to the number of images whose features are not all finite, where there are any.
    """

    prunes: bool
    merges: bool
    mixed: bool
    stages: list[StageFacts]
    depth: list[float]
    depth_std: list[float]
    size: list[float]
    broken: dict[str, int]

    @property
    def left(self) -> float:
        """Tokens after the last stage; infinity for a dense model, which keeps all."""
        return self.stages[-1].tokens if self.stages else float("inf")

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> RunFacts:
        """From the dictionary that :func:`measure_run` gives."""
        stages: Any = [StageFacts(**stage) for stage in found["stages"]]
        return cls(**{**found, "stages": stages})


def measure_run(path: str, images: int | None, chunk: int = 512) -> dict[str, Any]:
    """The facts of a trace store, as plain JSON values (:class:`RunFacts`).

    Args:
        path: folder of the store.
        images: look at this many, spread evenly; None at all.
        chunk: images in memory at once.
    """
    store = TraceStore(Path(path))
    rows = spread(len(store), images)
    kind = store.meta["features"][0] if store.meta["features"] else "cls"
    broken = {str(block): 0 for block in store.blocks}
    seen = TokenStatistics(store.patches, int(store.meta["depth"])) if store.stages else None
    sums = np.zeros((len(store.stages), 3), dtype=np.int64)
    prunes = merges = bool(store.stages)
    fused = merged = False
    for part in pieces(rows, chunk):
        for block in store.blocks:
            finite = np.isfinite(store.features(block, kind, part)).all(axis=1)
            broken[str(block)] += int((~finite).sum())
        stages: list[tuple[int, Array, Array]] = []
        for number, block in enumerate(store.stages, 1):
            label, source, kept = store.assignment(block, part), store.source(block, part), store.kept(block, part)
            stages.append((block, kept, label))
            sums[number - 1] += [kept.sum(), (label < 0).sum(), (token_sizes(label.astype(np.int64)) > 1).sum()]
            several, averaged = _several(label, source)
            fused |= bool((averaged > number).any())
            merged |= bool((several > number).any())
        if seen is not None:
            seen.add(stages, np.stack([store.tokens(block, part) for block in store.stages]))
    prunes, merges = prunes and not fused, merges and merged
    return {
        "prunes": prunes, "merges": merges, "mixed": seen is not None and seen.depth.mixed, **_over_images(seen, sums, store),
        "broken": {block: count for block, count in broken.items() if count},
    }  # fmt: skip


def spread(count: int, most: int | None) -> npt.NDArray[np.int64]:
    """At most ``most`` of ``count`` numbers, evenly spread."""
    if most is None or most >= count:
        return np.arange(count)
    return np.arange(most) * count // most


def pieces(rows: npt.NDArray[np.int64], size: int) -> Iterator[npt.NDArray[np.int64]]:
    """Rows in chunks."""
    for start in range(0, len(rows), size):
        yield rows[start : start + size]


def _several(label: Array, source: Array) -> tuple[Array, Array]:
    """``(N,)`` tokens that stand for several patches, and ``(N,)`` tokens that stand for patches without being one of them."""
    count = len(label)
    width = max(int(label.max(initial=0)) + 1, source.shape[1])
    at = np.where(label < 0, width, label).astype(np.int64) + (width + 1) * np.arange(count)[:, None]
    members = np.bincount(at.ravel(), minlength=(width + 1) * count).reshape(count, -1)[:, :width]
    own = np.zeros((count, width), dtype=bool)
    own[:, : source.shape[1]] = source >= 0
    return (members > 1).sum(axis=1), ((members > 0) & ~own).sum(axis=1)


def _over_images(seen: TokenStatistics | None, sums: Array, store: TraceStore) -> dict[str, Any]:
    if seen is None:
        return {"stages": [], "depth": [], "depth_std": [], "size": []}
    shares = sums / (seen.depth.images * store.patches)
    stages = [
        asdict(StageFacts(block, float(mean) * store.patches, float(std) * store.patches, *map(float, of)))
        for block, mean, std, of in zip(store.stages, *seen.rate(), shares, strict=True)
    ]
    depth = seen.depth
    return {
        "stages": stages, "depth": depth.mean("depth").tolist(), "depth_std": depth.std("depth").tolist(),
        "size": depth.mean("size").tolist(),
    }  # fmt: skip
