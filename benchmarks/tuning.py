"""What tuning methods save in training: images per second and peak memory of a step, against full fine-tuning.

    python -m benchmarks.tuning
    python -m benchmarks.tuning --model vit_base_patch16_224 --device cuda --dtype bfloat16
    python -m benchmarks.tuning --recompute     hidden layers of MLPs computed again in the backward pass, but for ``full``

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

import timm
import torch

import vitrim

METHODS = (
    "full", "linear", "bitfit", "ssf", "lora(r=8)", "adapter", "convpass", "vpt(length=10)", "vpt(length=10, deep=true)", "vqt",
    "h2t", "ila", "ila(plus=1)", "ila(plus=2)",
)  # fmt: skip


def one(
    spec: str, model_name: str, batch: int, steps: int, device: str, dtype: str, train: list[str], recompute: bool
) -> dict[str, float]:  # fmt: skip
    """Images per second, peak memory in bytes beyond the imported libraries, and trained parameters."""
    torch.manual_seed(0)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    model = timm.create_model(model_name, pretrained=False, num_classes=200).to(device).train()
    tuning = vitrim.tune(model, spec, train=train, recompute=recompute)
    size = model.patch_embed.img_size
    images, labels = torch.randn(batch, 3, *size, device=device), torch.randint(0, 200, (batch,), device=device)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1e-3, momentum=0.9)
    half = dtype != "float32"

    def step() -> None:
        with torch.autocast(device, getattr(torch, dtype), enabled=half):
            loss = torch.nn.functional.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()

    step()
    start = time.perf_counter()
    for _ in range(steps):
        step()
    seconds = time.perf_counter() - start
    if device == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before
    return {"speed": batch * steps / seconds, "peak": peak, "trained": tuning.count()[0]}


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_small_patch16_224")
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--train", nargs="*", default=["head", "class_token"])
    parser.add_argument("--recompute", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        found = one(
            options.one, options.model, options.batch_size, options.steps, options.device, options.dtype, options.train,
            options.recompute and options.one != "full",
        )  # fmt: skip
        print(json.dumps(found))
        return
    rows: dict[str, list[dict[str, float]]] = {}
    methods = ["full", *(m for m in options.methods if m != "full")]
    for _ in range(options.rounds):
        for spec in methods:
            command = [sys.executable, "-m", "benchmarks.tuning", "--one", spec, "--model", options.model]
            command += ["--device", options.device, "--dtype", options.dtype, "--batch-size", str(options.batch_size)]
            command += ["--steps", str(options.steps), *["--recompute"] * options.recompute]
            out = subprocess.run([*command, "--train", *options.train], check=True, capture_output=True, text=True).stdout
            rows.setdefault(spec, []).append(json.loads(out.splitlines()[-1]))
    print(
        f"{options.model}, batch {options.batch_size}, {options.dtype} on {options.device}, {torch.get_num_threads()} threads\n"
    )
    print("| method | trained | images/s | against full | peak memory | against full |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    for spec in methods:
        speed = statistics.median(r["speed"] for r in rows[spec])
        faster = statistics.median(r["speed"] / f["speed"] for r, f in zip(rows[spec], rows["full"], strict=True))
        peak = statistics.median(r["peak"] for r in rows[spec])
        less = statistics.median(r["peak"] / f["peak"] for r, f in zip(rows[spec], rows["full"], strict=True))
        trained = int(rows[spec][0]["trained"])
        print(f"| {spec} | {trained:,} | {speed:.1f} | {faster:.2f}x | {peak / 2**20:,.0f} MiB | {less:.2f}x |")


if __name__ == "__main__":
    main()
