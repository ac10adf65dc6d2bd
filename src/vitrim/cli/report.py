"""``vitrim report``: runs as one page with a table and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from vitrim.cli.options import Flag
from vitrim.experiments.report import Report, gather
from vitrim.experiments.rows import where as filter_rows


def report(
    *places: Path,
    out: Path | None = None,
    markdown: Annotated[Path | None, Parameter(allow_leading_hyphen=True)] = None,
    figures: Path | None = None,
    where: str | None = None,
    title: str | None = None,
    force: Flag = False,
) -> int:
    """Write a page about runs: table, accuracy against GFLOPs and against speed, training curves, gradient stability.

    Runs that differ in their seed only are one row, with mean and standard deviation; runs that are not finished are listed and
    count in no mean. The page is one file that needs no network; its figures are saved as SVG or PNG from it, its tables as CSV.

    Args:
        *places: runs, sweeps, or folders above them.
        out: HTML file; report.html when neither --out, --markdown nor --figures is given.
        markdown: file for the table in Markdown; - prints it.
        figures: folder for the figures as SVG and PNG files.
        where: SQL over the columns of vitrim runs: the runs to take.
        title: of the page.
        force: write over an HTML file that exists and is no report.
    """
    if not places:
        raise ValueError("name the runs: vitrim report RUNS... --out report.html")
    runs = gather(places)
    if where is not None:
        rows = [run.row() for run in runs]
        kept = {id(row) for row in filter_rows(rows, where)}
        runs = [run for run, row in zip(runs, rows, strict=True) if id(row) in kept]
        if not runs:
            raise ValueError(f"--where {where!r} leaves no runs")
    found = Report(runs, title or ", ".join(place.resolve().name for place in places))
    if out is None and markdown is None and figures is None:
        out = Path("report.html")
    written: list[Path] = []
    if out is not None:
        if out.exists() and not force and _MARK not in out.read_text(encoding="utf-8", errors="replace"):
            raise ValueError(f"{out} exists and is no report; give another name, or --force")
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(found.html(), encoding="utf-8")
        written.append(out)
    if figures is not None:
        written += found.write_figures(figures)
    if markdown is not None and str(markdown) == "-":
        print(found.markdown(), end="")
    elif markdown is not None:
        markdown.parent.mkdir(parents=True, exist_ok=True)
        markdown.write_text(found.markdown(), encoding="utf-8")
        written.append(markdown)
    if written:
        print(f"{len(runs)} runs, {len(found.settings)} settings; written: {', '.join(map(str, written))}")
    return 0


_MARK = '<table id="settings">'
