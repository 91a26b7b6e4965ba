"""Schemas in the subset that servers enforce; the vendors' own converters are the referees."""

from __future__ import annotations

import copy
import enum
from collections.abc import Iterator
from datetime import date
from typing import Annotated, Any, Literal

import jsonschema
import pytest
from anthropic import transform_schema
from openai.lib._pydantic import to_strict_json_schema
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from palaver.providers.schemas import strict_schema


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Paint(BaseModel):
    """A paint."""

    colour: Colour = Field(description="as on the tin")
    title: str = Field(min_length=2, max_length=9)
    litres: float = Field(gt=0, le=20)
    made: date | None = None
    tags: list[str] = Field(default=["new"], max_length=3)


class Tin(BaseModel):
    kind: Literal["tin"]
    paint: Paint = Field(description="what is in it")


class Tube(BaseModel):
    kind: Literal["tube"]
    grams: int = Field(multiple_of=5)


class Shop(BaseModel):
    stock: list[Annotated[Tin | Tube, Field(discriminator="kind")]]
    best: Tin | None
    open: bool = True


class Node(BaseModel):
    value: int
    children: list[Node] = []


class Even(BaseModel):
    odd: Odd | None


class Odd(BaseModel):
    even: Even | None


class Open(BaseModel):
    model_config = ConfigDict(extra="allow")
    x: int


class Loose(BaseModel):
    counts: dict[str, int]


class Anything(BaseModel):
    value: Any


class Pair(BaseModel):
    pair: tuple[int, str]


STRICT = [Paint, Tin, Tube, Shop]
RECURSIVE = [Node, Even]
NEVER = [Open, Loose, Anything, Pair]


def schema_of(model: type[BaseModel]) -> dict[str, Any]:
    """The schema of an object, as a recursive model does not have it itself."""
    schema = model.model_json_schema()
    if "$ref" in schema:
        inner = {"properties": {"answer": {"$ref": schema["$ref"]}}, "required": ["answer"]}
        return {"type": "object", "$defs": schema["$defs"], **inner}
    return schema


def strict_form(model: type[BaseModel], *, limits: bool = True, recursion: bool = True) -> dict[str, Any]:
    strict = strict_schema(schema_of(model), limits=limits, recursion=recursion)
    assert strict is not None
    return strict


def objects_in(schema: Any) -> Iterator[dict[str, Any]]:
    """Every schema of an object in a schema."""
    if isinstance(schema, list):
        for each in schema:
            yield from objects_in(each)
    if isinstance(schema, dict):
        if schema.get("type") == "object":
            yield schema
        for each in schema.values():
            yield from objects_in(each)


def skeleton(schema: Any) -> Any:
    """What a schema demands, less the words and keywords that one converter keeps and another does not."""
    if isinstance(schema, list):
        return [skeleton(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    if "$ref" in schema and "description" in schema:
        return {"anyOf": [{"$ref": schema["$ref"]}]}
    dropped = ("description", "title", "default", "minLength", "maxLength", "discriminator")
    kept = {
        key: skeleton(each) for key, each in schema.items() if key not in dropped or isinstance(each, dict)
    }
    kept.pop("discriminator", None)
    if "oneOf" in kept:
        kept["anyOf"] = kept.pop("oneOf")
    return kept


@pytest.mark.parametrize("model", [*STRICT, *RECURSIVE])
@pytest.mark.parametrize("limits", [True, False])
def test_every_object_requires_all_it_has_and_allows_nothing_else(
    model: type[BaseModel], limits: bool
) -> None:
    strict = strict_form(model, limits=limits)
    jsonschema.Draft202012Validator.check_schema(strict)
    found = list(objects_in(strict))
    assert found
    assert all(each["additionalProperties"] is False for each in found)
    assert all(each["required"] == list(each["properties"]) for each in found)


@pytest.mark.parametrize("model", [Tube, Shop, *RECURSIVE])
def test_it_demands_what_openais_own_converter_demands(model: type[BaseModel]) -> None:
    theirs = to_strict_json_schema(TypeAdapter(model))
    ours = strict_form(model)
    if model in RECURSIVE:
        assert skeleton(ours["$defs"]) == skeleton(theirs["$defs"])
    else:
        # Theirs writes a described reference out.
        ours_defs, their_defs = skeleton(ours.pop("$defs", {})), skeleton(theirs.pop("$defs", {}))
        assert skeleton(ours) == skeleton(theirs)
        for name in their_defs.keys() - {"Tin", "Paint"}:
            assert ours_defs[name] == their_defs[name]


@pytest.mark.parametrize("model", STRICT)
def test_anthropics_own_converter_finds_nothing_it_would_have_to_drop(model: type[BaseModel]) -> None:
    ours = strict_form(model, limits=False, recursion=False)

    def without_types_of_literals(schema: Any) -> Any:
        if isinstance(schema, list):
            return [without_types_of_literals(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        literal = "enum" in schema or "const" in schema
        return {
            key: without_types_of_literals(each)
            for key, each in schema.items()
            if not (literal and key == "type")
        }

    expected = without_types_of_literals(ours)
    assert transform_schema(copy.deepcopy(expected)) == expected


@pytest.mark.parametrize("model", NEVER)
def test_what_has_no_strict_form_has_none(model: type[BaseModel]) -> None:
    assert strict_schema(schema_of(model), limits=True) is None


@pytest.mark.parametrize("model", RECURSIVE)
def test_a_schema_that_refers_to_itself_is_strict_only_where_that_is_allowed(model: type[BaseModel]) -> None:
    assert strict_schema(schema_of(model), limits=True) is not None
    assert strict_schema(schema_of(model), limits=True, recursion=False) is None


def test_schemas_that_refer_to_each_other_once_are_not_recursive() -> None:
    assert strict_schema(schema_of(Shop), limits=True, recursion=False) is not None


def test_what_cannot_be_enforced_is_told_in_words() -> None:
    strict, loose = strict_form(Paint), strict_form(Paint, limits=False)
    assert strict["properties"]["title"] == {
        "type": "string",
        "description": "maxLength: 9, minLength: 2",
    }
    assert strict["properties"]["litres"] == {"type": "number", "exclusiveMinimum": 0, "maximum": 20}
    assert loose["properties"]["litres"] == {
        "type": "number",
        "description": "exclusiveMinimum: 0, maximum: 20",
    }
    assert strict["properties"]["made"] == {"anyOf": [{"type": "string", "format": "date"}, {"type": "null"}]}
    assert strict["properties"]["tags"]["description"] == 'default: ["new"]'


def test_a_described_reference_keeps_its_description() -> None:
    assert strict_form(Tin)["properties"]["paint"] == {
        "anyOf": [{"$ref": "#/$defs/Paint"}],
        "description": "what is in it",
    }


def test_a_property_may_have_the_name_of_a_keyword() -> None:
    schema = {
        "type": "object",
        "properties": {"title": {"type": "string"}, "$ref": {"type": "string"}, "default": {"type": "null"}},
    }
    strict = strict_schema(schema, limits=False, recursion=False)
    assert strict is not None
    assert strict["required"] == ["title", "$ref", "default"]


@pytest.mark.parametrize(
    "schema",
    [
        {},
        {"type": "array", "items": {"type": "string"}},
        {"type": "object"},
        {"type": "object", "properties": {"x": {"allOf": [{"type": "string"}, {"type": "integer"}]}}},
        {"type": "object", "properties": {"x": {"type": "array"}}},
    ],
)
def test_what_is_no_closed_object_has_no_strict_form(schema: dict[str, Any]) -> None:
    assert strict_schema(schema, limits=True) is None


def test_a_single_all_of_is_merged_and_old_definitions_are_found() -> None:
    schema = {
        "type": "object",
        "properties": {"x": {"allOf": [{"$ref": "#/definitions/X"}], "description": "an x"}},
        "definitions": {"X": {"type": "integer"}},
    }
    assert strict_schema(schema, limits=False, recursion=False) == {
        "type": "object",
        "properties": {"x": {"anyOf": [{"$ref": "#/$defs/X"}], "description": "an x"}},
        "required": ["x"],
        "additionalProperties": False,
        "$defs": {"X": {"type": "integer"}},
    }
