"""A provider that replays given replies, for tests and for work without a network.

Layer: providers; imports the neutral types alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field, TypeAdapter, ValidationError

from palaver.providers.errors import BadRequest, ConfigurationError, ProviderError
from palaver.providers.messages import Message, Text, ToolResult, ToolUse, Value
from palaver.providers.provider import OutputBy, OutputSchema, Request, Response, StopReason
from palaver.providers.usage import Usage

Reply: TypeAlias = str | ToolUse | Sequence[str | ToolUse] | Message | Response | ProviderError
"""Text, one tool call, several of both, a whole message or response, or an error to raise."""

Script: TypeAlias = Callable[[Request], Reply]
"""Decides each reply from the request."""


class ScriptEnded(BadRequest):
    """More requests came than the script has replies."""


class Scripted:
    """Replays `replies` in order, or asks a function for each.

    Each conversation plays the script from its beginning: a pickled copy starts anew. Requests are
    kept in `requests` of the copy that got them, and appended to `record_to` (JSON lines), where given,
    which any process can read. A reply without usage of its own is charged one token per word, at
    `cost_usd` per reply; None makes its cost unknown. `output_by` is how answers of a type are asked for;
    the script gives them as it likes.
    """

    def __init__(
        self,
        replies: Iterable[Reply] | Script,
        *,
        model: str = "scripted",
        delay_s: float = 0.0,
        cost_usd: Decimal | int | None = 0,
        record_to: Path | str | None = None,
        output_by: OutputBy = "tool",
    ) -> None:
        self._replies: Script | tuple[Reply, ...] = replies if callable(replies) else tuple(replies)
        self._model = model
        self._delay_s = delay_s
        self._cost_usd = None if cost_usd is None else Decimal(cost_usd)
        self._record_to = None if record_to is None else Path(record_to)
        self._output_by: OutputBy = output_by
        self.requests: list[Request] = []

    @classmethod
    def from_file(cls, path: Path | str, **options: Any) -> Scripted:
        """Read a script from a JSON file: a list whose items are a text, a message or a response.

            ["a text", {"role": "assistant", "content": [
                {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1, "b": 2}}]}]

        Or an object with that list as `replies`, and optionally `model`, `delay_s` and `cost_usd`, as in the
        constructor; `options` go before them. Raises ConfigurationError when the file cannot be read or is
        no such script.
        """
        try:
            content = _FILE.validate_json(Path(path).read_bytes())
        except OSError as error:
            raise ConfigurationError(f"script {str(path)!r} cannot be read: {error.strerror}") from error
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ConfigurationError(
                f"script {str(path)!r} is no list of replies: {first['msg']} at {list(first['loc'])}; "
                "each reply is a text, a message {role, content} or a response {message, ...}. For more than "
                "a list, write {replies, model, delay_s, cost_usd}"
            ) from error
        if isinstance(content, _ScriptFile):
            given = content.model_dump(include=content.model_fields_set - {"replies"})
            return cls(content.replies, **{**given, **options})
        return cls(content, **options)

    @property
    def name(self) -> str:
        return "scripted"

    @property
    def model(self) -> str:
        return self._model

    def output_by(self, schema: OutputSchema, *, has_tools: bool) -> OutputBy:
        return self._output_by

    async def generate(self, request: Request) -> Response:
        started_at = datetime.now(UTC)
        turn = len(self.requests)
        self.requests.append(request)
        if self._record_to is not None:
            with self._record_to.open("a") as file:
                file.write(request.model_dump_json() + "\n")
        reply = self._reply(request, turn)
        if self._delay_s:
            await asyncio.sleep(self._delay_s)
        if isinstance(reply, ProviderError):
            raise reply
        return self._response(request, reply, started_at)

    async def aclose(self) -> None:
        return None

    def _reply(self, request: Request, turn: int) -> Reply:
        if callable(self._replies):
            return self._replies(request)
        if turn >= len(self._replies):
            raise ScriptEnded(
                f"the script of {self._model!r} has {len(self._replies)} replies and got request "
                f"{turn + 1}; add a reply, or pass a function"
            )
        return self._replies[turn]

    def _response(self, request: Request, reply: Reply, started_at: datetime) -> Response:
        if isinstance(reply, Response):
            return reply.model_copy(update={"request_id": request.id})
        if isinstance(reply, Message):
            message = reply
        elif isinstance(reply, str | ToolUse):
            message = Message.assistant(reply)
        else:
            assert not isinstance(reply, ProviderError)
            message = Message.assistant(*reply)
        return Response(
            request_id=request.id,
            model=self._model,
            message=message,
            stop_reason=StopReason.TOOL_USE if message.tool_uses else StopReason.END_TURN,
            usage=Usage(
                input_tokens=len(request.system.split()) + sum(_words(m) for m in request.messages),
                output_tokens=_words(message),
                cost_usd=self._cost_usd,
            ),
            started_at=started_at,
            ended_at=datetime.now(UTC),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "requests": []}

    def __repr__(self) -> str:
        return f"Scripted(model={self._model!r})"


class _ScriptFile(Value):
    """A script with how it is played."""

    replies: tuple[str | Message | Response, ...]
    model: str = "scripted"
    delay_s: float = Field(default=0.0, ge=0)
    cost_usd: Decimal | None = Field(default=Decimal(), ge=0)


_FILE: TypeAdapter[list[str | Message | Response] | _ScriptFile] = TypeAdapter(
    list[str | Message | Response] | _ScriptFile, config={"defer_build": True}
)


def _words(message: Message) -> int:
    return sum(
        len(part.text.split()) if isinstance(part, Text | ToolResult) else 1 for part in message.content
    )
