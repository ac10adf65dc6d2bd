"""What a reduction loses: the divergence of its answers from the dense model's, in whole and by the layer that cuts."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from vitrim.core.attach import reduced
from vitrim.core.reducer import Reducer
from vitrim.core.registry import SCHEDULES
from vitrim.core.schedule import Counts, Course
from vitrim.measure.accuracy import Images, agreement, batch_of, predict, top1
from vitrim.measure.stages import one_layer, path_of, spec_of

# Shares of the patches to which one layer alone is cut.
SHARES = (0.85, 0.65, 0.45, 0.25, 0.1)
# A schedule is given up early when it is worse by so many standard errors on the images so far.
_SURE = 2.0


@dataclass(frozen=True, eq=False)
class Score:
    """What one schedule loses on a set of images.

    Attributes:
        losses: ``(N,)`` Kullback-Leibler divergence of each image's answer from the dense model's, in nats; fewer when the
            schedule was given up early.
        agreement: share of images predicted as by the dense model.
        top1: accuracy in [0, 1], where there are labels.
    """

    losses: Tensor
    agreement: float
    top1: float | None = None

    @property
    def loss(self) -> float:
        """Mean divergence."""
        return float(self.losses.mean())


class Judge:
    """Compares a reduced model with the dense one on fixed images; every schedule is run once.

    Args:
        model: the dense model.
        method: the method.
        images: ``(N, C, H, W)`` or a sequence of ``(C, H, W)``, ready for the model.
        labels: ``(N,)`` classes, or None.
        batch_size: images per forward pass.
        seed: of methods with randomness.
        known: scores of an earlier run, by schedule, as :attr:`known` keeps them; updated in place.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Reducer,
        images: Images,
        labels: Tensor | None = None,
        batch_size: int = 64,
        seed: int = 0,
        known: dict[str, Any] | None = None,
    ) -> None:
        self.model = model
        self.method = method
        self.images = images
        self.labels = labels
        self.batch_size = batch_size
        self.seed = seed
        self.known: dict[str, Any] = {} if known is None else known
        self.dense = predict(model, images, batch_size)

    @property
    def fingerprint(self) -> str:
        """Tells other weights or images apart: a digest of the dense model's answers, rounded."""
        rounded = self.dense.mul(100).round().to(torch.int64)
        return hashlib.sha256(rounded.numpy().tobytes()).hexdigest()[:16]

    def score(self, schedule: str, beat: Score | None = None, limit: int | None = None) -> Score | None:
        """What the schedule loses.

        Args:
            schedule: its spec.
            beat: give up as soon as the schedule is clearly worse than this one, image by image.
            limit: the first images only.

        Returns:
            The score, or None when it was given up.
        """
        total = min(limit or len(self.images), len(self.images))
        name = schedule if total == len(self.images) else f"{schedule} on {total}"
        values = self.known.get(name)
        if values is not None:
            return Score(torch.tensor(values["losses"]), values["agreement"], values["top1"])
        if name in self.known and beat is not None:
            return None
        logits: list[Tensor] = []
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a capped count is the fixed schedule's, and shown in the table
            with reduced(self.model, self.method, SCHEDULES.build(schedule), seed=self.seed):
                for start in range(0, total, self.batch_size):
                    size = min(self.batch_size, total - start)
                    logits.append(predict(self.model, batch_of(self.images, start, size, self.model), self.batch_size))
                    if beat is not None and self._worse(torch.cat(logits), beat):
                        self.known[name] = None
                        return None
        found = torch.cat(logits)
        dense, labels = self.dense[:total], None if self.labels is None else self.labels[:total]
        score = Score(divergence(dense, found), agreement(found, dense), None if labels is None else top1(found, labels))
        losses = [round(float(value), 6) for value in score.losses]
        self.known[name] = {"losses": losses, "agreement": score.agreement, "top1": score.top1}
        return score

    def _worse(self, logits: Tensor, beat: Score) -> bool:
        if len(logits) >= len(self.images) or len(logits) < 64:
            return False
        excess = divergence(self.dense[: len(logits)], logits) - beat.losses[: len(logits)]
        return bool(excess.mean() > _SURE * excess.std() / len(excess) ** 0.5)


def divergence(dense: Tensor, logits: Tensor) -> Tensor:
    """``(N,)`` Kullback-Leibler divergence from the dense model's classes to these, in nats; logits are ``(N, classes)``."""
    p, q = dense.log_softmax(dim=1), logits.log_softmax(dim=1)
    return (p.exp() * (p - q)).sum(dim=1)


def distortion_table(
    judge: Judge,
    grid: Sequence[int],
    layers: Sequence[int],
    patches: int,
    depth: int,
    limit: int = 128,
    progress: Callable[[str], object] | None = None,
) -> NDArray[np.float64]:
    """``(L, S)``: divergence when the tokens are cut to ``grid[s]`` at layer l alone.

    A method that cannot cut so far at once goes on in the layers after it. Between the counts that are tried the curve is
    linear; it never falls as tokens go.

    Args:
        judge: with the calibration images.
        grid: counts, descending from all patches.
        layers: blocks that may reduce; the rows of others are zero.
        patches: patch tokens of the input.
        depth: number of blocks.
        limit: images used for each entry; the first ones.
        progress: called with a line of text before each entry.
    """
    table = np.zeros((depth, len(grid)))
    tried = sorted({max(1, round(share * patches)) for share in SHARES}, reverse=True)
    for number, layer in enumerate(layers):
        points = {patches: 0.0}
        for i, count in enumerate(tried):
            if progress is not None:
                progress(f"distortion by layer: {number * len(tried) + i + 1}/{len(layers) * len(tried)}")
            targets = one_layer(judge.method, layer, count, patches, depth)
            if not targets:
                continue
            schedule = Counts(list(targets.values()), list(targets))
            reached = path_of(judge.method.plan(Course(schedule, patches, depth)), patches, depth)[-1]
            score = judge.score(spec_of(targets), limit=limit)
            if score is not None and reached not in points:
                points[reached] = score.loss
        table[layer] = _curve(points, grid)
    return table


def _curve(points: Mapping[int, float], grid: Sequence[int]) -> NDArray[np.float64]:
    counts = np.array(sorted(points, reverse=True), dtype=float)
    losses = np.maximum.accumulate([points[int(count)] for count in counts])
    removed = counts[0] - np.array(grid, dtype=float)
    values = np.interp(removed, counts[0] - counts, losses)
    if len(counts) > 1:
        # Beyond what the method reached, the last slope goes on.
        slope = (losses[-1] - losses[-2]) / (counts[-2] - counts[-1])
        values += slope * np.maximum(removed - (counts[0] - counts[-1]), 0)
    return values
