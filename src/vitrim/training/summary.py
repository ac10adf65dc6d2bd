"""The summary of a run: what it is, how far it is, what it reached."""

from __future__ import annotations

import platform
import sys
import time
from typing import Any

import torch

import vitrim
from vitrim.measure.flops import count_flops, parameters
from vitrim.training.folder import RunFolder
from vitrim.training.session import Session, count_images

_STARVED = 0.2  # share of the time that a run may wait for data before it says so


class Summary:
    """Keeps ``summary.json`` up to date; only the first process writes it.

    Args:
        session: the run.
        folder: its folder.
    """

    def __init__(self, session: Session, folder: RunFolder) -> None:
        self.session, self.folder = session, folder
        self.began = time.time()
        self.seconds = self.images = self.waited = 0.0
        self._before = float(folder.read_summary().get("seconds", 0.0)) if session.step else 0.0
        model = session.model
        self.facts: dict[str, Any] = {
            "parameters": parameters(model), "trainable": parameters(model, trainable=True), "gflops": _gflops(session),
            "classes": len(session.data.classes), "train_images": count_images(session.data, session.recipe.train_split),
            "eval_images": count_images(session.data, session.recipe.eval_split), "device": _device(session.accelerator.device),
            "processes": session.accelerator.num_processes, "threads": torch.get_num_threads(), "versions": _versions(),
        }  # fmt: skip

    def opening(self) -> list[str]:
        """What a user reads before the first step."""
        s, facts = self.session, self.facts
        recipe = s.recipe
        parts = (recipe.recognise, recipe.tune, recipe.method or "dense", recipe.cache, recipe.head)
        what = " + ".join(part for part in parts if part)
        lines = [
            f"{s.recipe.model}, {what}: {facts['parameters'] / 1e6:.2f} M parameters, {facts['trainable'] / 1e6:.2f} M of them "
            f"trained, {facts['gflops'] or 0:.2f} GFLOPs",
            f"{s.recipe.data}: {facts['train_images']} images to learn from, {facts['eval_images']} to evaluate on, "
            f"{facts['classes']} classes; {s.total} steps of {s.images_per_step} images on {facts['device']}",
            *s.notes,
        ]
        return [*lines, f"going on from step {s.step}"] if s.step else lines

    def add(self, seconds: float, images: float, waited: float) -> None:
        """Count a step."""
        self.seconds, self.images, self.waited = self.seconds + seconds, self.images + images, self.waited + waited

    def write(self, state: str, **more: Any) -> dict[str, Any]:
        """Write the summary in its present form, and return it."""
        s = self.session
        scores = s.scores or {}
        values = {
            "state": state, "step": s.step, "steps": s.total, "epoch": round(s.epoch, 4), "epochs": s.recipe.total_epochs,
            "best": scores.get("best"), "last": scores.get("last"), "score": s.task.score, **self.facts,
            "seconds": round(self._before + time.time() - self.began, 2),
            "images_per_second": round(self.images / self.seconds, 2) if self.seconds else None,
            "waiting": round(self.waited / self.seconds, 4) if self.seconds else None, "memory_mb": round(memory_mb(), 1),
            "skipped_images": s.skipped, **{k: v for k, v in more.items() if v},
        }  # fmt: skip
        if s.main:
            self.folder.write_summary(values)
        return values

    def starving(self) -> str | None:
        """A line for the user when the model waits for its data."""
        share = self.waited / self.seconds if self.seconds else 0.0
        if share < _STARVED:
            return None
        return f"the model waited for data {100 * share:.0f} % of the time; raise --workers, or use smaller images on disk"


def memory_mb() -> float:
    """Largest memory so far in MiB: of the GPU, or of this process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    if sys.platform == "win32":
        return 0.0
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest / (2**20 if sys.platform == "darwin" else 2**10)


@torch.no_grad()
def _gflops(session: Session) -> float | None:
    """Multiply-adds / 1e9 of one image, as evaluated; None where the model cannot be counted."""
    transform, model = session.transform, session.model
    modes = [(module, module.training) for module in model.modules()]
    image = torch.zeros(1, len(transform.mean), transform.size, transform.size, device=session.accelerator.device)
    try:
        return round(count_flops(model.eval(), image).gflops, 6)
    except (RuntimeError, NotImplementedError):
        return None
    finally:
        for module, training in modes:
            module.training = training


def _device(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type} ({platform.machine()})"


def _versions() -> dict[str, str]:
    import accelerate
    import timm

    return {
        "vitrim": vitrim.__version__, "torch": torch.__version__, "timm": timm.__version__, "accelerate": accelerate.__version__,
        "python": platform.python_version(),
    }  # fmt: skip
