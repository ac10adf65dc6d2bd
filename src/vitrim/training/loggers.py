"""Where the numbers of a run go: always ``metrics.jsonl``, and TensorBoard, W&B or trackio when asked for."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vitrim.training.checkpoint import WriteError, write_text

Record = Mapping[str, Any]


class Jsonl:
    """One JSON object a line, on disk after every line.

    Args:
        path: of the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Record) -> None:
        """Append a record.

        Raises:
            WriteError: when the disk is full or refuses.
        """
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise WriteError(f"cannot write {self.path}: {error.strerror or error}; free space, then --resume") from error

    def close(self) -> None:
        """Nothing stays open."""


class TensorBoard:
    """Event files in ``RUN/tensorboard``.

    Args:
        folder: of the run.
        step: a resumed run overwrites what comes after this step.
    """

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError("log: tensorboard is not installed; install vitrim[tensorboard]") from error
        self.writer = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1 if step else None)

    def write(self, record: Record) -> None:
        """Add the numbers of a record."""
        for name, value in scalars(record).items():
            self.writer.add_scalar(name, value, int(record["step"]))

    def close(self) -> None:
        """Write what is buffered."""
        self.writer.close()


class Wandb:
    """Weights & Biases; ``WANDB_MODE=offline`` and ``WANDB_PROJECT`` work as always. A resumed run goes on in its own page.

    Args:
        folder: of the run.
        recipe: shown as the configuration.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise ImportError("log: wandb is not installed; install vitrim[wandb]") from error
        self.run: Any = wandb.init(
            project=_project("WANDB_PROJECT"), dir=str(folder), id=_identity(folder), name=folder.name, resume="allow",
            config=dict(recipe),
        )  # fmt: skip
        # Steps repeat after a resumption and between evaluations, which W&B's own counter refuses.
        self.run.define_metric("*", step_metric="step")

    def write(self, record: Record) -> None:
        """Send the numbers of a record."""
        self.run.log({**scalars(record), "step": record["step"]})

    def close(self) -> None:
        """Wait until all is sent."""
        self.run.finish()


class Trackio:
    """Trackio, a local dashboard.

    Args:
        folder: of the run.
        recipe: shown as the configuration.
    """

    def __init__(self, folder: Path, recipe: Mapping[str, Any]) -> None:
        try:
            import trackio  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("log: trackio is not installed; install vitrim[trackio]") from error
        self.trackio: Any = trackio
        self.trackio.init(project=_project("TRACKIO_PROJECT"), name=folder.name, config=dict(recipe), resume="allow")

    def write(self, record: Record) -> None:
        """Store the numbers of a record."""
        self.trackio.log({**scalars(record), "step": record["step"]})

    def close(self) -> None:
        """Finish the run."""
        self.trackio.finish()


class Loggers:
    """All loggers of a run.

    Args:
        names: ``jsonl`` and others.
        folder: of the run.
        recipe: all keys.
        step: steps done already.
    """

    def __init__(self, names: Sequence[str], folder: Path, recipe: Mapping[str, Any], step: int = 0) -> None:
        makers: dict[str, Any] = {
            "jsonl": lambda: Jsonl(folder / "metrics.jsonl"),
            "tensorboard": lambda: TensorBoard(folder, step),
            "wandb": lambda: Wandb(folder, recipe),
            "trackio": lambda: Trackio(folder, recipe),
        }
        self._loggers = [makers[name]() for name in names]

    def write(self, kind: str, step: int, epoch: float, **values: Any) -> None:
        """Give a record to every logger."""
        record = {"kind": kind, "step": step, "epoch": round(epoch, 4), "time": round(time.time(), 3), **values}
        for logger in self._loggers:
            logger.write(record)

    def close(self) -> None:
        """Close every logger."""
        for logger in self._loggers:
            logger.close()


def scalars(record: Record) -> dict[str, float]:
    """The numbers of a record under names with its kind: ``train/loss``, ``eval/top1``, ``eval_ema/top1``."""
    kind = str(record["kind"]) + ("_ema" if record.get("weights") == "ema" else "")
    left_out = ("step", "time", "kind")
    numbers = {k: v for k, v in record.items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return {f"{kind}/{k}": float(v) for k, v in numbers.items() if k not in left_out}


def _identity(folder: Path) -> str:
    """A name for the run that stays when it is resumed or moved."""
    file = folder / "wandb-id.txt"
    if not file.is_file():
        write_text(file, uuid.uuid4().hex[:12])
    return file.read_text(encoding="utf-8").strip()


def _project(variable: str) -> str:
    return os.environ.get(variable, "vitrim")
