"""Scores of partitions for many images: vitrim at once against scikit-learn image by image.

    python -m benchmarks.agreement [--images 1000] [--patches 196] [--clusters 98] [--dropped 0] [--rounds 5]

Both compute homogeneity, completeness, V-measure, NMI, AMI, ARI and purity of the same labels, half of them shared, in turn.
Printed are medians of processor time, which other work on the machine does not change; set OMP_NUM_THREADS=1, so that both have
one thread. The last two rows have no counterpart: soft assignments and kept masks.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn import metrics
from sklearn.metrics.cluster import contingency_matrix

from vitrim.analysis.agreement import MERGING, compare_pruning, partition, soft_partition


def image_by_image(a: np.ndarray, b: np.ndarray) -> dict[str, np.ndarray]:
    """Homogeneity, completeness and V-measure come from one call, as anyone would do."""
    rows: list[Any] = []
    for x, y, both in zip(a, b, (a >= 0) & (b >= 0), strict=True):
        x, y = x[both], y[both]
        rows.append(
            (
                *metrics.homogeneity_completeness_v_measure(x, y),
                metrics.normalized_mutual_info_score(x, y),
                metrics.adjusted_mutual_info_score(x, y),
                metrics.adjusted_rand_score(x, y),
                contingency_matrix(x, y).max(axis=0).sum() / len(x),
            )
        )
    return dict(zip(MERGING, np.array(rows).T, strict=True))


def seconds(call: Callable[[], object]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("images", 1000), ("patches", 196), ("clusters", 98), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dropped", type=float, default=0.0, help="share of the patches that each grouping has dropped")
    given = parser.parse_args()
    rng = np.random.default_rng(0)
    shape = (given.images, given.patches)
    a, b = (rng.integers(0, given.clusters, shape) for _ in range(2))
    b = np.where(rng.random(shape) < 0.5, a, b)
    a, b = (np.where(rng.random(shape) < given.dropped, -1, x) for x in (a, b))

    ours, theirs = partition(a, b), image_by_image(a, b)
    gap = max(float(np.abs(ours[name] - theirs[name]).max()) for name in MERGING)
    times = np.array([(seconds(lambda: partition(a, b)), seconds(lambda: image_by_image(a, b))) for _ in range(given.rounds)])
    fast, slow = np.median(times, axis=0)
    print(f"{given.images:,} images, {given.patches} patches, {given.clusters} clusters, {given.dropped:.0%} dropped")
    print(f"vitrim        {fast * 1000:10.1f} ms")
    print(
        f"scikit-learn  {slow * 1000:10.1f} ms  {np.median(times[:, 1] / times[:, 0]):.0f} times (largest difference {gap:.1g})"
    )

    some = slice(0, min(given.images, 100))
    weight = rng.random((100, given.clusters, given.patches))[some]
    soft = seconds(lambda: soft_partition(weight, a[some])) * given.images / len(weight)
    kept = rng.random((2, *shape)) < 0.5
    print(f"soft          {soft * 1000:10.1f} ms  (from {len(weight)} images)")
    print(f"kept masks    {seconds(lambda: compare_pruning(*kept)) * 1000:10.1f} ms")


if __name__ == "__main__":
    main()
