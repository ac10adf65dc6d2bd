"""Metrics over two processes of unequal share equal those of one."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

CODE = """
import json, sys, torch, torch.distributed as dist
from vitrim.tasks import TASKS
folder, rank = sys.argv[1], int(sys.argv[2])
dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2)
torch.manual_seed(0)
logits, labels, several = torch.randn(11, 4), torch.randint(4, (11,)), (torch.rand(11, 4) < 0.4).float()
share = slice(0, 8) if rank == 0 else slice(8, 11)
found = []
for name, target in (("classify", labels), ("multilabel", several)):
    whole, part = TASKS.build(name).metric(), TASKS.build(name).metric()
    whole.update(logits, target)
    part.update(logits[share], target[share])
    part.gather()
    found.append((whole.compute(), part.compute()))
print(json.dumps(found))
dist.destroy_process_group()
"""


def test_gather(tmp_path: Path) -> None:
    command = [sys.executable, "-c", CODE, str(tmp_path)]
    started = [subprocess.Popen([*command, str(rank)], stdout=subprocess.PIPE, text=True) for rank in (0, 1)]
    for process in started:
        answer, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        for whole, gathered in json.loads(answer):
            assert gathered == pytest.approx(whole)
