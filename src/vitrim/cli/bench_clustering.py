"""``vitrim bench clustering``: agglomerative clustering by different libraries, by the protocol of ATC."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitrim.cli.options import Integers, Rates, Words, pick_device
from vitrim.cli.published import BATCH_SIZES, Dtype, check, conditions, measure
from vitrim.kernels.clustering import LINKAGES
from vitrim.measure.cells import Bench, Cell, Entry
from vitrim.measure.curves import plot_curves
from vitrim.measure.frameworks import FRAMEWORKS, Framework
from vitrim.measure.ledger import Ledger, Row
from vitrim.measure.protocol import Protocol

TOKENS = (196, 256, 576, 1024, 4096)


def clustering(
    *,
    frameworks: Words | None = None,
    tokens: Integers | None = None,
    rates: Rates | None = None,
    linkages: Words | None = None,
    batch_sizes: Integers | None = None,
    channels: int = 64,
    runs: int = 1000,
    throw_out: float = 0.25,
    seconds: float = 2.0,
    patience: float = 60.0,
    threads: int | None = None,
    device: str = "auto",
    dtype: Dtype = "float32",
    out: Path = Path("vitrim-bench"),
) -> int:
    """Measure clustering libraries side by side over batch sizes, tokens and linkages, by the published protocol.

    Each library takes a batch of uniform features and gives the cluster of every token, distances included, 1000 times in
    a row (as many as fit into --seconds); the first quarter of the runs is thrown out, and images are divided by time.
    scikit-learn, SciPy and fastcluster work image by image on the CPU, cuML image by image on the GPU (single linkage),
    vitrim on the whole batch where it is. Libraries take turns; ratios are against the first of them, scikit-learn unless
    it is left out, in the same turn, and quartiles are over turns. Writes clustering.csv and .json after every batch size,
    and pictures; what these files hold already is not measured again.

    Args:
        frameworks: scikit-learn, scipy, fastcluster, cuml, vitrim; all when left out.
        tokens: tokens per image (196 256 576 1024 4096 when left out).
        rates: clusters as a share of the tokens (0.5 when left out).
        linkages: single, complete, average; all when left out.
        batch_sizes: images per batch; 1 2 4 ... 1024 when left out.
        channels: length of the features; 64 is a head of DeiT, 384 the default of the published script.
        runs: runs of a series.
        throw_out: share of the runs that is not counted.
        seconds: most seconds of a series, which is cut to fewer runs, at least 3 counted ones; 0 cuts nothing.
        patience: leave out a series that would take more seconds than this.
        threads: CPU threads; PyTorch's choice when left out.
        device: where the features are: cpu, cuda, or auto.
        dtype: type of the features; float16 and bfloat16 run under autocast, as published.
        out: folder for the results.
    """
    check(frameworks=frameworks, tokens=tokens, rates=rates, linkages=linkages, batch_sizes=batch_sizes, channels=[channels])
    check(threads=None if threads is None else [threads])
    protocol = Protocol(runs, throw_out, seconds)
    chosen = [FRAMEWORKS[name] for name in choose("frameworks", frameworks, tuple(FRAMEWORKS))]
    kinds = choose("linkages", linkages, LINKAGES)
    if threads is not None:
        torch.set_num_threads(threads)
    where = pick_device(device)
    facts = {"emb_size": channels, "reference": chosen[0].name, **conditions(where, dtype, protocol)}
    sizes = sorted(set(batch_sizes or BATCH_SIZES))
    cells: list[Cell] = []
    shares = list(dict.fromkeys(rates or [0.5]))
    for n in sorted(set(tokens or TOKENS)):
        for share in shares:
            for linkage in kinds:
                entries = list(framework_entries(chosen, n, share, linkage, where, facts))
                images = noise(n, channels, where, getattr(torch, dtype))
                cells += [Cell(size, entries, images) for size in sizes]
    title = f"{facts['device']}, {dtype}, {channels} channels, threads: {facts['threads']}"
    print(title)

    def draw(rows: list[Row]) -> Iterator[Path | None]:
        for share in shares:
            tail = f"-{share:g}" if len(shares) > 1 else ""
            options: dict[str, Any] = {"line": "framework", "across": "n_patches", "down": "linkage"}
            options["title"] = f"{share:g} clusters a token, {title}"
            found = [row for row in rows if row["reduction_ratio"] == share]
            yield plot_curves(found, out / f"clustering{tail}.png", **options)
            label = f"times faster than {chosen[0].name}"
            yield plot_curves(found, out / f"clustering-ratio{tail}.png", value="ratio", label=label, **options)

    heads = {"n_patches": "tokens", "linkage": "linkage", "batch_size": "batch", "framework": "framework"}
    if len(shares) > 1:
        heads = {"reduction_ratio": "keep", **heads}
    bench = Bench(Ledger(out, "clustering"), protocol, where, getattr(torch, dtype), patience)
    return measure(bench, cells, heads, draw)


def choose(option: str, texts: Sequence[str] | None, there_are: Sequence[str]) -> list[str]:
    """Names from the command line, commas allowed, in the order in which things are listed.

    Raises:
        ValueError: for a name that there is not.
    """
    names = [part.strip() for text in texts or there_are for part in text.split(",") if part.strip()]
    if not names:
        raise ValueError(f"--{option} names nothing; there are: {', '.join(there_are)}")
    for name in names:
        if name not in there_are:
            raise ValueError(f"--{option}: there is no '{name}'; there are: {', '.join(there_are)}")
    return [name for name in there_are if name in names]


def framework_entries(
    frameworks: Sequence[Framework], n: int, share: float, linkage: str, device: torch.device, facts: dict[str, Any]
) -> Iterator[Entry]:
    """The libraries at one problem; those that cannot solve it say why."""
    k = max(1, int(n * share))
    for framework in frameworks:
        why_not = framework.why_not(n, linkage, device)
        question = {"framework": framework.name, "framework_version": framework.version, "linkage": linkage}
        question |= {"n_patches": n, "reduction_ratio": share, **facts}
        yield Entry(framework.name, question, _never if why_not else framework.make(k, linkage), why_not)


def noise(n: int, channels: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Makes batches of features, uniform in [0, 1) and the same every time."""

    def images(count: int) -> Tensor:
        return torch.rand(count, n, channels, generator=torch.Generator().manual_seed(0)).to(device, dtype)

    return images


def _never(_: Tensor) -> object:
    raise AssertionError("an entry with a reason not to run was run")
