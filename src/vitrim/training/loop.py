"""The training loop."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from vitrim.training.checkpoint import WriteError, read_checkpoint, sweep, write_checkpoint
from vitrim.training.evaluation import Interrupted, evaluate, share_buffers
from vitrim.training.folder import RunFolder
from vitrim.training.gradients import GradientLog, gradient_record, tracked
from vitrim.training.loader import Batch, read_batch
from vitrim.training.loggers import Loggers
from vitrim.training.progress import Progress
from vitrim.training.recipe import Recipe
from vitrim.training.schedules import set_lr
from vitrim.training.seeds import seed_everything
from vitrim.training.session import Session, attention_kernel, make_session
from vitrim.training.stop import Stop
from vitrim.training.summary import Summary, memory_mb


class TrainingError(ValueError):
    """The training cannot go on; the message says where it stopped and what to change."""


def train(recipe: Recipe, out: str | Path, resume: bool = False) -> dict[str, Any]:
    """Train by a recipe, in a folder of its own.

    Args:
        recipe: the recipe; of a resumed run, that of its folder.
        out: the folder.
        resume: go on from the newest checkpoint, or from the start when there is none.

    Returns:
        The summary, as in ``summary.json``; ``state`` is ``finished`` or ``interrupted``.

    Raises:
        TrainingError: when the loss or a weight is no number.
        WriteError: when the disk is full.
        ValueError: for a recipe that does not fit, or a folder that holds another run.
    """
    folder = RunFolder(out)
    if resume and folder.finished():
        return folder.read_summary()
    if not resume:
        folder.check_free()
    with Stop() as stop:
        session = _prepare(recipe, folder, resume)
        return Run(session, folder, stop).train()


def _prepare(recipe: Recipe, folder: RunFolder, resume: bool) -> Session:
    """The parts of the run in the state of the newest checkpoint, and a folder that holds no more than that state."""
    newest = folder.newest_checkpoint() if resume else None
    checkpoint = read_checkpoint(newest) if newest else None
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    elif checkpoint is not None and not torch.cuda.is_available():
        # Sums depend on how many threads share them; the same weights need the same number.
        torch.set_num_threads(int(checkpoint.state["threads"]))
    session = make_session(recipe, resume=checkpoint is not None)
    if checkpoint is not None:
        session.restore(checkpoint)
    if session.main:
        folder.create(recipe)
        folder.cut_metrics(int(checkpoint.state["metrics"]) if checkpoint is not None else 0)
        sweep(folder.checkpoints)
    session.accelerator.wait_for_everyone()
    return session


class Run:
    """One training: the steps, and what lies between them."""

    def __init__(self, session: Session, folder: RunFolder, stop: Stop) -> None:
        s, recipe = session, session.recipe
        self.session, self.folder, self.stop = session, folder, stop
        self.progress = Progress(s.total, s.length.steps_per_epoch, recipe.total_epochs, s.step, show=s.main)
        self.summary = Summary(session, folder)
        self.loggers = Loggers(recipe.log if s.main else [], folder.path, recipe.to_dict(), s.step)
        self.gradients = GradientLog(folder.gradients, s.step) if recipe.gradients and s.main else None
        self.every = recipe.checkpoint_steps(s.length.steps_per_epoch)
        self.saved = s.step if s.step else -1
        self.clock = time.perf_counter()
        self.waited = self.agreed = 0.0

    def train(self) -> dict[str, Any]:
        """Run to the end, or until it is stopped; returns the summary."""
        s = self.session
        for line in self.summary.opening():
            self.progress.say(line)
        self.loggers.write("start", s.step, s.epoch)
        try:
            finished = self._steps()
            if finished:
                self._finish()
            if starving := self.summary.starving():
                self.progress.say(starving)
            self.loggers.write("end", s.step, s.epoch, state="finished" if finished else "interrupted")
            return self.summary.write("finished" if finished else "interrupted", signal=self.stop.signal)
        except KeyboardInterrupt:
            self.summary.write("interrupted")
            raise
        except Exception as error:
            with suppress(WriteError):  # a full disk must not hide what went wrong
                self.summary.write("failed", error=" ".join(str(error).split()))
            raise
        finally:
            self.progress.close()
            self.loggers.close()

    def _steps(self) -> bool:
        """All steps that are left; whether the end was reached."""
        s = self.session
        if not self._evaluate_if_due():
            return False
        for parts in self._batches():
            self._step(parts)
            go_on = not self.agreed and self._evaluate_if_due()
            if s.step == s.total and go_on:
                return True
            if not go_on or s.step % self.every == 0:
                self._save()
            if not go_on:
                return False
        return True

    def _batches(self) -> Iterator[list[Batch]]:
        """The batches of one step after the other, and how long each was waited for."""
        s = self.session
        if s.step == s.total:
            return
        loader = s.train_batches()
        while True:
            start = time.perf_counter()
            parts = list(islice(loader, s.recipe.accumulate))
            self.waited = time.perf_counter() - start
            if not parts:
                return
            yield parts

    def _step(self, parts: list[Batch]) -> None:
        """One step of the optimiser: forward and backward of its batches, then the update."""
        s, accelerator = self.session, self.session.accelerator
        rates = set_lr(s.optimizer, s.schedule, s.step, s.length)
        totals = torch.zeros(4, device=accelerator.device)
        for i, batch in enumerate(parts):
            s.skipped += len(batch.skipped)
            read = read_batch(batch, accelerator.device)
            assert read is not None  # unreadable images are replaced in training
            place = s.step * len(parts) + i
            seed_everything(s.recipe.seed, "step", place, accelerator.process_index)
            # Gradients of several processes are averaged once, with those of the last part.
            apart = accelerator.no_sync(s.wrapped) if i + 1 < len(parts) else nullcontext()
            with apart, attention_kernel(accelerator):
                loss, right = s.objective(
                    s.wrapped, *read, place=place, rank=accelerator.process_index, autocast=accelerator.autocast
                )
                accelerator.backward(loss / len(parts))
            totals += torch.stack([loss.detach().float(), right, totals.new_tensor(len(read[0])), totals.new_zeros(())])
        totals[3] = float(self.stop.signal)
        # Here the loop waits for the device, and the processes agree on whether to stop after this step.
        loss, right, images, self.agreed = accelerator.reduce(totals, "sum").tolist()
        loss /= len(parts) * accelerator.num_processes
        if not math.isfinite(loss):
            raise TrainingError(self._diverged(f"the loss is {loss}"))
        if self.gradients is not None:
            scale = accelerator.scaler.get_scale() if accelerator.scaler is not None else 1.0
            self.gradients.append(s.step + 1, gradient_record(tracked(s.model), scale))
        if s.recipe.clip is not None:
            accelerator.clip_grad_norm_(s.model.parameters(), s.recipe.clip)
        s.optimizer.step()
        s.optimizer.zero_grad(set_to_none=True)
        if s.ema is not None:
            s.ema.update(s.model)
        s.step += 1
        self._tell(loss, None if s.task.name != "classify" else 100 * right / images, images, max(rates))

    def _tell(self, loss: float, top1: float | None, images: float, lr: float) -> None:
        now = time.perf_counter()
        seconds, self.clock = now - self.clock, now
        s = self.session
        speed, memory, waiting = images / seconds, memory_mb(), self.waited / seconds
        self.summary.add(seconds, images, self.waited)
        accuracy = {} if top1 is None else {"top1": round(top1, 4)}
        self.loggers.write(
            "train", s.step, s.epoch, loss=loss, **accuracy, lr=lr, images_per_second=round(speed, 2),
            memory_mb=round(memory, 1), waiting=round(waiting, 4),
        )  # fmt: skip
        self.progress.step(s.step, loss, top1, speed, memory)

    def _evaluate_if_due(self) -> bool:
        """Evaluate the model and its average before the first step, every few epochs and at the end; False when stopped."""
        s = self.session
        epoch, rest = divmod(s.step, s.length.steps_per_epoch)
        due = rest == 0 and (s.step in (0, s.total) or epoch % s.recipe.eval_every == 0)
        if not due or s.evaluated >= s.step:
            return True
        for weights in ("model", "ema") if s.ema is not None else ("model",):
            with s.ema.applied(s.model) if s.ema is not None and weights == "ema" else nullcontext():
                share_buffers(s.model)
                try:
                    # Several processes must agree on when to stop, and do so after steps.
                    alone = s.accelerator.num_processes == 1
                    numbers, skipped = evaluate(
                        s.model, s.eval_batches(), s.task, s.accelerator.device, s.accelerator.autocast,
                        (lambda: self.stop.signal != 0) if alone else bool,
                    )  # fmt: skip
                except Interrupted:
                    return False
            s.note_scores(weights, numbers, len(skipped))
            self.loggers.write("eval", s.step, s.epoch, split=s.recipe.eval_split, weights=weights, **numbers)
            told = "  ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            self.progress.say(f"epoch {epoch}/{s.recipe.total_epochs}  {s.recipe.eval_split} ({weights})  {told}")
        s.evaluated = s.step
        self.summary.write("running")
        self._restart_clock()
        return True

    def _save(self) -> None:
        """Write a checkpoint, unless the state is that of the last one."""
        s = self.session
        if s.main and self.saved != s.step:
            self._check_weights()
            tensors, state = s.capture()
            self._flush_gradients()
            state["metrics"] = self.folder.size_of_metrics()
            write_checkpoint(self.folder.checkpoints, s.step, tensors, state, s.recipe.keep_checkpoints)
        self.saved = s.step
        self._restart_clock()

    def _finish(self) -> None:
        """Write the final weights."""
        s = self.session
        if s.main:
            self._check_weights()
            self._flush_gradients()
            if s.ema is not None:
                s.write_weights(self.folder.ema, s.ema.weights())
            s.write_weights(self.folder.weights, s.model.state_dict())

    def _flush_gradients(self) -> None:
        try:
            if self.gradients is not None:
                self.gradients.flush()
        except OSError as error:
            raise WriteError(f"cannot write {self.folder.gradients}: {error.strerror or error}") from error

    def _check_weights(self) -> None:
        bad = [k for k, v in self.session.model.state_dict().items() if v.is_floating_point() and not bool(v.isfinite().all())]
        if bad:
            raise TrainingError(self._diverged(f"weights became NaN or infinite (first '{bad[0]}')"))

    def _diverged(self, what: str) -> str:
        s = self.session
        kept = self.folder.newest_checkpoint()
        rest = f"the last good state is {kept}" if kept else "there was no checkpoint yet"
        lr = max(float(group["initial_lr"]) for group in s.optimizer.param_groups)
        half = ", use bf16 or fp32" if s.recipe.precision == "fp16" else ""
        clip = ", set --clip 1" if s.recipe.clip is None else ""
        return (
            f"step {s.step + 1} (epoch {int(s.epoch) + 1}): {what}; {rest}; lower the learning rate (now {lr:g}){clip}{half}, "
            f"then: vitrim train --resume {self.folder.path} --optimizer.lr {lr / 3:.1g}"
        )

    def _restart_clock(self) -> None:
        """What lay between two steps is not the time of the next one."""
        self.clock = time.perf_counter()
        self.progress.pause()
