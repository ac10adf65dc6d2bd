"""The report of the parity run: per case the largest difference and whether the decisions are identical."""

from __future__ import annotations

from typing import Any


def pytest_terminal_summary(terminalreporter: Any) -> None:
    reports = [r for kind in ("passed", "failed") for r in terminalreporter.stats.get(kind, [])]
    rows = sorted((d["case"], d) for r in reports if "case" in (d := dict(r.user_properties)) and r.when == "call")
    if not rows:
        return
    terminalreporter.section("parity with the official implementations")
    if terminalreporter.config.getoption("verbose") > 0:
        for name, d in rows:
            same = "identical" if d["decisions"] else "DIFFERENT"
            terminalreporter.write_line(f"{name:48s} max |difference| {d['difference']:.2e}   decisions {same}")
    worst = max(d["difference"] for _, d in rows)
    same = sum(d["decisions"] for _, d in rows)
    terminalreporter.write_line(
        f"{len(rows)} cases, decisions identical in {same}, largest difference {worst:.2e} (-v lists all)"
    )
    skipped = [r for r in terminalreporter.stats.get("skipped", []) if "test_golden" in r.nodeid]
    names = sorted(r.nodeid.split("[")[-1].rstrip("]") for r in skipped)
    terminalreporter.write_line(f"{len(names)} cases of kinds not implemented yet" + (f": {', '.join(names)}" if names else ""))
