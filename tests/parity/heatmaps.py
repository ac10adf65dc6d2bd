"""Measures of heat maps, and the token statistics of the comparison scripts, against what the published scripts wrote."""

from __future__ import annotations

import json
from typing import Any

import numpy as np

from tests.parity import golden
from tests.parity.models import Outcome
from vitrim.analysis.depth import TokenStatistics
from vitrim.analysis.heatmaps import compare_maps

PUBLISHED = {"KLD": "kl12", "KLD_rev": "kl21", "JSD": "js", "PCC": "pcc", "SCC": "scc", "EMD": "emd", "SIM": "sim"}
PATCHES, BLOCKS = 196, 12


def known(case: dict[str, Any]) -> bool:
    """Whether the case is one of heat maps alone; :func:`token_statistics` is a part of the case of the comparison scripts."""
    return case["id"] == "metrics_heatmaps"


def run(case: dict[str, Any]) -> Outcome:
    """Compare every pair of maps by every measure."""
    out, a = Outcome(), golden.arrays(case)
    found: dict[str, dict[str, float]] = {}
    for name, wanted in zip(a["result_names"].tolist(), a["results"], strict=True):
        pair, measure = name.split("/")
        if pair not in found:
            first, second = (a[f"map/{m}"] for m in pair.split("+"))
            found[pair] = compare_maps(first, second, compat="official")
        out.number(name, found[pair][PUBLISHED[measure]], wanted, case["atol_suggested"], case["rtol_suggested"])
    return out


def token_statistics(case: dict[str, Any], out: Outcome) -> None:
    """Compare the record of every run of ``metrics_scripts`` that says how many tokens are left and how deep they get."""
    recorded = json.loads((golden.root() / case["file"]).read_text())
    for row in recorded["runs"]:
        images = [v for k, v in recorded["viz_results"][row["Name"]].items() if k.startswith("im")]
        stages = stages_of(images)
        seen = TokenStatistics(PATCHES, BLOCKS)
        for part in np.array_split(np.arange(len(images)), 2):  # two batches, as sums over batches are what is claimed
            seen.add([(block, own[part], token[part]) for block, own, token in stages])
        (wanted,) = (v for v in recorded["expected"]["token_statistics"].values() if v["Model"] == row["model"])
        out.decision(f"{row['model']} stages", [f"Stage-{b}" for b in seen.stages] == wanted["Stages"])
        mean, spread = seen.rate()
        got = {"Mean-Reduction": mean, "Std-Reduction": spread}
        if "Mean-Token-Depth" in wanted:
            got |= dict(zip(("Mean-Token-Depth", "Std-Token-Depth"), seen.mean_depth(), strict=True))
            got |= {"Mean-Token-Depth-Spatial": seen.depth.mean("depth"), "Std-Token-Depth-Spatial": seen.depth.std("depth")}
        for name, value in got.items():
            out.number(f"{row['model']} {name}", value, wanted[name], 1e-9, case["rtol_suggested"])


def stages_of(images: list[dict[str, Any]]) -> list[tuple[int, np.ndarray, np.ndarray]]:
    """Block, patches of their own and token of each patch, from the published layout: kept indices, or labels by stage."""
    found = []
    for stage in images[0]:
        token = np.full((len(images), PATCHES), -1)
        for row, image in zip(token, images, strict=True):
            if "Kept_Token" in image[stage]:
                # -1 stands for padding and for EViT's fused token, which the scripts do not count.
                kept = [k for k in image[stage]["Kept_Token"] if k >= 0]
                row[kept] = kept
            else:
                # Of tokens, not of patches: these synthetic runs also assign tokens that hold no patch; the scripts count them.
                label = image[stage]["Assignment_Maps"]
                row[: len(label)] = label
        found.append((int(stage.removeprefix("Stage-")), token >= 0, token))
    return found
