"""Average token depth, against the definition in plain Python."""

from __future__ import annotations

import numpy as np
import pytest

from vitrim.analysis.depth import TokenDepth


def test_depth_and_size_of_every_position() -> None:
    rng = np.random.default_rng(0)
    first = rng.random((5, 8)) < 0.6
    second = first & (rng.random((5, 8)) < 0.5)
    group = rng.integers(-1, 3, (5, 8))
    seen = TokenDepth(8, 12)
    for part in (slice(0, 2), slice(2, 5)):
        seen.add([(3, first[part], group[part]), (6, second[part], group[part])])
    depth = np.array([[12 if second[i, p] else 6 if first[i, p] else 3 for p in range(8)] for i in range(5)])
    size = np.array([[(group[i] == group[i, p]).sum() if group[i, p] >= 0 else 0 for p in range(8)] for i in range(5)])
    for name, values in (("depth", depth), ("size", size)):
        assert np.allclose(seen.mean(name), values.mean(axis=0))
        assert np.allclose(seen.std(name), values.std(axis=0))
    assert (seen.images, seen.first, seen.mixed) == (5, 3, False)


def test_what_comes_back_stays_away() -> None:
    """A patch that is merged at block 3 is no token of its own later, whatever a map says."""
    seen = TokenDepth(1, 12)
    seen.add([(3, np.array([[False]]), np.array([[0]])), (6, np.array([[True]]), np.array([[0]]))])
    assert seen.mean("depth").tolist() == [3]


def test_nothing_to_measure() -> None:
    seen = TokenDepth(4, 12)
    with pytest.raises(ValueError, match="nothing has been reduced"):
        seen.add([])
    with pytest.raises(ValueError, match="no images"):
        seen.mean("depth")
    seen.add([(3, np.zeros((2, 4), bool), np.zeros((2, 4)))])
    assert seen.mixed
