import json

import pytest

import vitrim
from vitrim.cli.app import main


def test_table_has_one_line_per_method(capsys, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)
    assert main(["methods"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "family", "site", "needs", "summary"]
    assert [line.split()[0] for line in lines[1 : 1 + len(vitrim.list_methods())]] == vitrim.list_methods()


def test_table_wraps_to_the_terminal(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["methods"]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 100


@pytest.mark.parametrize("name", vitrim.list_methods())
def test_every_method_is_explained(capsys, name):
    assert main(["methods", name]) == 0
    out = capsys.readouterr().out
    assert out.startswith(f"{name}: ")
    assert "paper" in out
    example = out.rsplit('vitrim.reduce(model, "')[1].split('"')[0]
    assert vitrim.spec(example)
    for setting in vitrim.describe(name).settings:
        assert f"  {setting.name}={setting.default}" in out


def test_json(capsys):
    assert main(["methods", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [page["name"] for page in found] == vitrim.list_methods()
    assert main(["methods", "tome", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["family"] == "merge"
