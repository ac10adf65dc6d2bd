"""How alike two reductions are, image by image: which patches they keep, and which they put together."""

from vitrim.analysis.kept import (
    PRUNING,
    adjusted_ioa,
    adjusted_iou,
    compare_pruning,
    dice,
    expected_ioa,
    expected_iou,
    hamming,
    ioa,
    iou,
    kappa,
)
from vitrim.analysis.partition import partition
from vitrim.analysis.partition_scores import MERGING
from vitrim.analysis.soft_partition import compare_merging, soft_partition

__all__ = [
    "MERGING",
    "PRUNING",
    "adjusted_ioa",
    "adjusted_iou",
    "compare_merging",
    "compare_pruning",
    "dice",
    "expected_ioa",
    "expected_iou",
    "hamming",
    "ioa",
    "iou",
    "kappa",
    "partition",
    "soft_partition",
]
