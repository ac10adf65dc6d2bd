"""What tuning methods save in training: images per second and peak memory of a step, against full fine-tuning.

    python -m benchmarks.tuning
    python -m benchmarks.tuning --model timm/vit_base_patch16_224 --device cuda --dtype bfloat16
    python -m benchmarks.tuning --recompute     hidden layers of MLPs computed again in the backward pass, but for ``full``
    python -m benchmarks.tuning --reduce evit --schedule "keep(rate=0.5, at=[3, 6, 9])" --cache "clc(num_clr=1)" --head cla

The baseline is always full fine-tuning of the whole model; a reduction is for the other rows, of which ``full`` then is one, too.
Every method runs in a process of its own, since the peak of a process never falls. The speed is the median of rounds in which all
methods take turns, one process after the other; the ratio is against ``full`` of the same round. Weights are random.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from typing import Any

import torch

import vitrim
from vitrim.core.attach import DEFAULT_SCHEDULE
from vitrim.data.finetune import model_to_train

METHODS = (
    "full", "linear", "bitfit", "ssf", "lora(r=8)", "adapter", "convpass", "vpt(length=10)", "vpt(length=10, deep=true)", "vqt",
    "h2t", "ila", "ila(plus=1)", "ila(plus=2)",
)  # fmt: skip


BASELINE = "baseline"


def one(spec: str, options: argparse.Namespace) -> dict[str, float]:
    """Images per second, peak memory in bytes beyond the imported libraries, and trained parameters."""
    plain, spec = spec == BASELINE, "full" if spec == BASELINE else spec
    device, batch = options.device, options.batch_size
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model: Any = model_to_train(options.model, options.classes, random_weights=True)[0].to(device)
    vitrim.tune(model, spec, train=options.train, recompute=options.recompute and spec != "full")
    if options.reduce is not None and not plain:
        vitrim.reduce(model, options.reduce, options.schedule, cache=options.cache, head=options.head, seed=0)
    images = torch.randn(batch, 3, *model.patch_embed.img_size, device=device)
    labels = torch.randint(0, options.classes, (batch,), device=device)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)

    def step() -> None:
        with torch.autocast(device, getattr(torch, options.dtype), enabled=options.dtype != "float32"):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    start = time.perf_counter()
    for _ in range(options.steps):
        step()
    seconds = time.perf_counter() - start
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return {"speed": batch * options.steps / seconds, "peak": peak, "trained": trained}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="timm/vit_small_patch16_224")
    parser.add_argument("--classes", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--train", nargs="*", default=["head", "class_token"])
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--reduce", help="reduce tokens by this method as well")
    parser.add_argument("--schedule", default=DEFAULT_SCHEDULE)
    parser.add_argument("--cache")
    parser.add_argument("--head")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(one(options.one, options)))
        return
    rows: dict[str, list[dict[str, float]]] = {}
    methods = [BASELINE, *(m for m in options.methods if m != "full" or options.reduce is not None)]
    for _ in range(options.rounds):
        for spec in methods:
            command = [sys.executable, "-m", "benchmarks.tuning", *sys.argv[1:], "--one", spec]
            out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            rows.setdefault(spec, []).append(json.loads(out.splitlines()[-1]))
    print(f"{options.model}, batch {options.batch_size}, {options.dtype} on {options.device}, {torch.get_num_threads()} threads")
    print(f"but for the baseline with {options.reduce}, {options.schedule}\n" if options.reduce else "")
    print("| method | trained | images/s | against full | peak memory | against full |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for spec in methods:
        against = list(zip(rows[spec], rows[BASELINE], strict=True))
        speed, peak = (statistics.median(r[name] for r in rows[spec]) for name in ("speed", "peak"))
        faster = statistics.median(r["speed"] / f["speed"] for r, f in against)
        less = statistics.median(r["peak"] / f["peak"] for r, f in against)
        name, trained = "full" if spec == BASELINE else spec, int(rows[spec][0]["trained"])
        print(f"| {name} | {trained:,} | {speed:.1f} | {faster:.2f}x | {peak / 2**20:,.0f} MiB | {less:.2f}x |")


if __name__ == "__main__":
    main()
