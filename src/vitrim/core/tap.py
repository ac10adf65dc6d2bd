"""Reading and steering attention where every library calls ``scaled_dot_product_attention``."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vitrim.core.tokens import Attention


class Tap(TorchFunctionMode):
    """Sees q, k and v of the attention call inside it, and adds to its logits.

    The mode never changes its own attributes (Dynamo would lose that): what it sees is appended to ``calls``.

    Args:
        calls: list that receives one :class:`Attention` per call.
        length: number of tokens; calls with another key length (cross-attention) pass untouched. None takes any.
        bias: ``(B, n)`` added to the logits of every key: log-sizes, and ``-inf`` for padding.
        policy: ``(B, n)`` keep decisions; the masked softmax of DynamicViT replaces the plain one.
        positions: ``(B, n)`` rows of a full ``(.., N, N)`` position bias that belong to the present tokens.
        valid: ``(B, n)`` bool, False for padding; only noted, ``bias`` does the masking.
        uniform: let padding attend to everything alike, padding included, as the published code of ATS does; nobody sees it
            there but the mean of CLCA's published code.
        askers: tokens that ask but are no keys: the last ones, or with a negative number the first ones.
    """

    def __init__(
        self,
        calls: list[Attention],
        length: int | None,
        bias: Tensor | None = None,
        policy: Tensor | None = None,
        positions: Tensor | None = None,
        valid: Tensor | None = None,
        uniform: bool = False,
        askers: int = 0,
    ) -> None:
        super().__init__()
        self.calls = calls
        self.length = length
        self.bias = bias
        self.policy = policy
        self.positions = positions
        self.valid = valid
        self.uniform = uniform
        self.askers = askers

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            return self._attend(*args, **kwargs)
        if func is F.multi_head_attention_forward:
            # That function dispatches on itself, so calling it under the mode would recurse: spell it out.
            return _multi_head(self._attend, *args, **kwargs)
        return func(*args, **kwargs)

    def _attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        options: dict[str, Any] = {"dropout_p": dropout_p, "scale": scale, "enable_gqa": enable_gqa}
        if self.length is not None and key.shape[-2] != self.length:
            return F.scaled_dot_product_attention(query, key, value, attn_mask, is_causal=is_causal, **options)
        if is_causal:
            raise RuntimeError("token reduction needs full attention; this block asks for a causal mask")
        factor = query.shape[-1] ** -0.5 if scale is None else scale
        mask = self._mask(attn_mask, query.dtype, key.shape[-2])
        if self.askers:
            return self._attend_with_askers(query, key, value, mask, options)
        self.calls.append(Attention(query, key, value, factor, mask, self.valid))
        if self.policy is not None:
            return policy_attention(query, key, value, self.policy, factor, mask)
        if attn_mask is None and self.bias is not None and _prefers_no_mask(query):
            query, key, value = append_bias_channel(query, key, value, self.bias, factor)
            options["scale"] = factor
            out = F.scaled_dot_product_attention(query, key, value, **options)
            return out[..., :-8]
        out = F.scaled_dot_product_attention(query, key, value, mask, **options)
        if self.uniform and self.valid is not None:
            return torch.where(self.valid[:, None, :, None], out, value.mean(dim=-2, keepdim=True))
        return out

    def _attend_with_askers(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, options: dict[str, Any]
    ) -> Tensor:
        """Attention in which some tokens ask, but are not asked."""
        n = key.shape[-2] - abs(self.askers)
        others = slice(n) if self.askers > 0 else slice(-self.askers, None)
        key, value = key[..., others, :], value[..., others, :]
        mask = None if mask is None else mask[..., others]
        if self.policy is not None:
            raise RuntimeError("queries that nobody attends to do not go with mask-based training; train with another method")
        seen = mask if mask is None or mask.shape[-2] == 1 else mask[..., others, :]
        factor = query.shape[-1] ** -0.5 if options["scale"] is None else options["scale"]
        valid = None if self.valid is None else self.valid[:, others]
        self.calls.append(Attention(query[..., others, :], key, value, factor, seen, valid))
        return F.scaled_dot_product_attention(query, key, value, mask, **options)

    def _mask(self, attn_mask: Tensor | None, dtype: torch.dtype, keys: int) -> Tensor | None:
        """The block's own mask, cut to the present tokens, plus the bias of the keys."""
        mask = attn_mask
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, -torch.inf)
        if mask is not None and self.positions is not None:
            mask = _take_positions(mask, self.positions)
        if mask is not None and mask.shape[-1] not in (1, keys):
            raise RuntimeError(
                f"the block masks {mask.shape[-1]} keys, but {keys} tokens are left; masks of the whole sequence cannot "
                "be followed here, so call the model without one"
            )
        if self.bias is None:
            return mask
        bias = self.bias.to(dtype)[:, None, None, :]
        return bias if mask is None else mask + bias


def _take_positions(mask: Tensor, index: Tensor) -> Tensor:
    """Rows and columns ``index (B, n)`` of a position bias ``(1 or B, heads, N, N)``, or of one without the first axes."""
    batch, n = index.shape
    mask = mask.view(*[1] * (4 - mask.dim()), *mask.shape)
    heads, full = mask.shape[1], mask.shape[-1]
    mask = mask.expand(batch, heads, full, full)
    rows = mask.gather(2, index[:, None, :, None].expand(batch, heads, n, full))
    return rows.gather(3, index[:, None, None, :].expand(batch, heads, n, n))


def _prefers_no_mask(query: Tensor) -> bool:
    """Whether a mask would lose the flash kernel: half precision on a GPU."""
    return query.is_cuda and query.dtype in (torch.float16, torch.bfloat16)


def append_bias_channel(query: Tensor, key: Tensor, value: Tensor, bias: Tensor, scale: float) -> tuple[Tensor, Tensor, Tensor]:
    """Move a per-key bias into eight extra channels, so that a kernel without masks computes the same attention.

    Two of the channels carry the bias as a coarse and a fine part, because one half-precision number would round it;
    the rest is zero, since flash kernels want head sizes that are multiples of eight. The output gets eight extra
    channels of zeros. ``-inf`` becomes a large finite number: infinities would meet in ``inf - inf``.

    Args:
        query: ``(B, heads, n, d)``.
        key: ``(B, heads, n, d)``.
        value: ``(B, heads, n, d)``.
        bias: ``(B, n)``, added to the scaled logits of each key.
        scale: factor of the logits.
    """
    wanted = (bias.float() / scale).clamp_min(-30000.0)
    coarse = wanted.to(query.dtype)
    fine = (wanted - coarse.float()).to(query.dtype)
    key_tail = torch.stack([coarse, fine], dim=-1)[:, None].expand(-1, key.shape[1], -1, -1)
    query_tail = query.new_ones(*query.shape[:-1], 2)
    return (
        torch.cat([query, F.pad(query_tail, (0, 6))], dim=-1),
        torch.cat([key, F.pad(key_tail, (0, 6))], dim=-1),
        F.pad(value, (0, 8)),
    )


def policy_attention(
    query: Tensor, key: Tensor, value: Tensor, policy: Tensor, scale: float, bias: Tensor | None = None, eps: float = 1e-6
) -> Tensor:
    """Masked softmax attention of DynamicViT (arXiv:2106.02034): dropped tokens are seen by nobody but themselves.

    Computed in float32, differentiable in ``policy (B, n)``. Attention dropout is not applied, as in the paper's code.
    """
    logits = (query * scale) @ key.transpose(-2, -1)
    if bias is not None:
        logits = logits + bias
    logits = logits.float()
    n = key.shape[-2]
    eye = torch.eye(n, device=key.device)
    gate = policy.float()[:, None, None, :]
    gate = gate + (1.0 - gate) * eye
    raised = torch.exp(logits - logits.amax(dim=-1, keepdim=True)) * gate
    weights = (raised + eps / n) / (raised.sum(dim=-1, keepdim=True) + eps)
    return weights.to(value.dtype) @ value


def _multi_head(
    attend: Any, query: Tensor, key: Tensor, value: Tensor, embed_dim: int, heads: int, *args: Any, **kwargs: Any
) -> Any:
    """Self-attention of ``nn.MultiheadAttention``: its projections, then the tapped attention.

    Tensors are ``(n, B, C)``, as ``F.multi_head_attention_forward`` takes them.
    """
    names = (
        "in_proj_weight",
        "in_proj_bias",
        "bias_k",
        "bias_v",
        "add_zero_attn",
        "dropout_p",
        "out_proj_weight",
        "out_proj_bias",
    )
    given = dict(zip(names, args, strict=False)) | kwargs
    unsupported = [n for n in ("bias_k", "bias_v", "key_padding_mask") if given.get(n) is not None]
    if given.get("add_zero_attn"):
        unsupported.append("add_zero_attn")
    if unsupported:
        raise RuntimeError(f"token reduction does not support nn.MultiheadAttention with {', '.join(unsupported)}")
    bias = given["in_proj_bias"]
    if given.get("use_separate_proj_weight"):
        weights = [given["q_proj_weight"], given["k_proj_weight"], given["v_proj_weight"]]
    else:
        weights = given["in_proj_weight"].chunk(3)
    biases = [None] * 3 if bias is None else bias.chunk(3)

    def split(x: Tensor, weight: Tensor, b: Tensor | None) -> Tensor:
        y = F.linear(x, weight, b)
        return y.view(y.shape[0], y.shape[1], heads, -1).permute(1, 2, 0, 3)

    q, k, v = (split(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))
    dropout = given.get("dropout_p", 0.0) if given.get("training", True) else 0.0
    mask = given.get("attn_mask")
    if mask is not None and mask.dim() == 3:
        mask = mask.view(-1, heads, *mask.shape[1:])
    out = attend(q, k, v, attn_mask=mask, dropout_p=dropout)
    out = out.permute(2, 0, 1, 3).reshape(query.shape[0], query.shape[1], embed_dim)
    return F.linear(out, given["out_proj_weight"], given["out_proj_bias"]), None


def key_bias(size: Tensor | None, valid: Tensor | None) -> Tensor | None:
    """``(B, n)`` logits to add to every key: log-sizes (proportional attention) and ``-inf`` for padding; None if neither."""
    bias = None if size is None else size.float().log()
    if valid is None:
        return bias
    if bias is None:
        bias = torch.zeros_like(valid, dtype=torch.float32)
    return bias.masked_fill(~valid, -math.inf)
