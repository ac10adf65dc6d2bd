"""Batched clustering and matching, below the methods."""

from vitrim.kernels.clustering import agglomerative as agglomerative
