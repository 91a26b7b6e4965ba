"""Messages in the shape every provider shares: what a conversation is made of.

Layer: providers, at the bottom; imports pydantic alone. Wire formats live in the adapters.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

ImageMediaType: TypeAlias = Literal["image/png", "image/jpeg", "image/gif", "image/webp"]

_MEDIA_TYPE_BY_SUFFIX: Mapping[str, ImageMediaType] = {
    ".png": "image/png",
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".gif": "image/gif",
    ".webp": "image/webp",
}


class Value(BaseModel):
    """Base of every value that travels between processes: frozen, closed, picklable, dumps to JSON.

    Validators are built on first use, so that a process which never validates a type never pays for it.
    """

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        defer_build=True,
        ser_json_bytes="base64",
        val_json_bytes="base64",
    )


class Text(Value):
    """A piece of plain text. `extra` is as in ToolUse: citations, for one."""

    type: Literal["text"] = "text"
    text: str
    origin: str = Field(default="", repr=False)
    extra: dict[str, Any] = Field(default_factory=dict, repr=False)


class Image(Value):
    """A picture, carried by value."""

    type: Literal["image"] = "image"
    media_type: ImageMediaType
    data: bytes = Field(repr=False)

    @classmethod
    def from_path(cls, path: Path | str) -> Image:
        """Read a picture from a file; its media type follows from the file's suffix.

        Raises ValueError for a suffix other than .png, .jpg, .jpeg, .gif, .webp, and OSError
        when the file cannot be read.
        """
        path = Path(path)
        media_type = _MEDIA_TYPE_BY_SUFFIX.get(path.suffix.lower())
        if media_type is None:
            known = ", ".join(_MEDIA_TYPE_BY_SUFFIX)
            raise ValueError(f"image {str(path)!r} has suffix {path.suffix!r}; use one of {known}")
        return cls(media_type=media_type, data=path.read_bytes())


class Thinking(Value):
    """Reasoning the model showed before its answer.

    `raw` is the provider's own block. It goes back unchanged to the provider named by `origin`
    and to no other, because it may be signed or encrypted.
    """

    type: Literal["thinking"] = "thinking"
    text: str = ""
    origin: str
    raw: dict[str, Any] = Field(repr=False)


class Opaque(Value):
    """A block only its provider understands; replayed unchanged to the provider named by `origin`."""

    type: Literal["opaque"] = "opaque"
    origin: str
    raw: dict[str, Any] = Field(repr=False)


class ToolUse(Value):
    """The model's call of one tool.

    `id` is unique within the conversation. `wire_id` is the id the provider used, when that differs
    (some send none, some repeat theirs); it is what goes back to the provider. `malformed_input` is
    the text of arguments that were no JSON object; `input` is then empty. `extra` holds fields of the
    call that only its provider (`origin`) knows, replayed to it unchanged.
    """

    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any] = Field(default_factory=dict)
    malformed_input: str | None = None
    wire_id: str | None = None
    origin: str = ""
    extra: dict[str, Any] = Field(default_factory=dict, repr=False)


class ToolResult(Value):
    """What one tool call gave back. `started_at` and `ended_at` are None when the tool never ran."""

    type: Literal["tool_result"] = "tool_result"
    tool_use_id: str
    content: tuple[Annotated[Text | Image, Field(discriminator="type")], ...] = ()
    is_error: bool = False
    started_at: datetime | None = None
    ended_at: datetime | None = None

    @property
    def text(self) -> str:
        """All text of the result, pieces joined by newlines."""
        return "\n".join(part.text for part in self.content if isinstance(part, Text))


Content: TypeAlias = Annotated[
    Text | Image | Thinking | Opaque | ToolUse | ToolResult, Field(discriminator="type")
]


class Message(Value):
    """One turn of one side. A user message may hold tool results; an assistant message tool uses."""

    role: Literal["user", "assistant"]
    content: tuple[Content, ...] = ()

    @classmethod
    def user(cls, *parts: str | Content) -> Message:
        """A user message of texts and contents, in the order given."""
        return cls(role="user", content=tuple(_as_content(part) for part in parts))

    @classmethod
    def assistant(cls, *parts: str | Content) -> Message:
        """An assistant message of texts and contents, in the order given."""
        return cls(role="assistant", content=tuple(_as_content(part) for part in parts))

    @property
    def text(self) -> str:
        """All text of the message, pieces joined by newlines."""
        return "\n".join(part.text for part in self.content if isinstance(part, Text))

    @property
    def tool_uses(self) -> tuple[ToolUse, ...]:
        """The tool calls in this message, in order."""
        return tuple(part for part in self.content if isinstance(part, ToolUse))

    @property
    def tool_results(self) -> tuple[ToolResult, ...]:
        """The tool results in this message, in order."""
        return tuple(part for part in self.content if isinstance(part, ToolResult))


def _as_content(part: str | Content) -> Content:
    return Text(text=part) if isinstance(part, str) else part
