"""``vitrim data``: list the data sets, check one on disk, split a CSV, write a fake twin."""

from __future__ import annotations

import json
import shutil
import sys
import textwrap
import time
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, Parameter

from vitrim.cli.options import Flag
from vitrim.core.registry import SpecError, check_settings, parse_spec, setting_help, settings_of, spec
from vitrim.datasets.base import DATASETS, DataError, DataSet

data = App(name="data", help_format="plaintext", help="List the data sets, check one on disk, split a CSV, write a fake twin.")

_COUNTS = ("classes", "train", "val", "trainval", "test")


@data.command(name="list")
def list_sets(name: str | None = None, /, *, as_json: Annotated[bool, Parameter(name="--json", negative="")] = False) -> None:
    """List the data sets with their published counts, or explain one: where to get it, folders, settings.

    Args:
        name: a data set, such as cub; all of them when left out.
        as_json: print JSON.
    """
    names = [name] if name else DATASETS.names()
    pages = [_page(n) for n in names]
    if as_json:
        print(json.dumps(pages[0] if name else pages, indent=2))
    elif name:
        print(_explain(pages[0]))
    else:
        print(_table(pages))


@data.command
def check(
    name: str,
    /,
    *,
    root: str | None = None,
    splits: Annotated[list[str] | None, Parameter(consume_multiple=True, negative="")] = None,
    decode: Annotated[bool, Parameter(negative="--no-decode")] = True,
    workers: int | None = None,
    as_json: Annotated[bool, Parameter(name="--json", negative="")] = False,
) -> int:
    """Check a data set on disk: counts, classes, missing and damaged files, duplicates, leakage between splits.

    Ends with 0 when nothing is wrong, else with 2 and one line for each problem.

    Args:
        name: the data set, with settings where it needs some: cub, or "csv(images=photos, val=0.2)".
        root: its folder.
        splits: the splits to check; all by default.
        decode: open every image, which finds damaged ones and copies; the part that takes long.
        workers: processes that decode; one for each core by default.
        as_json: print JSON, with the names of all files concerned.
    """
    from vitrim.datasets.check import check as run

    dataset = open_set(name, root)
    bar = _Bar("images decoded")
    try:
        report = run(dataset, splits, decode=decode, workers=workers, progress=bar.show)
    finally:
        bar.clear()
    if as_json:
        problems = [{"kind": p.kind, "text": p.text, "names": list(p.names)} for p in report.problems]
        page = {"set": spec(dataset), "classes": report.classes, "counts": report.counts, "decoded": report.decoded}
        print(json.dumps({**page, "problems": problems, "notes": report.notes}, indent=2))
    else:
        print(report.text())
    return 0 if report.sound else 2


@data.command
def split(
    file: Path,
    /,
    *,
    train_percent: float = 0.8,
    save_name_train: str = "train",
    save_name_test: str = "val",
    max_images_per_class: int | None = None,
    overwrite: Flag = False,
) -> None:
    """Split a CSV (columns class_id, dir) into two beside it: of each class the first rows, and the rest. Nothing is random.

    Few-shot subsets: vitrim data split train_val.csv --train-percent 1 --max-images-per-class 4 --save-name-train train_val_4

    Args:
        file: the CSV.
        train_percent: share of each class's rows for the first file, 0 to 1; with 1 there is no second file.
        save_name_train: name of the first file.
        save_name_test: name of the second file.
        max_images_per_class: rows of each class in the first file at most.
        overwrite: replace files with other content.
    """
    from vitrim.datasets.splits import split_csv

    done = split_csv(
        file,
        train_percent=train_percent,
        save_name_train=save_name_train,
        save_name_test=save_name_test,
        max_images_per_class=max_images_per_class,
        overwrite=overwrite,
    )
    print(f"{done.train}: {done.train_rows:,} rows of {done.classes:,} classes")
    print(f"{done.test}: {done.test_rows:,} rows" if done.test else "no rows are left for a second file; none was written")


@data.command
def fake(name: str, /, *, out: Path) -> None:
    """Write a tiny set with the folders and files of a real one, to try a recipe without a download.

    Args:
        name: the data set, with settings where wanted: cub, or "csv(multilabel=true)".
        out: folder to write to; new or empty.
    """
    from vitrim.datasets.check import FAKE_MARK

    key, settings = _parse(name, None)
    if settings.pop("root", None) is not None:
        raise SpecError(f"'{name}': the folder is given by --out; leave root out")
    if out.exists() and (not out.is_dir() or any(p.name != FAKE_MARK for p in out.iterdir())):
        raise DataError(f"'{out}' is not empty; give a new folder")
    out.mkdir(parents=True, exist_ok=True)
    # First, so that what is interrupted half-way is never taken for the real set.
    (out / FAKE_MARK).write_text("a fake twin, made by vitrim data fake\n", encoding="utf-8")
    dataset: DataSet = DATASETS.get(key).fake(out, **settings)  # type: ignore[attr-defined]
    for part in dataset.split_names():
        print(f"{part:<9} {len(dataset.items(part)):>6} images")
    print(f"classes   {len(dataset.classes):>6}\nopen it with: {spec(dataset)}")


def open_set(text: str, root: str | None) -> DataSet:
    """The data set of a spec, in the folder given apart from it.

    Raises:
        SpecError: for an unknown name or setting, or no folder where the set needs one.
    """
    key, settings = _parse(text, root)
    if settings_of(DATASETS.get(key))["root"].default is settings_of(DATASETS.get(key))["root"].empty and "root" not in settings:
        raise SpecError(f"{key}: give the folder of the set, as in: vitrim data check {text} --root DIR")
    try:
        return DATASETS.get(key)(**settings)
    except SpecError:
        raise
    except (TypeError, ValueError) as error:
        raise SpecError(f"data set '{text}': {error}") from error


def _parse(text: str, root: str | None) -> tuple[str, dict[str, Any]]:
    key, args, settings = parse_spec(text)
    if root is not None:
        settings = {"root": root, **{k: v for k, v in settings.items() if k != "root"}}
    check_settings(key, DATASETS.get(key), args, settings)
    return key, settings


def _page(name: str) -> dict[str, Any]:
    cls: Any = DATASETS.get(name)
    help_of = setting_help(cls)
    return {
        "name": name,
        "summary": (cls.__doc__ or "").strip().splitlines()[0],
        "labels": "several" if cls.multilabel else "one",
        "expected": dict(cls.expected),
        "origin": cls.origin,
        "layout": cls.layout,
        "settings": [
            {"name": key, "default": None if p.default is p.empty else p.default, "help": help_of.get(key, "")}
            for key, p in settings_of(cls).items()
        ],
    }


def _table(pages: list[dict[str, Any]]) -> str:
    head = ("name", *_COUNTS, "labels", "where it is obtained")
    rows = [
        [p["name"], *(f"{p['expected'][c]:,}" if c in p["expected"] else "-" for c in _COUNTS), p["labels"], p["origin"]]
        for p in pages
    ]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head) - 1)]
    room = shutil.get_terminal_size().columns - sum(widths) - 2 * len(widths) if sys.stdout.isatty() else 10_000
    lines: list[str] = []
    for row in [head, *rows]:
        cells = [c.ljust(w) if i in (0, 6) else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=False))]
        lines.append("  ".join([*cells, textwrap.shorten(row[-1], max(room, 20), placeholder=" ...")]))
    return "\n".join([*lines, "", f"vitrim data list NAME explains one, such as: vitrim data list {pages[0]['name']}"])


def _explain(page: dict[str, Any]) -> str:
    lines = [f"{page['name']}: {page['summary']}", "", f"obtained from: {page['origin']}"]
    counts = [f"{page['expected'][c]:,} {c}" for c in _COUNTS if c in page["expected"]]
    lines += [f"published counts: {', '.join(counts)}"] if counts else []
    lines += ["", "layout:", textwrap.indent(page["layout"].strip("\n"), "  "), "", "settings:"]
    for setting in page["settings"]:
        default = "..." if setting["name"] == "root" else setting["default"]
        about = textwrap.wrap(setting["help"].replace("``", ""), 100) or [""]
        lines += [f"  {setting['name']}={default}", *(f"      {line}" for line in about)]
    return "\n".join([*lines, "", f"check it:  vitrim data check {page['name']} --root DIR"])


class _Bar:
    """One line of progress with the time left on a terminal; none elsewhere."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._live = sys.stderr.isatty()
        self._start = time.monotonic()

    def show(self, done: int, every: int) -> None:
        if self._live:
            left = (time.monotonic() - self._start) / done * (every - done)
            text = f"{done:,} of {every:,} {self._what}, {left:.0f} s left"
            print(f"\r\033[K... {text}", end="", file=sys.stderr, flush=True)

    def clear(self) -> None:
        if self._live:
            print("\r\033[K", end="", file=sys.stderr, flush=True)
