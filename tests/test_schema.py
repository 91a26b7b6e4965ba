from __future__ import annotations

import dataclasses
import enum
import threading
import warnings
from collections.abc import Callable
from datetime import date
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, Optional

import pytest
from pydantic import BaseModel, Field

from palaver.tools import Tool, ToolCallInfo, ToolDefinitionError, ToolInputInvalid, current_call, tool
from palaver.tools.outcome import Outcome

INFO = ToolCallInfo("call-1", "a_tool", "abc-defg")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Line(BaseModel):
    title: str
    ends: list[Point]


class Unschematic:
    """A type of which pydantic knows nothing."""


class Broken:
    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        raise KeyError("broken")


def properties(made: Tool[..., Any]) -> dict[str, Any]:
    return made.spec.input_schema["properties"]


def bound(made: Tool[..., Any], **tool_input: Any) -> dict[str, Any]:
    return made.signature.bind(tool_input, INFO)


def refusal(made: Tool[..., Any], **tool_input: Any) -> str:
    with pytest.raises(ToolInputInvalid) as caught:
        made.signature.bind(tool_input, INFO)
    assert caught.value.tool_name == made.name
    return str(caught.value)


def google(place: str, days: int = 1) -> None:
    """Forecast the weather.

    For people.

    Args:
        place: Where.
        days (int): How far ahead,
            in days.

    Returns:
        Nothing.
    """


def numpy(place: str, days: int = 1) -> None:
    """Forecast the weather.

    For people.

    Parameters
    ----------
    place : str
        Where.
    days : int, optional
        How far ahead,
        in days.
    """


def rest(place: str, days: int = 1) -> None:
    """Forecast the weather.

    For people.

    :param place: Where.
    :param int days: How far ahead,
        in days.
    """


@pytest.mark.parametrize("function", [google, numpy, rest])
def test_descriptions_come_from_docstrings_of_every_style(function: Callable[..., None]) -> None:
    made = tool(function)
    assert made.spec.description == "Forecast the weather.\n\nFor people."
    assert properties(made)["place"] == {"type": "string", "description": "Where."}
    assert properties(made)["days"]["description"] == "How far ahead,\nin days."
    assert made.spec.input_schema["required"] == ["place"]


def test_a_docstring_that_cannot_be_parsed_is_the_description_as_it_stands() -> None:
    def broken() -> None:
        """Do.

        :param:
        """

    assert tool(broken).spec.description.startswith("Do.")


def test_a_tool_needs_neither_docstring_nor_parameters() -> None:
    def nothing() -> None: ...

    assert tool(nothing).spec.input_schema == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }
    assert bound(tool(nothing)) == {}


def test_types_become_their_json_schemas() -> None:
    def draw(
        colour: Colour,
        style: Literal["dashed", "solid"],
        line: Line,
        at: Point,
        width: Optional[float] = None,  # noqa: UP045
        labels: dict[str, list[int]] | None = None,
    ) -> None: ...

    made = tool(draw)
    shown = properties(made)
    assert shown["style"] == {"type": "string", "enum": ["dashed", "solid"]}
    assert shown["colour"] == {"$ref": "#/$defs/Colour"}
    assert shown["width"] == {"anyOf": [{"type": "number"}, {"type": "null"}], "default": None}
    definitions = made.spec.input_schema["$defs"]
    assert definitions["Colour"] == {"type": "string", "enum": ["red", "blue"]}
    assert definitions["Point"]["properties"] == {
        "x": {"type": "integer"},
        "y": {"type": "integer", "default": 0},
    }
    assert list(definitions["Line"]["properties"]) == ["title", "ends"]
    assert made.spec.input_schema["required"] == ["colour", "style", "line", "at"]


def test_input_arrives_as_the_types_the_function_asks_for() -> None:
    def draw(
        colour: Colour, line: Line, at: Point, when: date, cost: Decimal, where: Path, ids: set[int]
    ) -> None: ...

    assert bound(
        tool(draw),
        colour="red",
        line={"title": "t", "ends": [{"x": 1}]},
        at={"x": 1, "y": 2},
        when="2026-11-30",
        cost="0.10",
        where="/tmp",
        ids=[1, 1],
    ) == {
        "colour": Colour.RED,
        "line": Line(title="t", ends=[Point(1)]),
        "at": Point(1, 2),
        "when": date(2026, 11, 30),
        "cost": Decimal("0.10"),
        "where": Path("/tmp"),
        "ids": {1},
    }


def test_a_field_in_an_annotation_goes_before_the_docstring() -> None:
    def buy(
        count: Annotated[int, Field(description="How many, at least 1.", ge=1)],
        note: Annotated[str, Field(default="none", alias="ignored")],
        price: float = Field(gt=0, description="In dollars."),
    ) -> None:
        """Buy.

        Args:
            count: Overruled.
            note: Taken.
        """

    made = tool(buy)
    assert properties(made) == {
        "count": {"type": "integer", "minimum": 1, "description": "How many, at least 1."},
        "note": {"type": "string", "default": "none", "description": "Taken."},
        "price": {"type": "number", "exclusiveMinimum": 0, "description": "In dollars."},
    }
    assert bound(made, count=2, price=1) == {"count": 2, "note": "none", "price": 1.0}
    assert "greater than or equal to 1 (got 0)" in refusal(made, count=0, price=1)


@pytest.mark.parametrize(
    "name",
    [
        "schema",
        "model_config",
        "model_fields",
        "title",
        "self",
        "copy",
        "json",
        "_hidden",
        "arg_x",
        "properties",
    ],
)
def test_a_parameter_may_have_any_name(name: str) -> None:
    scope: dict[str, Any] = {}
    exec(f"def take({name}: int, x: int = 0): return {name}", scope)  # noqa: S102
    made = tool(scope["take"])
    assert properties(made)[name] == {"type": "integer"}
    assert made.function(**bound(made, **{name: 7})) == 7
    assert made(**{name: 7}) == 7


def test_titles_go_but_not_parameters_or_values_of_that_name() -> None:
    def show(title: str, options: dict[str, str] = {"title": "x"}) -> None:  # noqa: B006
        ...

    assert properties(tool(show)) == {
        "title": {"type": "string"},
        "options": {"type": "object", "additionalProperties": {"type": "string"}, "default": {"title": "x"}},
    }


def test_a_default_that_is_no_json_stays_out_of_the_schema() -> None:
    nowhere: Any = Unschematic()

    def look(at: int = nowhere) -> None: ...

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = tool(look)
    assert "default" not in properties(made)["at"]
    assert bound(made).keys() == {"at"}


def test_a_default_of_none_may_also_be_passed() -> None:
    def search(limit: int = None) -> None:  # type: ignore[assignment]  # noqa: RUF013
        ...

    assert bound(tool(search), limit=None) == {"limit": None}
    assert bound(tool(search)) == {"limit": None}


def test_mutable_defaults_are_not_shared_between_calls() -> None:
    def collect(items: list[int] = []) -> None:  # noqa: B006
        ...

    made = tool(collect)
    bound(made)["items"].append(1)
    assert bound(made) == {"items": []}


@pytest.mark.parametrize("hint", ["ToolCallInfo", "ToolCallInfo | None", "Annotated[ToolCallInfo, 'x']"])
def test_the_info_is_passed_and_not_shown_to_the_model(hint: str) -> None:
    def spawn(task: str, info: Any = None) -> ToolCallInfo: ...  # type: ignore[empty-body]

    spawn.__annotations__["info"] = hint
    made = tool(spawn)
    assert list(properties(made)) == ["task"]
    assert bound(made, task="x") == {"task": "x", "info": INFO}
    assert "no such parameter; there are ['task']" in refusal(made, task="x", info={})


def test_there_is_no_current_call_outside_a_tool() -> None:
    with pytest.raises(LookupError, match="only inside a tool call"):
        current_call()


def test_the_model_is_told_everything_that_is_wrong_with_an_input() -> None:
    def book(nights: int, guests: list[Point], room: str) -> None: ...

    text = refusal(tool(book), nights="two", guests=[{"x": 1}, {"x": "far"}], rom="12")
    assert text.startswith("invalid input for tool 'book'; it was not called. ")
    assert "nights: Input should be a valid integer, unable to parse string as an integer (got 'two')" in text
    assert "guests.1.x: Input should be a valid integer" in text
    assert "room: Field required" in text
    assert "rom: no such parameter; there are ['nights', 'guests', 'room']" in text
    assert text.endswith("Correct the input and call it again.")


def test_the_text_about_a_bad_input_stays_short() -> None:
    def add(numbers: list[int]) -> None: ...

    text = refusal(tool(add), numbers=["x" * 1000] * 1000)
    assert len(text) < 5000
    assert "and 990 more" in text


def test_the_text_about_half_characters_in_an_input_can_be_sent() -> None:
    def greet(names: dict[str, int]) -> None: ...

    refused = Outcome(error=ToolInputInvalid("greet", refusal(tool(greet), names={"\ud83d": "\ud83d"})))
    assert b"names." in refused.to_result("id").text.encode()


def test_positional_only_and_variadic_parameters_are_refused() -> None:
    def first(x: int, /) -> None: ...
    def second(*x: int) -> None: ...
    def third(**x: int) -> None: ...
    def fourth(info: ToolCallInfo, /) -> None: ...

    for function in (first, second, third, fourth, len):
        with pytest.raises(ToolDefinitionError, match="which a model cannot fill"):
            tool(function)  # type: ignore[arg-type]


def test_a_parameter_without_a_type_is_refused_by_name() -> None:
    def vague(x): ...  # type: ignore[no-untyped-def]

    with pytest.raises(ToolDefinitionError, match="parameter 'x' of tool 'vague' has no type"):
        tool(vague)


@pytest.mark.parametrize("hint", [Unschematic, Callable[[int], int], threading.Event, Broken])
def test_a_type_without_a_schema_is_refused_in_one_sentence(hint: Any) -> None:
    def use(x: Any) -> None: ...

    use.__annotations__["x"] = hint
    with pytest.raises(ToolDefinitionError, match=r"tool 'use' .* whose type has no JSON schema: ") as caught:
        tool(use)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("hint", ["Missing", "pytest.Missing", "int | 3", "int |"])
def test_an_annotation_that_cannot_be_resolved_is_refused(hint: str) -> None:
    def use(x: Any) -> None: ...

    use.__annotations__["x"] = hint
    with pytest.raises(ToolDefinitionError, match="tool 'use' has an annotation that cannot be resolved"):
        tool(use)


class Searcher:
    """Searches things."""

    def __init__(self, index: list[str]) -> None:
        self.index = index

    def search(self, text: str) -> list[str]:
        """Search for a text."""
        return [each for each in self.index if text in each]

    async def __call__(self, text: str) -> list[str]:
        return self.search(text)

    @staticmethod
    async def normalise(text: str) -> str:
        """Make it lower case."""
        return text.lower()

    @classmethod
    def make(cls, text: str) -> str:
        """Make one."""
        return text


def test_a_bound_method_is_a_tool() -> None:
    searcher = Searcher(["ab", "cd"])
    made = tool(searcher.search)
    assert (made.name, made.spec.description) == ("search", "Search for a text.")
    assert list(properties(made)) == ["text"]
    assert made("a") == ["ab"]
    assert list(properties(tool(Searcher.make))) == ["text"]


def test_a_method_that_is_not_bound_is_refused_with_advice() -> None:
    with pytest.raises(ToolDefinitionError, match=r"make the tool of the bound one: tool\(instance.method\)"):
        tool(Searcher.search)


def test_an_object_with_call_is_a_tool_named_after_its_class() -> None:
    made = tool(Searcher([]))
    assert (made.name, made.spec.description) == ("Searcher", "Searches things.")
    assert made.is_async


def test_a_static_method_is_a_tool_also_before_its_class_is_complete() -> None:
    assert tool(Searcher.normalise).is_async
    made = tool(Searcher.__dict__["normalise"])
    assert (made.name, made.is_async) == ("normalise", True)
    assert list(properties(made)) == ["text"]


def test_what_a_partial_fills_is_hidden_from_the_model() -> None:
    def fetch(url: str, key: str, retries: int = 1) -> str:
        """Fetch it."""
        return f"{url} {key} {retries}"

    made = tool(partial(partial(fetch, key="secret"), retries=3))
    assert (made.name, made.spec.description) == ("fetch", "Fetch it.")
    assert list(properties(made)) == ["url"]
    assert "secret" not in made.spec.model_dump_json()
    assert made.function(**bound(made, url="u")) == "u secret 3"
    assert list(properties(tool(partial(fetch, "u")))) == ["key", "retries"]


def test_a_partial_of_an_async_function_is_async() -> None:
    assert tool(partial(Searcher.normalise)).is_async
    assert not tool(google).is_async


def test_a_lambda_needs_a_name() -> None:
    with pytest.raises(ToolDefinitionError, match=r"'<lambda>' is not allowed.*pass name="):
        tool(lambda: 3)
    assert tool(name="three")(lambda: 3).name == "three"


def test_what_is_no_function_is_refused() -> None:
    with pytest.raises(
        ToolDefinitionError, match=r"a str \('search'\), which cannot be called; a name goes in"
    ):
        tool("search")  # type: ignore[call-overload]
    with pytest.raises(ToolDefinitionError, match="this is the class Searcher"):
        tool(Searcher)
    with pytest.raises(ToolDefinitionError, match=r"Tool\('google'\) is a tool already"):
        tool(tool(google))


SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer"}, "b": {"type": "array", "items": {"type": "string"}}},
    "required": ["a"],
}


def takes_both(a: int, b: list[str] | None = None, *, info: ToolCallInfo) -> tuple[Any, ...]:
    """Take both."""
    return a, b, info


def test_a_hand_written_schema_is_shown_as_it_is_and_checks_the_input() -> None:
    made = tool(input_schema=SCHEMA)(takes_both)
    assert made.spec.input_schema == SCHEMA
    assert made.spec.description == "Take both."
    assert bound(made, a=1, b=["x"]) == {"a": 1, "b": ["x"], "info": INFO}
    text = refusal(made, a="one", b=[1])
    assert "a: 'one' is not of type 'integer'" in text
    assert "b.0: 1 is not of type 'string'" in text
    assert "'a' is a required property" in refusal(made)


def test_an_input_that_fits_a_schema_but_not_the_function_is_refused() -> None:
    made = tool(input_schema={"type": "object"})(takes_both)
    assert "missing a required argument: 'a'" in refusal(made)
    assert "unexpected keyword argument 'z'" in refusal(made, a=1, z=2)


def test_a_hand_written_schema_is_copied() -> None:
    schema = {"type": "object", "properties": {"a": {}}}
    made = tool(input_schema=schema)(takes_both)
    schema["properties"] = {}
    assert made.spec.input_schema["properties"] == {"a": {}}


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"type": "string"}, 'needs "type": "object"'),
        ({}, 'needs "type": "object"'),
        ([1], 'needs "type": "object"'),
        ({"type": "object", "properties": {"a": {"type": "integ"}}}, "is no valid JSON schema"),
        ({"type": "object", "properties": 3}, "is no valid JSON schema"),
        ({"type": "object", "properties": {"a": {"default": Unschematic}}}, "is no JSON"),
        ({"type": "object", "properties": {"a": {"default": float("nan")}}}, "is no JSON"),
        ({"type": "object", "properties": {"z": {}}}, "does not fit its input schema.*'z'"),
    ],
)
def test_a_bad_hand_written_schema_is_refused(schema: Any, message: str) -> None:
    with pytest.raises(ToolDefinitionError, match=f"tool 'takes_both'.*{message}"):
        tool(input_schema=schema)(takes_both)
