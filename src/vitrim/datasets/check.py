"""Is a data set complete and sound? The whole check of ``vitrim data check``, and the quick one before training."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from vitrim.datasets.base import DataError, DataSet, Item
from vitrim.datasets.decoding import Decoded, decode_all
from vitrim.datasets.problems import (
    Problem,
    apart,
    duplicate_rows,
    empty_classes,
    labels_outside,
    missing_files,
    some,
    wrong_counts,
)

#: a file with this name in the root marks a fake twin, whose counts are not the published ones
FAKE_MARK = ".vitrim-fake"


@dataclass
class Report:
    """What a check found.

    Attributes:
        name: of the set.
        root: where it lies.
        classes: number of classes, or None when they could not be read.
        counts: images of each split that could be listed.
        problems: what is wrong; empty for a sound set.
        notes: what else a user should know.
        decoded: number of images that were decoded.
    """

    name: str
    root: str
    classes: int | None = None
    counts: dict[str, int] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    decoded: int = 0

    @property
    def sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems

    def text(self) -> str:
        """The report for people: counts, then one line for each problem, then notes."""
        lines = [f"{self.name} in {self.root}" if self.root else self.name]
        if self.classes is not None:
            lines.append(f"  classes   {self.classes:>10,}")
        lines += [f"  {split:<9} {count:>10,} images" for split, count in self.counts.items()]
        if self.decoded:
            lines.append(f"  decoded   {self.decoded:>10,} images")
        width = max((len(p.kind) for p in self.problems), default=0)
        lines += ["", *(f"  {p.kind:<{width}}  {p.text}" for p in self.problems)] if self.problems else []
        lines += ["", *(f"  note: {note}" for note in self.notes)] if self.notes else []
        verdict = f"{len(self.problems)} problem{'s' if len(self.problems) > 1 else ''}" if self.problems else "nothing wrong"
        return "\n".join([*lines, "", verdict])


def check(
    dataset: DataSet,
    splits: Sequence[str] | None = None,
    *,
    decode: bool = True,
    workers: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Report:
    """Check counts, classes, files, duplicates, leakage between splits, and that every image can be decoded.

    Args:
        dataset: the set.
        splits: those to check; all by default.
        decode: decode every image, which finds damaged files and copies by content.
        workers: processes that decode.
        progress: called with the number of decoded images and of all.
    """
    report = Report(dataset.spec_name, dataset.root)
    gone = _absent(dataset)
    if gone:
        report.problems.append(gone)
        report.notes += how_to_get(dataset)
        return report
    listed = _list(dataset, dataset.split_names() if splits is None else splits, report.problems)
    report.counts = {split: len(items) for split, items in listed.items()}
    try:
        report.classes = len(dataset.classes)
    except DataError as error:
        report.problems.append(Problem("classes", str(error)))
        return report
    if (dataset.folder / FAKE_MARK).exists():
        report.notes.append("this is a fake twin: counts are not compared with the published ones")
    else:
        report.problems += wrong_counts(dataset, listed)
    report.problems += _of_lists(dataset, listed)
    if decode:
        report.problems += _of_images(dataset, listed, report, workers, progress)
    if any(p.kind in ("missing files", "counts") for p in report.problems):
        report.notes += how_to_get(dataset)
    return report


def preflight(dataset: DataSet, splits: Sequence[str], *, decode: bool = False, workers: int | None = None) -> list[Problem]:
    """What would spoil a training run, found before its first step; an empty list when nothing would.

    Labels outside the classes, empty classes, missing files or wrong paths, files listed twice, and files in two of the splits.
    Published counts are not compared: subsets are fine to train on. Shards that are not on this machine are not looked at.

    Args:
        dataset: the set.
        splits: those that are used, the training split first.
        decode: also decode every image, which takes minutes for large sets.
        workers: processes that decode.
    """
    if not dataset.local:
        return []
    gone = _absent(dataset)
    if gone:
        return [gone]
    problems: list[Problem] = []
    listed = _list(dataset, list(dict.fromkeys(splits)), problems)
    if problems:
        return problems
    problems += _of_lists(dataset, listed)
    return problems + (_of_images(dataset, listed, None, workers, None) if decode else [])


def require_sound(dataset: DataSet, splits: Sequence[str], *, decode: bool = False) -> None:
    """Raise one error that lists everything ``preflight`` finds.

    Raises:
        DataError: with one line for each problem.
    """
    problems = preflight(dataset, splits, decode=decode)
    if problems:
        lines = "".join(f"\n  {p.kind}: {p.text}" for p in problems)
        raise DataError(f"{dataset.spec_name} in '{dataset.root}' has {len(problems)} problem(s):{lines}")


def how_to_get(dataset: DataSet) -> list[str]:
    """Lines that say where the set is obtained and how its folders look."""
    lines = [f"obtained from: {dataset.origin}"] if dataset.origin else []
    return lines + (
        [f"expected layout:\n    {dataset.layout.strip().replace(chr(10), chr(10) + '    ')}"] if dataset.layout else []
    )


def _absent(dataset: DataSet) -> Problem | None:
    """The root, or required parts of it, that do not exist."""
    if not dataset.root or not dataset.local:
        return None
    if not dataset.folder.is_dir():
        return Problem("missing files", f"the folder '{dataset.folder}' does not exist; give the folder of the set with --root")
    names = [name for name in dataset.required() if not (dataset.folder / name).exists()]
    if names:
        return Problem("missing files", f"'{dataset.folder}' lacks {some(names, 10)}; obtain them", tuple(names))
    return None


def _list(dataset: DataSet, splits: Sequence[str], problems: list[Problem]) -> dict[str, list[Item]]:
    """The items of the splits whose annotations can be read; the others become problems, each told once."""
    listed: dict[str, list[Item]] = {}
    told: set[str] = set()
    for split in splits:
        try:
            listed[split] = dataset.items(split)
        except DataError as error:
            if str(error) not in told:
                told.add(str(error))
                problems.append(Problem("annotations", f"{split}: {error}"))
            continue
        if not listed[split]:
            problems.append(Problem("empty split", f"{split}: no images are listed; add images, or do not use this split"))
    return listed


def _of_lists(dataset: DataSet, listed: dict[str, list[Item]]) -> list[Problem]:
    parts = _parts(listed)
    return [
        *labels_outside(dataset, parts),
        *empty_classes(dataset, listed),
        *missing_files(dataset, parts),
        *duplicate_rows(parts),
    ]


def _parts(listed: dict[str, list[Item]]) -> dict[str, list[Item]]:
    """The splits without a ``trainval`` that is only ``train`` and ``val`` together and would tell everything twice."""
    if not {"train", "val", "trainval"} <= set(listed):
        return listed
    known = {item.path for split in ("train", "val") for item in listed[split]}
    told = all(item.path in known for item in listed["trainval"])
    return {split: items for split, items in listed.items() if split != "trainval" or not told}


def _of_images(
    dataset: DataSet,
    listed: dict[str, list[Item]],
    report: Report | None,
    workers: int | None,
    progress: Callable[[int, int], None] | None,
) -> list[Problem]:
    """Unreadable images, and copies by content."""
    every = {item.path: item for items in listed.values() for item in items}
    # Files that do not exist were told already, with a better remedy.
    gone = {item.path for item in dataset.missing(list(every.values()))}
    items = [item for path, item in every.items() if path not in gone]
    results = dict(zip((i.path for i in items), decode_all(dataset, items, workers=workers, progress=progress), strict=True))
    if report is not None:
        report.decoded = len(items)
    bad = [path for path, result in results.items() if result.reason]
    found: list[Problem] = []
    if bad:
        reasons = some([results[path].reason.removeprefix(f"{dataset.spec_name}: ") for path in bad])
        found.append(Problem("unreadable", f"{len(bad)} images cannot be decoded: {reasons}; obtain them again", tuple(bad)))
    return found + _copies(_parts(listed), results)


def _copies(listed: dict[str, list[Item]], results: dict[str, Decoded]) -> list[Problem]:
    """Files with the same picture: in two splits, or twice in one."""
    found: list[Problem] = []
    by_split: dict[str, dict[bytes, list[Item]]] = {}
    for split, items in listed.items():
        groups: dict[bytes, list[Item]] = by_split.setdefault(split, {})
        for item in {i.path: i for i in items}.values():
            if item.path in results and results[item.path].digest:
                groups.setdefault(results[item.path].digest, []).append(item)
    for one, other in apart(listed):
        pairs = [
            (a[0].path, b[0].path)
            for digest, a in by_split[one].items()
            if (b := by_split[other].get(digest)) and a[0].path != b[0].path
        ]
        if pairs:
            names = some([f"{a} = {b}" for a, b in pairs])
            text = f"{len(pairs)} pictures are in both {one} and {other}: {names}; remove one of each pair"
            found.append(Problem("leakage", text, tuple(name for pair in pairs for name in pair)))
    for split, groups in by_split.items():
        same = [group for group in groups.values() if len(group) > 1]
        if same:
            torn = [group for group in same if len({item.target for item in group}) > 1]
            what = f" ({len(torn)} with different labels)" if torn else ""
            names = some([" = ".join(item.path for item in group[:3]) for group in torn or same])
            text = f"{split}: {len(same)} pictures occur more than once{what}: {names}; remove the copies"
            found.append(Problem("duplicates", text, tuple(item.path for group in same for item in group)))
    return found
