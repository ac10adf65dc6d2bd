"""Choices against known answers of the official functions, and against plain matrix products."""

from __future__ import annotations

import math

import pytest
import torch
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn.functional import interpolate

from vitrim.core.rollout import mutual, rollout, similarity
from vitrim.core.tokens import Attention
from vitrim.recognition.base import run, steps
from vitrim.recognition.crops import black, cut, patch_boxes
from vitrim.recognition.losses import consistency, contrastive, supervised_contrastive
from vitrim.recognition.selection import anywhere, parts, take


def phi(shape: tuple[int, ...], amplitude: float, phase: float) -> Tensor:
    """The filling rule of the known answers."""
    j = torch.arange(math.prod(shape), dtype=torch.float64)
    return (amplitude * torch.sin(1.7 * j + phase)).view(shape)


class Encoder(nn.Module):
    """Four blocks of width 6 with two heads, filled by rule."""

    def __init__(self) -> None:
        super().__init__()
        self.grad_checkpointing = False
        norm = lambda dim, **_: nn.LayerNorm(dim, eps=1e-12)  # noqa: E731
        self.blocks = nn.Sequential(*[Block(6, 2, mlp_ratio=2, qkv_bias=True, norm_layer=norm) for _ in range(4)]).double()
        i = 0

        def fill(shape: torch.Size) -> Tensor:
            nonlocal i
            i += 1
            return phi(tuple(shape), 0.2, 0.3 * (i - 1) + 0.1)

        with torch.no_grad():
            for block in self.blocks:
                qkv = block.attn.qkv
                for part in range(3):
                    rows = slice(6 * part, 6 * part + 6)
                    qkv.weight[rows], qkv.bias[rows] = fill(qkv.weight[rows].shape), fill(qkv.bias[rows].shape)
                for layer in (block.attn.proj, block.norm1, block.mlp.fc1, block.mlp.fc2, block.norm2):
                    layer.weight.copy_(fill(layer.weight.shape))
                    layer.bias.copy_(fill(layer.bias.shape))


@pytest.fixture(scope="module")
def encoded() -> tuple[Tensor, list[Tensor], list[Attention]]:
    """Output, tokens after every block, and attention."""
    model = Encoder()
    outputs: list[Tensor] = []
    attentions: list[Attention] = []
    with torch.no_grad():
        for _, x, attention in steps(model, phi((2, 17, 6), 1, 0), range(4)):
            outputs.append(x)
            assert attention is not None
            attentions.append(attention)
        assert torch.equal(run(model, phi((2, 17, 6), 1, 0))[0], outputs[-1])
    return outputs[-1], outputs, attentions


def check(x: Tensor, first: list[float], total: float, squares: float) -> None:
    assert x.flatten()[: len(first)].tolist() == pytest.approx(first, abs=2e-6)
    assert float(x.sum()) == pytest.approx(total, abs=1e-5)
    assert float(x.square().sum()) == pytest.approx(squares, abs=1e-4)


FIRST = [0.95550846, 0.67127683, -0.90295986, -0.41547678]


def test_the_encoder_is_that_of_the_known_answers(encoded: tuple[Tensor, list[Tensor], list[Attention]]) -> None:
    check(encoded[0], FIRST, 24.01427238, 158.14824674)


def test_parts_of_transfg(encoded: tuple[Tensor, list[Tensor], list[Attention]]) -> None:
    x, _, attentions = encoded
    index = parts(attentions)
    assert index.tolist() == [[13, 11], [12, 10]]
    check(torch.cat([x[:, :1], take(x, index)], dim=1), FIRST, 6.90798609, 20.91369343)


def test_mutual_attention_of_ffvt(encoded: tuple[Tensor, list[Tensor], list[Attention]]) -> None:
    x, outputs, attentions = encoded
    index = [mutual(a).topk(2, dim=1).indices for a in attentions]
    assert [i.tolist() for i in index] == [[[3, 11], [2, 10]], [[2, 10], [14, 6]], [[11, 3], [10, 2]], [[6, 14], [5, 13]]]
    chosen = [take(o, i) for o, i in zip(outputs, index, strict=True)]
    check(torch.cat([x[:, :1], *chosen], dim=1), FIRST, 6.76181483, 58.84592176)


def test_rollout(encoded: tuple[Tensor, list[Tensor], list[Attention]]) -> None:
    attentions = encoded[2]
    whole = rollout(attentions, None)
    check(whole, [0.11768679, 0.05514617, 0.05510017, 0.05520689], 34.0, 2.12502061)
    torch.testing.assert_close(rollout(attentions), whole[:, 0])
    torch.testing.assert_close(rollout(attentions, 5), whole[:, 5])


@pytest.mark.parametrize("metric", ["cos", "l1", "l2"])
def test_similarity_and_crop_of_glsim(metric: str) -> None:
    x, image = phi((2, 17, 6), 1, 0.2), phi((2, 3, 16, 16), 1, 0)
    index = similarity(x[:, 0], x[:, 1:], metric).topk(3, dim=1).indices
    assert index.tolist() == [[7, 15, 12]] * 2
    crop = cut(image, patch_boxes(index, (4, 4), (16, 16)))
    check(crop, [0.91509477, -0.13568204, -0.64092911, -0.48149232], -1.52325201, 269.40471342)


def test_boxes() -> None:
    index = torch.tensor([[7, 20, 15], [14, 14, 14], [0, 35, 0]])  # 6 x 6 patches of 8 pixels
    # The last selected row and column are not in the box, unless nothing would be left.
    assert patch_boxes(index, (6, 6), (48, 48)).tolist() == [[8, 8, 24, 24], [16, 16, 24, 24], [0, 0, 40, 40]]
    assert patch_boxes(torch.tensor([[4, 11]]), (2, 6), (16, 48)).tolist() == [[0, 32, 8, 40]]


def test_cutting_is_what_torch_does_image_by_image() -> None:
    x = torch.randn(4, 3, 24, 32)
    boxes = torch.tensor([[0, 0, 24, 32], [3, 5, 17, 30], [4, 4, 5, 5], [10, 0, 12, 32]])
    wanted = [
        interpolate(x[i : i + 1, :, t:b, le:r], size=(20, 28), mode="bilinear", align_corners=True)
        for i, (t, le, b, r) in enumerate(boxes.tolist())
    ]
    torch.testing.assert_close(cut(x, boxes, (20, 28)), torch.cat(wanted), atol=2e-6, rtol=1e-5)
    torch.testing.assert_close(cut(x, boxes)[:1], x[:1])


def test_blackening_leaves_the_batch_alone() -> None:
    x = torch.randn(2, 3, 8, 8)
    kept = x.clone()
    out = black(x, torch.tensor([[1, 2, 4, 6], [0, 0, 8, 8]]))
    assert torch.equal(x, kept)
    assert out[0, :, 1:4, 2:6].abs().sum() == 0
    assert out[1].abs().sum() == 0
    assert (out[0] != 0).sum() == 3 * (64 - 12)


def test_random_patches() -> None:
    drawn = anywhere(200, 36, 4, True, torch.device("cpu"))
    assert drawn.min() == 0
    assert drawn.max() == 35
    fixed = anywhere(3, 36, 4, False, torch.device("cpu"))
    assert torch.equal(fixed[0], fixed[2])
    assert len(set(fixed[0].tolist())) == 4


def test_losses() -> None:
    labels = torch.tensor([0, 1, 0, 2])
    assert float(contrastive(phi((4, 5), 1, 0.7), labels)) == pytest.approx(0.24547999950813, abs=1e-12)
    views = phi((4, 2, 5), 1, 0.7).float()
    assert float(supervised_contrastive(views)) == pytest.approx(22.1247387, rel=1e-6)
    assert float(supervised_contrastive(views, labels)) == pytest.approx(20.6029053, rel=1e-6)


def test_consistency_is_a_divergence_unless_official() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, 1, 4).expand(5, 2, 4)
    assert float(consistency(logits)) == pytest.approx(0, abs=1e-6)
    other = torch.randn(5, 2, 4)
    p = other.softmax(dim=-1)
    mixed = p.mean(dim=1)
    wanted = sum((p[:, j] * (p[:, j] / mixed).log()).sum(dim=-1).mean() for j in range(2)) / 2
    torch.testing.assert_close(consistency(other), wanted)
    literal = sum((p[:, j] * (p[:, j].log() - mixed)).sum(dim=-1).mean() for j in range(2)) / 2
    torch.testing.assert_close(consistency(other, official=True), literal)
