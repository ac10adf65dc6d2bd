import pytest
import timm
import torch

import vitrim
from vitrim.analysis.gradcam import grad_cam
from vitrim.analysis.masks import Mode, masks
from vitrim.analysis.reader import Reader

MODEL = {"img_size": 48, "patch_size": 8, "embed_dim": 24, "depth": 4, "num_heads": 2, "num_classes": 5}


@pytest.fixture
def model():
    torch.manual_seed(0)
    return timm.create_model("vit_tiny_patch16_224", **MODEL).eval()


@pytest.fixture
def images():
    return torch.randn(3, 3, 48, 48, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("method", "schedule", "plugins"),
    [
        ("tome", "r(n=5)", {}),
        ("evit", "keep(rate=0.5, at=[1, 2])", {}),
        ("sit", "keep(rate=0.5, at=[1, 2])", {}),
        ("evit", "keep(rate=0.5, at=[1, 2])", {"cache": "clc"}),
    ],
)
def test_the_reader_leads_reduced_tokens_back(model, images, method, schedule, plugins):
    reduction = vitrim.reduce(model, method, schedule, **plugins)
    reader, found = Reader(model), []

    def visit(layer):
        whole = reduction.trace.upto(layer.block)
        if whole is not None:
            assert torch.equal(layer.features, whole.lift(layer.tokens))
        weights = torch.cat([part for _, part in layer.weights()])
        assert torch.allclose(weights.sum(-1), torch.ones(()), atol=1e-5)
        assert layer.attended is None or layer.attended.m == weights.shape[-1]
        assert layer.features.shape[1] == 37
        found.append(layer.block)

    with torch.no_grad():
        out = reader.run(images, visit)
        assert torch.equal(out, model(images))
    assert found == [0, 1, 2, 3]


def test_merging_equal_tokens_leaves_the_rollout(model, images):
    """Where every patch of an image is the same but for its place, merging changes nothing; here: a map of no removal."""
    dense = masks(model, images, ["rollout_0_4", "attention_2", "maws_3", "gls"])
    vitrim.reduce(model, "tome", "counts([36], at=[1])")
    for name, mask in masks(model, images, list(dense)).items():
        assert torch.allclose(mask, dense[name], atol=1e-5), name


def test_the_rollout_crosses_reductions(model, images):
    vitrim.reduce(model, "evit", "keep(rate=0.5, at=[1, 2])")
    mask = masks(model, images, ["rollout_0_4"])["rollout_0_4"]
    assert mask.shape == (3, 6, 6)
    assert (mask >= 0).all()
    assert (mask.sum((1, 2)) <= 1).all()


def test_grad_cam_is_that_of_hooks(model, images):
    kept = []
    hook = model.blocks[3].norm1.register_forward_hook(lambda m, i, o: (o.retain_grad(), kept.append(o))[0])
    logits = model(images)
    logits.max(dim=1).values.sum().backward()
    hook.remove()
    weight = kept[0].grad[:, 1:].mean(1, keepdim=True)
    wanted = (kept[0] * weight).sum(-1)[:, 1:].clamp_min(0).detach()
    model.zero_grad()
    assert torch.allclose(grad_cam(model, images), wanted, atol=1e-6)
    assert all(p.grad is None for p in model.parameters())
    vitrim.reduce(model, "tome", "r(n=4)")
    assert grad_cam(model, images, 2).shape == (3, 36)
    with pytest.raises(ValueError, match="blocks 0 to 3"):
        grad_cam(model, images, 4)


@pytest.mark.parametrize(
    ("text", "kind", "start", "stop"),
    [("rollout", "rollout", 0, 4), ("rollout_3", "rollout", 0, 3), ("rollout_4_8", "rollout", 4, 8),
     ("attention", "attention", 0, 1), ("attention_7", "attention", 7, 8), ("gradcam", "gradcam", 11, 12)],
)  # fmt: skip
def test_modes(text, kind, start, stop):
    mode = Mode.read(text, 12)
    assert (mode.kind, mode.start, mode.stop) == (kind, start, stop)


@pytest.mark.parametrize("text", ["rolout", "rollout_8_4", "attention_12", "gls_3", "rollout_1_2_3"])
def test_wrong_modes(text):
    with pytest.raises(ValueError, match=f"picture '{text}'"):
        Mode.read(text, 12)
