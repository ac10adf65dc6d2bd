"""The record of gradient stability of CLCA: five numbers per backward pass, as rows of a CSV file."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

COLUMNS = ("max_grad_all", "mean_max_grad_layer", "std_max_grad_layer", "mean_avg_grad_layer", "std_avg_grad_layer")


def tracked(model: nn.Module) -> list[nn.Parameter]:
    """The parameters of the record: trainable, and without "bias" in their name."""
    return [p for name, p in model.named_parameters() if p.requires_grad and "bias" not in name]


@torch.no_grad()
def gradient_record(parameters: list[nn.Parameter], scale: float = 1.0) -> Tensor:
    """The five numbers of :data:`COLUMNS`, ``(5,)`` in float32 on the device of the parameters; nothing is waited for.

    Per tensor the largest and the mean absolute gradient; of the former the largest, of both the mean and the sample standard
    deviation over tensors. A tensor without gradient counts as zeros. Call it after the backward pass, before clipping.

    Args:
        parameters: of :func:`tracked`.
        scale: what the loss was multiplied with by a gradient scaler.

    Raises:
        ValueError: when there is no parameter.
    """
    if not parameters:
        raise ValueError("nothing to record: no trainable parameter but biases")
    gradients = [p.grad for p in parameters if p.grad is not None]
    rest = len(parameters) - len(gradients)
    reference = parameters[0]
    largest = torch.zeros(len(parameters), device=reference.device)
    average = torch.zeros(len(parameters), device=reference.device)
    if gradients:
        tops, sums = _norms(gradients)
        sizes = torch.tensor([g.numel() for g in gradients], dtype=torch.float32)
        largest[rest:] = torch.stack(tops)
        average[rest:] = torch.stack(sums) / sizes.to(reference.device, non_blocking=True)
    rows = torch.stack([largest, average]) / scale
    # One value has no sample standard deviation.
    spread = rows.std(dim=1, correction=1) if len(parameters) > 1 else rows.new_full((2,), float("nan"))
    mean = rows.mean(dim=1)
    return torch.stack([rows[0].max(), mean[0], spread[0], mean[1], spread[1]])


def _norms(gradients: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Largest and summed absolute value of every tensor, in float32."""
    norm = torch._foreach_norm  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]
    if gradients[0].device.type == "cpu":
        # Here the maximum norm is one tensor after the other and not vectorised; extremes are, 14 times faster.
        ends = [g.aminmax() for g in gradients]
        tops = [torch.maximum(-low, high).float() for low, high in ends]
    else:
        tops = list(norm(gradients, float("inf"), dtype=torch.float32))
    return tops, list(norm(gradients, 1, dtype=torch.float32))


class GradientLog:
    """``gradients.csv``: the step and the five numbers, one row per backward pass.

    Rows wait in memory, on the device, until :meth:`flush`; call it with every checkpoint, so that the file never lacks what
    a resumed run will not make again.

    Args:
        path: the file.
        step: step of the checkpoint that the run goes on from: rows of later steps are dropped. 0 starts a new file; None keeps
            what is there. A torn last line is dropped in any case.
        every: rows after which they are written without being asked.
    """

    def __init__(self, path: Path, step: int | None = None, every: int = 100) -> None:
        self.path = path
        self.every = every
        self._rows: list[tuple[int, Tensor]] = []
        _rewrite(path, _rows_upto(path, step) if step != 0 and path.exists() else [])

    def record(self, step: int, model: nn.Module, scale: float = 1.0) -> None:
        """Add the row of a model's gradients as they are now; arguments as :meth:`append` and :func:`gradient_record`."""
        self.append(step, gradient_record(tracked(model), scale))

    def append(self, step: int, record: Tensor) -> None:
        """Add a row.

        Args:
            step: steps of the optimizer done, the one under way included (1 for the first).
            record: of :func:`gradient_record`.
        """
        self._rows.append((step, record))
        if len(self._rows) >= self.every:
            self.flush()

    def flush(self) -> None:
        """Write the rows that wait, and wait for the device to have them."""
        if not self._rows:
            return
        values = torch.stack([record for _, record in self._rows]).tolist()
        lines = [",".join([str(step), *(f"{v:.9g}" for v in row)]) for (step, _), row in zip(self._rows, values, strict=True)]
        with self.path.open("a", encoding="utf8") as file:
            file.write("\n".join(lines) + "\n")
        self._rows.clear()


def _rows_upto(path: Path, step: int | None) -> list[str]:
    text = path.read_text(encoding="utf8")
    lines = text[: text.rfind("\n") + 1].splitlines()[1:]  # what follows the last line feed was cut off
    whole = [line for line in lines if line.count(",") == len(COLUMNS) and line.split(",", 1)[0].isdigit()]
    return whole if step is None else [line for line in whole if int(line.split(",", 1)[0]) <= step]


def _rewrite(path: Path, lines: list[str]) -> None:
    new = path.with_name(path.name + ".new")
    new.write_text("\n".join([",".join(("step", *COLUMNS)), *lines]) + "\n", encoding="utf8")
    new.replace(path)
