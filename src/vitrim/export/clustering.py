"""Agglomerative clustering in ONNX: a Loop that joins the two nearest clusters, once for every cluster too many.

Plain operators, so that every ONNX runtime has it without a plug-in. A turn searches the nearest pair of the whole matrix,
on vector units, and then touches two rows and two columns; the batch takes its turns together. Ties fall as in the kernel:
the smallest distance, then the lowest row, then the lowest column, and a cluster is named by its first member.
"""

from __future__ import annotations

from typing import Any

from onnx import TensorProto
from onnxscript import INT64, opset18, script
from onnxscript.onnx_types import TensorType

op: Any = opset18  # typed for tensors; it takes numbers for them too
_FLOAT, _DOUBLE = TensorProto.FLOAT, TensorProto.DOUBLE
_LINKAGES = {"single": 0, "complete": 1, "average": 2}


# The source of the next function is read as a language of its own and becomes one ONNX function.
@script(default_opset=op)
def join_nearest(distance: TensorType, merges: INT64, linkage: INT64) -> INT64:  # noqa: D103 - becomes ONNX, see cluster
    shape = op.Shape(distance)
    batch = op.Gather(shape, [0])
    n = op.Gather(shape, [1])
    flat = op.Reshape(distance, op.Concat(batch, n * n, axis=0))
    infinite = op.CastLike(op.Constant(value_float=float("inf")), distance)
    point = op.Expand(op.Unsqueeze(op.Range(0, op.Squeeze(n), 1), [0]), op.Concat(batch, n, axis=0))
    size = op.CastLike(op.Equal(point, point), distance)
    name = point
    for _ in range(merges):  # pyright: ignore[reportArgumentType] - a tensor, the trip count of the Loop
        square = op.Reshape(flat, shape)
        # The matrix is symmetric: the first of equal rows, and the first minimum in it, are the lowest pair in row order.
        first = op.ArgMin(op.ReduceMin(square, [2], keepdims=0), axis=1, keepdims=1)
        row = op.GatherND(square, first, batch_dims=1)
        second = op.ArgMin(row, axis=1, keepdims=1)
        other = op.GatherND(square, second, batch_dims=1)
        members = op.GatherElements(size, first, axis=1)
        members_other = op.GatherElements(size, second, axis=1)
        both = members + members_other
        mean = (row * members + other * members_other) / both
        farthest = op.Where(op.Equal(linkage, 1), op.Max(row, other), mean)
        joined = op.Where(op.Equal(linkage, 0), op.Min(row, other), farthest)
        joined = op.Where(op.Or(op.Equal(point, first), op.Equal(point, second)), infinite, joined)
        gone = op.Expand(infinite, op.Shape(joined))
        place = op.Concat(first * n + point, point * n + first, second * n + point, point * n + second, axis=1)
        flat = op.ScatterElements(flat, place, op.Concat(joined, joined, gone, gone, axis=1), axis=1)
        size = op.ScatterElements(size, first, both, axis=1)
        name = op.Where(op.Equal(name, second), first, name)
    rank = op.CumSum(op.Cast(op.Equal(name, point), to=INT64.dtype), 1) - 1
    return op.GatherElements(rank, name, axis=1)


def cluster(x: Any, k: int, linkage: str = "average", metric: str = "cosine") -> Any:
    """The ONNX graph of ``vitrim::agglomerative``, for ``custom_translation_table``.

    Args:
        x: ``(B, n, d)`` features, or ``(B, n, n)`` distances of which the upper triangle is read.
        k: number of clusters.
        linkage: single, complete or average.
        metric: cosine for features, precomputed for distances.

    Returns:
        ``(B, n)`` int64 labels, numbered by first member.
    """
    n = x.shape[1]
    distance = cosine_distance(x) if metric == "cosine" else x
    # Averages are added up in double precision by the kernel, and near-ties must fall the same way here.
    distance = op.Cast(distance, to=_DOUBLE if linkage == "average" or x.dtype == _DOUBLE else _FLOAT)
    # What is not a number counts as far, so that there are k clusters also where an image is broken.
    far = op.CastLike(op.Constant(value_float=1e30), distance)
    distance = op.Where(op.Less(distance, far), distance, far)
    upper = op.Trilu(distance, op.Constant(value_int=1), upper=1)
    symmetric = op.Add(upper, op.Transpose(upper, perm=[0, 2, 1]))
    points = op.Constant(value_ints=list(range(n)))
    diagonal = op.Equal(op.Unsqueeze(points, op.Constant(value_ints=[0])), op.Unsqueeze(points, op.Constant(value_ints=[1])))
    infinite = op.CastLike(op.Constant(value_float=float("inf")), distance)
    distance = op.Where(diagonal, infinite, symmetric)
    return join_nearest(distance, op.Constant(value_int=n - k), op.Constant(value_int=_LINKAGES[linkage]))


def cosine_distance(features: Any) -> Any:
    """``(B, n, d) -> (B, n, n)``: one minus the cosine similarity, at least 0, in single precision or better."""
    if features.dtype != _DOUBLE:
        features = op.Cast(features, to=_FLOAT)
    smallest = op.CastLike(op.Constant(value_float=1e-12), features)
    length = op.ReduceL2(features, op.Constant(value_ints=[-1]), keepdims=1)
    unit = op.Div(features, op.Max(length, smallest))
    zero = op.CastLike(op.Constant(value_float=0.0), features)
    one = op.CastLike(op.Constant(value_float=1.0), features)
    return op.Max(op.Sub(one, op.MatMul(unit, op.Transpose(unit, perm=[0, 2, 1]))), zero)
