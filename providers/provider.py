"""The exchange every provider offers: a request in, a response out.

Layer: providers; imports the neutral types alone. Adapters implement `Provider` and never import
each other.
"""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from pydantic import Field, PositiveInt, field_validator
from ulid import ULID

from palaver.providers.messages import Message, Value
from palaver.providers.usage import Usage


def new_request_id() -> str:
    """A fresh request id: a ULID, so that ids sort by time."""
    return str(ULID())


class ToolSpec(Value):
    """A tool as the model sees it: its name, what it does, and the JSON schema of its input."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    description: str = ""
    input_schema: dict[str, Any]

    @field_validator("input_schema")
    @classmethod
    def _input_is_an_object(cls, schema: dict[str, Any]) -> dict[str, Any]:
        if schema.get("type") != "object":
            raise ValueError(
                f"input schema has type {schema.get('type')!r}; a tool's input is a JSON object, "
                "so its schema needs type 'object'"
            )
        return schema


class ToolChoice(Value):
    """Whether the model may, must, or must not call tools.

    `name` goes with type "tool" alone. `parallel=False` asks for at most one call in a response.
    """

    type: Literal["auto", "any", "none", "tool"] = "auto"
    name: str | None = None
    parallel: bool = True


class OutputSchema(Value):
    """What the text of an answer has to be: JSON that fits the schema of an object. The model sees `name`."""

    name: str = Field(default="answer", pattern=r"^[a-zA-Z0-9_-]{1,64}$")
    json_schema: dict[str, Any]


OutputBy: TypeAlias = Literal["schema", "tool"]
"""How a model gives an answer of a type: as text held to a schema, or as the input of a tool."""


class Request(Value):
    """One request to a model, complete in itself.

    `tool_choice` None leaves the choice to the provider. `max_tokens` None means the provider's
    default. `prompt_caching` asks for the system prompt, the tools and the messages so far to be
    cached, where the provider needs to be asked. `output_schema` holds the text of the answer, not the
    tool calls before it; it is sent by providers that have an `output_by` (see `TakesOutputSchema`).
    `retry_charged` is whether the provider may try again by itself after a try that was, or may have been,
    charged; False: it raises that error, with its usage, so that whoever keeps a budget can reserve anew.
    """

    id: str = Field(default_factory=new_request_id)
    messages: tuple[Message, ...]
    system: str = ""
    tools: tuple[ToolSpec, ...] = ()
    tool_choice: ToolChoice | None = None
    max_tokens: PositiveInt | None = None
    prompt_caching: bool = False
    output_schema: OutputSchema | None = None
    retry_charged: bool = True


def demanded_alone(request: Request) -> tuple[ToolSpec, ...]:
    """The one tool that has to be called, for a server that passes over its name; all where there is none."""
    choice = request.tool_choice
    if choice is None or choice.type != "tool":
        return request.tools
    return tuple(tool for tool in request.tools if tool.name == choice.name) or request.tools


class StopReason(StrEnum):
    """Why the model stopped."""

    END_TURN = "end_turn"
    TOOL_USE = "tool_use"
    MAX_TOKENS = "max_tokens"
    STOP_SEQUENCE = "stop_sequence"
    REFUSAL = "refusal"
    PAUSE = "pause"
    CONTEXT_FULL = "context_full"


class Response(Value):
    """A model's answer.

    `usage` covers every try that the provider charged for, not only the last. `id` is the provider's
    id of the answer, empty when it gave none. `stop_detail` is what it said of a refusal, empty when nothing.
    """

    id: str = ""
    request_id: str = ""
    model: str = ""
    message: Message
    stop_reason: StopReason = StopReason.END_TURN
    stop_detail: str = ""
    usage: Usage = Usage()
    started_at: datetime | None = None
    ended_at: datetime | None = None


@runtime_checkable
class Provider(Protocol):
    """Something that answers requests. It is pickled into every conversation that uses it."""

    @property
    def name(self) -> str:
        """Who answers, for people: "anthropic", "openai", "local"."""
        ...

    @property
    def model(self) -> str:
        """The model's id, as the provider knows it."""
        ...

    async def generate(self, request: Request) -> Response:
        """Answer one request.

        Raises ProviderError. Cancelling the coroutine stops it at once, retries and waits included.
        """
        ...

    async def aclose(self) -> None:
        """Give back connections and whatever else is held. Harmless when called twice."""
        ...


@runtime_checkable
class StartsAnew(Protocol):
    """What a provider has besides when it keeps something of each conversation, as its place in a script.

    Conversations that share a process share a provider without it.
    """

    def anew(self) -> Provider:
        """The same provider for another conversation."""
        ...


@runtime_checkable
class TakesOutputSchema(Protocol):
    """What a provider has besides when it can hold an answer to a schema; one without it never does."""

    def output_by(self, schema: OutputSchema, *, has_tools: bool) -> OutputBy:
        """How the model is to give an answer that fits `schema`, in requests with tools or without."""
        ...
