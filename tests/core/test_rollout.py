"""Roll-out, products and mutual attention by rows: known answers of the official functions, and the whole matrices."""

from __future__ import annotations

import pytest
import torch

from tests.analysis.test_hsic import wave
from tests.parity.recognition import attention_of
from vitrim.core.rollout import mutual, product, rollout, similarity
from vitrim.core.tokenmap import TokenMap
from vitrim.core.tokens import Attention


def test_known_answers() -> None:
    weights = [wave((2, 2, 17, 17), 1, 0.1 * i).float().softmax(-1) for i in range(3)]
    for start, stop, first, total in (
        (0, 3, (0.0608273, 0.0393271), 1.6395995),
        (0, 2, (0.0574584, 0.0274636), 1.4012358),
        (1, 3, (0.0555820, 0.0266393), 1.4012815),
    ):
        found = rollout(weights[start:stop], None)[:, 0, 1:]
        assert found[0, :2].tolist() == pytest.approx(first, abs=1e-6)
        assert float(found.sum()) == pytest.approx(total, abs=1e-5)
        assert torch.allclose(rollout(weights[start:stop])[:, 1:], found, atol=1e-6)
    attention = weights[2].mean(1)[:, 0, 1:]
    assert attention[0, :2].tolist() == pytest.approx((0.0795651, 0.0223426), abs=1e-6)
    tokens = wave((2, 17, 6), 1, 0.2).float()
    cosine = similarity(tokens[:, 0], tokens[:, 1:])
    assert cosine[0, :2].tolist() == pytest.approx((-0.6536622, -0.0409001), abs=1e-6)
    assert float(cosine.sum()) == pytest.approx(0.0747116, abs=1e-5)


def test_rows_of_the_rollout_sum_to_one() -> None:
    weights = [torch.randn(2, 3, 9, 9).softmax(-1) for _ in range(3)]
    assert torch.allclose(rollout(weights, None).sum(-1), torch.ones(2, 9))


@pytest.mark.parametrize("row", [0, None])
def test_a_reduction_without_its_map_is_refused(row: int | None) -> None:
    weights = [torch.randn(1, 2, 9, 9).softmax(-1), torch.randn(1, 2, 5, 5).softmax(-1)]
    with pytest.raises(ValueError, match="between two reductions"):
        rollout(weights, row)
    with pytest.raises(ValueError, match="one block or more"):
        rollout([], row)


def test_all_rows_cross_a_reduction_as_one_row_does() -> None:
    torch.manual_seed(0)
    weights = [torch.randn(2, 2, n, n).softmax(-1) for n in (6, 3)]
    step = TokenMap.merge(torch.tensor([[0, 1, 1, 2, 2, 2]] * 2), 3)
    whole = rollout(weights, None, [None, step])
    assert whole.shape == (2, 3, 6)
    torch.testing.assert_close(rollout(weights, 2, [None, step]), whole[:, 2])
    # By hand: what a merged token has is shared by its parts.
    first, second = ((w.mean(1) + torch.eye(w.shape[-1])) / 2 for w in weights)
    shared = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1 / 2, 1 / 2, 0, 0, 0], [0, 0, 0, 1 / 3, 1 / 3, 1 / 3]])
    torch.testing.assert_close(whole, second @ shared @ first)


def test_rows_in_pieces_are_the_rows_of_the_matrix_product() -> None:
    torch.manual_seed(0)
    n, heads = 40, 3
    scores = 3 * torch.randn(4, 2, heads, n, n)
    attentions = [attention_of(s) for s in scores]
    weights = [s.softmax(dim=-1) for s in scores]
    whole = weights[3] @ weights[2] @ weights[1] @ weights[0]
    torch.testing.assert_close(product(attentions, None), whole)
    torch.testing.assert_close(product(attentions, 7), whole[:, :, 7])
    mixed = [(w.mean(dim=1) + torch.eye(n)) / 2 for w in weights]
    torch.testing.assert_close(rollout(attentions, None), mixed[3] @ mixed[2] @ mixed[1] @ mixed[0])
    # Large enough to be cut into pieces.
    n = 1100
    many = [Attention(*torch.randn(3, 1, 4, n, 4).unbind(), 0.5) for _ in range(3)]
    first, second, third = (a.weights() for a in many)
    torch.testing.assert_close(product(many), (third[:, :, :1] @ second @ first).squeeze(2))


def test_mutual_attention_by_the_whole_matrices() -> None:
    torch.manual_seed(0)
    scores = 2 * torch.randn(2, 3, 20, 20)
    wanted = scores.softmax(dim=-2).mean(dim=1)[:, :, 0] * scores.softmax(dim=-1).mean(dim=1)[:, 0]
    torch.testing.assert_close(mutual(attention_of(scores)), wanted)
    logits_first = scores.mean(dim=1).softmax(dim=-2)[:, :, 0] * scores.softmax(dim=-1).mean(dim=1)[:, 0]
    torch.testing.assert_close(mutual(attention_of(scores), compat="clca"), logits_first)


def test_padding_is_not_seen() -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 1, 2, 9, 4).unbind()
    short = Attention(q[:, :, :6], k[:, :, :6], k[:, :, :6], 0.5)
    valid = (torch.arange(9) < 6).unsqueeze(0)
    bias = torch.zeros(1, 9).masked_fill(~valid, -torch.inf)[:, None, None]
    torch.testing.assert_close(mutual(Attention(q, k, k, 0.5, bias, valid))[:, :6], mutual(short))
