"""Images per second of every transform on one core: a photograph as JPEG of 256 pixels, and pictures of 32 pixels.

python benchmarks/transforms.py
"""

from __future__ import annotations

import io
import time
from collections.abc import Callable

import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from vitrim.datasets.transforms import TRANSFORMS

ROUNDS, SECONDS = 4, 0.2


def rate(work: Callable[[], object]) -> float:
    """Calls per second of processor time in the fastest of some rounds: the others were disturbed."""
    work()
    best = 0.0
    for _ in range(ROUNDS):
        count, start = 0, time.process_time()
        while time.process_time() - start < SECONDS:
            work()
            count += 1
        best = max(best, count / (time.process_time() - start))
    return best


def main() -> None:
    torch.set_num_threads(1)
    photo = Image.fromarray(load_sample_image("china.jpg"))
    buffer = io.BytesIO()
    photo.resize((256, 256), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=90)
    encoded = buffer.getvalue()

    def decode() -> Image.Image:
        return Image.open(io.BytesIO(encoded)).convert("RGB")

    print(f"decoding alone: {rate(decode):,.0f} images/s\n")
    print("| transform | train 224 | eval 224 | train 448 | eval 448 |\n| --- | ---: | ---: | ---: | ---: |")
    for name in TRANSFORMS.names():
        if name == "small":
            continue
        cells = []
        for size in (224, 448):
            made = TRANSFORMS.build(f"{name}(size={size})")
            for transform in (made.train(), made.eval()):
                cells.append(f"{rate(lambda t=transform: t(decode())):,.0f}")
        print(f"| `{name}` | {' | '.join(cells)} |")

    print("\n| 32 px | train | eval |\n| --- | ---: | ---: |")
    tiny = photo.resize((32, 32), Image.Resampling.BICUBIC)
    for text in ("small", "small(transpose=true)", "small(grey=true)", "plain(size=32)", "ila_weak(size=32)", "weak(size=32)"):
        made = TRANSFORMS.build(text)
        image = tiny.convert("L") if "grey" in text else tiny
        cells = [f"{rate(lambda t=t, i=image: t(i)):,.0f}" for t in (made.train(), made.eval())]
        print(f"| `{text}` | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
