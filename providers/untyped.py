"""Reading JSON whose shape nobody promises: each function gives its type, or a default.

Servers leave fields out, send null, or send another type than documented. A wrong shape must end in
an error with a sentence, not in a TypeError, so that adapters read through these alone.

Layer: providers; stdlib alone.
"""

from __future__ import annotations

import json
import re
from typing import Any, cast

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


def json_in(text: str, *, constants: bool = False) -> object:
    """The value of JSON text, None when it is no JSON: too deep or too long a number, for one.

    With `constants`, NaN and Infinity, which some servers write, count as null; else they are no JSON. Half a
    surrogate pair, which could neither be printed nor sent on, becomes U+FFFD.
    """
    try:
        value: object = json.loads(text, parse_constant=_null if constants else _refused)
        return _well_formed(value) if _SURROGATE.search(text) else value
    except (ValueError, RecursionError):
        return None


def object_in(value: object) -> dict[str, Any] | None:
    """The object itself, or None when it is no JSON object: for where an empty one is something else."""
    return cast("dict[str, Any]", value) if isinstance(value, dict) else None


def list_in(value: object) -> list[Any] | None:
    """The list itself, or None when it is no JSON array: for where an empty one is something else."""
    return cast("list[Any]", value) if isinstance(value, list) else None


def as_dict(value: object) -> dict[str, Any]:
    """The object itself, or {} when it is no JSON object."""
    return object_in(value) or {}


def as_list(value: object) -> list[Any]:
    """The list itself, or [] when it is no JSON array."""
    return list_in(value) or []


def as_text(value: object) -> str:
    """The text itself, or "" when it is no JSON string."""
    return value if isinstance(value, str) else ""


def count_in(value: object) -> int | None:
    """A number of things, or None when it is no whole number of at least 0: where 0 is something else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if 0 <= value < float("inf") and value == int(value) else None


def as_count(value: object) -> int:
    """A number of things, or 0 when it is no whole number of at least 0."""
    return count_in(value) or 0


def _null(_: str) -> None:
    return None


def _refused(name: str) -> None:
    raise ValueError(f"{name} is no JSON")


def _well_formed(value: object) -> object:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        items = cast("dict[str, Any]", value).items()
        return {_well_formed(key): _well_formed(each) for key, each in items}
    if isinstance(value, list):
        return [_well_formed(each) for each in cast("list[Any]", value)]
    return value
