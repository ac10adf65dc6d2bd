import dataclasses
from pathlib import Path

import pytest

from vitrim.training.recipe import Recipe

ROOT = Path(__file__).parents[2]


def test_yaml_and_back():
    recipe = Recipe.from_mapping({"data": "cub(root=data/cub)", "method": "evit", "log": ["wandb"], "clip": 1, "ema": "0.99"})
    file_text = recipe.to_yaml()
    assert "method: evit\n" in file_text
    assert [line.split(":")[0] for line in file_text.splitlines() if line[0] not in "- "] == [
        f.name for f in dataclasses.fields(Recipe)
    ]


def test_a_file_reads_back_to_an_equal_recipe(tmp_path):
    recipe = Recipe.from_mapping({"data": "folder(root='a b/c')", "optimizer": "adamw(lr=1e-3)", "workers": 3, "mixup": 0.8})
    (tmp_path / "r.yaml").write_text(recipe.to_yaml())
    assert Recipe.from_yaml(tmp_path / "r.yaml") == recipe


def test_every_key_is_explained():
    for field in dataclasses.fields(Recipe):
        assert f"        {field.name}: " in (Recipe.__doc__ or ""), field.name


def test_the_command_line_comes_before_the_file_before_the_default(tmp_path):
    (tmp_path / "r.yaml").write_text("epochs: 7\nseed: 3\nlr_normalizer: 5e2\nschedule: keep(rate=0.7, at=[1, 2])\n")
    recipe = Recipe.from_yaml(tmp_path / "r.yaml", {"seed": "4"})
    assert (recipe.epochs, recipe.seed, recipe.batch_size, recipe.lr_normalizer) == (7, 4, 64, 500.0)
    assert recipe.schedule == "keep(rate=0.7, at=[1, 2])"


@pytest.mark.parametrize(
    ("key", "text", "value"),
    [
        ("batch-size", "8", 8),
        ("lr_normalizer", "null", None),
        ("lr_normalizer", "1e3", 1000.0),
        ("log", "[jsonl, wandb]", ["jsonl", "wandb"]),
        ("log", "tensorboard", ["jsonl", "tensorboard"]),
        ("gradients", "true", True),
        ("method", "none", None),
        ("schedule.rate", "0.25", "keep(rate=0.25)"),
        ("optimizer.lr", "1e-3", "adamw(lr=0.001, weight_decay=0.05)"),
        ("model.img_size", "64", "timm/vit_tiny_patch16_224(img_size=64)"),
    ],
)
def test_overrides(key, text, value):
    recipe = Recipe.from_mapping({"schedule": "keep(rate=0.5)"}, {key: text})
    assert getattr(recipe, key.split(".")[0].replace("-", "_")) == value


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epoch": 3}, "unknown key 'epoch'; did you mean 'epochs'?"),
        ({"xyzzy": 3}, "unknown key 'xyzzy'; there are: model, weights,"),
        ({"epochs": "many"}, "'epochs' is a whole number; got 'many'"),
        ({"epochs": 1.5}, "'epochs' is a whole number; got 1.5"),
        ({"epochs": True}, "'epochs' is a whole number; got True"),
        ({"mixup": "a lot"}, "'mixup' is a number; got 'a lot'"),
        ({"fake": "perhaps"}, "'fake' is true or false; got 'perhaps'"),
        ({"precision": "bf6"}, "'precision' cannot be 'bf6'; did you mean 'bf16'?"),
        ({"log": ["wandbb"]}, "'log' cannot be 'wandbb'; did you mean 'wandb'?"),
        ({"method": "evitt"}, "unknown method 'evitt'; did you mean 'evit'?"),
        ({"schedule": "kep(rate=0.5)"}, "unknown schedule 'kep'; did you mean 'keep'?"),
        ({"schedule": "keep(rate=0.5"}, "'schedule': cannot read 'keep(rate=0.5'"),
        ({"batch_size": 0}, "'batch_size' must be above 0; got 0"),
        ({"mixup": -1}, "'mixup' must be 0 or more; got -1"),
        ({"smoothing": 2}, "'smoothing' lies between 0 and 1; got 2"),
        ({"checkpoint_every": "often"}, "'checkpoint_every' is a number of epochs, or of steps as in '200 steps'; got 'often'"),
        ({"distill": "soft"}, "'distill' and 'teacher' go together"),
        ({"model": None}, "'model' cannot be null"),
        ({"optimizer": {"lr": 1}}, "'optimizer' is a line of text, such as 'adamw"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(values, message):
    with pytest.raises(ValueError, match=r"\w") as error:
        Recipe.from_mapping(values)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [1\n", ""])
def test_what_is_no_recipe(tmp_path, text):
    (tmp_path / "r.yaml").write_text(text)
    with pytest.raises(ValueError, match=r"recipe: '.*r.yaml'.*write one 'key: value' a line"):
        Recipe.from_yaml(tmp_path / "r.yaml")


def test_no_such_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="give a YAML file such as"):
        Recipe.from_yaml(tmp_path / "none.yaml")


def test_intervals_of_checkpoints():
    steps = [Recipe(checkpoint_every=text).checkpoint_steps(10) for text in ("1", "3 epochs", "7 steps", "1 step")]
    assert steps == [10, 30, 7, 1]


@pytest.mark.parametrize("file", sorted((ROOT / "recipes").glob("*.yaml")), ids=lambda p: p.name)
def test_the_recipes_of_the_project_are_read(file):
    Recipe.from_yaml(file)
