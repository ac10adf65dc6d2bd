"""Single functions: each check takes the entry and its arrays and fills an Outcome."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.parity import golden
from tests.parity.models import Outcome
from vitrim.core.schedule import R
from vitrim.core.tap import policy_attention
from vitrim.core.tokenmap import TokenMap
from vitrim.kernels.clustering import agglomerative, cosine_distance
from vitrim.kernels.density import Distances, density_peaks, farthest_first, k_medoids
from vitrim.kernels.matching import bipartite, every_kth, random_split
from vitrim.methods.ats import sample
from vitrim.methods.dynamicvit import DynamicViT
from vitrim.methods.patchmerger import PatchMerger
from vitrim.methods.sinkhorn import Sinkhorn, transport
from vitrim.methods.sit import SiT
from vitrim.recognition.cal import counterfactual
from vitrim.recognition.losses import contrastive, supervised_contrastive
from vitrim.tasks import Asymmetric, CrossEntropy, Focal
from vitrim.training.distill import DistillationLoss, Hard, Soft
from vitrim.training.losses import DynamicViTLoss, group_lasso

Arrays = dict[str, np.ndarray]
Check = Callable[[dict[str, Any], Arrays, Outcome], None]
CHECKS: dict[str, Check] = {}


def check(*prefixes: str) -> Callable[[Check], Check]:
    """Use a function for the cases whose id starts with one of the prefixes."""

    def add(function: Check) -> Check:
        CHECKS.update(dict.fromkeys(prefixes, function))
        return function

    return add


def find(case: dict[str, Any]) -> Check | None:
    """The check of a component case; None for kinds not implemented yet."""
    known = [p for p in CHECKS if case["id"].startswith(p)]
    return CHECKS[max(known, key=len)] if known else None


def run(case: dict[str, Any]) -> Outcome:
    """Run one component case."""
    out = Outcome()
    found = find(case)
    assert found is not None
    found(case, {} if case["file"].endswith(".json") else golden.arrays(case), out)
    return out


def _tensor(a: np.ndarray) -> Tensor:
    return torch.from_numpy(a.astype(np.float32) if a.dtype == np.float64 else a)


def _partitions(out: Outcome, name: str, ours: Tensor, wanted: np.ndarray) -> None:
    for i, (a, b) in enumerate(zip(ours.numpy(), wanted, strict=True)):
        out.decision(f"{name} image {i}", golden.same_partition(a, b))


@check("agglomerative_N")
def clustering(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    distance = cosine_distance(_tensor(a["features"]))
    for name, wanted in a.items():
        if name.startswith("labels/"):
            _, linkage, k = name.split("/")
            _partitions(out, name, agglomerative(distance, int(k[1:]), linkage=linkage, metric="precomputed"), wanted)


@check("agglomerative_merge_cls")
def clustering_and_merging(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    k = case["config"]["num_clusters"]
    distance = cosine_distance(_tensor(a["metric"]))[:, 1:, 1:]
    x, size = _tensor(a["x_img0"])[None], _tensor(a["size_in"])
    for linkage in ("single", "complete", "average"):
        group = agglomerative(distance, k, linkage=linkage, metric="precomputed")
        tokens = TokenMap.merge(group, k).with_prefix(1)
        _partitions(out, f"labels/{linkage}", tokens.assignment(), a[f"labels/{linkage}"])
        first = TokenMap.merge(group[:1], k).with_prefix(1)
        _rows(out, f"merged_img0/{linkage}", first.pool(x, size[:1])[0].numpy(), a[f"merged_img0/{linkage}"])
        for i, row in enumerate(tokens.mass(size).numpy()):
            out.number(f"size/{linkage} image {i}", np.sort(row), np.sort(a[f"size/{linkage}"][i]), 1e-5)


def _rows(out: Outcome, name: str, ours: np.ndarray, wanted: np.ndarray, atol: float = 1e-5) -> None:
    gap = golden.row_distance(ours, wanted)
    out.difference = max(out.difference, gap)
    if gap > atol:
        out.problems.append(f"{name}: off by {gap:.3g}")


@check("agglomerative_ots_unmerge")
def clustering_and_lifting(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    x = _tensor(a["x"])
    k = x.shape[1] - case["config"]["r"]
    for linkage in ("single", "complete", "average"):
        tokens = TokenMap.merge(agglomerative(x, k, linkage=linkage), k)
        members = tokens.mass(torch.ones(x.shape[:2]))
        # The official mean counts the zero it starts from as a member; ours is a mean.
        official = tokens.pool(x) * (members / (members + 1)).unsqueeze(-1)
        for i in range(len(x)):
            _rows(out, f"merged_sum/{linkage}", tokens.pool(x, reduce="sum")[i].numpy(), a[f"merged_sum/{linkage}"][i])
            _rows(out, f"merged_mean/{linkage}", official[i].numpy(), a[f"merged_mean/{linkage}"][i])
        out.number(f"unmerged/{linkage}", tokens.lift(official), a[f"unmerged/{linkage}"], 1e-5)


@check("ats_")
def adaptive_sampling(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    values, valid = _tensor(a["values"]), _tensor(a["mask_in"].astype(bool))[:, 1:]
    score = (_tensor(a["attn_cls_row"]) * values.norm(dim=-1)).sum(dim=1)[:, 1:]
    for exact, name in ((False, "ids"), (True, "ids_exact_distance")):
        chosen = sample(score, case["config"]["sample_count"], valid, exact)
        for i, row in enumerate(chosen):
            out.decision(f"{name} image {i}", sorted(set((row + 1).tolist())) == sorted(set(a[name][i].tolist()) - {0}))


@check("dpcknn_")
def density_clustering(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    x, k, neighbors = _tensor(a["x"]), case["config"]["cluster_num"], case["config"]["k"]
    valid = _tensor(a["token_mask"] > 0) if "token_mask" in a else None
    for suffix, noise in (("", _tensor(a["noise_uniform"]) * 1e-6), ("_no_noise", torch.zeros(x.shape[:2]))):
        centres, group = density_peaks(x, k, neighbors, noise, valid)
        _partitions(out, f"idx_cluster{suffix}", group, a[f"idx_cluster{suffix}"])
        for i, row in enumerate(centres):
            out.decision(f"centers{suffix} image {i}", set(row.tolist()) == set(a[f"centers{suffix}"][i].tolist()))
        if suffix == "":
            weight = _tensor(a["token_weight"])
            total = torch.zeros(len(x), k).scatter_add(1, group, weight) + 1e-6
            merged = TokenMap.merge(group, k, weight / total.gather(1, group)).pool(x)
            for i in range(len(x)):
                _rows(out, "merged", merged[i].numpy(), a["merged"][i])


@check("kmedoids_")
def medoids(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    x, k = _tensor(a["x"]), case["config"]["cluster_num"]
    distances = Distances(x)
    if "token_weight" in a:
        weight = _tensor(a["token_weight"])
        start = weight.topk(k, dim=1).indices
    else:
        weight = torch.ones(x.shape[:2])
        start = farthest_first(distances, k, torch.full((len(x),), case["config"]["start_token"]))
    centres, group = k_medoids(distances, start, weight, case["config"]["iterations"])
    out.decision("center_idx", bool((centres.numpy() == a["center_idx"]).all()))
    out.decision("assignment", bool((group.numpy() == a["assignment"]).all()))
    out.number("centers", TokenMap.select(centres, x.shape[1], group=group).pool(x), a["centers"], 1e-6)


@check("tome_match_")
def bipartite_matching(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    config, metric, x, size = case["config"], _tensor(a["metric"]), _tensor(a["x"]), _tensor(a["size"])
    prefix = int(config["class_token"]) + int(config["distill_token"])
    r = min(config["r"], (metric.shape[1] - prefix) // 2)
    tokens = TokenMap.merge(bipartite(metric, r, prefix), metric.shape[1] - r)
    out.decision("source", bool((tokens.assignment().numpy() == a["source"]).all()))
    out.number("merged_mean", tokens.pool(x), a["merged_mean"], 1e-5)
    out.number("merged_wavg", tokens.pool(x, size), a["merged_wavg"], 1e-5)
    out.number("merged_size", tokens.mass(size), a["merged_size"].reshape(len(x), -1), 1e-5)
    merged = tokens.pool(x)
    if config["distill_token"]:
        # The official un-merge forgets that its merge moved the distillation token to the front: rows go to wrong places.
        unmerged = math.ceil(metric.shape[1] / 2) - r
        row = torch.arange(merged.shape[1])
        row = torch.where((row >= 2) & (row <= unmerged), row - 1, row)
        row[1] = unmerged
        merged = merged[:, row]
    out.number("unmerged_mean", tokens.lift(merged), a["unmerged_mean"], 1e-5)


@check("tome_kth_")
def kth_matching(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    metric, k = _tensor(a["metric"]), case["config"]["k"]
    tokens = TokenMap.merge(every_kth(metric, k), metric.shape[1] // k)
    out.number("merged", tokens.pool(_tensor(a["x"])), a["merged"], 1e-5)
    tokens = TokenMap.merge(every_kth(metric[:, :192], k), 192 // k)
    merged = tokens.pool(_tensor(a["x192"]))
    out.number("merged192", merged, a["merged192"], 1e-5)
    out.number("unmerged192", tokens.lift(merged), a["unmerged192"], 1e-5)


@check("tome_random_matching")
def random_matching(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    metric, r = _tensor(a["metric"]), case["config"]["r"]
    tokens = TokenMap.merge(random_split(metric, r, _tensor(a["uniform_draw"])), metric.shape[1] - r)
    merged = tokens.pool(_tensor(a["x"]))
    out.number("merged", merged, a["merged"], 1e-5)
    out.number("unmerged", tokens.lift(merged), a["unmerged"], 1e-5)


@check("r_schedules")
def schedules(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    for row in json.loads((golden.root() / case["file"]).read_text()):
        r, layers, wanted = row["r"], row["layers"], row["result"]
        schedule = R(r[0], r[1]) if row["kind"] == "tuple" else R(r)
        out.decision(f"{row['kind']} {r}", schedule.removals(layers) == wanted[:layers])


@check("sinkhorn")
def optimal_transport(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    scores, config = _tensor(a["scores"]), case["config"]["module"]
    for name, wanted in a.items():
        if name.startswith("plan/"):
            eps, iterations = name.removeprefix("plan/eps").split("_it")
            out.number(name, transport(scores, float(eps), int(iterations)), wanted, 1e-5)
    x, method = _tensor(a["module_x"]), Sinkhorn(eps=config["eps"], iterations=config["iters"])
    method.setup(x.shape[-1], config["clusters"])
    method.load_state_dict({"v": _tensor(a["module_v"])})
    with torch.no_grad():
        tokens = method(_bare(x), config["clusters"])
    out.number("module_plan_img0", tokens.weight[0], a["module_plan_img0"], 1e-5)
    out.number("module_out", tokens.pool(method.value(x)), a["module_out"], 1e-5)


def _bare(x: Tensor) -> Any:
    from vitrim.core.tokens import Tokens

    return Tokens(x, torch.ones(x.shape[:2]), prefix=0, cls=None, grid=None, layer=3, depth=12)


@check("soft_and_policy_modules")
@torch.no_grad()
def soft_modules(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    x = _tensor(a["x"])
    merger = PatchMerger()
    merger.setup(x.shape[-1], len(a["pm_queries"]))
    names = {"queries": "pm_queries", "norm.weight": "pm_norm_w", "norm.bias": "pm_norm_b"}
    merger.load_state_dict({k: _tensor(a[v]) for k, v in names.items()})
    out.number("pm_out", merger(_bare(x), len(a["pm_queries"])).pool(merger.value(x)), a["pm_out"], 1e-5)
    slim = SiT()
    slim.setup(x.shape[-1], a["sit_out"].shape[1])
    slim.load_state_dict({k.removeprefix("sit/"): _tensor(v) for k, v in a.items() if k.startswith("sit/")})
    out.number("sit_out", slim(_bare(x), a["sit_out"].shape[1]).pool(x), a["sit_out"], 1e-5)
    predictor = DynamicViT()
    predictor.setup(x.shape[-1], 1)
    predictor.load_state_dict({k.removeprefix("pred/"): _tensor(v) for k, v in a.items() if k.startswith("pred/")})
    out.number("pred_out", predictor.predict(x, _tensor(a["pred_policy"])), a["pred_out"], 1e-5)
    # The attention matrix comes out when the values are the unit matrix; the logits go in through the queries.
    logits = _tensor(a["policy_logits"])
    eye = torch.eye(logits.shape[-1]).expand_as(logits)
    out.number("policy_attn", policy_attention(logits, eye, eye, _tensor(a["policy"]), 1.0), a["policy_attn"], 1e-5)
    assert math.isfinite(out.difference)


@check("losses_tokenreduction")
def token_reduction_losses(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    t = {name: _tensor(v) for name, v in a.items() if v.dtype.kind in "fi"}
    config, pred, labels = case["config"], t["pred"], t["labels"]
    weights = {k: config[k] for k in ("cls_weight", "ratio_weight", "cls_distill_weight", "token_distill_weight")}
    kept = [t[f"keep_decision/{i}"] for i in range(3)]
    teacher = (t["teacher_logits"], t["teacher_tokens"])

    def result(name: str) -> Tensor:
        kind, *rest = name.split("/")
        if kind == "deit_distill":
            kl, alpha, tau = rest[1], float(rest[2].removeprefix("alpha")), float(rest[3].removeprefix("tau"))
            made = {"none": None, "soft": Soft(alpha=alpha, tau=tau, kl=kl), "hard": Hard(alpha=alpha)}[rest[0]]
            return DistillationLoss(CrossEntropy(), made)((pred, t["pred_kd"]), labels, t["teacher_logits"])
        if kind == "dyvit":
            loss = DynamicViTLoss(CrossEntropy(), mse_token=rest[1] == "mse1", kl=rest[2], **weights)
            taught = teacher if rest[0] == "teacher1" else None
            return loss.combine(pred, labels, kept, config["token_ratio"], t["tokens"], taught, t["mask"])
        negative, positive, clip = (float(v.lstrip("abcdefghijklmnopqrstuvwxyz")) for v in rest)
        return Asymmetric(negative=negative, positive=positive, clip=clip)(pred, t["multilabel"])

    for name, wanted in zip(a["result_names"], a["results"], strict=True):
        out.number(str(name), result(str(name)), wanted, 0.0, case["rtol_suggested"])


@check("losses_clca_dsila")
def feature_losses(case: dict[str, Any], a: Arrays, out: Outcome) -> None:
    t = {name: _tensor(v) for name, v in a.items() if v.dtype.kind in "fi"}
    logits, labels = t["logits"], t["class_labels"]

    def result(name: str) -> Tensor:
        kind, *rest = name.split("/")
        if kind == "focal":
            return Focal(gamma=float(rest[0][-1]), smoothing=0.1 * float(rest[1][-1]))(logits, labels)
        if kind == "group_lasso":
            return CrossEntropy()(logits, labels) + case["config"]["lasso_weight"] * group_lasso(
                t["head_weight"], int(rest[0][-1])
            )
        if kind == "multi_cont":
            return supervised_contrastive(t["multi_view"], t["labels"] if rest[1] == "label" else None)
        if kind == "cal7":
            return counterfactual(t["cal_raw"], t["cal_aug"], t["cal_aux"], t["cal_fm"], t["cal_center"], labels)
        return CrossEntropy()(logits, labels) if kind == "cal2" else contrastive(t["features"], t["labels"])

    for name, wanted in zip(a["result_names"], a["results"], strict=True):
        out.number(str(name), result(str(name)), wanted, 0.0, case["rtol_suggested"])
