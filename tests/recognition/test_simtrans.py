"""SIM-Trans: known answers, the graph layers against dense ones, determinism, gradients, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor

import vitrim
from vitrim.core.registry import RECOGNISERS, SpecError
from vitrim.recognition.base import recognise
from vitrim.recognition.simtrans import Structure, coordinates, margin_loss


def filled(shape: tuple[int, ...], scale: float, phase: float) -> Tensor:
    count = torch.Size(shape).numel()
    return (scale * torch.sin(1.7 * torch.arange(count, dtype=torch.float64) + phase)).view(shape)


def vit_of(**settings: Any) -> VisionTransformer:
    torch.manual_seed(0)
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 12, "depth": 4, "num_heads": 2, "num_classes": 5}
    return VisionTransformer(**{**sizes, **settings}).eval()


def test_known_answers() -> None:
    nodes, weight, anchor = coordinates(filled((2, 3, 4, 4), 1, 0.3).float())
    assert anchor.tolist() == [7, 7]
    torch.testing.assert_close(nodes.flatten()[:2], torch.tensor([0.790569, 0.198792]), atol=1e-6, rtol=0)
    assert abs(float(nodes.sum()) - 14.4062796) < 1e-5
    adjacency = weight.unsqueeze(2) * weight.unsqueeze(1)
    assert abs(float(adjacency.sum()) - 0.0149454) < 1e-6
    loss = margin_loss(filled((4, 5), 1, 0.7).float(), torch.tensor([0, 1, 0, 2]))
    assert abs(float(loss) - 0.4974877) < 1e-6


def test_graph_layers_are_those_with_the_whole_adjacency() -> None:
    graph = Structure(6, 5, 0.1).double().eval()
    maps = torch.rand(3, 2, 4, 5, dtype=torch.float64, requires_grad=True)
    nodes, weight, anchor = coordinates(maps)
    adjacency = weight.unsqueeze(2) * weight.unsqueeze(1)
    first = F.relu(F.leaky_relu(adjacency @ (nodes @ graph.first), 0.2))
    second = F.leaky_relu(adjacency @ (first @ graph.second), 0.2)
    wanted = second[torch.arange(3), anchor]
    torch.testing.assert_close(graph(maps), wanted)
    (ours,) = torch.autograd.grad(graph(maps).sum(), maps, retain_graph=True)
    (dense,) = torch.autograd.grad(wanted.sum(), maps)
    torch.testing.assert_close(ours, dense)


def test_the_class_token_changes_between_the_blocks() -> None:
    """The last three blocks, written out."""
    vit = vit_of()
    sim: Any = recognise(vit, "simtrans(hidden=7, width=9)").eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        x = vit.blocks[0](vit.norm_pre(vit._pos_embed(vit.patch_embed(images))))
        found: list[Tensor] = []
        for block in list(vit.blocks)[1:]:
            q, k, _ = block.attn.qkv(block.norm1(x)).reshape(2, 17, 3, 2, 6).permute(2, 0, 3, 1, 4)
            row = (q[:, :, :1] @ k.mT * 6**-0.5).softmax(-1)[:, :, 0, 1:]
            x = block(x)
            x = torch.cat([x[:, :1] + sim.structure(row.reshape(2, 2, 4, 4)).unsqueeze(1), x[:, 1:]], dim=1)
            found.append(vit.norm(x)[:, 0])
        torch.testing.assert_close(sim.features(images), torch.cat(found, dim=1))
        # Published code drops out in evaluation too.
        assert torch.equal(sim(images), sim(images))
        sim.train()
        assert not torch.equal(sim.features(images), sim.features(images))


def test_pretrained_blocks_are_used_and_all_is_trained() -> None:
    vit = vit_of()
    weight = vit.blocks[0].attn.qkv.weight
    sim: Any = recognise(vit, "simtrans(hidden=7, width=9, margin=0.5)").train()
    assert sim.vit.blocks[0].attn.qkv.weight is weight
    images, labels = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 0, 2])
    torch.manual_seed(1)
    loss, logits = sim.loss(images, labels, F.cross_entropy)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in sim.parameters())
    sim.margin = 0.0
    torch.manual_seed(1)
    plain, again = sim.loss(images, labels, F.cross_entropy)
    torch.testing.assert_close(again, logits, atol=1e-4, rtol=1e-4)
    assert plain < loss


def test_frozen_backbone_and_checkpointing() -> None:
    images = torch.randn(3, 3, 32, 32)
    grads: list[Tensor] = []
    for again in (False, True):
        torch.manual_seed(2)
        vit = vit_of()
        vit.set_grad_checkpointing(again)
        sim: Any = recognise(vit, "simtrans(hidden=7, width=9, dropout=0)").train()
        for name, parameter in sim.named_parameters():
            parameter.requires_grad_(again or name.split(".")[0] in sim.trained)
        sim(images).logsumexp(1).sum().backward()
        grads.append(sim.structure.first.grad)
    torch.testing.assert_close(grads[0], grads[1])


def test_parameters() -> None:
    """ViT-B/16, 200 classes: what is used of the published model's parts."""
    with torch.device("meta"):
        sim: Any = RECOGNISERS.build("simtrans")
        sim.setup(VisionTransformer(num_classes=200), 200)
    added = sum(p.numel() for n, p in sim.named_parameters() if n.split(".")[0] in sim.trained)
    assert added == 2 * 512 + 512 * 768 + (2 * 2304 + 2304 * 1024 + 1024 + 2 * 1024 + 1024 * 200 + 200)
    assert sum(p.numel() for p in sim.parameters()) == 85_798_656 + added


def test_refusals() -> None:
    with pytest.raises(SpecError, match="last 3 blocks"):
        recognise(vit_of(depth=2), "simtrans")
    with pytest.raises(SpecError, match="dropout"):
        RECOGNISERS.build("simtrans(dropout=1.5)")
    sim = recognise(vit_of(), "simtrans(hidden=7, width=9)").eval()
    vitrim.reduce(sim.vit, "topk", "keep(rate=0.7, at=[1])")
    with pytest.raises(RuntimeError, match="no grid"):
        sim(torch.randn(2, 3, 32, 32))
