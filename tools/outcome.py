"""How a tool call ended, and what of a tool's return value a model gets to see.

Layer: tools; no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from pydantic_core import PydanticSerializationError, to_json

from palaver.providers.messages import Image, Text, ToolResult
from palaver.tools.errors import ToolError, ToolOutputInvalid

MAX_IMAGE_BYTES = 5_000_000
"""Anthropic's limit for one image (docs.anthropic.com, build-with-claude/vision, November 2026)."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one tool call ended: with content, with an error, or with `respond` False and no result."""

    content: tuple[Text | Image, ...] = ()
    error: ToolError | None = None
    respond: bool = True
    started_at: datetime | None = None
    ended_at: datetime = field(default_factory=_now)

    def to_result(self, tool_use_id: str) -> ToolResult:
        """The result the model gets: the content, or the error's text."""
        return ToolResult(
            tool_use_id=tool_use_id,
            content=self.content if self.error is None else (Text(text=str(self.error)),),
            is_error=self.error is not None,
            started_at=self.started_at,
            ended_at=self.ended_at,
        )


def to_content(tool_name: str, value: object, max_output_bytes: int) -> tuple[Text | Image, ...]:
    """A tool's return value as contents: text and images as they are, anything else as JSON.

    A list or tuple that holds an Image or a Text becomes one content per item. Raises ToolOutputInvalid when the value cannot be dumped to JSON, when all text together
    takes more than `max_output_bytes` of UTF-8, or an image more than MAX_IMAGE_BYTES.
    """
    content = tuple(_content(tool_name, part) for part in _parts(value))
    size = sum(len(part.text.encode(errors="replace")) for part in content if isinstance(part, Text))
    if size > max_output_bytes:
        raise ToolOutputInvalid(
            tool_name,
            f"tool {tool_name!r} returned {size} bytes of text; the limit is {max_output_bytes}. "
            "Ask it for less, or for a part at a time.",
        )
    for part in content:
        if isinstance(part, Image) and len(part.data) > MAX_IMAGE_BYTES:
            raise ToolOutputInvalid(
                tool_name,
                f"tool {tool_name!r} returned an image of {len(part.data)} bytes; the limit is "
                f"{MAX_IMAGE_BYTES}. It needs a smaller picture.",
            )
    return content


def _parts(value: object) -> Sequence[object]:
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        if any(isinstance(item, Text | Image) for item in items):
            return items
    return (value,)


def _content(tool_name: str, value: object) -> Text | Image:
    if isinstance(value, Text | Image):
        return value
    if isinstance(value, str):
        return Text(text=value)
    try:
        return Text(text=to_json(value, inf_nan_mode="strings").decode())
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise ToolOutputInvalid(
            tool_name,
            f"tool {tool_name!r} returned a {_type_name(value)} that cannot be dumped to JSON: {error}. "
            "A tool returns text, images, or values of JSON's types, dataclasses or pydantic models.",
        ) from error


def _type_name(value: Any) -> str:
    return type(value).__qualname__
