"""What only some libraries have: pooled heads, features on the grid, towers inside larger models, clear refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from families import DEPTH, DIM, FAMILIES, HEADS, IMAGE, PATCH, PATCHES, images, make, run
from laws import SCHEDULE, every_family, traced
from libraries import HomeMade, _both, _config
from torch import Tensor, nn

import vitrim


@every_family
@pytest.mark.parametrize("method", ["tome", "atc"])
def test_heads_see_merged_tokens_as_their_copies(family: str, method: str) -> None:
    """The head on merged tokens is the dense head on the merged tokens, each repeated for every patch that it stands for."""
    model, dense = make(family), make(family)
    reduction = vitrim.reduce(model, method, SCHEDULE)
    seen: list[Tensor] = []

    def spread(_module: nn.Module, _inputs: Any, out: Any) -> Any:
        total = reduction.trace.total
        assert total is not None
        return total.lift(seen[0])

    reduction.backbone.blocks(model)[-1].register_forward_hook(lambda _m, _i, out: seen.append(out))
    reduction.backbone.blocks(dense)[-1].register_forward_hook(spread)
    with torch.no_grad():
        merged = run(model)
        torch.testing.assert_close(merged, run(dense), rtol=1e-4, atol=1e-5)


INTERMEDIATES = [n for n, f in FAMILIES.items() if f.library in ("timm", "open_clip")]


def _features(out: Any) -> list[Tensor]:
    return out["image_intermediates"] if isinstance(out, dict) else out


@pytest.mark.parametrize("method", ["topk", "tome", "ats", "sinkhorn"])
@pytest.mark.parametrize("family", INTERMEDIATES)
def test_intermediate_features_keep_their_shape(family: str, method: str) -> None:
    model: Any = make(family)
    with torch.no_grad():
        dense = _features(model.forward_intermediates(images(), intermediates_only=True))
        reduction = vitrim.reduce(model, method, "r(n=0)")
        same = _features(model.forward_intermediates(images(), intermediates_only=True))
        assert all(torch.equal(a, b) for a, b in zip(dense, same, strict=True))
        reduction.detach()
        vitrim.reduce(model, method, SCHEDULE)
        for layout in ("NCHW", "NLC"):
            out = _features(model.forward_intermediates(images(), indices=2, intermediates_only=True, output_fmt=layout))
            shape = (3, DIM, 6, 6) if layout == "NCHW" else (3, PATCHES, DIM)
            assert [tuple(y.shape) for y in out] == [shape] * 2
        first = _features(model.forward_intermediates(images(), indices=[0], intermediates_only=True))[0]
        if model.reduction.site != "before":  # nothing is reduced before block 1 there
            torch.testing.assert_close(first, dense[0])


@pytest.mark.parametrize("family", [n for n, f in FAMILIES.items() if f.library == "timm"])
def test_forward_features_gives_the_reduced_sequence(family: str) -> None:
    model: Any = make(family)
    reduction = vitrim.reduce(model, "tome", SCHEDULE)
    with torch.no_grad():
        y = model.forward_features(images())
        assert y.shape[1] == list(reduction.plan(PATCHES).values())[-1] + FAMILIES[family].prefix
        torch.testing.assert_close(model.forward_head(y), run(model))


def test_hidden_states_of_transformers_follow_the_counts() -> None:
    pytest.importorskip("transformers")
    model: Any = make("hf_vit")
    reduction = vitrim.reduce(model, "tome", SCHEDULE)
    states = model(images(), output_hidden_states=True).hidden_states
    plan = reduction.plan(PATCHES)
    assert [s.shape[1] for s in states] == [37, 37, plan[1] + 1, plan[2] + 1, plan[2] + 1]
    assert states[2].shape[1] == traced("hf_vit", "tome").lengths[1]


# -- towers inside larger models -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["CLIP", "Siglip"])
def test_image_text_models_of_transformers(name: str) -> None:
    hf = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = getattr(hf, f"{name}Model")(_both(getattr(hf, f"{name}Config"), getattr(hf, f"{name}VisionConfig"))).eval()
    words = torch.randint(3, 50, (2, 5))
    with torch.no_grad():
        dense = model(input_ids=words, pixel_values=images())
        with vitrim.reduced(model, "tome", SCHEDULE) as reduction:
            out = model(input_ids=words, pixel_values=images())
            assert list(reduction.trace) == [1, 2]
        again = model(input_ids=words, pixel_values=images())
    assert torch.equal(out.text_embeds, dense.text_embeds)
    assert not torch.equal(out.image_embeds, dense.image_embeds)
    assert torch.equal(again.logits_per_image, dense.logits_per_image)


@pytest.mark.parametrize("timm", [False, True], ids=["own_tower", "timm_tower"])
def test_whole_models_of_open_clip(timm: bool) -> None:
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    text = {"context_length": 5, "vocab_size": 50, "width": 8, "heads": 1, "layers": 6}
    own = {"image_size": IMAGE, "patch_size": PATCH, "width": DIM, "layers": DEPTH, "head_width": DIM // HEADS}
    model = open_clip.model.CLIP(16, own, text).eval()
    if timm:
        model.visual = make("open_clip_timm")
    words = torch.randint(1, 50, (2, 5))
    with torch.no_grad():
        dense, said = model.encode_image(images()), model.encode_text(words)
        with vitrim.reduced(model, "tome", SCHEDULE) as reduction:
            assert model.encode_image(images()).shape == dense.shape
            assert list(reduction.trace) == [1, 2]
            assert reduction.layout.grid == (6, 6)
            assert torch.equal(model.encode_text(words), said)
        assert torch.equal(model.encode_image(images()), dense)


# -- refusals ------------------------------------------------------------------------------------------------------------


def test_an_open_clip_model_without_transformer_is_refused() -> None:
    open_clip = pytest.importorskip("open_clip")
    text = {"context_length": 5, "vocab_size": 50, "width": 8, "heads": 1, "layers": 2}
    model = open_clip.model.CLIP(16, {"layers": (1, 1, 1, 1), "image_size": 32, "width": 8, "head_width": 8}, text)
    with pytest.raises(TypeError, match="vision tower is a ModifiedResNet"):
        vitrim.reduce(model, "topk", SCHEDULE)
    assert not hasattr(model, "reduction")


def test_models_that_need_the_grid_are_refused() -> None:
    hf = pytest.importorskip("transformers")
    for model in (
        hf.Dinov2Backbone(hf.Dinov2Config(**_config(mlp_ratio=2))),
        hf.ViTForMaskedImageModeling(hf.ViTConfig(**_config(encoder_stride=PATCH))),
    ):
        with pytest.raises(TypeError, match="puts its tokens back on the patch grid"):
            vitrim.reduce(model, "topk", SCHEDULE)


def test_eager_attention_names_the_remedy() -> None:
    pytest.importorskip("transformers")
    model: Any = make("hf_vit")
    model.set_attn_implementation("eager")
    vitrim.reduce(model, "topk", SCHEDULE)
    with pytest.raises(RuntimeError, match=r"ViTLayer; switch the model to it: .*attn_implementation='sdpa' in transformers"):
        run(model)


def test_unknown_models() -> None:
    with pytest.raises(TypeError, match=r"Linear is no model that vitrim knows \(generic, open_clip.*at least two equal blocks"):
        vitrim.reduce(nn.Linear(3, 3), "topk")
    sequence_first = nn.TransformerEncoder(nn.TransformerEncoderLayer(DIM, HEADS), 3, enable_nested_tensor=False)
    with pytest.raises(TypeError, match="build them with batch_first=True"):
        vitrim.reduce(sequence_first, "topk")


def test_encoder_of_torch() -> None:
    layer = nn.TransformerEncoderLayer(DIM, HEADS, 2 * DIM, dropout=0.0, batch_first=True)
    model = nn.TransformerEncoder(layer, DEPTH, enable_nested_tensor=False).eval()
    reduction = vitrim.reduce(model, "tome", SCHEDULE)
    x = torch.randn(2, PATCHES, DIM)
    assert (reduction.site, reduction.layout.prefix, reduction.layout.dim) == ("after", 0, DIM)
    assert model(x).shape == (2, list(reduction.plan(PATCHES).values())[-1], DIM)


def test_known_blocks_in_unknown_models_are_cut() -> None:
    blocks = pytest.importorskip("timm.models.vision_transformer")
    model = HomeMade()
    model.layers = nn.ModuleList(blocks.Block(DIM, HEADS) for _ in range(DEPTH))
    assert vitrim.reduce(model, "topk", SCHEDULE).site == "inside"
    assert run(model).shape == (3, 7)


def test_an_unknown_grid() -> None:
    model = HomeMade()
    del model.grid_size
    for method in vitrim.list_methods():
        if "patch count" in vitrim.describe(method).needs:
            with pytest.raises(vitrim.SpecError, match="has parameters for one number of patches"):
                vitrim.reduce(model, method, SCHEDULE)
        else:
            with vitrim.reduced(model, method, SCHEDULE):
                assert run(model).shape == (3, 7)


@pytest.mark.parametrize(
    ("tokens", "prefix", "cls"),
    [
        ({"num_prefix_tokens": 3, "cls_token": torch.zeros(1, 1, DIM)}, 3, 0),
        ({"class_embedding": torch.zeros(DIM), "register_tokens": torch.zeros(1, 4, DIM)}, 5, 0),
        ({"cls_token": torch.zeros(1, 1, DIM), "dist_token": torch.zeros(1, 1, DIM)}, 2, 0),
        ({"reg_token": torch.zeros(1, 2, DIM)}, 2, None),
        ({"num_prefix_tokens": 0}, 0, None),
        ({}, 0, None),
    ],
)
def test_prefix_of_unknown_models(tokens: dict[str, Any], prefix: int, cls: int | None) -> None:
    model = HomeMade()
    del model.cls_token
    for name, value in tokens.items():
        setattr(model, name, value)
    layout = vitrim.reduce(model, "topk", SCHEDULE).layout
    assert (layout.prefix, layout.cls) == (prefix, cls)
