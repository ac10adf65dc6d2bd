import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

from tests.training.small import recipe
from vitrim.cli.features import features
from vitrim.data.embedded import fashion
from vitrim.data.models import load_model
from vitrim.experiments.features import measure, of_tensors
from vitrim.training.loop import train


@pytest.fixture
def gallery():
    loaded, data = load_model("fashion"), fashion(20)
    return of_tensors(loaded, data.images, data.labels.tolist(), data.classes, {"model": "fashion"})


def test_tables_and_pictures(tmp_path, capsys):
    arguments = {"images": 10, "batch_size": 5, "panels": "rollout_0_4,gls", "columns": 2, "out": tmp_path}
    assert features(method="evit", metrics="cka,distance", **arguments) == 0
    told = capsys.readouterr().out
    assert "10 images" in told
    assert "panels.png" in told
    with (tmp_path / "cka.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 144
    facts = json.loads((tmp_path / "features.json").read_text())
    assert np.allclose(np.diag(facts["values"]["cka"]), 1)
    assert len(facts["values"]["distance"][0]) == 3
    assert facts["method"] == "evit"
    for name in ("cka", "distance", "panels"):
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert min(picture.size) > 200


def test_runs_are_compared(tmp_path, capsys):
    runs = [tmp_path / name for name in ("linear", "ila")]
    for run, tune in zip(runs, ("linear", "ila(dim=2, at=[1])"), strict=True):
        train(recipe(tune=tune, epochs=1), run)
    out = tmp_path / "features"
    assert features(*runs, metrics="attention_cka,entropy", images=8, batch_size=4, workers=0, out=out) == 0
    assert str(out / "ila") in capsys.readouterr().out
    for name in ("attention_cka.png", "compared.png", "linear/attention_cka.png", "ila/entropy.png"):
        with Image.open(out / name) as picture:
            assert min(picture.size) > 200
    kept = json.loads((out / "ila" / "features.json").read_text())["values"]["attention_cka"]
    assert features(runs[1], metrics="attention_cka,entropy", images=8, batch_size=4, workers=0, out=tmp_path / "alone") == 0
    assert json.loads((tmp_path / "alone" / "features.json").read_text())["values"]["attention_cka"] == kept
    with pytest.raises(ValueError, match="two runs are called 'ila'"):
        features(runs[1], runs[1], out=out)
    with pytest.raises(ValueError, match="knows its model"):
        features(*runs, model="fashion", out=out)


def test_an_interrupted_pass_goes_on(gallery, tmp_path):
    whole = measure(gallery, ["cka", "rank"], batch_size=5)

    def stop(done, total):
        if done >= 10:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measure(gallery, ["cka", "rank"], batch_size=5, out=tmp_path, save_every=2, say=stop)
    with safe_open(tmp_path / "sums.safetensors", "pt") as file:
        assert file.metadata()["batches"] == "2"
    seen = []
    again = measure(gallery, ["cka", "rank"], batch_size=5, out=tmp_path, say=lambda done, _: seen.append(done))
    assert seen == [15, 20]
    assert again.images == 20
    for name, value in whole.values.items():
        assert np.array_equal(again.values[name], value), name


def test_wrong_requests(gallery):
    with pytest.raises(ValueError, match="unknown metric 'ckaa'"):
        measure(gallery, ["ckaa"])
    with pytest.raises(ValueError, match="batches of 4 images"):
        measure(gallery, ["cka"], batch_size=3)


def test_half_precision_measures_the_same(gallery):
    exact = measure(gallery, ["entropy"], batch_size=10)
    gallery.autocast = lambda: torch.autocast("cpu", dtype=torch.bfloat16)
    rough = measure(gallery, ["entropy"], batch_size=10)
    assert np.allclose(exact.values["entropy"], rough.values["entropy"], rtol=0.03)
