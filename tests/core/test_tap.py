"""The tap: the two forms of a key bias agree, attention is read rightly, and the masked softmax has the right limits."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from vitrim.core.tap import Tap, append_bias_channel, key_bias, policy_attention
from vitrim.core.tokens import Attention, Tokens


def qkv(batch: int = 2, heads: int = 3, n: int = 11, d: int = 8) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(batch, heads, n, d, generator=generator) for _ in range(3)]


def sizes(batch: int = 2, n: int = 11) -> torch.Tensor:
    return torch.randint(1, 60, (batch, n), generator=torch.Generator().manual_seed(1)).float()


def by_hand(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    logits = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5 + bias[:, None, None, :]
    return logits.softmax(dim=-1) @ v


def test_bias_reaches_the_logits() -> None:
    q, k, v = qkv()
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[1, 7:] = False
    bias = key_bias(sizes(), valid)
    with Tap([], 11, bias):
        out = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(out, by_hand(q, k, v, bias), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_channel_form_is_the_mask_form(dtype: torch.dtype) -> None:
    """What the flash kernel sees on a GPU: same attention, also with padding and in half precision."""
    q, k, v = (t.to(dtype) for t in qkv())
    valid = torch.ones(2, 11, dtype=torch.bool)
    valid[0, 9:] = False
    bias = key_bias(sizes(), valid)
    scale = q.shape[-1] ** -0.5
    q2, k2, v2 = append_bias_channel(q, k, v, bias, scale)
    assert q2.shape[-1] % 8 == 0
    logits = (q2.float() @ k2.float().transpose(-2, -1)) * scale
    out = logits.softmax(dim=-1) @ v2.float()
    wanted = by_hand(q.float(), k.float(), v.float(), bias)
    assert (out[..., -8:] == 0).all()
    # Two channels carry the bias, so that even bfloat16 loses less than its own rounding of the values.
    torch.testing.assert_close(out[..., :-8], wanted, atol=1e-5 if dtype == torch.float32 else 2e-3, rtol=1e-3)


def test_cross_attention_passes_untouched() -> None:
    q, k, v = qkv()
    calls: list[Attention] = []
    with Tap(calls, 5, torch.zeros(2, 5)):
        out = F.scaled_dot_product_attention(q, k, v)
    assert calls == []
    assert torch.equal(out, F.scaled_dot_product_attention(q, k, v))


def test_causal_attention_is_refused() -> None:
    q, k, v = qkv()
    with Tap([], 11), pytest.raises(RuntimeError, match="causal"):
        F.scaled_dot_product_attention(q, k, v, is_causal=True)


def test_multi_head_attention_is_seen_and_equal() -> None:
    layer = nn.MultiheadAttention(24, 3, batch_first=True).eval()
    x = torch.randn(2, 11, 24, generator=torch.Generator().manual_seed(2))
    calls: list[Attention] = []
    with torch.no_grad():
        dense = layer(x, x, x, need_weights=False)[0]
        with Tap(calls, 11):
            tapped = layer(x, x, x, need_weights=False)[0]
    assert [tuple(c.keys.shape) for c in calls] == [(2, 3, 11, 8)]
    torch.testing.assert_close(tapped, dense, atol=1e-6, rtol=1e-6)


def test_attention_rows_and_columns() -> None:
    q, k, v = qkv(n=300)
    bias = sizes(n=300).log()[:, None, None, :]
    attention = Attention(q, k, v, 8**-0.5, bias)
    full = (q @ k.transpose(-2, -1) * 8**-0.5 + bias).softmax(dim=-1)
    torch.testing.assert_close(attention.weights(), full)
    torch.testing.assert_close(attention.from_token(4), full[:, :, 4])
    torch.testing.assert_close(attention.received(), full.sum(dim=2))
    torch.testing.assert_close(attention.mean_key(), k.mean(dim=1))


def test_policy_attention_limits() -> None:
    q, k, v = qkv()
    dense = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(policy_attention(q, k, v, torch.ones(2, 11), 8**-0.5), dense, atol=1e-5, rtol=1e-4)
    policy = torch.ones(2, 11)
    policy[:, 5:] = 0
    masked = policy_attention(q, k, v, policy, 8**-0.5)
    short = F.scaled_dot_product_attention(q[:, :, :5], k[:, :, :5], v[:, :, :5])
    torch.testing.assert_close(masked[:, :, :5], short, atol=1e-4, rtol=1e-4)
    alone = policy_attention(q, k, v, torch.zeros(2, 11), 8**-0.5)
    torch.testing.assert_close(alone, v, atol=1e-2, rtol=0)  # eps shows where a token hardly attends to itself


def tokens(training: bool = False, layer: int = 3, seed: int = 0) -> Tokens:
    return Tokens(torch.zeros(1, 5, 4), torch.ones(1, 5), 1, 0, None, layer, 12, training=training, seed=seed)


def test_uniform_repeats_itself_in_evaluation_only() -> None:
    assert torch.equal(tokens().uniform(3, 40), tokens().uniform(3, 40))
    assert not torch.equal(tokens().uniform(120), tokens(layer=4).uniform(120))
    assert not torch.equal(tokens().uniform(120), tokens(seed=1).uniform(120))
    assert not torch.equal(tokens(training=True).uniform(120), tokens(training=True).uniform(120))
    many = tokens().uniform(20000)
    assert many.min() >= 0
    assert many.max() < 1
    assert abs(many.mean().item() - 0.5) < 0.01
    assert abs(many.std().item() - 12**-0.5) < 0.01


def test_no_attention_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match="site='inside'"):
        _ = tokens().attention


def test_a_position_bias_follows_the_tokens_also_when_their_number_stays() -> None:
    """Soft methods may leave as many tokens as there were, at other places."""
    q, k, v = qkv()
    table = torch.randn(1, 3, 11, 11, generator=torch.Generator().manual_seed(3))
    places = torch.stack([torch.randperm(11, generator=torch.Generator().manual_seed(s)) for s in (4, 5)])
    with Tap([], 11, positions=places):
        out = F.scaled_dot_product_attention(q, k, v, table)
    for b, place in enumerate(places):
        wanted = F.scaled_dot_product_attention(q[b], k[b], v[b], table[0][:, place][:, :, place])
        torch.testing.assert_close(out[b], wanted, atol=1e-6, rtol=1e-5)


def test_a_mask_of_the_whole_sequence_is_refused() -> None:
    q, k, v = qkv()
    with Tap([], 11), pytest.raises(RuntimeError, match="masks 20 keys, but 11 tokens are left"):
        F.scaled_dot_product_attention(q, k, v, torch.zeros(1, 1, 11, 20))
