"""Train the learned part of a reduction on a frozen vision transformer.

DynamicViT, DPC-KNN, Sinkhorn, PatchMerger and SiT bring parameters of their own. This trains those, and nothing else,
so that the reduced model agrees with the dense one; it made the learned parts that `vitrim demo` uses.

    python examples/train_learned_parts.py sit --data DIR --steps 250 --out sit.safetensors

DIR holds the training set of Fashion-MNIST as distributed: train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz.
"""

from __future__ import annotations

import argparse
import gzip
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

import vitrim
from vitrim.data.embedded import FASHION_MEAN, FASHION_STD
from vitrim.data.models import load_model


def read_training_set(folder: Path) -> tuple[Tensor, Tensor]:
    """All training images, normalised, and their labels."""
    pixels = np.frombuffer(gzip.decompress((folder / "train-images-idx3-ubyte.gz").read_bytes()), np.uint8, offset=16)
    labels = np.frombuffer(gzip.decompress((folder / "train-labels-idx1-ubyte.gz").read_bytes()), np.uint8, offset=8)
    images = torch.from_numpy(pixels.reshape(-1, 1, 28, 28).copy()).float().div(255)
    return (images - FASHION_MEAN) / FASHION_STD, torch.from_numpy(labels.astype(np.int64))


def loss_of(logits: Tensor, labels: Tensor, dense: Tensor, reduction: vitrim.Reduction, rates: list[float]) -> Tensor:
    """Cross-entropy, divergence from the dense model and, for DynamicViT, the published ratio term."""
    loss = F.cross_entropy(logits, labels)
    loss = loss + F.kl_div(logits.log_softmax(-1), dense.log_softmax(-1), log_target=True, reduction="batchmean")
    decisions = [step.policy[:, reduction.layout.prefix :] for step in reduction.trace.values() if step.policy is not None]
    for rate, kept in zip(rates, decisions, strict=False):
        loss = loss + 2 / len(decisions) * ((kept.mean(dim=1) - rate) ** 2).mean()
    return loss


def main() -> None:
    """Train, report the loss on the way, write the learned part."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("method")
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--rate", type=float, default=0.5)
    parser.add_argument("--steps", type=int, default=250)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()

    torch.manual_seed(0)
    images, labels = read_training_set(args.data)
    model = load_model("fashion").model.requires_grad_(False)
    teacher = load_model("fashion").model
    reduction = vitrim.reduce(model, args.method, f"keep(rate={args.rate}, at=[3, 6, 9])")
    model.train()  # the embedded model has no dropout; DynamicViT trains with masks in this mode
    rates = [args.rate ** (i + 1) for i in range(3)]
    optimiser = torch.optim.AdamW(reduction.parameters(), lr=args.lr, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, args.lr, total_steps=args.steps, pct_start=0.1)
    start, running = time.monotonic(), 0.0
    for step in range(args.steps):
        chosen = torch.randint(len(images), (args.batch_size,))
        # Half precision with plain matrix products: more than twice as fast on a CPU.
        with torch.autocast("cpu", torch.bfloat16), sdpa_kernel(SDPBackend.MATH):
            with torch.no_grad():
                dense = teacher(images[chosen])
            logits = model(images[chosen])
        loss = loss_of(logits.float(), labels[chosen], dense.float(), reduction, rates)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(reduction.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        running = loss.item() if step == 0 else 0.95 * running + 0.05 * loss.item()
        if (step + 1) % 25 == 0:
            print(f"step {step + 1}/{args.steps}  loss {running:.3f}  {time.monotonic() - start:.0f} s", flush=True)
    save_file({f"reduction.{k}": v.detach().half().contiguous() for k, v in reduction.state_dict().items()}, args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
