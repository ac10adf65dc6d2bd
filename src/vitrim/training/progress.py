"""The line that shows how a run goes: rewritten on a terminal, now and then a new one elsewhere."""

from __future__ import annotations

import sys
import time

_SECONDS = 15.0  # between lines where nothing can be rewritten
_SMOOTH = 0.9


class Progress:
    """Loss, accuracy, speed, memory and time left.

    Args:
        total: steps of the run.
        steps: steps of an epoch.
        epochs: epochs of the run.
        start: steps done already.
        show: whether this process shows anything.
    """

    def __init__(self, total: int, steps: int, epochs: int, start: int = 0, show: bool = True) -> None:
        self.total, self.steps, self.epochs = total, steps, epochs
        self.show = show
        self.live = show and sys.stderr.isatty()
        self._done = start
        self._shown = self._clock = time.monotonic()
        self._pace: float | None = None
        self._loss: float | None = None

    def step(self, step: int, loss: float, top1: float | None, images_per_second: float, memory_mb: float) -> None:
        """Tell of a step that is done."""
        now = time.monotonic()
        pace = (now - self._clock) / max(step - self._done, 1)
        self._clock, self._done = now, step
        self._pace = pace if self._pace is None else _SMOOTH * self._pace + (1 - _SMOOTH) * pace
        self._loss = loss if self._loss is None else _SMOOTH * self._loss + (1 - _SMOOTH) * loss
        if not self.show or (not self.live and now - self._shown < _SECONDS):
            return
        self._shown = now
        epoch = min((step - 1) // max(self.steps, 1) + 1, self.epochs)
        accuracy = "" if top1 is None else f"  top-1 {top1:5.1f} %"
        left = clock((self.total - step) * self._pace)
        text = (
            f"epoch {epoch}/{self.epochs}  step {step}/{self.total}  loss {self._loss:.4f}{accuracy}  "
            f"{images_per_second:.0f} images/s  {memory_mb:.0f} MB  {left} left"
        )
        print(f"\r\033[K{text}" if self.live else text, end="" if self.live else "\n", file=sys.stderr, flush=True)

    def say(self, text: str) -> None:
        """A line that stays."""
        if self.show:
            print(f"\r\033[K{text}" if self.live else text, file=sys.stderr, flush=True)

    def pause(self) -> None:
        """Do not count the time until now as that of a step: an evaluation or a checkpoint lay between."""
        self._clock = time.monotonic()

    def close(self) -> None:
        """Leave the terminal's line clean."""
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)


def clock(seconds: float) -> str:
    """Such as ``0:05``, ``12:30`` or ``3:05:00``."""
    minutes, rest = divmod(max(int(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
