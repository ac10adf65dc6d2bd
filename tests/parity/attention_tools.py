"""Roll-out and mutual attention weights against the official functions; hooked into the component checks."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity.models import Outcome
from vitrim.core.rollout import mutual, rollout
from vitrim.core.tokens import Attention

Arrays = dict[str, np.ndarray]


def attention_tools(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    """``attention_tools``: both roll-outs, mutual attention weights, and what is made of them."""
    scores, feats = torch.from_numpy(a["scores"]), torch.from_numpy(a["feats"])
    weights = scores.softmax(-1)
    out.number("rollout", rollout(list(weights), None), a["rollout"], 1e-5)
    out.number("rollout_ds", rollout(list(weights), None), a["rollout_ds"], 1e-5)
    out.number("row", rollout(list(weights)), a["rollout"][:, 0], 1e-5)
    out.number("dual_rollout", rollout([weights[-2], weights[-1]]).unsqueeze(1), a["dual_rollout"], 1e-5)
    # Logits as they are, when the keys are the unit matrix.
    eye = torch.eye(scores.shape[-1]).expand_as(scores[0])
    seen = [Attention(s, eye, eye, 1.0) for s in scores]
    out.number("maws", mutual(seen[-1], compat="clca")[:, 1:], a["maws"], 1e-5)
    k = case["config"]["maws_tokens"]
    parts: list[Tensor] = [feats[-1][:, :1]]
    for layer, attention in zip(feats[:-1], seen[:-1], strict=False):
        best = mutual(attention).argsort(dim=-1, descending=True)[:, :k]
        parts.append(layer.gather(1, best[..., None].expand(-1, -1, layer.shape[-1])))
    found = torch.cat(parts, dim=1)
    if found.shape == a["maws_tokens"].shape:
        out.number("maws_tokens", found, a["maws_tokens"], 1e-5)
