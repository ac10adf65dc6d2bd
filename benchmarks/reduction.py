"""What the clock says of every method, at the sizes of DeiT: see README.md beside this file.

python benchmarks/reduction.py --models deit_small_patch16_224 --batch-sizes 1 8 32 128 --schedules "keep(rate=0.5)"
python benchmarks/reduction.py --device cuda --dtype bfloat16 --batch-sizes 256 --compile
"""

from __future__ import annotations

import argparse
from pathlib import Path

import timm
import torch

import vitrim
from vitrim.measure.sweep import Row, rows_to_csv, rows_to_json, rows_to_markdown, sweep_rows

# ToMe's own schedule beside the common one; the rates of the protocol of arXiv:2308.04657.
SCHEDULES = ("keep(rate=0.7)", "keep(rate=0.5)", "keep(rate=0.25)")
EXTRA = [("tome", "r(n=13)"), ("tome", "r(n=16)")]


def main() -> None:
    options = arguments()
    if options.threads:
        torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    methods = options.methods or vitrim.list_methods()
    runs = [(m, s) for m in methods for s in options.schedules] + [run for run in EXTRA if run[0] in methods]
    for name in options.models:
        for batch in options.batch_sizes:
            measure(name, batch, runs, options)


def measure(name: str, batch: int, runs: list[tuple[str, str]], options: argparse.Namespace) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name).eval().to(options.device, getattr(torch, options.dtype))
    images = torch.randn(batch, 3, *model.patch_embed.img_size)
    rows: list[Row] = []
    print(f"\n{name}, {options.dtype} on {options.device}, batch {batch}, {torch.get_num_threads()} threads")
    measured = sweep_rows(
        model, images, runs=runs, batch_size=batch, rounds=options.rounds, warmup=options.warmup,
        compile=options.compile, progress=print if options.verbose else None,
    )  # fmt: skip
    for row in measured:
        rows.append(row)
        if row.failed:
            print(f"{row.method:12} {row.schedule:16} {row.note}", flush=True)
        else:
            realised = "" if row.realised is None else f"realised {row.realised:5.2f}"
            speed = f"{row.images_per_second:9.1f} img/s {row.speedup:5.2f}x of {row.flop_speedup:5.2f}x"
            memory = "" if row.peak_mb is None else f"{row.peak_mb:8.1f} MB"
            print(f"{row.method:12} {row.schedule:16} {row.gflops:6.2f} G {speed} {realised} {memory}", flush=True)
        write(rows, options.out / f"{name}_b{batch}", options)


def write(rows: list[Row], stem: Path, options: argparse.Namespace) -> None:
    """Write the table in three forms; after every row, so that an interrupted run keeps what it has."""
    facts = {"model": stem.name, **{k: str(v) for k, v in vars(options).items()}}
    stem.with_suffix(".csv").write_text(rows_to_csv(rows))
    stem.with_suffix(".json").write_text(rows_to_json(rows, **facts))
    stem.with_suffix(".md").write_text(rows_to_markdown(rows))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["deit_small_patch16_224", "deit_base_patch16_224"])
    parser.add_argument("--methods", nargs="+", help="method specs; all methods when left out")
    parser.add_argument("--schedules", nargs="+", default=SCHEDULES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[8, 32])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--warmup", type=int, default=2)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    return parser.parse_args()


if __name__ == "__main__":
    main()
