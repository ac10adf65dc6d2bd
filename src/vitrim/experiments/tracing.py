"""Records the trace of an evaluation: what goes into the store, shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from vitrim.core.backbone import find_backbone
from vitrim.core.reduction import Reduction
from vitrim.datasets.base import DataError
from vitrim.experiments.patterns import FeatureTaps, feature_blocks, stages
from vitrim.experiments.processes import Processes
from vitrim.experiments.results import COLUMNS, Results
from vitrim.experiments.subject import Subject
from vitrim.experiments.tracestore import Array, TraceError
from vitrim.experiments.tracewriter import Columns, TraceWriter, join_columns, stage_columns

if TYPE_CHECKING:
    from vitrim.experiments.evaluate import Settings
    from vitrim.experiments.passes import Pieces

KINDS = ("cls", "mean")


@dataclass(frozen=True)
class TraceOptions:
    """What a trace holds besides the patterns of every stage.

    Attributes:
        blocks: blocks with features: numbers, ``auto`` (3, 6, 9 and 11 of 12), ``all`` or ``none``.
        features: ``cls``, ``mean`` or both; None takes the class token, or the mean where there is none.
        features_dtype: of the features, ``float16`` or ``float32``.
        soft: keep the whole matrices of soft methods.
        shard: images of a file, rounded up to whole batches.
    """

    blocks: str = "auto"
    features: Sequence[str] | None = None
    features_dtype: str = "float16"
    soft: bool = False
    shard: int = 1024


class Recorder:
    """Within ``with``, collects what the model does, and writes a shard whenever a piece is finished.

    Args:
        subject: what is evaluated.
        settings: of the evaluation, with its ``trace``.
        path: folder of the store.
        split: the split.
        pieces: of the split, one shard each.
        processes: that share the pieces.

    Raises:
        TraceError: when there is a trace of something else.
        ValueError: for blocks or features that the model does not have.
    """

    def __init__(
        self, subject: Subject, settings: Settings, path: Path, split: Any, pieces: Pieces | None, processes: Processes
    ) -> None:  # fmt: skip
        assert settings.trace is not None
        assert pieces is not None
        options = self.options = settings.trace
        if options.features_dtype not in ("float16", "float32"):
            raise ValueError(f"features are kept as float16 or float32; got '{options.features_dtype}'")
        model = subject.model
        backbone = find_backbone(model)
        layout, depth = backbone.layout(model), len(backbone.blocks(model))
        blocks = feature_blocks(options.blocks, depth)
        features = list(options.features or (["cls"] if layout.cls is not None else ["mean"])) if blocks else []
        strange = [kind for kind in features if kind not in KINDS]
        if strange:
            raise ValueError(f"features are cls and mean; got '{strange[0]}'")
        self.taps = FeatureTaps(model, blocks, features)
        self.count = len(pieces)
        what = {
            **subject.what, "task": subject.task.name, "precision": subject.precision, "batch_size": settings.batch_size,
            "limit": settings.limit, "features": features, "blocks": blocks,
            "shard": settings.batch_size * -(-options.shard // settings.batch_size), "features_dtype": options.features_dtype,
            "soft": options.soft, "depth": depth, "dim": layout.dim, "prefix": layout.prefix,
            "grid": layout.grid, "classes": subject.dataset.classes, "labels": subject.labels, "weights_digest": digest(model),
        }  # fmt: skip
        images = [(item.path, _text(item.target, subject.labels)) for item in split.items]
        self.writer = TraceWriter(path, what, images, settings.overwrite, main=processes.main)
        processes.wait()
        self._parts: list[Columns] = []

    def __enter__(self) -> Recorder:
        self.taps.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.taps.__exit__(kind, error, trace)

    def has(self, number: int) -> bool:
        """Whether a piece was recorded before."""
        return self.writer.has(number)

    def results(self, number: int) -> Results:
        """The results of a piece that was recorded before."""
        return self.writer.results(number, COLUMNS)

    def add(self, results: Results, reduction: Reduction | None) -> None:
        """Take the last forward pass.

        Raises:
            ValueError: for features that float16 cannot hold.
        """
        columns: Columns = {}
        dtype = torch.float16 if self.options.features_dtype == "float16" else torch.float32
        for name, tensor in self.taps.found.items():
            columns[name] = tensor.to(dtype).cpu().numpy()
            if np.isinf(columns[name]).any() and not tensor.isinf().any():
                raise ValueError(
                    f"{name} holds numbers up to {tensor.abs().max():.3g}, too large for float16; use --features-dtype float32"
                )
        self.taps.found.clear()
        if reduction is not None:
            for stage in stages(reduction):
                columns |= stage_columns(stage, self.options.soft)
        self._parts.append({**columns, **results})

    def flush(self, number: int) -> None:
        """Write a piece.

        Raises:
            DataError: when none of its images could be read.
            WriteError: when the disk is full or refuses.
        """
        if not self._parts:
            raise DataError(f"no image of shard {number} can be read; check the data set with: vitrim data check NAME --root DIR")
        self.writer.write(number, join_columns(self._parts))
        self._parts.clear()

    def finish(self, scores: Mapping[str, float]) -> dict[str, Any]:
        """Complete the store; the facts about it.

        Raises:
            TraceError: when a shard is missing: two evaluations wrote into the folder.
        """
        absent = [n for n in range(self.count) if not self.writer.has(n)]
        if absent:
            raise TraceError(f"'{self.writer.path}' has lost shard {absent[0]} meanwhile; run the same command again")
        meta = self.writer.finish(self.count, {"metrics": dict(scores)})
        size, images = meta["bytes"], meta["images"]
        return {
            "path": str(self.writer.path),
            "shards": self.count,
            "bytes": size,
            "bytes_per_image": round(size / max(images, 1), 1),
        }


def digest(model: nn.Module) -> str:
    """A hash of the weights, those of a reduction included."""
    total = blake2b(digest_size=16)
    for name, tensor in sorted(model.state_dict().items()):
        total.update(name.encode())
        content: Array = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
        total.update(content.data)
    return total.hexdigest()


def _text(target: int | tuple[int, ...], labels: list[int] | None) -> str:
    if isinstance(target, int):
        return str(target if labels is None else labels[target])
    return " ".join(map(str, target))
