from __future__ import annotations

import pytest

from palaver.actors.template import Template, TemplateFault


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("plain", "plain"),
        ("{a} and { b }", "x and [1, null]"),
        ("{{a}} {{}} {{{a}}}", "{a} {} {x}"),
        ("{a}{a}", "xx"),
        ("", ""),
    ],
)
def test_fields_are_filled_in_and_braces_stay(text: str, filled: str) -> None:
    assert Template(text).filled({"a": "x", "b": [1, None]}) == filled


def test_what_is_filled_in_is_not_looked_at_again() -> None:
    assert Template("{a}").filled({"a": "{b}{{"}) == "{b}{{"


@pytest.mark.parametrize("text", ["{a", "a}", "{", "}", "{a\n}", "{}", "{ }", "{a{b}"])
def test_a_brace_that_belongs_to_no_field_is_told(text: str) -> None:
    with pytest.raises(TemplateFault, match=r"belongs to no field|without a name"):
        Template(text)


def test_a_field_that_is_not_there_is_told_with_those_that_are() -> None:
    with pytest.raises(TemplateFault, match=r"no field 'c' to fill in; there are: a, b"):
        Template("{a} {c}").filled({"a": 1, "b": 2})
    assert Template("{a} {c} {a}").fields == ("a", "c")
