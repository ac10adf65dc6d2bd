"""Measures of feature similarity against the published ones, which are distances of matrices of features by images."""

from __future__ import annotations

from typing import Any

from tests.parity import golden
from tests.parity.models import Outcome
from vitrim.analysis.similarity import cca, cka, compare, procrustes, pwcca

# CKA_prime is read by none of the published scripts.
PUBLISHED = {
    "CKA": lambda x, y: 1 - cka(x, y),
    "Procrustes": lambda x, y: 2 * (1 - procrustes(x, y)),
    "PWCCA": lambda x, y: 1 - pwcca(x, y, compat="official"),
    "mean_cca_corr": lambda x, y: compare(x, y, compat="official")["mean_cca"],
    "mean_sq_cca_corr": lambda x, y: compare(x, y, compat="official")["mean_sq_cca"],
}


def known(case: dict[str, Any]) -> bool:
    """Whether this file runs the case."""
    return case["id"] == "metrics_features"


def run(case: dict[str, Any]) -> Outcome:
    """Compare every measure of every pair of matrices."""
    out, a = Outcome(), golden.arrays(case)
    atol, rtol = case["atol_suggested"], case["rtol_suggested"]
    pairs = {kind: (a[f"A/{kind}"].T, a[f"B/{kind}"].T) for kind in ("same", "diffdim", "lowrank", "wide")}
    for name, wanted in zip(a["result_names"].tolist(), a["results"], strict=True):
        kind, measure = name.split("/")
        if measure in PUBLISHED:
            out.number(name, PUBLISHED[measure](*pairs[kind]), wanted, atol, rtol)
    for kind in ("same", "diffdim", "lowrank"):
        found = cca(*pairs[kind])
        # Ten directions of the last one are rounding, which is left out here and gives noise there.
        out.number(f"rho/{kind}", found, a[f"rho/{kind}"][: len(found)], 1e-7 if kind == "lowrank" else atol, rtol)
    out.decision("rank", len(cca(*pairs["lowrank"])) == 20)
    return out
