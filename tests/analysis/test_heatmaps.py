import math

import numpy as np
import pytest
import torch
from scipy.optimize import linprog
from scipy.spatial.distance import cdist, jensenshannon
from scipy.stats import entropy, pearsonr, spearmanr, wasserstein_distance

from vitrim.analysis.depth import TokenStatistics
from vitrim.analysis.heatmaps import MAPS, compare_maps, emd, js, kl, pcc, scc, sim


@pytest.fixture(scope="module")
def maps():
    return tuple(3 + 9 * np.random.RandomState(seed).random_sample((14, 14)) for seed in (3, 4))


def everything(m1, m2):
    """Optimal transport in the plain form: every cell ships to every cell, and every sum is held."""
    places = np.argwhere(np.ones_like(m1))
    n, cost = m1.size, cdist(places, places)
    sums = np.concatenate([np.kron(np.eye(n), np.ones(n)), np.kron(np.ones(n), np.eye(n))])
    found = linprog(cost.ravel(), A_eq=sums, b_eq=np.concatenate([m1.ravel() / m1.sum(), m2.ravel() / m2.sum()]))
    assert found.status == 0
    return found.fun


def test_known_answers(maps):
    wanted = {"kl12": 0.173754312258, "kl21": 0.173430663978, "js": 0.044581298498, "pcc": 0.020583461513}
    wanted |= {"scc": 0.015553554495, "sim": 0.675206572390, "emd": 0.321542852657}
    found = compare_maps(*maps, compat="official")
    assert tuple(found) == MAPS
    assert found == pytest.approx(wanted, abs=1e-11)


def test_the_textbook(maps):
    m1, m2 = maps
    p, q = m1.ravel() / m1.sum(), m2.ravel() / m2.sum()
    wanted = {"kl12": entropy(p, q, base=2), "kl21": entropy(q, p, base=2), "js": jensenshannon(p, q, base=2) ** 2}
    wanted |= {"pcc": pearsonr(p, q).statistic, "scc": spearmanr(p, q).statistic}
    assert compare_maps(m1, m2, measures=tuple(wanted)) == pytest.approx(wanted, abs=1e-12)
    official = compare_maps(m1, m2, compat="official", measures=("kl12", "kl21", "js"))
    assert (official["kl12"], official["kl21"]) == pytest.approx((wanted["kl21"], wanted["kl12"]), abs=1e-12)
    mean = (p + q) / 2
    assert official["js"] == pytest.approx((entropy(mean, p, base=2) + entropy(mean, q, base=2)) / 2, abs=1e-12)
    assert official["js"] != pytest.approx(wanted["js"], rel=1e-4)


def test_maps_apart():
    left, right = np.zeros((4, 4)), np.zeros((4, 4))
    left[:, :2], right[:, 2:] = 1, 1
    assert compare_maps(left, right) == pytest.approx(
        {"kl12": math.inf, "kl21": math.inf, "js": 1, "pcc": -1, "scc": -1, "sim": 0, "emd": 2}
    )
    assert js(left, right, compat="official") == math.inf
    assert kl(left, left + right) == pytest.approx(1)
    assert kl(left + right, left) == math.inf


def test_a_map_and_itself(maps):
    m, same = maps[0], {"kl12": 0, "kl21": 0, "js": 0, "pcc": 1, "scc": 1, "sim": 1, "emd": 0}
    assert compare_maps(m, m) == pytest.approx(same, abs=1e-12)
    # A scale changes the rounding of the shares: no cell is exactly equal, and the surplus is noise.
    assert compare_maps(m, m / 3) == pytest.approx(same, abs=1e-12)
    assert compare_maps(torch.from_numpy(m), torch.from_numpy(m * 0.7)) == pytest.approx(same, abs=1e-12)


@pytest.mark.parametrize("shape", [(5, 5), (3, 8)])
def test_the_distance_is_that_of_the_whole_problem(shape):
    rng = np.random.default_rng(0)
    for _ in range(4):
        m1, m2 = rng.random(shape), rng.integers(0, 3, shape).astype(float)
        assert emd(m1, m2) == pytest.approx(everything(m1, m2), abs=1e-9)
        assert emd(m1, m2) == pytest.approx(emd(m2, m1), abs=1e-12)


def test_the_distance_in_one_dimension():
    rng = np.random.default_rng(1)
    a, b = rng.random((1, 30)), rng.random((1, 30))
    place = np.arange(30)
    assert emd(a, b) == pytest.approx(wasserstein_distance(place, place, a[0], b[0]), abs=1e-12)


def test_the_distance_of_a_move():
    a, b = np.zeros((14, 14)), np.zeros((14, 14))
    a[2, 3], b[5, 7] = 4, 2
    assert emd(a, b) == pytest.approx(5)


def test_the_distance_of_maps_nearly_alike(maps):
    # Linear in the size of the change, down to where the solver's tolerance would be larger than the masses.
    m1, change = maps[0] / maps[0].sum(), maps[1] / maps[1].sum() - maps[0] / maps[0].sum()
    whole = emd(m1, m1 + change)
    for size in (1e-3, 1e-6, 1e-9):
        assert emd(m1, m1 + size * change) == pytest.approx(size * whole, rel=1e-5)


def test_cells_without_a_value_are_left_out(maps):
    a, b = (m[:6, :6].copy() for m in maps)
    a[:2], b[:, 0] = np.nan, np.nan
    assert compare_maps(a, b) == pytest.approx(compare_maps(a[2:, 1:], b[2:, 1:]), abs=1e-10)
    nothing = compare_maps(np.full((3, 3), np.nan), np.ones((3, 3)))
    assert all(math.isnan(v) for v in nothing.values())


def test_maps_without_a_shape(maps):
    m = maps[0]
    flat = compare_maps(m, np.full_like(m, 12))
    assert {name for name, v in flat.items() if math.isnan(v)} == {"pcc", "scc", "sim"}
    # A mean of many equal depths is equal up to rounding only.
    assert math.isnan(pcc(m, 0.1 + 0.2 + np.where(m > 8, 1e-16, 0)))
    empty = compare_maps(m, np.zeros_like(m))
    assert all(math.isnan(v) for v in empty.values())


def test_what_cannot_be_compared(maps):
    m = maps[0]
    with pytest.raises(ValueError, match="resize one"):
        sim(m, m[:7])
    with pytest.raises(ValueError, match="negative"):
        kl(m, m - 5)
    assert scc(m, m - 5) == 1
    with pytest.raises(ValueError, match="infinite"):
        pcc(m, np.where(m > 8, np.inf, m))
    with pytest.raises(ValueError, match="reshape it"):
        emd(m.ravel(), m.ravel())
    with pytest.raises(ValueError, match="choose from"):
        compare_maps(m, m, measures=("cc",))


def test_token_statistics():
    # Two blocks of four that reduce six patches: one image is pruned to 4 and 2 tokens, the other merged to 3 and 3.
    first = (1, np.array([[1, 1, 1, 1, 0, 0], [1, 1, 0, 0, 0, 0]], bool), np.array([[0, 1, 2, 3, -1, -1], [0, 1, 2, 2, 2, 2]]))
    second = (3, np.array([[1, 0, 1, 0, 0, 0], [1, 1, 0, 0, 0, 0]], bool), np.array([[0, -1, 1, -1, -1, -1], [0, 1, 2, 2, 2, 2]]))
    seen = TokenStatistics(6, 4)
    for image in (slice(0, 1), slice(1, 2)):
        seen.add([(block, own[image], token[image]) for block, own, token in (first, second)])
    mean, spread = seen.rate()
    assert mean == pytest.approx([3.5 / 6, 2.5 / 6])
    assert spread == pytest.approx([0.5 / 6, 0.5 / 6])
    depths = np.array([[4, 3, 4, 3, 1, 1], [4, 4, 1, 1, 1, 1]])
    assert seen.mean_depth() == pytest.approx((depths.mean(), depths.std()))
    assert seen.depth.mean("depth") == pytest.approx(depths.mean(axis=0))
    with pytest.raises(ValueError, match="one schedule"):
        seen.add([first])


def test_no_images():
    with pytest.raises(ValueError, match="add a batch"):
        TokenStatistics(6, 4).rate()
