"""From trace stores to tables, figures and one page: which reductions are alike, and whether that goes with accuracy."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from vitrim.analysis.similarity import MEASURES
from vitrim.experiments import analyze_compare, analyze_correlations, analyze_examples, analyze_facts
from vitrim.experiments.analyze_facts import RunFacts
from vitrim.experiments.analyze_pairs import By, Pair, select_pairs
from vitrim.experiments.analyze_runs import TracedRun
from vitrim.experiments.analyze_tables import FAMILIES, Rows, map_rows, pair_rows, run_rows, stage_rows, write_tables
from vitrim.experiments.analyze_work import Found, Job, run_jobs
from vitrim.experiments.report_page import Picture
from vitrim.experiments.rows import to_csv
from vitrim.training.checkpoint import write_text

Say = Callable[[str, int, int], None]  # what, done, of how many


@dataclass
class Analysis:
    """What was found.

    Attributes:
        by: what the runs of a pair differ in.
        runs: all runs.
        facts: of each run, by the digest of its store.
        pairs: all pairs.
        tables: rows by name.
        examples: pictures of each run, by name.
        notes: what the user should know, a line each.
        before: pairs that an earlier call had finished.
    """

    by: By
    runs: list[TracedRun]
    facts: dict[str, RunFacts]
    pairs: list[Pair]
    tables: dict[str, Rows]
    examples: dict[str, Found] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    before: int = 0


def analyze(
    runs: Sequence[TracedRun], by: By, out: Path, *, images: int | None = None, examples: int = 3, workers: int | None = None,
    data: str | None = None, resamples: int = 2000, say: Say | None = None,
) -> Analysis:  # fmt: skip
    """Compare runs, pair by pair, and relate how alike they are to their accuracies.

    Finished pairs are kept below ``out`` by the content of their stores: the same call goes on where one was stopped, and only
    new pairs are computed when runs are added.

    Args:
        runs: as :func:`find_traces` gives them.
        by: what the runs of a pair differ in.
        out: folder of the results.
        images: look at this many images, spread evenly; None at all.
        examples: images to draw for the page.
        workers: processes; None is one for each core, 0 does all in this process.
        data: data set to read the example images from, in place of the one that the stores name.
        resamples: of the bootstrap.
        say: is told about the progress.

    Raises:
        ValueError: when no pair can be compared.
    """
    count = _cores() if workers is None else workers
    tell = say or _quiet
    cache = out / "cache"
    jobs = [_facts_job(run, images) for run in runs]
    found, _ = run_jobs(jobs, cache, count, lambda done, total: tell("runs", done, total))
    facts = {run.digest: RunFacts.of(one) for run, one in zip(runs, found, strict=True)}
    pairs = select_pairs(runs, facts, by)
    tasks = [analyze_compare.task_of(pair, facts, by, images) for pair in pairs]
    notes = list(dict.fromkeys(note for _, said in tasks for note in said))
    if not any(t.features or t.pruning or t.merging or t.maps for t, _ in tasks):
        raise ValueError(
            "the pairs have nothing that can be compared: "
            + (
                notes[0]
                if notes
                else "record features (vitrim eval RUN --trace --blocks auto), or reductions with stages in common"
            )
        )
    jobs = [_pair_job(pair, task) for pair, (task, _) in zip(pairs, tasks, strict=True)]
    results, before = run_jobs(jobs, cache, count, lambda done, total: tell("pairs", done, total))
    used = [run for run in runs if any(run in (pair.a, pair.b) for pair in pairs)]
    tables: dict[str, Rows] = {family: pair_rows(pairs, results, family) for family in FAMILIES}
    notes += _notes(runs, used, pairs, results)
    columns = analyze_correlations.columns_of_group(tables, by)
    jobs = [_correlation_job(group, own, resamples) for group, own in columns.items()]
    found, _ = run_jobs(jobs, cache, count, lambda done, total: tell("correlations", done, total))
    tables["correlations"] = analyze_correlations.correlation_rows(list(columns), found)
    tables |= {"runs": run_rows(used, facts), "stages": stage_rows(used, facts), "depth": map_rows(used, facts)}
    analysis = Analysis(by, used, facts, pairs, tables, notes=notes, before=before)
    if examples > 0:
        _draw_examples(analysis, examples, cache, count, data, tell)
    return analysis


def write_analysis(analysis: Analysis, out: Path, title: str) -> list[Path]:
    """Tables, LaTeX, figures and the page; the paths."""
    from vitrim.experiments.analyze_latex import write_latex
    from vitrim.experiments.analyze_page import analysis_page

    names = {"runs": "runs", "stages": "runs_stages", "depth": "runs_depth", "correlations": "correlations"}
    names |= {family: f"pairs_{family}" for family in FAMILIES}
    tables = {names[key]: rows for key, rows in analysis.tables.items()}
    written = write_tables(out / "tables", tables)
    written += write_latex(out / "latex", analysis.tables, analysis.tables["correlations"])
    pictures, files = _figures(analysis, out / "figures")
    csvs = {name: to_csv(rows, list(dict.fromkeys(k for row in rows for k in row))) for name, rows in tables.items() if rows}
    kept = {name: text for name, text in csvs.items() if name not in ("runs_depth", "runs_stages")}
    page = analysis_page(
        title, analysis.by, analysis.pairs, analysis.tables, pictures, analysis.examples, analysis.notes, kept
    )  # fmt: skip
    write_text(out / "index.html", page)
    return [out / "index.html", *written, *files]


def _figures(analysis: Analysis, folder: Path) -> tuple[list[Picture], list[Path]]:
    """The figures, for the page and as SVG and PDF."""
    from vitrim.experiments import analyze_figures as draw
    from vitrim.experiments.report_figures import to_svg

    tables, by = analysis.tables, analysis.by
    folder.mkdir(parents=True, exist_ok=True)
    found: list[tuple[str, str, str, Any]] = [
        ("similarity-accuracy", "Similarity against accuracy", _texts["similarity-accuracy"],
         draw.similarity_accuracy(tables, tables["correlations"], by)),
        ("correlations-measures", "Which similarity goes with accuracy", _texts["correlations"],
         draw.correlation_figure(tables["correlations"])),
    ]  # fmt: skip
    for family in FAMILIES:
        heading = f"How alike: {draw.FAMILY[family]}"
        at = "" if family == "maps" else " at the last block that both have"
        text = f"{draw.LABELS[draw.HEADLINE[family]]} of every pair{at}."
        found.append((f"matrix-{family}", heading, text, draw.matrices(analysis.pairs, tables[family], family)))
    pictures: list[Picture] = []
    files: list[Path] = []
    for key, heading, text, figure in found:
        if figure is not None:
            svg = to_svg(figure, key)
            pictures.append(Picture(key, heading, text, svg))
            files += [folder / f"{key}.svg", folder / f"{key}.pdf"]
            write_text(files[-2], svg)
            figure.savefig(files[-1], metadata={"CreationDate": None})
    page = draw.depth_maps(analysis.runs, analysis.facts, by)
    if page is not None:
        files += [folder / "depth.svg", folder / "depth.pdf"]
        for file in files[-2:]:
            page.save(file)
        svg = files[-2].read_text(encoding="utf-8")
        pictures.append(Picture("depth", "How deep patches get", _texts["depth"], svg[svg.index("<svg") :]))
    return pictures, files


_texts = {
    "similarity-accuracy": (
        "A point for each pair; the text over a panel is Spearman's correlation over all pairs with its 95% interval."
    ),
    "correlations": (
        "Spearman's correlation over all pairs, with 95% bootstrap intervals; filled where p < 0.05 after Holm's correction over "
        "all measures and blocks."
    ),
    "depth": (
        "The block at which a patch stops being a token of its own (dropped, fused or averaged), mean over images. Methods that "
        "mix all patches at once are left out."
    ),
}


def _facts_job(run: TracedRun, images: int | None) -> Job:
    content = [analyze_facts.VERSION, run.digest, images]
    return Job(run.name, analyze_facts.measure_run, {"path": str(run.path), "images": images}, content)


def _pair_job(pair: Pair, task: analyze_compare.Task) -> Job:
    plain = asdict(task)
    what = {key: value for key, value in plain.items() if key not in ("a", "b")}
    content = [analyze_compare.VERSION, MEASURES, pair.a.digest, pair.b.digest, what]
    return Job(f"{pair.a.name} and {pair.b.name}", analyze_compare.compare, {"task": plain}, content)


def _correlation_job(group: str, columns: Sequence[analyze_correlations.Column], resamples: int) -> Job:
    arguments: Mapping[str, Any] = {"columns": [asdict(column) for column in columns], "resamples": resamples}
    return Job(group, analyze_correlations.correlate_columns, arguments, [analyze_correlations.VERSION, arguments])


def _draw_examples(analysis: Analysis, count: int, cache: Path, workers: int, data: str | None, tell: Say) -> None:
    places = analyze_examples.pick_examples(analysis.runs, count)
    jobs: list[Job] = []
    for run in analysis.runs:
        facts, chosen = analysis.facts[run.digest], places[run.images_digest]
        arguments: Mapping[str, Any] = {
            "path": str(run.path), "places": chosen, "prunes": facts.prunes, "merges": facts.merges, "data": data,
        }  # fmt: skip
        jobs.append(
            Job(run.name, analyze_examples.draw_examples, arguments, [analyze_examples.VERSION, run.digest, chosen, data])
        )
    found, _ = run_jobs(jobs, cache, workers, lambda done, total: tell("pictures", done, total))
    analysis.examples = {run.name: one for run, one in zip(analysis.runs, found, strict=True)}
    analysis.notes += list(dict.fromkeys(one["note"] for one in found if one["note"]))


def _notes(runs: Sequence[TracedRun], used: Sequence[TracedRun], pairs: Sequence[Pair], results: Sequence[Found]) -> list[str]:
    notes: list[str] = []
    if len(used) < len(runs):
        alone = [run.name for run in runs if run not in used]
        some = ", ".join(alone[:4]) + (", ..." if len(alone) > 4 else "")
        notes.append(f"{len(alone)} of {len(runs)} runs have no partner and are left out: {some}")
    measured = [(pair, int(found["images"])) for pair, found in zip(pairs, results, strict=True) if found["features"]]
    few = [(pair, images) for pair, images in measured if images <= pair.a.dim + pair.b.dim]
    if few:
        least, widest = min(images for _, images in few), max(pair.a.dim + pair.b.dim for pair, _ in few)
        notes.append(
            f"{least} images are too few for CCA of {widest} features of both runs together: SVCCA, PWCCA and mean CCA are high "
            "whatever the features; CKA, Procrustes and RSA are not affected as much"
        )
    seeds = {run.seed for run in used}
    if len(seeds) > 1:
        notes.append(f"runs of {len(seeds)} seeds: a pair is always of one seed")
    return notes


def _quiet(what: str, done: int, total: int) -> None:
    pass


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
