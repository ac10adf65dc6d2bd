"""Stands in for `vitrim train` in tests of the sweep: the same run folder, and its epochs are naps.

Each epoch adds a line to `work.txt`, so that tests see what was done twice or not at all. A seed of 13 fails.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from pathlib import Path

import yaml


def main(arguments: list[str]) -> int:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # as the real one listens, also where its parents do not
    if arguments[0] == "--resume":
        run = Path(arguments[1])
        recipe = yaml.safe_load((run / "config.yaml").read_text())
    else:
        recipe = yaml.safe_load(Path(arguments[0]).read_text())
        run = Path(arguments[2])
        if (run / "config.yaml").exists():
            print("vitrim: there is a run already")
            return 2
        run.mkdir(parents=True)
        (run / "config.yaml").write_text(yaml.safe_dump(recipe))
    if recipe.get("weights") and not Path(recipe["weights"]).exists():
        print(f"vitrim: {recipe['weights']} does not exist")
        return 2
    done = [int(p.name.split("-")[1]) for p in (run / "checkpoints").glob("step-*")]
    for epoch in range(max(done, default=0) + 1, recipe["epochs"] + 1):
        time.sleep(recipe.get("nap", 0.0))
        with (run / "work.txt").open("a") as file:
            file.write(f"{epoch}\n")
        with (run / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"kind": "eval", "step": epoch, "epoch": epoch, "top1": 50.0 + epoch}) + "\n")
        (run / "checkpoints" / f"step-{epoch:08d}").mkdir(parents=True)
        if recipe.get("seed") == 13 and epoch == 2:
            print("some lines before")
            print("vitrim: the loss is not a number", flush=True)
            return 1
    (run / "model.safetensors").write_bytes(b"weights")
    last = {"top1": 50.0 + recipe["epochs"]}
    (run / "summary.json").write_text(json.dumps({"state": "finished", "last": last, "best": last, "seconds": 1.0}))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
