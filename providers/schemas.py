"""Schemas of tools and answers for servers that take less than JSON Schema.

Layer: providers; pure functions on JSON.
"""

from __future__ import annotations

import json
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


_STRICT = frozenset({"type", "description", "enum", "const"})
_LIMITS = frozenset(
    {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf", "minItems", "maxItems"}
)
_FORMATS = frozenset(
    {"date-time", "date", "time", "duration", "email", "hostname", "ipv4", "ipv6", "uuid"}
)  # fmt: skip
"""What OpenAI's strict mode takes, and without the limits Anthropic's too (their SDKs' own converters,
`openai` 3.54 and `anthropic` 2.12; developers.openai.com structured-outputs, November 2026)."""
_SILENT = frozenset({"title", "$defs", "definitions", "discriminator", "examples", "required", "format"})
"""Dropped without a word; what else is dropped is told to the model in the description."""


def strict_schema(
    schema: Mapping[str, Any], *, limits: bool, recursion: bool = True
) -> dict[str, Any] | None:
    """The schema of an object in the subset that can be enforced token by token; None when it has none.

    Every property is required and no other allowed. `limits` keeps bounds of numbers and of the length of
    lists; these where it is False, and other keywords, are told to the model in the description alone.
    None for objects with any property, values of any type, tuples, more than one `allOf`, and with
    `recursion` False for a schema that refers to itself.
    """
    definitions = {**as_dict(schema.get("definitions")), **as_dict(schema.get("$defs"))}
    if not recursion and _refers_to_itself(definitions):
        return None
    try:
        strict = _strict(schema, _STRICT | _LIMITS if limits else _STRICT)
        if strict.get("type") != "object":
            return None
        if definitions:
            strict["$defs"] = {
                name: _strict(as_dict(each), _STRICT | _LIMITS if limits else _STRICT)
                for name, each in definitions.items()
            }
    except _NotStrictError:
        return None
    return strict


class _NotStrictError(Exception):
    """A schema has no strict form."""


def _strict(schema: Mapping[str, Any], kept: frozenset[str]) -> dict[str, Any]:
    all_of = as_list(schema.get("allOf"))
    if all_of:
        if len(all_of) > 1:
            raise _NotStrictError
        rest = {key: value for key, value in schema.items() if key != "allOf"}
        return _strict({**as_dict(all_of[0]), **rest}, kept)
    strict = {key: value for key, value in schema.items() if key in kept}
    told = {key: value for key, value in schema.items() if key not in kept and key not in _SILENT}
    reference = as_text(schema.get("$ref"))
    either = as_list(schema.get("anyOf")) or as_list(schema.get("oneOf"))
    if reference:
        # A reference stands alone, or as the only choice of what has a description.
        reference = reference.replace("#/definitions/", "#/$defs/")
        strict = {"anyOf": [{"$ref": reference}], **strict} if strict else {"$ref": reference}
    elif either:
        strict["anyOf"] = [_strict(as_dict(option), kept) for option in either]
    elif schema.get("type") == "object":
        strict |= _strict_object(schema, kept)
    elif schema.get("type") == "array":
        if "items" not in schema or "prefixItems" in schema:
            raise _NotStrictError
        strict["items"] = _strict(as_dict(schema["items"]), kept)
    elif not isinstance(schema.get("type"), str) and "enum" not in schema and "const" not in schema:
        raise _NotStrictError
    if schema.get("format") in _FORMATS:
        strict["format"] = schema["format"]
    elif "format" in schema:
        told["format"] = schema["format"]
    for key in ("$ref", "anyOf", "oneOf", "properties", "additionalProperties", "items"):
        told.pop(key, None)
    if told.get("default", ...) is None:
        del told["default"]
    return _with_hints(strict, told)


def _strict_object(schema: Mapping[str, Any], kept: frozenset[str]) -> dict[str, Any]:
    named = as_dict(schema.get("properties"))
    if schema.get("additionalProperties", not named) is not False or "patternProperties" in schema:
        raise _NotStrictError
    return {
        "properties": {name: _strict(as_dict(each), kept) for name, each in named.items()},
        "required": list(named),
        "additionalProperties": False,
    }


def _with_hints(schema: dict[str, Any], told: Mapping[str, Any]) -> dict[str, Any]:
    if not told or set(schema) == {"$ref"}:
        return schema
    hints = ", ".join(f"{key}: {json.dumps(value)}" for key, value in told.items())
    description = as_text(schema.get("description"))
    return {**schema, "description": f"{description} ({hints})" if description else hints}


def _refers_to_itself(definitions: Mapping[str, Any]) -> bool:
    reaches = {name: _references(each) for name, each in definitions.items()}
    for _ in definitions:
        for name, found in reaches.items():
            reaches[name] = found.union(*(reaches.get(each, set()) for each in found))
    return any(name in found for name, found in reaches.items())


def _references(schema: object) -> set[str]:
    own = as_text(as_dict(schema).get("$ref"))
    found = {own.rsplit("/", 1)[-1]} if own else set[str]()
    inner = [*as_dict(schema).values(), *as_list(schema)]
    return found.union(*(_references(each) for each in inner))
