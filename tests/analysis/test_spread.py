import math

import pytest
import torch

from tests.analysis.test_hsic import wave
from vitrim.analysis.spread import (
    attention_distance,
    attention_entropy,
    distances,
    effective_rank,
    grid_positions,
    patches_of,
    pooled_attention_rows,
    pooled_rows,
)
from vitrim.core.tokenmap import TokenMap


def test_distance_of_uniform_and_of_own_attention():
    n = 1 + 12
    uniform = torch.full((1, 2, n, n), 1 / n)
    place = grid_positions((3, 4))
    assert attention_distance(uniform, (3, 4), 1)[0].tolist() == pytest.approx([float(torch.cdist(place, place).mean())] * 2)
    own = torch.eye(n).expand(1, 2, n, n)
    assert attention_distance(own, (3, 4), 1).tolist() == [[0, 0]]


def test_merged_and_lost_tokens_have_the_place_of_their_patches():
    group = torch.tensor([[0, 1, 1, -1, 2]])  # class token, two patches together, one lost, one alone: a row of four
    map = TokenMap.merge(group, 3)
    weights = torch.tensor([[[[0.2, 0.5, 0.3], [0.0, 0.0, 1.0], [0.5, 0.5, 0.0]]]])
    # The pair lies at 0.5, the single at 3; each sends all that has a place to the other.
    assert float(attention_distance(weights, (1, 4), 1, map)) == pytest.approx(2.5)
    assert patches_of(map, 1).tolist() == [[0, 2, 1]]
    with pytest.raises(ValueError, match="map that belongs"):
        attention_distance(weights, (2, 4), 1, map)


def test_entropy():
    n = 8
    assert float(attention_entropy(torch.full((1, 1, n, n), 1 / n))) == pytest.approx(math.log(n))
    assert float(attention_entropy(torch.eye(n).expand(1, 1, n, n))) == 0
    # Two tokens that stand for four patches each: even attention to them is even attention to eight patches.
    assert float(attention_entropy(torch.full((1, 1, 2, 2), 0.5), torch.tensor([[4.0, 4.0]]))) == pytest.approx(math.log(8))
    padded = torch.tensor([[[[0.5, 0.5, 0.0]] * 3]])
    valid = torch.tensor([[True, True, False]])
    assert float(attention_entropy(padded, valid=valid)) == pytest.approx(math.log(2))


def test_effective_rank():
    assert float(effective_rank(torch.eye(6)[None])) == pytest.approx(6)
    assert float(effective_rank(torch.ones(1, 9, 4))) == pytest.approx(1)
    assert float(effective_rank(torch.ones(1, 9, 4), centred=True)) == 0
    torch.manual_seed(0)
    x = torch.randn(2, 10, 5)
    values = torch.linalg.svdvals(x.double())
    share = values / values.sum(1, keepdim=True)
    assert torch.allclose(effective_rank(x), torch.special.entr(share).sum(1).exp())
    present = torch.arange(10).expand(2, 10) < 6
    for centred in (False, True):
        assert torch.allclose(effective_rank(x, present, centred), effective_rank(x[:, :6], centred=centred))


# The published distances come from a matrix product, whose rounding leaves some rows a distance from themselves: those count
# among the non-zero entries (48 of 200 in the second test), so that the published means are up to 1 / rows too small.
def test_known_distances_of_attention():
    shapes = [((6, 2, 17, 17), 1, 0.1), ((6, 2, 17, 17), 2, 0.9), ((6, 2, 10, 10), 3, 0.4), ((6, 2, 8, 8), 1.5, 2.2)]
    found = [distances(pooled_attention_rows(wave(*args).softmax(-1))) for args in shapes]
    assert [f.l2_norm for f in found] == pytest.approx([0.08325754, 0.08349975, 0.14294634, 0.19309894], abs=1e-6)
    assert [f.dist for f in found] == pytest.approx([0.00369747, 0.00875736, 0.06120142, 0.11099293], rel=4e-3)
    assert [f.dist_norm for f in found] == pytest.approx([0.35897435, 0.37184659, 0.25413941, 0.49133966], rel=4e-3)


def test_known_distances_of_features():
    found = [distances(pooled_rows(wave((4, 17, 6), 1, p), 1, (4, 4))) for p in (0.3, 1.3)]
    assert [f.l2_norm for f in found] == pytest.approx([0.75657807, 0.75717247], abs=1e-6)
    assert [f.dist for f in found] == pytest.approx([1.23253801, 1.23388590], rel=2e-3)
    assert [f.dist_norm for f in found] == pytest.approx([0.33662905, 0.33700983], rel=2e-3)


def test_lost_patches_are_no_rows():
    x = torch.randn(2, 1 + 196, 3)
    present = torch.ones(2, 197, dtype=torch.bool)
    assert torch.allclose(
        pooled_rows(x, 1, (14, 14)).sort(0).values, pooled_rows(x, 1, (14, 14), present).sort(0).values, atol=1e-6
    )
    present[:, 1 : 1 + 28] = False  # the first row of the coarse grid
    rows = pooled_rows(x, 1, (14, 14), present)
    assert len(rows) == 2 * (1 + 42)
