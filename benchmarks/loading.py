"""Images per second of the loader alone against the training step: does the data keep up with the model?

    python -m benchmarks.loading

Writes a set of JPEG files (500 x 375 pixels, as ImageNet has them on average) and uses the small fake twin. The loader alone runs
over both with 0 workers up to the machine's default; the step is forward, backward and update of DeiT-S at 224 px on the device
that there is, and of a small model at 32 px. Loader and step run one after the other, each with all cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from vitrim.training.build import build_dataset, build_model, build_transform
from vitrim.training.loader import Samples, Schedule, default_workers, make_loader
from vitrim.training.recipe import Recipe

TINY = "timm/vit_tiny_patch16_224(pretrained=false, img_size=32, patch_size=4, embed_dim=96, depth=6, num_heads=3)"


def write_photos(root: Path, count: int) -> str:
    """Photo-sized JPEG files of low-frequency noise, which compress like photos (about 50 kB)."""
    rng = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(rng.integers(0, 255, (24, 32, 3), dtype=np.uint8))
        folder = root / "train" / f"class{i % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        pixels = np.asarray(coarse.resize((500, 375), Image.Resampling.BICUBIC)).astype(np.int16)
        noisy = (pixels + rng.integers(-12, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(folder / f"{i:04d}.jpg", quality=90)
    return f"folder(root='{root}', val=0.1)"


def loader_speed(recipe: Recipe, workers: int, seconds: float) -> float:
    """Images per second, after the workers have started."""
    split = build_dataset(recipe).split("train")
    count, batch = len(split), recipe.batch_size
    order = np.resize(np.arange(count), max(count, batch))
    batches = Schedule(lambda _: order, steps=len(order) // batch, batch=batch, last=1_000_000)
    loader = iter(make_loader(Samples(split, build_transform(recipe).train()), batches, workers))
    for _ in range(2):
        next(loader)
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        next(loader)
        done += batch
    return done / (time.perf_counter() - start)


def step_speed(recipe: Recipe, seconds: float, device: torch.device) -> float:
    """Images per second of forward, backward and update."""
    model = build_model(recipe, ["a", "b", "c", "d"]).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
    size = build_transform(recipe).size
    images = torch.randn(recipe.batch_size, 3, size, size, device=device)
    targets = torch.zeros(recipe.batch_size, dtype=torch.long, device=device)
    done, start = -1, 0.0
    while done < 1 or time.perf_counter() - start < seconds:
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            loss = torch.nn.functional.cross_entropy(model(images), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if device.type == "cuda":
            torch.cuda.synchronize()
        done += 1
        if done == 0:
            start = time.perf_counter()
    return done * recipe.batch_size / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8.0, help="length of each measurement")
    parser.add_argument("--photos", type=int, default=256)
    given = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    workers = sorted({0, 1, default_workers(1)})
    print(f"{device}, {torch.get_num_threads()} threads, default workers: {default_workers(1)}")
    with tempfile.TemporaryDirectory() as folder:
        photos = write_photos(Path(folder), given.photos)
        deit = "timm/deit_small_patch16_224(pretrained=false)"
        for name, recipe in {
            "photos, weak(size=224)": Recipe(data=photos, transform="weak(size=224)", model=deit, batch_size=32),
            "photos, deit(size=224)": Recipe(data=photos, transform="deit(size=224)", model=deit, batch_size=32),
            "fake twin, weak(size=224)": Recipe(data="folder", fake=True, transform="weak(size=224)", model=deit, batch_size=32),
            "fake twin, small(size=32)": Recipe(data="folder", fake=True, transform="small(size=32)", model=TINY, batch_size=32),
        }.items():
            alone = {w: loader_speed(recipe, w, given.seconds) for w in workers}
            step = step_speed(recipe, given.seconds, device)
            speeds = ", ".join(f"{w} workers {speed:.0f}" for w, speed in alone.items())
            print(f"{name}: loader alone {speeds} images/s; step {step:.0f} images/s; ratio {max(alone.values()) / step:.1f}")


if __name__ == "__main__":
    main()
