import subprocess
import sys
from pathlib import Path

import pytest

import vitrim
from vitrim.cli import app
from vitrim.cli.app import is_ours, main


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == vitrim.__version__


def test_help_lists_every_verb(capsys):
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in ("methods", "inspect", "bench", "demo"))


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], [], ["tpyo"], ["--tpyo"]])
def test_what_needs_no_model_does_not_load_torch(arguments):
    code = f"import sys; from vitrim.cli.app import main; main({arguments}); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_unknown_verb_names_the_nearest(capsys):
    assert main(["method"]) == 2
    assert capsys.readouterr().err == "vitrim: unknown command 'method'; did you mean 'methods'?\n"
    assert main(["xyzzy"]) == 2
    assert "there are: demo, methods, inspect, bench" in capsys.readouterr().err


def test_unknown_option_exits_2():
    assert main(["methods", "--nonsense"]) == 2


def test_error_of_ours_is_one_line(capsys):
    assert main(["methods", "tomee"]) == 2
    captured = capsys.readouterr()
    assert captured.err == "vitrim: unknown method 'tomee'; did you mean 'tome'?\n"
    assert captured.out == ""


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setenv("VITRIM_DEBUG", "1")
    with pytest.raises(vitrim.SpecError):
        main(["methods", "tomee"])


def test_unexpected_exceptions_keep_their_traceback(monkeypatch):
    def broken(name):
        return name + 1  # a bug: a TypeError, but nobody's message

    monkeypatch.setattr("vitrim.cli.methods.describe", broken)
    with pytest.raises(TypeError):
        main(["methods", "tome"])


def test_ctrl_c_exits_130(monkeypatch, capsys):
    def press(name):
        raise KeyboardInterrupt

    monkeypatch.setattr("vitrim.cli.methods.describe", press)
    assert main(["methods", "tome"]) == 130
    assert "interrupted" in capsys.readouterr().err


def test_what_is_ours():
    def caught(action):
        try:
            action()
        except Exception as error:
            return error

    assert is_ours(caught(lambda: vitrim.spec("tome(")))
    assert is_ours(caught(Path("/nonexistent/file").read_text))
    assert not is_ours(caught(lambda: int("x")))
    assert not is_ours(caught(lambda: app.build_app(1)))
    assert not is_ours(ValueError("never raised"))


def test_reading_a_part_of_the_output_is_fine():
    command = f"{sys.executable} -m vitrim.cli.app methods | head -1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
    assert done.stdout.startswith("name")
    assert done.stderr == ""
