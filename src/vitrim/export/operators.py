"""ONNX for the operators that PyTorch's exporter does not know, or gives another meaning. Needs onnxscript."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript import opset18
from onnxscript.function_libs.torch_lib.ops.core import aten_arange_start_step

import vitrim.kernels.clustering  # noqa: F401  # pyright: ignore[reportUnusedImport] - registers its operator
from vitrim.export.clustering import cluster

op: Any = opset18  # typed for tensors; it takes numbers for them too
_FLOAT, _INT64 = TensorProto.FLOAT, TensorProto.INT64


def translations() -> dict[Any, Callable[..., Any]]:
    """ONNX for operators that PyTorch's exporter does not know, or gives another meaning, by operator."""
    return {
        torch.ops.vitrim.agglomerative.default: cluster,
        torch.ops.aten.sort.stable: _stable_sort,
        torch.ops.aten.arange.start_step: _arange,
        torch.ops.aten.scalar_tensor.default: _scalar,
        torch.ops.aten.searchsorted.Tensor: _searchsorted,
    }


def _stable_sort(x: Any, *, stable: bool | None = None, dim: int = -1, descending: bool = False) -> Any:  # noqa: ARG001
    """Sorting is stable in ONNX: of equal values, the one with the lower index comes first."""
    count = op.Constant(value_ints=[x.shape[dim]])
    return op.TopK(x, count, axis=dim, largest=int(descending), sorted=1)


def _arange(start: Any, end: Any, step: Any = 1, dtype: int = -1, **_: Any) -> Any:
    """A range of known numbers, as PyTorch counts it: in single precision, Range may find one number more or less."""
    if not all(isinstance(number, int | float) for number in (start, end, step)) or dtype != _FLOAT:
        return aten_arange_start_step(start, end, step, dtype)
    values = torch.arange(start, end, step, dtype=torch.float32)
    return op.Constant(value=numpy_helper.from_array(values.numpy()))


def _scalar(value: Any, dtype: int = -1, **_: Any) -> Any:
    """A known number in its own precision: PyTorch's exporter rounds those of double precision to single."""
    dtype = _FLOAT if dtype == -1 else dtype
    if not isinstance(value, int | float):
        return op.Cast(value, to=dtype)
    return op.Constant(value=numpy_helper.from_array(np.asarray(value, helper.tensor_dtype_to_np_dtype(dtype))))


def _searchsorted(ordered: Any, values: Any, **_: Any) -> Any:
    """How many of ``ordered (..., n)`` lie below each of ``values (..., m)``."""
    below = op.Less(op.Unsqueeze(ordered, op.Constant(value_ints=[-2])), op.Unsqueeze(values, op.Constant(value_ints=[-1])))
    return op.ReduceSum(op.Cast(below, to=_INT64), op.Constant(value_ints=[-1]), keepdims=0)
