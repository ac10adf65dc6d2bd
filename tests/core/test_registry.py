"""The spec grammar, registries and their messages."""

from __future__ import annotations

from typing import Any

import pytest

import vitrim
from vitrim import Scorer, SpecError, spec
from vitrim.core.registry import METHODS, SCHEDULES, Registry, parse_spec, setting_help


@pytest.mark.parametrize(
    ("text", "name", "args", "settings"),
    [
        ("tome", "tome", [], {}),
        ("  tome ", "tome", [], {}),
        ("tome()", "tome", [], {}),
        ("r(8, inflect=-1)", "r", [8], {"inflect": -1}),
        ("a(b=c)", "a", [], {"b": "c"}),
        ("a(b='two words', c=\"x\")", "a", [], {"b": "two words", "c": "x"}),
        ("a(b=true, c=False, d=none, e=null)", "a", [], {"b": True, "c": False, "d": None, "e": None}),
        ("a(b=[1, 2.5, word], c=(3,))", "a", [], {"b": [1, 2.5, "word"], "c": [3]}),
        ("a(b=1e-6, c=-.5, d=[[1], []])", "a", [], {"b": 1e-6, "c": -0.5, "d": [[1], []]}),
        ("a(b={'x': 1})", "a", [], {"b": {"x": 1}}),
        (
            "a(b=data/cub-200, c=train.csv, d=[../x, ., ~/y])",
            "a",
            [],
            {"b": "data/cub-200", "c": "train.csv", "d": ["../x", ".", "~/y"]},
        ),
        ("a(b=/data/x, c=1.5e3, d=https://x.org/y)", "a", [], {"b": "/data/x", "c": 1500.0, "d": "https://x.org/y"}),
        ("a(b='x=a/b, c', c=\"q/w, z\")", "a", [], {"b": "x=a/b, c", "c": "q/w, z"}),
    ],
)
def test_grammar(text: str, name: str, args: list[Any], settings: dict[str, Any]) -> None:
    assert parse_spec(text) == (name, args, settings)


@pytest.mark.parametrize("text", ["", "tome(", "tome(b=)", "a.b(c=1)", "1 + 1", "tome; topk", "lambda: 0", "a()()"])
def test_what_is_no_spec(text: str) -> None:
    with pytest.raises(SpecError, match=r"cannot read '.*': write name\(key=value, ...\), such as keep\(rate=0.5"):
        parse_spec(text)


def test_values_are_never_run() -> None:
    with pytest.raises(SpecError, match=r"open\('x'\) is no number, word or list"):
        parse_spec("a(b=open('x'))")
    with pytest.raises(SpecError, match=r"1 / 2 is no number, word or list"):
        parse_spec("a(b=1/2)")
    with pytest.raises(SpecError, match=r"\*\* is not allowed in a spec"):
        parse_spec("a(**b)")


def test_messages_name_the_remedy() -> None:
    with pytest.raises(SpecError, match=r"unknown method 'tomee'; did you mean 'tome'\?"):
        METHODS.build("tomee")
    with pytest.raises(SpecError, match=r"unknown method 'xxxxxxxx'; known: .*tome, topk"):
        METHODS.build("xxxxxxxx")
    with pytest.raises(SpecError, match=r"tome has no setting 'metrc'; it has: .*metric"):
        METHODS.build("tome(metrc=keys)")
    with pytest.raises(SpecError, match="topk has no setting 'k'; it has none"):
        METHODS.build("topk(k=3)")
    with pytest.raises(SpecError, match=r"tome: write settings by name, as in tome\(\w+=...\); it has: "):
        METHODS.build("tome(keys)")
    with pytest.raises(SpecError, match=r"method 'tome\(metric=kys\)': metric must be"):
        METHODS.build("tome(metric=kys)")


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("keep(rate=0.5, at=[3, 6, 9])", SCHEDULES.build("keep(rate=0.5)")),
        ("r(8)", "r"),
        ("r(13, inflect=-1)", "r(n=13, inflect=-1)"),
        ("counts([5, 4], [1, 2])", "counts(tokens=[5, 4], at=[1, 2])"),
    ],
)
def test_canonical_form_of_schedules(text: str, canonical: Any) -> None:
    assert spec(SCHEDULES.build(text)) == spec(canonical)


def test_canonical_form_leaves_defaults_out() -> None:
    assert spec(METHODS.build("tome(metric=keys)")) == "tome"
    assert spec(METHODS.build("tome(metric=tokens)")) == "tome(metric=tokens)"
    assert spec("tome( metric = 'tokens' )") == "tome(metric=tokens)"
    assert spec("a(b='two words', c='none', d=[x, 'y z'])") == "a(b='two words', c='none', d=[x, 'y z'])"


@pytest.mark.parametrize("name", vitrim.list_methods())
def test_every_method_describes_itself_and_comes_back_from_its_spec(name: str) -> None:
    method = METHODS.build(name)
    assert spec(method) == name
    assert METHODS.build(method) is method
    assert spec(method.fresh()) == name
    about = vitrim.describe(name)
    assert about.name == name
    assert about.summary.endswith(".")
    assert about.family in ("prune", "merge", "soft", "fixed")
    assert about.site in ("before", "inside", "after")
    assert about.paper
    assert set(about.needs) <= {"attention", "class token", "parameters", "patch count"}
    assert all(s.help for s in about.settings), "a setting without help in the docstring"
    assert str(about).startswith(f"{name}: ")


def test_a_registry_of_ones_own() -> None:
    shelf = Registry("thing")

    @shelf.register("plain")
    class Plain:
        """A thing.

        Args:
            size: how large
                it is.
            name: what it is called.
        """

        def __init__(self, *, size: int = 1, name: str = "x") -> None:
            if size < 0:
                raise ValueError("size is 0 or more")
            self.size, self.name = size, name

    assert shelf.names() == ["plain"]
    assert spec(shelf.build("plain(size=2)")) == "plain(size=2)"
    assert setting_help(Plain) == {"size": "how large it is.", "name": "what it is called."}
    with pytest.raises(SpecError, match=r"thing 'plain\(size=-1\)': size is 0 or more"):
        shelf.build("plain(size=-1)")
    with pytest.raises(SpecError, match="thing 'plain' exists already"):

        @shelf.register("plain")
        class Other:
            pass


def test_registering_a_method() -> None:
    @vitrim.register("first_for_tests")
    class First(Scorer):
        """Keep the first tokens."""

        def score(self, t: vitrim.Tokens) -> Any:
            return -t.patches.new_ones(t.patches.shape[:2]).cumsum(dim=1)

    try:
        assert "first_for_tests" in vitrim.list_methods()
        assert vitrim.describe("first_for_tests").summary == "Keep the first tokens."
        assert isinstance(METHODS.build("first_for_tests"), First)
    finally:
        METHODS._entries.pop("first_for_tests")
