"""How well training-free reductions preserve the class token of a pretrained DINOv2 ViT-S/14 on photographs.

    python benchmarks/dinov2.py WEIGHTS.safetensors FOLDER [--size 224] [--rates 0.7 0.5 0.25] [--csv OUT.csv]

WEIGHTS has timm's names for vit_small_patch14_dinov2 at 518 px; FOLDER holds photographs, each read as five crops. Printed
per method: cosine similarity of the class token to the dense model's, GFLOPs (1e9 multiply-adds), speed-up over the dense
model with fused attention, timed in turn with it.
"""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn
from torchvision.transforms import v2

import vitrim
from vitrim.data.images import open_image
from vitrim.measure.flops import count_flops
from vitrim.measure.throughput import interleave

METHODS = [
    "topk", "evit", "ats", "tome", "atc(linkage=single)", "atc(linkage=complete)", "atc(linkage=average)", "kmedoids",
    "dpcknn(equal_weight=True)", "fixed(pattern=l2, contiguous=False)",
]  # fmt: skip


def load(path: Path, size: int) -> nn.Module:
    """The model at ``size`` px; positions resized bicubically without antialiasing, as DINOv2 itself does."""
    state = load_file(path)
    patches = size // 14
    position = state["pos_embed"]
    side = int((position.shape[1] - 1) ** 0.5)
    grid = position[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2).float()
    grid = F.interpolate(grid, (patches, patches), mode="bicubic", antialias=False).permute(0, 2, 3, 1).flatten(1, 2)
    state["pos_embed"] = torch.cat([position[:, :1].float(), grid], dim=1)
    model = timm.create_model("vit_small_patch14_dinov2", img_size=size, num_classes=0)
    model.load_state_dict(state, strict=True)
    return model.eval()


def photographs(folder: Path, size: int) -> Tensor:
    """Five crops of every photograph, normalised."""
    crop = v2.Compose([v2.Resize(int(size * 1.4), antialias=True), v2.FiveCrop(size)])
    imagenet = v2.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    finish = v2.Compose([v2.ToImage(), v2.ToDtype(torch.float32, scale=True), imagenet])
    files = sorted(p for p in folder.iterdir() if p.suffix.lower() in (".png", ".jpg", ".jpeg"))
    return torch.stack([finish(c) for p in files for c in crop(open_image(p))])


@torch.no_grad()
def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rates", type=float, nargs="+", default=[0.7, 0.5, 0.25])
    parser.add_argument("--csv", type=Path)
    args = parser.parse_args()
    model, dense = load(args.weights, args.size), load(args.weights, args.size)
    images = photographs(args.folder, args.size)
    wanted = torch.cat([dense(batch) for batch in images.split(20)])
    full = count_flops(dense, images[:1]).gflops
    rows = [["method", "rate", "cosine", "worst", "GFLOPs", "speed-up"], ["dense", "", "1.0000", "1.0000", f"{full:.2f}", "1.00"]]
    print(f"{len(images)} crops, {args.size} px, {torch.get_num_threads()} threads")
    for method in METHODS:
        for rate in args.rates:
            with vitrim.reduced(model, method, f"keep(rate={rate}, at=[3, 6, 9])"):
                same = F.cosine_similarity(torch.cat([model(batch) for batch in images.split(20)]), wanted)
                cost = count_flops(model, images[:1]).gflops
                timing = interleave({"dense": lambda: dense(images[:16]), "reduced": lambda: model(images[:16])}, rounds=7)
            row = [method, rate, f"{same.mean():.4f}", f"{same.min():.4f}", f"{cost:.2f}", f"{timing['reduced'].speedup:.2f}"]
            rows.append([str(cell) for cell in row])
            print("  ".join(f"{cell!s:>8}" for cell in row[1:]), method, flush=True)
    writer = csv.writer(args.csv.open("w", newline="") if args.csv else sys.stdout)
    writer.writerows(rows)


if __name__ == "__main__":
    main()
