"""Tool schemas for servers that take less than JSON Schema.

Layer: providers; pure functions on JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palaver.providers.untyped import as_dict, as_list, as_text

_KEPT = frozenset(
    {"type", "description", "enum", "format", "nullable", "minimum", "maximum", "minItems", "maxItems",
     "minLength", "maxLength", "pattern", "required"}
)  # fmt: skip
"""Taken by every server seen; $ref, additionalProperties and others are refused by some (litellm#6136,
pydantic-ai#10243, November 2026)."""


def plain_schema(schema: Mapping[str, Any]) -> dict[str, Any]:
    """The schema without what some servers refuse: references are written out, other keywords dropped.

    A schema that refers to itself is cut where it would repeat. What is dropped no longer guides the
    model; the tool validates its input all the same.
    """
    return _plain(schema, {**as_dict(schema.get("definitions")), **as_dict(schema.get("$defs"))}, ())


def _plain(
    schema: Mapping[str, Any], definitions: Mapping[str, Any], path: tuple[str, ...]
) -> dict[str, Any]:
    reference = as_text(schema.get("$ref"))
    if reference:
        name = reference.rsplit("/", 1)[-1]
        if name in path:
            return {"type": "object"}
        beside = {key: value for key, value in schema.items() if key != "$ref"}
        return _plain({**as_dict(definitions.get(name)), **beside}, definitions, (*path, name))
    plain = {key: value for key, value in schema.items() if key in _KEPT}
    if "const" in schema:
        plain["enum"] = [schema["const"]]
        if isinstance(schema["const"], str):
            plain.setdefault("type", "string")  # Gemini wants a type beside every enum
    properties = as_dict(schema.get("properties"))
    if properties:
        plain["properties"] = {
            name: _plain(as_dict(of_property), definitions, path) for name, of_property in properties.items()
        }
    if "items" in schema:
        plain["items"] = _plain(as_dict(schema["items"]), definitions, path)
    either = as_list(schema.get("anyOf")) or as_list(schema.get("oneOf"))
    if either:
        plain["anyOf"] = [_plain(as_dict(option), definitions, path) for option in either]
    for part in as_list(schema.get("allOf")):
        plain = {**_plain(as_dict(part), definitions, path), **plain}
    return plain
