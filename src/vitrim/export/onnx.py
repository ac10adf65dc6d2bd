"""Reduced models as ONNX files, and running them on the CPU."""

from __future__ import annotations

import importlib.util
import logging
import re
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from vitrim.export.program import trace

INPUT, OUTPUT = "images", "logits"
OPSETS = range(18, 23)
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """Refuse early where the packages for ONNX are missing.

    Raises:
        ImportError: with the line that installs them.
    """
    missing = [name for name in _PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ImportError(f"ONNX needs {', '.join(missing)}; install what is missing with: pip install vitrim[export]")


def check_opset(opset: int | None) -> None:
    """Refuse versions of the operators that cannot be written.

    Raises:
        ValueError: with those that can.
    """
    if opset is not None and opset not in OPSETS:
        # From 23 on, attention is one operator, and onnxruntime does not broadcast its masks over the queries.
        raise ValueError(f"opset must be {OPSETS[0]} to {OPSETS[-1]}, got {opset}; leave it out for the exporter's choice")


def export_onnx(
    model: nn.Module, example: Tensor, path: str | Path, *, opset: int | None = None, dynamic_batch: bool = False
) -> None:
    """Write a model, reduced or not, to an ONNX file with one input ``images`` and one output ``logits``.

    Args:
        model: in evaluation mode; takes one tensor.
        example: ``(B, C, H, W)`` images; their size is the size that the file takes.
        path: the file; weights of more than 2 GB go into a second file beside it, ``PATH.data``.
        opset: version of the ONNX operators, 18 to 22; the exporter's choice (18 or 20, by version of PyTorch) when None.
        dynamic_batch: let the batch size vary; otherwise it is that of ``example``.

    Raises:
        ImportError: when packages are missing.
        ValueError: for an operator that ONNX does not have, or an opset out of range.
    """
    require_onnx()
    write_onnx(trace(model, example, dynamic_batch), path, opset)


def write_onnx(program: ExportedProgram, path: str | Path, opset: int | None = None) -> None:
    """As :func:`export_onnx`, from a program that is traced already."""
    require_onnx()
    check_opset(opset)
    from vitrim.export.operators import translations

    names: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT]}
    try:
        with _quiet():
            found = torch.onnx.export(
                program, dynamo=True, verbose=False, opset_version=opset, custom_translation_table=translations(), **names
            )
    except torch.onnx.OnnxExporterError as error:
        raise ValueError(_why(error)) from error
    assert found is not None
    found.save(path, external_data=False)


class OnnxModel:
    """An ONNX file at work on the CPU.

    Args:
        path: the file.
        threads: threads of an operator; as many as PyTorch uses when None, so that times can be compared.

    Raises:
        ImportError: when packages are missing.
    """

    def __init__(self, path: str | Path, threads: int | None = None) -> None:
        require_onnx()
        import onnxruntime

        options: Any = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads() if threads is None else threads
        options.log_severity_level = 3  # errors; its warnings are about the order in which it simplifies the graph
        self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: Tensor) -> Tensor:
        """``(B, C, H, W)`` images to ``(B, classes)`` logits."""
        return torch.from_numpy(self._session.run(None, {INPUT: images.numpy()})[0])


@contextmanager
def _quiet() -> Generator[None]:
    """Without the optimiser's line for every sort that it does not compute in advance: nobody can act on it."""
    log = logging.getLogger("onnxscript.optimizer")
    before = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(before)


def _why(error: BaseException) -> str:
    """One line for a failed conversion."""
    reasons: list[str] = []
    cause: BaseException | None = error
    while cause is not None:
        reasons.append(str(cause))
        cause = cause.__cause__
    missing = re.search(r"No ONNX function found for <OpOverload\(op='([\w.:]+)'", " ".join(reasons))
    if missing:
        return f"ONNX has no counterpart of the operator {missing[1]}; write a PyTorch program instead (--out FILE.pt2)"
    return f"the ONNX exporter failed: {reasons[-1].splitlines()[0]}; write a PyTorch program instead (--out FILE.pt2)"
