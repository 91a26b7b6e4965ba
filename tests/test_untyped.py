from __future__ import annotations

from typing import Any

import pytest

from palaver.providers.untyped import json_in


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a":[1,2.5,null,"b"]}', {"a": [1, 2.5, None, "b"]}),
        ('"\\ud83d\\ude00"', "😀"),
        ('"a\\ud83d"', "a\N{REPLACEMENT CHARACTER}"),
        ('{"\\uDE00":["\\ud83dx"]}', {"\N{REPLACEMENT CHARACTER}": ["\N{REPLACEMENT CHARACTER}x"]}),
        ("{oops", None),
        ("", None),
        ("[" * 100_000, None),
        ("9" * 5_000, None),
        ('{"a":NaN}', None),
    ],
)
def test_json_is_read_and_what_is_none_is_told_by_none(text: str, value: Any) -> None:
    assert json_in(text) == value


def test_constants_that_are_no_json_may_count_as_null() -> None:
    assert json_in('{"a":NaN,"b":[-Infinity]}', constants=True) == {"a": None, "b": [None]}
