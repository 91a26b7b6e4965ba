"""How a tool call ended, and what of a tool's return value a model gets to see.

Layer: tools; no Ray.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, cast

from pydantic_core import PydanticSerializationError, to_json, to_jsonable_python

from palaver.providers.messages import Image, Text, ToolResult
from palaver.tools.call import Job, ToolCallInfo
from palaver.tools.errors import DoNotRespond, ToolError, ToolOutputInvalid, ToolRaised
from palaver.tools.limits import ToolLimits
from palaver.tools.stopped import Stopped

MAX_IMAGE_BYTES = 5_000_000
"""Anthropic's limit for one image (docs.anthropic.com, build-with-claude/vision, November 2026)."""

MAX_ERROR_CHARS = 10_000
"""Of a longer error text the model gets the start and the end."""


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True, slots=True)
class Outcome:
    """How one tool call ended: with content, with an error, or with `respond` False and no result.

    `state` is what the call changed in the conversation's state (None removes a key), `jobs` what is to go
    on in the background. `stopped` tells how it was stopped, when it was. `asks_approval` is for a call
    that has not run, because it needs a yes first.
    """

    content: tuple[Text | Image, ...] = ()
    error: ToolError | None = None
    respond: bool = True
    state: Mapping[str, Any] = field(default_factory=dict[str, Any])
    jobs: tuple[Job, ...] = ()
    stopped: Stopped | None = None
    asks_approval: bool = False
    started_at: datetime | None = None
    ended_at: datetime = field(default_factory=_now)

    @classmethod
    def of_value(
        cls,
        info: ToolCallInfo,
        value: object,
        state_before: Mapping[str, Any],
        limits: ToolLimits,
        started_at: datetime | None = None,
    ) -> Outcome:
        """How a call ended that returned `value`. Raises ToolOutputInvalid for what cannot travel."""
        return cls(
            content=to_content(info.tool_name, value, limits.output_bytes),
            state=_changes(info, state_before),
            jobs=tuple(info.jobs),
            started_at=started_at,
        )

    @classmethod
    def of_error(cls, tool_name: str, error: BaseException, started_at: datetime | None = None) -> Outcome:
        """How a call ended that raised `error`.

        What it holds is of palaver's own classes alone, so that it can be unpickled everywhere.
        """
        match error:
            case DoNotRespond():
                return cls(respond=False, started_at=started_at)
            case ToolError() if type(error).__module__ == ToolError.__module__:
                kind, text = type(error), str(error)
            case _:
                kind, text = ToolRaised, f"tool {tool_name!r} raised {_described(error)}"
        return cls(error=kind(tool_name, _bounded(text)), started_at=started_at)

    def to_result(self, tool_use_id: str) -> ToolResult:
        """The result the model gets: the content, or the error's text."""
        return ToolResult(
            tool_use_id=tool_use_id,
            content=self.content if self.error is None else (Text(text=_sendable(str(self.error))),),
            is_error=self.error is not None,
            started_at=self.started_at,
            ended_at=self.ended_at,
        )


def to_content(tool_name: str, value: object, max_output_bytes: int) -> tuple[Text | Image, ...]:
    """A tool's return value as contents: text and images as they are, anything else as JSON.

    A list or tuple that holds an Image or a Text becomes one content per item. Half characters
    (surrogates, as in names of files that are no UTF-8) become U+FFFD in text. Raises ToolOutputInvalid
    when the value cannot be dumped to JSON, when all text together takes more than `max_output_bytes` of
    UTF-8, or an image more than MAX_IMAGE_BYTES.
    """
    content = tuple(_content(tool_name, part) for part in _parts(value))
    size = sum(len(part.text.encode()) for part in content if isinstance(part, Text))
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


def _changes(info: ToolCallInfo, before: Mapping[str, Any]) -> dict[str, Any]:
    """What a call has put into the state or taken from it (None), as JSON values."""
    changed = {key: value for key, value in info.state.items() if key not in before or before[key] != value}
    gone = {key: None for key in before if key not in info.state}
    try:
        return cast("dict[str, Any]", to_jsonable_python({**changed, **gone}))
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise ToolOutputInvalid(
            info.tool_name,
            f"tool {info.tool_name!r} put into the conversation's state what is not JSON: {error}",
        ) from error


def _parts(value: object) -> Sequence[object]:
    if isinstance(value, list | tuple):
        items = cast("Sequence[object]", value)
        if any(isinstance(item, Text | Image) for item in items):
            return items
    return (cast("object", value),)


def _content(tool_name: str, value: object) -> Text | Image:
    if isinstance(value, Text | Image):
        return value
    if isinstance(value, str):
        return Text(text=_sendable(value))
    if inspect.iscoroutine(value):
        value.close()
        raise ToolOutputInvalid(
            tool_name, f"tool {tool_name!r} returned a coroutine without awaiting it; write it `async def`"
        )
    try:
        return Text(text=_as_json(value))
    except (PydanticSerializationError, TypeError, ValueError, RecursionError) as error:
        raise ToolOutputInvalid(
            tool_name,
            f"tool {tool_name!r} returned a {type(value).__qualname__} that cannot be dumped to JSON: "
            f"{error}. A tool returns text, images, or values of JSON's types, dataclasses or pydantic "
            "models.",
        ) from error


def _as_json(value: Any) -> str:
    try:
        return to_json(value, inf_nan_mode="strings").decode()
    except PydanticSerializationError as error:
        if "surrogates not allowed" not in str(error):
            raise
        # Such text has no UTF-8, but JSON can spell it in ASCII.
        return json.dumps(to_jsonable_python(value, inf_nan_mode="strings"), separators=(",", ":"))


def _sendable(text: str) -> str:
    """The text with every half of a character joined to its other half, or replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def _described(error: BaseException) -> str:
    """The error's type and text, and those of the errors in a group."""
    name = type(error).__name__
    try:
        text = str(error)
    except Exception as again:
        text = f"(no text: its __str__ raised {type(again).__name__})"
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        text += ": " + "; ".join(_described(each) for each in group.exceptions)
    return f"{name}: {text}" if text else name


def _bounded(text: str) -> str:
    if len(text) <= MAX_ERROR_CHARS:
        return text
    half = MAX_ERROR_CHARS // 2
    return f"{text[:half]}\n[{len(text) - 2 * half} characters left out]\n{text[-half:]}"
