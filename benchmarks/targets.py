"""What reduction costs where it should cost nothing, and what it saves in training: see README.md beside this file.

python benchmarks/targets.py overhead       # a reduction that removes nothing, against the untouched model
python benchmarks/targets.py clustering     # ATC against Top-K at equal token counts
python benchmarks/targets.py training       # forward and backward at keep 0.5
python benchmarks/targets.py memory         # peak memory on long sequences
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from pathlib import Path

import timm
import torch
from torch import nn

import vitrim
from vitrim.core.registry import METHODS
from vitrim.measure.flops import count_flops
from vitrim.measure.memory import peak_memory
from vitrim.measure.report import environment
from vitrim.measure.throughput import Timing, interleave

HALF = "keep(rate=0.5, at=[3, 6, 9])"
Table = list[dict[str, str]]


def twin(dense: nn.Module) -> nn.Module:
    """A copy with the very same weights: where they lie in memory moves times by several per cent."""
    return copy.deepcopy(dense, {id(p): p for p in dense.parameters()})


def reduced(dense: nn.Module, method: str, schedule: str) -> nn.Module:
    model = twin(dense)
    vitrim.reduce(model, method, schedule)
    return model


def forward(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    def run() -> None:
        with torch.inference_mode():
            model(images)

    return run


def step(model: nn.Module, images: torch.Tensor) -> Callable[[], object]:
    """Forward and backward in training mode, gradients of all parameters."""
    model.train()

    def run() -> None:
        model.zero_grad(set_to_none=True)
        model(images).square().mean().backward()

    return run


def range_of(timing: Timing) -> str:
    low, high = timing.speedup_quartiles
    return f"{timing.speedup:.3f} ({low:.3f} to {high:.3f})"


def overhead(dense: nn.Module, images: torch.Tensor, options: argparse.Namespace) -> Table:
    """Speed of the model with a reduction that keeps everything, relative to the model without one.

    Soft methods, DynamicViT and ATS work at every location they are given, and fixed patterns have counts of their own:
    for them this is no overhead.
    """
    runs = {"dense": forward(dense, images)}
    for method in options.methods:
        runs[method] = forward(reduced(dense, method, "keep(rate=1.0, at=[3, 6, 9])"), images)
    # The same model a second time says which differences mean nothing.
    runs["dense again"] = forward(twin(dense), images)
    timings = interleave(runs, rounds=options.rounds)
    return [{"method": m, "speed relative to dense": range_of(t)} for m, t in timings.items() if m != "dense"]


def clustering(dense: nn.Module, images: torch.Tensor, options: argparse.Namespace) -> Table:
    """Throughput of ATC relative to Top-K with the same number of tokens in every block."""
    names = ["topk", *(f"atc(linkage={linkage})" for linkage in ("single", "complete", "average"))]
    timings = interleave({n: forward(reduced(dense, n, HALF), images) for n in names}, rounds=options.rounds)
    return [{"method": n, "throughput relative to topk": range_of(timings[n])} for n in names[1:]]


def training(dense: nn.Module, images: torch.Tensor, options: argparse.Namespace) -> Table:
    """Speed-up of forward and backward, and the realised fraction of the FLOP cut of the forward pass."""
    flops = count_flops(copy.deepcopy(dense), images[:1]).flops
    rows: Table = []
    for method in options.methods:
        model = reduced(dense, method, HALF)
        cut = flops / count_flops(model, images[:1]).flops
        runs = {"dense": step(twin(dense), images), method: step(model, images)}
        timing = interleave(runs, rounds=options.rounds, warmup=1)[method]
        realised = (timing.speedup - 1) / (cut - 1)
        # DynamicViT masks tokens in training and removes none: nothing is to be gained.
        note = "masks in training" if "dynamicvit" in method else ""
        row = {"method": method, "FLOP speed-up": f"{cut:.2f}", "speed-up": range_of(timing), "realised": f"{realised:.2f}"}
        rows.append({**row, "note": note})
        print(rows[-1], flush=True)
    return rows


def memory(_: nn.Module, __: torch.Tensor, options: argparse.Namespace) -> Table:
    """Peak memory of one image with 4,096 patches, relative to the dense model; four blocks, which is where the peak is."""
    dense = timm.create_model(options.model, img_size=1024, depth=4).eval().to(options.device)
    image = torch.randn(1, 3, 1024, 1024, device=options.device)
    base = peak_memory(lambda: dense(image), options.device)
    rows = [{"method": "dense", "peak MB": f"{base / 1e6:.1f}", "relative": "1.00"}]
    for method in options.methods:
        model = reduced(dense, method, "keep(rate=0.5, at=[1, 2, 3])")
        peak = peak_memory(lambda model=model: model(image), options.device)
        rows.append({"method": method, "peak MB": f"{peak / 1e6:.1f}", "relative": f"{peak / base:.2f}"})
    return rows


def markdown(rows: Table) -> str:
    head = list(rows[0])
    lines = [head, ["---"] * len(head), *([row[c] for c in head] for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def main() -> None:
    questions: dict[str, Callable[..., Table]] = {f.__name__: f for f in (overhead, clustering, training, memory)}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("question", choices=questions)
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--methods", nargs="+", default=vitrim.list_methods())
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--out", type=Path, default=Path("benchmark-results"))
    options = parser.parse_args()
    for method in options.methods:
        METHODS.build(method)  # a misspelt one ends here, not after an hour
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    dense = timm.create_model(options.model).eval().to(options.device)
    images = torch.randn(options.batch_size, 3, *dense.patch_embed.img_size, device=options.device)
    table = markdown(questions[options.question](dense, images, options))
    facts = f"{options.model}, batch {options.batch_size}, {options.rounds} rounds: {environment()}"
    print(f"{facts}\n\n{table}")
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / f"{options.question}_b{options.batch_size}.md").write_text(f"{facts}\n\n{table}")


if __name__ == "__main__":
    main()
