from __future__ import annotations

import asyncio
import dataclasses
import pickle
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from palaver.providers.messages import Image, Text
from palaver.tools import DoNotRespond, ToolError, ToolInputInvalid, ToolOutputInvalid, ToolRaised
from palaver.tools.outcome import MAX_ERROR_CHARS, MAX_IMAGE_BYTES, Outcome, to_content

PICTURE = Image(media_type="image/png", data=b"\x89PNG")


@dataclasses.dataclass
class Point:
    x: int
    y: float


class Line(BaseModel):
    ends: tuple[Point, Point]


def content(value: object, limit: int = 1_000_000) -> tuple[Text | Image, ...]:
    return to_content("look", value, limit)


def text(value: object) -> str:
    (part,) = content(value)
    assert isinstance(part, Text)
    return part.text


def refusal(value: object, limit: int = 1_000_000) -> str:
    with pytest.raises(ToolOutputInvalid) as caught:
        content(value, limit)
    assert caught.value.tool_name == "look"
    return str(caught.value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("plain", "plain"),
        ("", ""),
        (None, "null"),
        (True, "true"),
        (3.5, "3.5"),
        (float("nan"), '"NaN"'),
        (["a", 1], '["a",1]'),
        ({1: {"b": None}}, '{"1":{"b":null}}'),
        (Point(1, 2.5), '{"x":1,"y":2.5}'),
        (Line(ends=(Point(0, 0), Point(1, 1))), '{"ends":[{"x":0,"y":0.0},{"x":1,"y":1.0}]}'),
        (datetime(2026, 11, 30, 12, tzinfo=UTC), '"2026-11-30T12:00:00Z"'),
        (Decimal("0.10"), '"0.10"'),
        (Path("/tmp/x"), '"/tmp/x"'),
        (b"bytes", '"bytes"'),
        ({"ü": "ß"}, '{"ü":"ß"}'),
    ],
)
def test_a_value_becomes_text_or_json(value: object, expected: str) -> None:
    assert text(value) == expected


def test_a_generator_is_a_list() -> None:
    def count() -> Iterator[int]:
        yield from range(3)

    assert text(count()) == "[0,1,2]"


def test_text_and_images_stay_apart_and_in_order() -> None:
    parts = ["first", PICTURE, Text(text="second"), {"n": 1}, PICTURE]
    expected = (Text(text="first"), PICTURE, Text(text="second"), Text(text='{"n":1}'), PICTURE)
    assert content(parts) == content(tuple(parts)) == expected
    assert content(PICTURE) == (PICTURE,)


def test_a_list_without_contents_is_one_json_value() -> None:
    assert content(["a", "b"]) == (Text(text='["a","b"]'),)
    assert content([]) == (Text(text="[]"),)


@pytest.mark.parametrize("value", [object(), b"\xff\xfe", {"a": {"b": object()}}, int, [PICTURE, object()]])
def test_what_is_no_json_is_refused_by_its_type(value: object) -> None:
    assert "cannot be dumped to JSON" in refusal(value)


def test_a_value_that_holds_itself_is_refused() -> None:
    loop: list[Any] = []
    loop.append(loop)
    assert "returned a list that cannot be dumped" in refusal(loop)


def test_a_coroutine_that_nobody_awaited_is_refused_and_closed() -> None:
    # Left open it would warn, which here is an error.
    assert "write it `async def`" in refusal(asyncio.sleep(1))


def test_fifty_megabytes_are_refused_with_both_sizes() -> None:
    assert "returned 50000000 bytes of text; the limit is 1000000" in refusal("x" * 50_000_000)
    assert "returned 4 bytes of text; the limit is 3" in refusal([Text(text="ü"), Text(text="ß")], 3)
    assert text("x" * 1_000_000)


def test_a_large_image_is_refused() -> None:
    big = Image(media_type="image/png", data=bytes(MAX_IMAGE_BYTES + 1))
    assert "It needs a smaller picture" in refusal(["see", big])


def test_half_characters_become_text_that_can_be_sent() -> None:
    assert text("name-\udcff") == "name-\ufffd"
    assert text("\ud83d\ude00") == "😀"
    assert text(["name-\udcff", Decimal(1)]) == '["name-\\udcff","1"]'
    raised = Outcome.of_error("look", OSError("name-\udcff"))
    assert raised.to_result("id").text.encode()


class Unprintable(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


class OwnError(ToolError):
    """A tool's own, which the conversation's process could not import."""


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError("bad thing"), "tool 'look' raised ValueError: bad thing"),
        (ValueError(), "tool 'look' raised ValueError"),
        (KeyError("k"), "tool 'look' raised KeyError: 'k'"),
        (SystemExit(2), "tool 'look' raised SystemExit: 2"),
        (TimeoutError("its own"), "tool 'look' raised TimeoutError: its own"),
        (Unprintable(), "tool 'look' raised Unprintable: (no text: its __str__ raised ValueError)"),
        (OwnError("look", "mine"), "tool 'look' raised OwnError: mine"),
        (
            BaseExceptionGroup("two", [ValueError("a"), ExceptionGroup("in", [KeyError("b")])]),
            "tool 'look' raised ExceptionGroup: two (2 sub-exceptions): ValueError: a; "
            "ExceptionGroup: in (1 sub-exception): KeyError: 'b'",
        ),
    ],
)
def test_the_model_reads_what_a_tool_raised(error: BaseException, expected: str) -> None:
    outcome = Outcome.of_error("look", error)
    assert type(outcome.error) is ToolRaised
    result = outcome.to_result("id")
    assert (result.text, result.is_error) == (expected, True)


def test_a_tool_may_raise_a_tool_error_whose_text_the_model_reads() -> None:
    error = ToolInputInvalid("look", "look elsewhere")
    error.lock = object()  # type: ignore[attr-defined]
    outcome = Outcome.of_error("look", error)
    assert type(outcome.error) is ToolInputInvalid
    assert str(outcome.error) == "look elsewhere"
    assert "lock" not in vars(outcome.error)


def test_a_long_error_keeps_its_start_and_its_end() -> None:
    said = Outcome.of_error("look", ValueError("start" + "x" * 10**6 + "end")).to_result("id").text
    assert len(said) < MAX_ERROR_CHARS + 100
    assert said.startswith("tool 'look' raised ValueError: start")
    assert "characters left out" in said
    assert said.endswith("end")


def test_do_not_respond_is_no_error() -> None:
    outcome = Outcome.of_error("look", DoNotRespond())
    assert (outcome.respond, outcome.error) == (False, None)


def test_an_outcome_survives_pickle() -> None:
    for outcome in (Outcome(content=content(["a", PICTURE])), Outcome.of_error("look", ValueError("x"))):
        copy = pickle.loads(pickle.dumps(outcome))
        assert copy.to_result("id") == outcome.to_result("id")
