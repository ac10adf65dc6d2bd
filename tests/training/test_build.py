import multiprocessing

import pytest
import torch
from safetensors.torch import save_file

from tests.training.small import MODEL, SMALL, recipe
from vitrim.core.registry import SpecError
from vitrim.data.finetune import model_to_train
from vitrim.training.build import build_dataset, build_model, build_transform, freeze, load_run
from vitrim.training.recipe import Recipe

CLASSES = ["a", "b", "c"]


def start(tmp_path, size=32, classes=5, name=MODEL, **changes):
    """Weights of a model of another data set and another image size."""
    model, _ = model_to_train(name.replace("img_size=32", f"img_size={size}"), classes)
    torch.manual_seed(1)
    state = {k: torch.randn_like(v) for k, v in model.state_dict().items()}
    state.update(changes)
    save_file({k: v for k, v in state.items() if v is not None}, tmp_path / "w.safetensors")
    return state, str(tmp_path / "w.safetensors")


def weights_recipe(file, **values):
    return recipe(weights=file, model=MODEL.replace("pretrained=false, ", ""), **values)


def test_another_head_and_another_grid(tmp_path):
    from timm.layers import resample_abs_pos_embed

    state, file = start(tmp_path, size=64)
    notes = []
    model = build_model(weights_recipe(file), CLASSES, notes=notes)
    assert model.head.weight.shape == (3, 24)
    assert torch.equal(model.blocks[2].attn.qkv.weight, state["blocks.2.attn.qkv.weight"])
    # the class token's embedding as it is, the grid as timm resizes it
    assert torch.equal(model.pos_embed[:, 0], state["pos_embed"][:, 0])
    expected = resample_abs_pos_embed(state["pos_embed"], [4, 4], [8, 8], 1)
    assert torch.equal(model.pos_embed, expected)
    assert notes == [
        "'pos_embed' resized from 8 x 8 to 4 x 4 patches",
        "head 'head' of 5 classes dropped: the new one starts from its initial values",
    ]


def test_the_same_head_is_kept(tmp_path):
    state, file = start(tmp_path, classes=3)
    notes = []
    assert torch.equal(build_model(weights_recipe(file), CLASSES, notes=notes).head.weight, state["head.weight"])
    assert notes == []


def test_a_file_without_a_head(tmp_path):
    _, file = start(tmp_path, **{"head.weight": None, "head.bias": None})
    notes = []
    build_model(weights_recipe(file), CLASSES, notes=notes)
    assert notes == ["not in the file, at initial values: head.bias, head.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"blocks.1.attn.qkv.weight": None}, r"1 missing \(blocks.1.attn.qkv.weight\)"),
        ({"blocks.9.attn.qkv.weight": torch.ones(1)}, r"1 unexpected \(blocks.9.attn.qkv.weight\)"),
        ({"norm.weight": torch.ones(7)}, r"1 of another shape \(norm.weight 7 in the file, 24 in the model\)"),
        ({"pos_embed": torch.ones(1, 12, 24)}, r"1 of another shape \(pos_embed"),
    ],
)
def test_only_head_and_grid_may_differ(tmp_path, change, message):
    _, file = start(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        build_model(weights_recipe(file), CLASSES)


def test_the_image_size_and_channels_come_from_the_transform():
    model = build_model(recipe(model=MODEL.replace("img_size=32, ", ""), transform="small(size=48, grey=true)"), CLASSES)
    assert model.patch_embed.grid_size == (6, 6)
    assert model.patch_embed.proj.in_channels == 1


def test_what_is_not_loaded_comes_from_the_seed():
    one, two, other = (build_model(recipe(seed=s), CLASSES).head.weight for s in (0, 0, 1))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_reduction_cache_and_head():
    model = build_model(
        recipe(method="evit", schedule="keep(rate=0.5, at=[1, 2])", cache="clc(num_clr=1)", head="cla"), CLASSES
    )  # fmt: skip
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 3)
    assert any(name.startswith("reduction.head") for name, _ in model.named_parameters())
    freeze(model, "backbone")
    assert {n.split(".")[0] for n, p in model.named_parameters() if p.requires_grad} == {"head", "reduction"}


def test_attention_only():
    model = build_model(recipe(freeze="attention_only"), CLASSES)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert "blocks.0.attn.proj.bias" in trained
    assert {"pos_embed", "head.weight"} <= trained
    assert not [n for n in trained if "mlp" in n or "patch_embed" in n or "norm1" in n]


def make_fake(data):
    build_dataset(recipe(data=data)).split("train")[0]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_may_make_the_fake_set_at_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=make_fake, args=("cub",)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0, 0]
    (place,) = next(iter((tmp_path / "vitrim").iterdir())).iterdir()
    assert place.name.startswith("cub-")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"data": ""}, "'data' names no data set"),
        ({"data": "cubb", "fake": True}, "unknown data set 'cubb'; did you mean 'cub'"),
        ({"transform": "weakk"}, "unknown transform 'weakk'; did you mean 'weak'"),
        ({"model": "timm/vit_tinyy(pretrained=false)"}, "timm has no model 'vit_tinyy'; did you mean"),
        ({"model": "timm/vit_tiny_patch16_224(pretrained=false, depht=3)"}, "settings are those of the timm model"),
    ],
)
def test_what_is_wrong_names_the_remedy(values, message):
    def build(what):
        build_dataset(what)
        build_transform(what)
        build_model(what, CLASSES)

    with pytest.raises((ValueError, SpecError), match=message):
        build(recipe(**values))


def test_files_that_no_run_wrote(tmp_path):
    _, file = start(tmp_path)
    with pytest.raises(ValueError, match="was not written by vitrim train"):
        load_run(file)
    with pytest.raises(FileNotFoundError, match="holds no run"):
        load_run(tmp_path)


def test_weights_of_another_patch_size(tmp_path):
    """Patches of 8 taken for patches of 4: the embedding of an enlarged image is that of the image, nearly."""
    state, file = start(tmp_path, classes=3)
    notes = []
    finer = build_model(
        Recipe.from_mapping({**SMALL, "weights": file, "model": MODEL.replace("patch_size=8", "patch_size=4")}),
        CLASSES,
        notes=notes,
    )
    assert any("resampled from patches of 8 x 8 to 4 x 4" in note for note in notes)
    smooth = torch.nn.functional.interpolate(torch.randn(2, 3, 4, 4), size=16, mode="bicubic")
    large = torch.nn.functional.interpolate(smooth, scale_factor=2, mode="bicubic")
    wanted = torch.nn.functional.conv2d(large, state["patch_embed.proj.weight"], stride=8)
    found = torch.nn.functional.conv2d(smooth, finer.patch_embed.proj.weight, stride=4)
    assert torch.corrcoef(torch.stack([wanted.flatten(), found.flatten()]))[0, 1] > 0.9


def test_weights_are_loaded_into_a_model_without_pretrained_ones(tmp_path):
    state, file = start(tmp_path, classes=3)
    assert "pretrained=false" in MODEL
    model = build_model(recipe(weights=file), CLASSES)
    assert torch.equal(model.blocks[2].attn.qkv.weight, state["blocks.2.attn.qkv.weight"])
    assert torch.equal(model.head.weight, state["head.weight"])
