"""Whole tiny models with a cross-layer cache or aggregation head: configurations of the official repository, read as vitrim's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from timm.models import VisionTransformer
from torch import Tensor

import vitrim
from tests.parity import golden
from tests.parity.models import LEARNED, Outcome

METHODS = {"vit": "none", "dyvit": "dynamicvit", "dpcknn": "dpcknn(compat=official)"}
HEADS = {  # names of the official modules, by number of groups
    True: {"0.0": "norm", "0.1": "mix", "0.2": "norm2", "0.4": "classifier"},
    False: {"0.0": "mix", "0.3": "norm", "0.4": "classifier"},
}


def known(case: dict[str, Any]) -> bool:
    """Whether the case is one of reduction (the others of this repository tune models)."""
    return case["kind"] == "model" and case["official_repo"] == "CLCA" and case["method"] not in ("h2t", "vqt")


def cache_spec(config: dict[str, Any]) -> str | None:
    """The cache of an official configuration; None without one."""
    if not config["clc"] and not config["num_clr"]:
        return None
    recover = "never" if not config["clc"] else "all" if config["clc_recover_at_last"] else "reductions"
    gap = config["clc_include_gap"] if config["clc"] else True
    return (
        f"clc(num_clr={config['num_clr']}, gap={gap}, pool_cls={config['clc_pool_cls']}, pool_clr={config['clc_pool_clr']}, "
        f"recover={recover}, compat=official)"
    )


def head_spec(config: dict[str, Any]) -> str | None:
    """The head of an official configuration; None for the model's own."""
    return f"cla(groups={config['ifa_dws_conv_groups']})" if config["ifa_head"] else None


def schedule_spec(method: str, config: dict[str, Any], patches: int = 196) -> str:
    """The schedule as the official code counts for this method."""
    at, rate = config["reduction_loc"] or [3, 6, 9], config["keep_rate"][0]
    if method in ("topk", "evit"):
        return f"share(rate={rate}, at={at})"
    if method == "dyvit" and config["clc"]:
        counts, left, joined = [], patches + config["num_clr"], config["clc_include_gap"] + config["num_clr"]
        before = 0
        for block in at:
            counts.append(int((left - 1) * rate))
            left = counts[-1] + joined * (block - before)
            before = block
        return f"counts({counts}, at={at})"
    if method == "dyvit":  # carriers without a cache count as patches
        return f"counts({[int(rate ** (i + 1) * (patches + config['num_clr'])) for i in range(len(at))]}, at={at})"
    if method == "dpcknn":
        counts = [int(rate ** (i + 1) * patches) for i in range(len(at))]
        counts = [max(c, 5) if i < len(at) - 1 else max(c, 1) for i, c in enumerate(counts)]
        return f"counts({counts}, at={at})"
    return f"keep(rate={rate}, at={at}, least=0)"


def reduce(model: VisionTransformer, method: str, config: dict[str, Any], given: dict[str, Tensor], patches: int = 196) -> Any:
    """Put an official configuration on a model, with the parameters of the case."""
    spec = METHODS.get(method, method)
    reduction = vitrim.reduce(
        model, spec, schedule_spec(method, config, patches), cache=cache_spec(config), head=head_spec(config)
    )
    ours = dict(renamed(method, config, given))
    wanted = reduction.state_dict()
    reduction.load_state_dict(wanted | {k: v.view_as(wanted[k]) for k, v in ours.items() if k in wanted}, strict=True)
    missing = [k for k in wanted if k not in ours and not k.endswith(("running_mean", "running_var", "num_batches_tracked"))]
    assert not missing, missing
    return reduction


def renamed(method: str, config: dict[str, Any], given: dict[str, Tensor]) -> Iterator[tuple[str, Tensor]]:
    """Official parameters under vitrim's names."""
    prefix = LEARNED.get(method)
    heads = HEADS[config["ifa_dws_conv_groups"] > 0]
    for name, value in given.items():
        if name == "clr":
            yield "cache.clr", value
        elif name == "pos_embed_suffix":
            yield "cache.pos", value
        elif name.startswith("ifa_head."):
            place, _, leaf = name.removeprefix("ifa_head.").rpartition(".")
            yield f"head.{heads[place]}.{leaf}", value
        elif prefix and name.startswith(prefix):
            yield re.sub(rf"^{prefix}\.", "stages.", name), value


def run(case: dict[str, Any]) -> Outcome:
    """Run a case and compare everything that was recorded."""
    wanted, out, config, method = golden.arrays(case), Outcome(), case["config"], case["method"]
    model = VisionTransformer(
        img_size=224,
        patch_size=16,
        embed_dim=config["embed_dim"],
        depth=config["depth"],
        num_heads=config["num_heads"],
        num_classes=10,
    )
    given = golden.weights(case)
    model.load_state_dict({k: v for k, v in given.items() if k in model.state_dict()}, strict=True)
    model.eval()
    reduction = reduce(model, method, config, given)
    blocks: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, i, o: blocks.append(o.detach())) for b in model.blocks]
    if case.get("seed_torch") is not None:
        torch.manual_seed(case["seed_torch"])
    with torch.no_grad():
        logits = model(golden.images()).numpy()
    for hook in hooks:
        hook.remove()
    # Recorded are the outputs before cached tokens return.
    joins = {} if reduction.cache is None else reduction.cache.joins()
    blocks = [b[:, : b.shape[1] - joins.get(i, 0)] for i, b in enumerate(blocks)]
    stable = np.asarray(case["decisions_stable"])
    compared = np.ones_like(stable) if case.get("soft_method") else stable
    atol, rtol = case["atol_suggested"], case["rtol_suggested"]
    out.number("logits", logits[compared], wanted["logits"][compared], atol, rtol)
    cls = torch.stack([b[:, 0] for b in blocks]).numpy()
    out.number("cls_per_layer", cls[:, compared], wanted["cls_per_layer"][:, compared], 3 * atol, rtol)
    if stable.all():
        out.decision("tokens_per_layer", [b.shape[1] for b in blocks] == wanted["tokens_per_layer"].tolist())
    for name in wanted:
        if name.startswith("tokens_img0/") and compared[0]:
            _compare_tokens(out, name, wanted[name], blocks, reduction, atol, rtol)
    if not case.get("soft_method"):
        for image in np.flatnonzero(stable):
            _compare_stages(out, wanted, reduction, method, int(image), 196 + (config["num_clr"] or 0))
    return out


def _compare_tokens(
    out: Outcome, name: str, rows: np.ndarray, blocks: list[Tensor], reduction: Any, atol: float, rtol: float
) -> None:
    layer = int(name.split("/")[1])
    ours, state = blocks[layer][0].numpy(), reduction.state_after(layer)
    if state.valid is not None:
        # Padding is last among the patches; what has returned is behind it.
        valid = state.valid[0, : len(ours)].numpy()
        ours = ours[valid]
        rows = rows[valid] if len(rows) == len(valid) else rows[: len(ours)]
    gap = golden.row_distance(ours, rows)
    out.difference = max(out.difference, gap)
    if gap > 3 * atol + rtol * float(np.abs(rows).max()):
        out.problems.append(f"{name}: off by {gap:.3g}")


Token = frozenset[Any]


def _compare_stages(out: Outcome, wanted: dict[str, np.ndarray], reduction: Any, method: str, image: int, start: int) -> None:
    """Every token as the set of those it came from: the same sets at every stage, in whatever order."""
    theirs: list[Token] = [frozenset([i]) for i in range(start)]
    ours = list(theirs)
    protected = start - 196 if method == "dpcknn" else 0
    joins = {} if reduction.cache is None else reduction.cache.joins()
    for block in range(reduction.depth):
        kind = "Assignment_Maps" if f"Assignment_Maps/{block}" in wanted else "Kept_Tokens"
        if f"{kind}/{block}" in wanted:
            row = wanted[f"{kind}/{block}"][image].astype(int)
            theirs = _official(row, kind, theirs, method, protected)
            step = reduction.trace[block].map.without_prefix(1)
            ours = _ours(step, ours, image, method)
            out.decision(f"{kind}/{block} image {image}", _keys(theirs) == _keys(ours))
        new = [frozenset([f"joined {block} {i}"]) for i in range(joins.get(block, 0))]
        theirs, ours = theirs + new, ours + new
        protected += len(new) if method == "dpcknn" else 0


def _keys(tokens: list[Token]) -> list[list[str]]:
    return sorted(sorted(str(member) for member in token) for token in tokens)


def _official(row: np.ndarray, kind: str, before: list[Token], method: str, protected: int) -> list[Token]:
    tail = before[len(before) - protected :]
    seen = before[: len(before) - protected]
    if kind == "Assignment_Maps":
        groups: list[set[Any]] = [set() for _ in range(int(row.max()) + 1)]
        for source, target in enumerate(row):
            groups[target] |= seen[source]
        return [frozenset(g) for g in groups] + tail
    kept = [seen[i] for i in row if i >= 0]
    if method == "evit":
        kept.append(frozenset().union(*(t for i, t in enumerate(seen) if i not in set(row.tolist()))))
    if method == "ats":
        kept += [frozenset()] * int((row < 0).sum())
    return kept + tail


def _ours(step: Any, before: list[Token], image: int, method: str) -> list[Token]:
    if step.source is not None:
        valid = np.ones(step.m, bool) if step.valid is None else step.valid[image].numpy()
        return [before[i] if ok else frozenset() for i, ok in zip(step.source[image].tolist(), valid, strict=True)]
    groups: list[set[Any]] = [set() for _ in range(step.m)]
    for source, target in enumerate(step.group[image].tolist()):
        groups[target] |= before[source]
    return [frozenset(g) for g in groups]
