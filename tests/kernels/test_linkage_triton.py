"""The Triton kernel: in Triton's interpreter on every machine, compiled where there is a CUDA GPU."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.kernels.greedy import greedy
from tests.kernels.test_linkage_torch import LINKAGES, cuts, problems
from vitrim.kernels import linkage_torch, linkage_triton

ROOT = Path(__file__).parents[2]
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU")


def inputs(n: int) -> dict[str, torch.Tensor]:
    """Two images of each kind, in a type that the kernel has to convert where it can hold the values."""
    ties = problems(2, n, seed=n, values=3)
    views = problems(4, n, seed=n + 1).permute(1, 2, 0).float().contiguous().permute(2, 0, 1)[::2]
    odd = problems(2, n, seed=n + 2, p_inf=0.3)
    odd[1, 0, 1:] = odd[1, 1:, 0] = torch.nan
    return {
        "distinct": problems(2, n, seed=n + 3).float(),
        "strided": views,
        "ties": ties.half(),
        "all equal": torch.ones(2, n, n, dtype=torch.bfloat16),
        "not finite": odd,
        "nothing finite": torch.full((1, n, n), torch.inf),
        "around zero": (problems(2, n, seed=n + 4, values=3) - 2) * torch.tensor([-1.0, 1.0])[:, None, None],
    }


def cases(everything: bool) -> Iterator[tuple[str, torch.Tensor, str, int]]:
    """Inputs, linkages and cuts. The interpreter takes milliseconds for a merge, so that large ones are few unless asked for."""
    for n in (2, 3, 17, 49, 65):
        for name, d in inputs(n).items():
            if n >= 17 and not everything:
                d = d[-1:] if name != "strided" else d
                if n > 17 and name not in ("ties", "distinct")[: 2 if n == 49 else 1]:
                    continue
            for linkage in LINKAGES:
                for k in cuts(n) if everything or n < 17 else [n // 2] if n > 17 else [5]:
                    yield name, d, linkage, k
    # Averages that are whole numbers, so that ties of averages are ties.
    d = problems(4, 8, seed=0, values=2) * 5040
    for k in (2, 3, 5):
        yield "tied averages", d, "average", k


def interpret(everything: bool) -> list[str]:
    """Every case against the greedy algorithm in float32; those that differ."""
    wrong = []
    for name, d, linkage, k in cases(everything):
        before = d.clone()
        labels = linkage_triton.cluster(d, k, linkage).numpy()
        wanted = np.stack([greedy(m.float().numpy(), k, linkage, np.float32) for m in d])
        if not np.array_equal(labels, wanted):
            wrong.append(f"{name}, n={d.shape[1]}, k={k}, {linkage}")
        if not torch.equal(d.nan_to_num(), before.nan_to_num()):
            wrong.append(f"{name}, n={d.shape[1]}: the input was modified")
    x = torch.randn(3, 12, 5, generator=torch.Generator().manual_seed(0))
    x[1, 3] = x[1, 7] = 0.0
    x[2] *= 1e-3
    unit = torch.nn.functional.normalize(x, dim=-1, eps=1e-12)
    for linkage in LINKAGES:
        labels = linkage_triton.gram_cluster(x.double(), 5, linkage).numpy()
        wanted = np.stack([greedy(1 - (u @ u.T).numpy(), 5, linkage, np.float32) for u in unit])
        if not np.array_equal(labels, wanted):
            wrong.append(f"features, {linkage}")
    return wrong


@needs_triton
@pytest.mark.parametrize("extent", ["few", pytest.param("all", marks=pytest.mark.slow)])
def test_interpreter(extent: str) -> None:
    # The variable must be set before Triton is imported, and other tests may have imported it: a process of its own.
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "tests.kernels.test_linkage_triton", extent]
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout) == []


@needs_triton
@pytest.mark.parametrize(("block", "warps"), [(32, 1), (256, 1), (4096, 16)])
@pytest.mark.parametrize("linkage", LINKAGES)
def test_compiles_for_hopper(block: int, warps: int, linkage: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The compiler needs no GPU. Its assembly tells what the speed rests on.
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    types = {"source": "*fp32", "work": "*fp32", "labels": "*i64"}
    types |= dict.fromkeys(("n", "merges", "source_image", "source_row"), "i32")
    constants = {"source_column": 1, "linkage": linkage_triton.LINKAGES[linkage], "cosine": True, "block": block, "rows": 4}
    constants["last"] = linkage_triton.LAST
    source = ASTSource(linkage_triton.cluster_image, types | dict.fromkeys(constants, "constexpr"), constants)
    options = {"num_warps": warps, "enable_fp_fusion": False}
    assembly = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["ptx"]
    assert "redux.sync.min.s32" in assembly
    assert "fma.rn.f32" not in assembly
    assert "div.full" not in assembly
    if warps == 1:
        assert ".shared" not in assembly


@needs_triton
def test_too_many_points() -> None:
    with pytest.raises(ValueError, match="4096"):
        linkage_triton.cluster(torch.empty(0, 4097, 4097), 5, "single")


def test_without_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linkage_triton, "triton", None)
    with pytest.raises(RuntimeError, match="pip install triton"):
        linkage_triton.cluster(torch.zeros(1, 3, 3), 2, "single")


def test_imports_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; from vitrim.kernels import linkage_triton as t; assert t.triton is None"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr


@needs_gpu
@needs_triton
@pytest.mark.parametrize("linkage", LINKAGES)
@pytest.mark.parametrize("n", [2, 17, 33, 197, 256, 600, 1100])
def test_gpu_is_greedy(linkage: str, n: int) -> None:
    # Bit for bit: products, sums and quotients are rounded as NumPy rounds them.
    d = problems(4 if n < 300 else 1, n, seed=n).float()
    for k in (1, max(1, n // 2)) if n < 300 else (n // 2,):
        wanted = np.stack([greedy(m.numpy(), k, linkage, np.float32) for m in d])
        np.testing.assert_array_equal(linkage_triton.cluster(d.cuda(), k, linkage).cpu().numpy(), wanted)


@needs_gpu
@needs_triton
@pytest.mark.parametrize("linkage", ["single", "complete"])
def test_gpu_agrees_with_torch(linkage: str) -> None:
    x = torch.randn(64, 197, 64, device="cuda")
    unit = torch.nn.functional.normalize(x, dim=-1)
    d = 1 - unit @ unit.transpose(1, 2)
    d = torch.minimum(d, d.transpose(1, 2))
    wanted = linkage_torch.cluster(d, 98, linkage)
    assert torch.equal(linkage_triton.cluster(d, 98, linkage), wanted)
    # Products of float32 in another order may exchange a near tie.
    same = (linkage_triton.gram_cluster(x, 98, linkage) == wanted).all(dim=1)
    assert same.float().mean() > 0.9


@needs_gpu
@needs_triton
def test_gpu_ties() -> None:
    d = problems(64, 8, seed=1, values=2) * 5040
    big = problems(8, 300, seed=2, values=3, p_inf=0.1)
    for linkage in LINKAGES:
        assert torch.equal(linkage_triton.cluster(d.cuda(), 3, linkage).cpu(), linkage_torch.cluster(d, 3, linkage))
    for linkage in ("single", "complete"):
        assert torch.equal(linkage_triton.cluster(big.cuda(), 90, linkage).cpu(), linkage_torch.cluster(big, 90, linkage))


@needs_gpu
@needs_triton
def test_gpu_does_not_synchronise() -> None:
    x = torch.randn(4, 197, 64, device="cuda")
    d = torch.cdist(x, x)
    linkage_triton.gram_cluster(x, 98, "average")  # the first call compiles and loads the kernels
    linkage_triton.cluster(d, 98, "average")
    torch.cuda.set_sync_debug_mode("error")
    try:
        linkage_triton.gram_cluster(x, 97, "average")
        linkage_triton.cluster(d, 97, "average")
    finally:
        torch.cuda.set_sync_debug_mode("default")


if __name__ == "__main__":
    print(json.dumps(interpret(sys.argv[1] == "all")))
