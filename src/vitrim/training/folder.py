"""The folder of a run: what lies where, and when a run may start in it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vitrim.training.checkpoint import WriteError, newest, write_text
from vitrim.training.recipe import Recipe


class RunFolder:
    """Paths of a run.

    Args:
        path: the folder.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self.config = self.path / "config.yaml"
        self.metrics = self.path / "metrics.jsonl"
        self.gradients = self.path / "gradients.csv"
        self.summary = self.path / "summary.json"
        self.checkpoints = self.path / "checkpoints"
        self.weights = self.path / "model.safetensors"
        self.ema = self.path / "ema.safetensors"

    def check_free(self) -> None:
        """Refuse a folder that holds a run already.

        Raises:
            ValueError: in that case, or when there is a file of that name.
        """
        if self.path.exists() and not self.path.is_dir():
            raise ValueError(f"'{self.path}' is a file; give another --out")
        if self.config.exists() or self.metrics.exists() or self.weights.exists():
            raise ValueError(f"'{self.path}' holds a run already; go on with --resume {self.path}, or give another --out")

    def create(self, recipe: Recipe) -> None:
        """Make the folder and write the recipe into it.

        Raises:
            WriteError: when that cannot be done.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(self.config, recipe.to_yaml())
        except OSError as error:
            raise WriteError(f"cannot write {self.path}: {error.strerror or error}; give another --out") from error

    def recipe(self) -> Recipe:
        """The recipe of the run.

        Raises:
            FileNotFoundError: when there is no run.
        """
        if not self.config.is_file():
            raise FileNotFoundError(f"'{self.path}' holds no run (no config.yaml); start one with: vitrim train RECIPE --out RUN")
        return Recipe.from_yaml(self.config)

    def finished(self) -> bool:
        """Whether the run came to its end."""
        return self.weights.is_file() and self.read_summary().get("state") == "finished"

    def read_summary(self) -> dict[str, Any]:
        """The summary; empty when there is none."""
        try:
            return json.loads(self.summary.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def write_summary(self, values: dict[str, Any]) -> None:
        """Replace the summary.

        Raises:
            WriteError: when the disk is full or refuses.
        """
        try:
            write_text(self.summary, json.dumps(values, indent=1) + "\n")
        except OSError as error:
            raise WriteError(f"cannot write {self.summary}: {error.strerror or error}") from error

    def newest_checkpoint(self) -> Path | None:
        """The newest complete checkpoint."""
        return newest(self.checkpoints)

    def size_of_metrics(self) -> int:
        """Bytes of ``metrics.jsonl``, all of them on the disk, for a checkpoint to remember."""
        if not self.metrics.is_file():
            return 0
        with self.metrics.open("rb+") as handle:
            os.fsync(handle.fileno())
        return self.metrics.stat().st_size

    def cut_metrics(self, size: int) -> None:
        """Cut ``metrics.jsonl`` back to a checkpoint: what came later will be written again."""
        if self.metrics.is_file() and self.metrics.stat().st_size > size:
            os.truncate(self.metrics, size)
