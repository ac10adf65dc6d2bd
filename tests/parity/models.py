"""Whole tiny models: how an official configuration reads in vitrim, and the comparison with what was recorded."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
import torch
from timm.models import VisionTransformer
from torch import Tensor

import vitrim
from tests.parity import golden
from vitrim.kernels.density import density_peaks

REPOSITORIES = ("TokenReduction", "ATC", "ToMe")
LEARNED = {
    "dyvit": "score_predictor",
    "dpcknn": "cluster_layers",
    "sinkhorn": "cluster_layers",
    "patchmerger": "cluster_layers",
    "sit": "cluster_layers",
}


@dataclass
class Outcome:
    """What a comparison found."""

    difference: float = 0.0
    decisions: bool = True
    problems: list[str] = field(default_factory=list)

    def number(self, name: str, got: Any, wanted: Any, atol: float, rtol: float = 0.0) -> None:
        got, wanted = np.asarray(got, dtype=np.float64), np.asarray(wanted, dtype=np.float64)
        if got.shape != wanted.shape:
            self.problems.append(f"{name}: shape {got.shape} instead of {wanted.shape}")
            return
        gap = np.abs(got - wanted)
        self.difference = max(self.difference, float(gap.max(initial=0.0)))
        if not (gap <= atol + rtol * np.abs(wanted)).all():
            self.problems.append(f"{name}: off by {gap.max():.3g}")

    def decision(self, name: str, same: bool) -> None:
        if not same:
            self.decisions = False
            self.problems.append(f"{name}: another decision")


def translate(case: dict[str, Any]) -> tuple[str, str, bool] | None:
    """Method spec, schedule spec and whether tokens are really removed, for an official configuration; None when dense."""
    config, method = case["config"], case["method"]
    if method in ("dense", "dyvit_teacher", "deit"):
        return None
    if "r_per_layer" in config:
        return _off_the_shelf(config, method)
    at = config["reduction_loc"]
    given = config.get("keep_rate") or config.get("reduction_ratio")
    rate = given[0] if len(given) == 1 else given
    relative = len(given) == 1 or method in ("topk", "evit", "dyvit")
    if relative:
        schedule = f"keep(rate={rate}, at={at})"
    else:
        # An explicit list is the sample count K of ATS, which leaves K - 1 tokens.
        counts = [int(g) - 1 for g in given] if method == "ats" else [int(g) for g in given]
        schedule = f"counts({counts}, at={at})"
    return _method(config, method), schedule, method != "heuristic"


def _method(config: dict[str, Any], method: str) -> str:
    official = "compat=official"
    if method == "atc":
        prop = config["proportional_attn"]
        return f"atc(linkage={config['linkage']}, proportional={prop}, weighted={prop}, {official})"
    if method == "dpcknn":
        return f"dpcknn(k_neighbors={config['k_neighbors']}, equal_weight={config['equal_weight']}, {official})"
    if method == "kmedoids":
        return f"kmedoids(iterations={config['cluster_iters']}, equal_weight={config['equal_weight']}, {official})"
    if method == "sinkhorn":
        return f"sinkhorn(eps={config['sinkhorn_eps']}, iterations={config['cluster_iters']}, {official})"
    if method == "heuristic":
        radius = config.get("min_radius") or 0.0
        return f"fixed(pattern={config['heuristic_pattern']}, min_radius={radius}, contiguous={not config['not_contiguous']})"
    # ATS as the paper has it: an image counts as stable only where the official float32 choice, noise of its distances
    # included, is also the choice in float64, which is the exact one.
    return {"dyvit": "dynamicvit"}.get(method, method)


def _off_the_shelf(config: dict[str, Any], method: str) -> tuple[str, str, bool]:
    r, kind = config["r"], config["r_kind"]
    schedule = f"r(n={r[0]}, inflect={r[1]})" if kind == "tuple" else f"r(n={r})"
    if method == "atc_ots" and config["merge_type"] == "atc":
        return f"atc(linkage={config['linkage']}, proportional={config['prop_attn']}, compat=official)", schedule, True
    return f"tome(proportional={config['prop_attn']})", schedule, True


def build(case: dict[str, Any]) -> tuple[VisionTransformer, Any]:
    """The reduced model with the parameters of the case, and its reduction (None when dense)."""
    config = case["config"]
    model = VisionTransformer(
        img_size=config.get("img_size", 224),
        patch_size=config.get("patch_size", 16),
        embed_dim=config.get("embed_dim", 48),
        depth=config.get("depth", 12),
        num_heads=config.get("num_heads", 3),
        mlp_ratio=config.get("mlp_ratio", 4),
        qkv_bias=config.get("qkv_bias", True),
        num_classes=config.get("num_classes", 10),
    )
    given = golden.weights(case)
    model.load_state_dict({k: v for k, v in given.items() if k in model.state_dict()}, strict=True)
    model.eval()
    plan = translate(case)
    if plan is None:
        return model, None
    reduction = vitrim.reduce(model, plan[0], plan[1])
    prefix = LEARNED.get(case["method"])
    if prefix:
        learned = {re.sub(rf"^{prefix}\.", "stages.", k): v for k, v in given.items() if k.startswith(prefix)}
        wanted = reduction.state_dict()
        reduction.load_state_dict({k: v.view_as(wanted[k]) for k, v in learned.items() if k in wanted}, strict=True)
    return model, reduction


def run(case: dict[str, Any]) -> Outcome:
    """Run a ``model`` case and compare everything that was recorded."""
    wanted, out = golden.arrays(case), Outcome()
    model, reduction = build(case)
    plan = translate(case)
    blocks: list[Tensor] = []
    hooks = [b.register_forward_hook(lambda m, i, o: blocks.append(o.detach())) for b in model.blocks]
    if case.get("seed_torch") is not None:
        torch.manual_seed(case["seed_torch"])
    if case.get("seed_numpy") is not None:
        np.random.seed(case["seed_numpy"])
    with torch.no_grad(), _recorded_centres() as centres:
        logits = model(golden.images()).numpy()
    for hook in hooks:
        hook.remove()
    stable = np.asarray(case.get("decisions_stable") or [True] * len(logits))
    compared = np.ones_like(stable) if case.get("soft_method") else stable
    atol, rtol = case["atol_suggested"], case["rtol_suggested"]
    out.number("logits", logits[compared], wanted["logits"][compared], atol, rtol)
    if "cls_per_layer" in wanted:
        cls = torch.stack([b[:, 0] for b in blocks]).numpy()
        out.number("cls_per_layer", cls[:, compared], wanted["cls_per_layer"][:, compared], 3 * atol, rtol)
    if plan is None or plan[2]:
        if "tokens_per_layer" in wanted and stable.all():
            out.decision("tokens_per_layer", [b.shape[1] for b in blocks] == wanted["tokens_per_layer"].tolist())
        if compared[0]:
            _compare_tokens(out, wanted, blocks, reduction, atol, rtol)
    if reduction is not None and not case.get("soft_method"):
        _compare_decisions(out, wanted, reduction, case["method"], stable)
        _compare_centres(out, wanted, centres, reduction, stable)
    if reduction is not None:
        _compare_soft(out, wanted, reduction)
    return out


def _compare_tokens(
    out: Outcome, wanted: dict[str, np.ndarray], blocks: list[Tensor], reduction: Any, atol: float, rtol: float
) -> None:
    for name, rows in wanted.items():
        if name.startswith("tokens_img0/"):
            layer = int(name.split("/")[1])
            ours = blocks[layer][0].numpy()
            state = None if reduction is None else reduction.state_after(layer)
            if state is not None and state.valid is not None:
                count = int(state.valid[0].sum())
                ours, rows = ours[state.valid[0].numpy()], rows[:count]
            gap = golden.row_distance(ours, rows)
            out.difference = max(out.difference, gap)
            if gap > 3 * atol + rtol * float(np.abs(rows).max()):
                out.problems.append(f"{name}: off by {gap:.3g}")


def _absolute_kept(reduction: Any, method: str) -> dict[int, list[set[int]]]:
    """Original patches that are still tokens of their own after each stage, per image; fused tokens and padding left out."""
    trace, kept = reduction.trace, {}
    ids: Tensor | None = None
    for layer, step in trace.items():
        patches = step.map.without_prefix(trace.prefix)
        if ids is None:
            ids = torch.arange(patches.n).expand(patches.batch, -1)
        ids = ids.gather(1, patches.representative())
        if method == "evit":
            ids = torch.cat([ids[:, :-1], torch.full_like(ids[:, :1], -1)], dim=1)
        if patches.valid is not None:
            ids = torch.where(patches.valid, ids, -1)
        kept[layer] = [set(row.tolist()) - {-1} for row in ids]
    return kept


def _compare_decisions(out: Outcome, wanted: dict[str, np.ndarray], reduction: Any, method: str, stable: np.ndarray) -> None:
    # The clusters of DPC-KNN have centres, but its tokens are means: those are compared apart.
    trace, kept = reduction.trace, {} if method == "dpcknn" else _absolute_kept(reduction, method)
    images = [i for i, ok in enumerate(stable) if ok]
    for name, value in wanted.items():
        kind, _, rest = name.partition("/")
        if not rest.isdigit():
            continue
        layer = int(rest)
        if kind in ("Kept_Tokens_AbsPatch", "Kept_Tokens_Abs") and method != "dpcknn":
            rows = value if len(value) == len(stable) else np.repeat(value[:1], len(stable), axis=0)
            # A fixed pattern that keeps all patches at a block leaves no step there: look at the last one before.
            last = max((k for k in kept if k <= layer), default=None)
            for i in images:
                ours = kept[last][i] if last is not None else set(range(196))
                out.decision(f"{name} image {i}", ours == set(rows[i].tolist()) - {-1})
        elif kind == "Assignment_AbsPatch":
            total = trace.upto(layer)
            labels = (total if value.shape[1] == total.n else total.without_prefix(trace.prefix)).assignment().numpy()
            for i in images:
                out.decision(f"{name} image {i}", golden.same_partition(labels[i], value[i]))
        elif kind == "token_size":
            step = trace[layer]
            # With unweighted merging the official sizes start anew at every stage.
            ours = (step.size if reduction.weighted else step.map.mass(torch.ones(step.map.batch, step.map.n))).numpy()
            ours = ours if ours.shape[1] == value.shape[1] else ours[:, trace.prefix :]
            for i in images:
                out.decision(f"{name} image {i}", sorted(ours[i].tolist()) == sorted(value[i].reshape(-1).tolist()))
        elif kind == "valid_count":
            state = reduction.state_after(layer)
            ours = state.valid.sum(dim=1).numpy()
            out.decision(name, (ours[stable] == value[stable]).all())
    if "final_size" in wanted:
        ours = reduction.final.size.numpy()
        for i in images:
            out.decision(
                f"final_size image {i}", sorted(ours[i].tolist()) == sorted(wanted["final_size"][i].reshape(-1).tolist())
            )


@contextmanager
def _recorded_centres() -> Iterator[list[Tensor]]:
    """The centres that DPC-KNN finds at each stage, which its token maps do not show."""
    found: list[Tensor] = []

    def record(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        centres, group = density_peaks(*args, **kwargs)
        found.append(centres)
        return centres, group

    with mock.patch("vitrim.methods.dpcknn.density_peaks", record):
        yield found


def _compare_centres(
    out: Outcome, wanted: dict[str, np.ndarray], centres: list[Tensor], reduction: Any, stable: np.ndarray
) -> None:
    """Indices are relative to the clusters of the stage before, whose order near ties may swap: ``place`` follows them."""
    names = sorted((n for n in wanted if n.startswith("Kept_Tokens/")), key=lambda n: int(n.split("/")[1])) if centres else []
    places = [np.arange(196) for _ in stable]
    for name, found in zip(names, centres, strict=True):
        theirs = wanted[name.replace("Kept_Tokens", "Assignment_Maps")].astype(int)
        ours = reduction.trace[int(name.split("/")[1])].map.without_prefix(reduction.trace.prefix).group.numpy()
        for i in np.flatnonzero(stable):
            out.decision(f"{name} image {i}", set(found[i].tolist()) == set(places[i][wanted[name][i].astype(int)].tolist()))
            after = np.zeros(theirs[i].max() + 1, dtype=int)
            after[theirs[i]] = ours[i][places[i]]
            places[i] = after


def _compare_soft(out: Outcome, wanted: dict[str, np.ndarray], reduction: Any) -> None:
    for name, value in wanted.items():
        if name.startswith("Soft_Assignment_Maps/"):
            layer = int(name.split("/")[1])
            weight = reduction.trace[layer].map.without_prefix(1).weight[0, : len(value)].numpy()
            out.number(name, weight, value, 1e-4, 1e-3)


def run_training(case: dict[str, Any]) -> Outcome:
    """Run a ``model_train`` case of DynamicViT, fed with the recorded decisions."""
    wanted, out = golden.arrays(case), Outcome()
    model, reduction = build(case)
    model.train()
    seen: list[Tensor] = []
    for i, stage in enumerate(reduction.stages):
        recorded = torch.from_numpy(wanted[f"gumbel_hard_sample/{i}"].astype(np.float32))

        def sample(log_probability: Tensor, recorded: Tensor = recorded) -> Tensor:
            seen.append(log_probability.detach())
            return recorded

        stage.sample = sample
    with torch.no_grad():
        features = model.forward_features(golden.images())
        logits = model.forward_head(features)
    atol, rtol = case["atol_suggested"], case["rtol_suggested"]
    out.number("logits", logits, wanted["logits"], atol, rtol)
    for i, (layer, step) in enumerate(reduction.trace.items()):
        out.number(f"pred_logprob/{i}", seen[i], wanted[f"pred_logprob/{i}"], atol, rtol)
        out.decision(f"keep_decision at block {layer}", (step.policy[:, 1:].numpy() == wanted[f"keep_decision/{i}"]).all())
    if "tokens_img0" in wanted:
        out.number("tokens_img0", features[0, 1:], wanted["tokens_img0"], 3 * atol, rtol)
    return out
