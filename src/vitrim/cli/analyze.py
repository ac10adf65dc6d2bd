"""``vitrim analyze``: how alike the reductions and features of many runs are, and whether that goes with accuracy."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from vitrim.cli.options import Flag
from vitrim.experiments.analyze import Analysis, write_analysis
from vitrim.experiments.analyze import analyze as compare_runs
from vitrim.experiments.analyze_correlations import strongest
from vitrim.experiments.analyze_runs import find_traces, untraced
from vitrim.experiments.results import require_parquet

_MARK = '<aside id="tray"'


def analyze(
    *runs: Path,
    by: Literal["rate", "capacity", "method", "dataset"] = "method",
    out: Path = Path("vitrim-analysis"),
    images: int = 0,
    examples: int = 3,
    data: str | None = None,
    workers: int | None = None,
    resamples: int = 2000,
    title: str | None = None,
    force: Flag = False,
) -> int:
    """Compare the traces of runs, pair by pair: features, kept patches, merged patches, token depth; relate them to accuracy.

    Reads what vitrim eval RUN --trace wrote. Writes tables (CSV, Parquet, LaTeX), figures (SVG, PDF) and one page. Finished pairs
    are kept: an interrupted call goes on, and only new pairs are computed when runs are added.

    Args:
        *runs: runs with a trace, trace stores, or folders above them.
        by: what the two runs of a pair differ in: rate, capacity, method or dataset; everything else is the same.
        out: folder for the results.
        images: look at this many images, spread evenly; 0 takes all.
        examples: example images on the page, 0 to 3.
        data: data set to read example images from, where it is no longer where the traces say.
        workers: processes; one for each core when left out, 0 does all in this one.
        resamples: of the bootstrap intervals of correlations.
        title: of the page.
        force: write into a folder that holds something else.
    """
    if not runs:
        raise ValueError("name the runs: vitrim analyze RUNS... --by method --out DIR")
    if images < 0 or images in (1, 2):
        raise ValueError("--images is 0 (all), or 3 or more")
    if not 0 <= examples <= 3:
        raise ValueError("--examples is 0 to 3")
    if workers is not None and workers < 0:
        raise ValueError("--workers is 0 or more")
    require_parquet()
    _check_place(out, force)
    found = find_traces(runs)
    line = _Progress()
    try:
        analysis = compare_runs(
            found,
            by,
            out,
            images=images or None,
            examples=examples,
            workers=workers,
            data=data,
            resamples=resamples,
            say=line.tell,
        )
    except KeyboardInterrupt:
        line.close()
        print("interrupted; finished pairs are kept, and the same command goes on", file=sys.stderr)
        return 130
    finally:
        line.close()
    written = write_analysis(analysis, out, title or _title(runs))
    print(_summary(analysis))
    left = untraced(runs)
    notes = [f"{len(left)} runs hold no trace, such as {left[0]}: vitrim eval {left[0]} --trace"] if left else []
    for note in [*notes, *analysis.notes]:
        print(f"note: {note}")
    print(f"\nwritten into {out}: index.html, and {len(written) - 1} files in tables, latex and figures")
    return 0


def _title(places: Sequence[Path]) -> str:
    names = [place.resolve().name for place in places]
    return ", ".join(names) if len(names) <= 3 else f"{names[0]} and {len(names) - 1} others"


def _check_place(out: Path, force: bool) -> None:
    if force or not out.exists():
        return
    if not out.is_dir():
        raise ValueError(f"'{out}' is no folder; give another one with --out")
    page = out / "index.html"
    ours = (out / "cache").is_dir() if not page.exists() else _MARK in page.read_text(encoding="utf-8", errors="replace")
    if not ours and any(out.iterdir()):
        raise ValueError(f"'{out}' holds something that is no analysis; give another --out, or --force")


def _summary(analysis: Analysis) -> str:
    """How much was compared, and the strongest correlations."""
    again = f" ({analysis.before} finished before)" if analysis.before else ""
    lines = [f"{len(analysis.runs)} runs, {len(analysis.pairs)} pairs that differ in {analysis.by}{again}"]
    for row in strongest(analysis.tables["correlations"]):
        at = "" if row["block"] is None else f", block {row['block']}"
        ends = "" if row["spearman_low"] is None else f" [{row['spearman_low']:+.2f}, {row['spearman_high']:+.2f}]"
        lines.append(
            f"  {row['family']} {row['measure']}{at}: Spearman {row['spearman']:+.2f}{ends} with the difference in accuracy, "
            f"{_p(row)}{row['n']} pairs"
        )
    return "\n".join(lines)


def _p(row: dict[str, Any]) -> str:
    return "" if row["spearman_p_holm"] is None else f"p = {row['spearman_p_holm']:.2g} (Holm), "


class _Progress:
    """What is done, rewritten on a terminal; silent elsewhere."""

    def __init__(self) -> None:
        self.live = sys.stderr.isatty()

    def tell(self, what: str, done: int, total: int) -> None:
        if self.live:
            filled = 24 * done // max(total, 1)
            print(f"\r\033[K{what:<12} [{'#' * filled}{'.' * (24 - filled)}] {done}/{total}", end="", file=sys.stderr, flush=True)

    def close(self) -> None:
        if self.live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
