"""``vitrim inspect`` from the outside."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from vitrim.cli.app import main
from vitrim.data.embedded import fashion


@pytest.fixture
def bag(tmp_path: Path) -> Path:
    data = fashion(10)
    Image.fromarray(data.pixels[data.labels.tolist().index(8)]).save(tmp_path / "bag.png")
    return tmp_path / "bag.png"


def test_tables_and_pictures(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    arguments = ["inspect", str(bag), "--methods", "tome", "atc(linkage=complete)", "--out", str(out)]
    assert main(arguments) == 0
    text = capsys.readouterr().out
    assert "atc(linkage=complete)" in text
    assert "bag " in text
    assert len(list(out.glob("bag-*.png"))) == 2


def test_pictures_in_a_terminal(
    bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setattr("vitrim.cli.inspect.shows_pictures", lambda: True)
    assert main(["inspect", str(bag), "--reduce", "tome"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 28 <= max(line.count("\u2580") for line in lines) <= 60
    assert any("block 9: 25 tokens" in line for line in lines)
    assert not (tmp_path / "vitrim-inspect").exists()
    monkeypatch.setattr("vitrim.cli.inspect.shows_pictures", lambda: False)
    assert main(["inspect", str(bag), "--reduce", "tome"]) == 0
    assert (tmp_path / "vitrim-inspect" / "bag-tome.png").is_file()


@pytest.mark.parametrize(("content", "reason"), [(b"text", "no image"), (b"", "empty file")])
def test_files_that_are_no_image(tmp_path: Path, capsys: pytest.CaptureFixture[str], content: bytes, reason: str) -> None:
    (tmp_path / "x.jpg").write_bytes(content)
    assert main(["inspect", str(tmp_path / "x.jpg"), "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert reason in told
    assert "x.jpg" in told


def test_wrong_words(bag: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for extra, message in (
        (["--reduce", "tomee"], "did you mean 'tome'"),
        (["--model", "nosuch"], "unknown model"),
        (["--weights", str(bag)], "no readable safetensors"),
        (["--schedule", "keep(rate=0.5, at=[40])"], "block 40 does not exist"),
        (["--model", "timm/resnet18", "--random-weights"], "ResNet is no model that vitrim knows"),
    ):
        assert main(["inspect", str(bag), *extra, "--out", str(tmp_path / "out")]) == 2
        assert message in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nothing.png")]) == 2
    assert "does not exist" in capsys.readouterr().err
