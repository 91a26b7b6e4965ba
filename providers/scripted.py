"""A provider that replays given replies, for tests and for work without a network.

Layer: providers; imports the neutral types and prices alone.
"""

from __future__ import annotations

import asyncio
import copy
import json
import re
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any, TypeAlias

from pydantic import Field, PositiveInt, TypeAdapter, ValidationError

from palaver.providers.capabilities import check_context_window
from palaver.providers.errors import BadRequest, ConfigurationError, ProviderError
from palaver.providers.messages import Content, Message, Text, ToolResult, ToolUse, Value
from palaver.providers.prices import Price, check_given
from palaver.providers.provider import OutputBy, OutputSchema, Request, Response, StopReason
from palaver.providers.stream import Answered, Delta, TextDelta, ToolInputDelta, UsageSoFar
from palaver.providers.usage import Usage
from palaver.providers.worst_case import USEFUL_TOKENS, CountedInput, WorstCase, priced

Reply: TypeAlias = str | ToolUse | Sequence[str | ToolUse] | Message | Response | ProviderError
"""Text, one tool call, several of both, a whole message or response, or an error to raise."""

Script: TypeAlias = Callable[[Request], Reply]
"""Decides each reply from the request."""

_PIECES = re.compile(r"\s*\S+\s*$|\s*\S+|\s+")
"""Words, each with the space before it."""


class ScriptEnded(BadRequest):
    """More requests came than the script has replies."""


class Scripted:
    """Replays `replies` in order, or asks a function for each.

    Each conversation plays the script from its beginning: a pickled copy starts anew. Requests are
    kept in `requests` of the copy that got them, and appended to `record_to` (JSON lines), where given,
    which any process can read. A reply without usage of its own is charged one token per word, at
    `cost_usd` per reply; None makes its cost unknown. With a `price` instead, it costs what its tokens do.
    `output_by` is how answers of a type are asked for; the script gives them as it likes. `context_window` is
    told, and not kept to.

    A text longer than the request's `max_tokens`, or else than `max_tokens` words, is cut there, as a server
    does; tool calls are kept whole, and no more than the limit is charged. A whole `Response` stays as it is.

    Raises ConfigurationError for a `price` together with a `cost_usd` other than 0, and for a `max_tokens`
    below 1.
    """

    def __init__(
        self,
        replies: Iterable[Reply] | Script,
        *,
        model: str = "scripted",
        delay_s: float = 0.0,
        cost_usd: Decimal | int | str | None = 0,
        record_to: Path | str | None = None,
        price: Price | None = None,
        max_tokens: int | None = None,
        output_by: OutputBy = "tool",
        context_window: int | None = None,
    ) -> None:
        check_given(price)
        check_context_window(context_window)
        cost_usd = None if cost_usd is None else Decimal(cost_usd)
        if cost_usd is not None and not (cost_usd.is_finite() and cost_usd >= 0):
            raise ConfigurationError(f"cost_usd is {cost_usd}; a reply costs 0 or more, or None for unknown")
        if price is not None and cost_usd != 0:
            raise ConfigurationError(
                f"the script of {model!r} has a price and cost_usd={cost_usd}; a reply costs what its tokens "
                "do, or the same whatever it says: give one of the two"
            )
        if max_tokens is not None and max_tokens < 1:
            raise ConfigurationError(f"max_tokens is {max_tokens}; an answer needs at least 1")
        self._replies: Script | tuple[Reply, ...] = replies if callable(replies) else tuple(replies)
        self._model = model
        self._delay_s = delay_s
        self._cost_usd = cost_usd
        self._price = price
        self._max_tokens = max_tokens
        self._record_to = None if record_to is None else Path(record_to)
        self._output_by: OutputBy = output_by
        self._context_window = context_window
        self.requests: list[Request] = []

    @classmethod
    def from_file(cls, path: Path | str, **options: Any) -> Scripted:
        """Read a script from a JSON file: a list whose items are a text, a message or a response.

            ["a text", {"role": "assistant", "content": [
                {"type": "tool_use", "id": "1", "name": "add", "input": {"a": 1, "b": 2}}]}]

        Or an object with that list as `replies`, and optionally `model`, `delay_s`, `cost_usd`, `max_tokens`,
        `context_window`, as in the constructor, and `price`, {"input_usd": 0.15, "output_usd": 0.6} per
        million tokens; `options` go before them. Raises ConfigurationError when the file cannot be read or is
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
                "a list, write {replies, model, delay_s, cost_usd, price, max_tokens, "
                "context_window}"
            ) from error
        if isinstance(content, _ScriptFile):
            names = content.model_fields_set - {"replies"}
            if {"price", "cost_usd"} <= names:
                raise ConfigurationError(
                    f"script {str(path)!r} has both price and cost_usd; a reply costs what its tokens do, or "
                    "the same whatever it says: give one of the two"
                )
            given: dict[str, Any] = {name: getattr(content, name) for name in names}
            if content.price is not None:
                given["price"] = Price.per_million_tokens(content.price.input_usd, content.price.output_usd)
            return cls(content.replies, **{**given, **options})
        return cls(content, **options)

    @property
    def name(self) -> str:
        return "scripted"

    @property
    def context_window(self) -> int | None:
        """The most tokens of input and output together; None when none was given."""
        return self._context_window

    @property
    def model(self) -> str:
        return self._model

    def output_by(self, schema: OutputSchema, *, has_tools: bool) -> OutputBy:
        return self._output_by

    def worst_case(self, request: Request, counted: CountedInput | None = None) -> WorstCase:
        """The most that a reply to `request` can come to; see `BoundsCost`. Words are counted, not bytes.

        A reply that has usage of its own, a `Response` or an error, may cost up to the dearest of them; what
        a function will give cannot be known, and is taken to cost what other replies do.
        """
        input_tokens = _words_of(request)
        output_tokens = request.max_tokens or self._max_tokens
        if self._price is not None:
            worst = priced(self._price, input_tokens, output_tokens=output_tokens, cache_writes="never")
        else:
            useful = USEFUL_TOKENS if output_tokens is None else min(USEFUL_TOKENS, output_tokens)
            unknown = self._cost_usd is None
            worst = WorstCase(
                input_tokens, output_tokens, useful, self._cost_usd, None if unknown else Decimal()
            )
        own = [] if callable(self._replies) else [usage for each in self._replies if (usage := _usage(each))]
        costs = [worst.input_usd, *(usage.cost_usd for usage in own)]
        known = [cost for cost in costs if cost is not None]
        if len(known) < len(costs):
            return replace(worst, input_usd=None, usd_per_output_token=None)
        return replace(worst, input_usd=max(known))

    async def stream(self, request: Request) -> AsyncGenerator[Delta | Answered]:
        """The parts of one reply, a word at a time; see `Streams.stream`."""
        response = await self.generate(request)
        yield UsageSoFar(usage=response.usage.model_copy(update={"output_tokens": 0}))
        position = 0
        for part in response.message.content:
            if isinstance(part, Text):
                for piece in _PIECES.findall(part.text):
                    await asyncio.sleep(0)
                    yield TextDelta(text=piece)
            elif isinstance(part, ToolUse):
                yield ToolInputDelta(position=position, name=part.name, text=json.dumps(part.input))
                position += 1
        yield UsageSoFar(usage=response.usage)
        yield Answered(response=response)

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

    def anew(self) -> Scripted:
        """The same script from its beginning, for another conversation."""
        return copy.copy(self)

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
        stop_reason = StopReason.TOOL_USE if message.tool_uses else StopReason.END_TURN
        limit = request.max_tokens or self._max_tokens
        output_tokens = _words(message)
        if limit is not None and output_tokens > limit:
            whole, message, output_tokens = message, _cut(message, limit), limit
            stop_reason = stop_reason if message == whole else StopReason.MAX_TOKENS
        usage = Usage(input_tokens=_words_of(request), output_tokens=output_tokens)
        cost_usd = self._cost_usd if self._price is None else self._price.cost(usage)
        return Response(
            request_id=request.id,
            model=self._model,
            message=message,
            stop_reason=stop_reason,
            usage=usage.model_copy(update={"cost_usd": cost_usd}),
            started_at=started_at,
            ended_at=datetime.now(UTC),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "requests": []}

    def __repr__(self) -> str:
        return f"Scripted(model={self._model!r})"


class _ScriptPrice(Value):
    """USD per million tokens."""

    input_usd: Decimal = Field(ge=0)
    output_usd: Decimal = Field(ge=0)


class _ScriptFile(Value):
    """A script with how it is played."""

    replies: tuple[str | Message | Response, ...]
    model: str = "scripted"
    delay_s: float = Field(default=0.0, ge=0)
    cost_usd: Decimal | None = Field(default=Decimal(), ge=0)
    price: _ScriptPrice | None = None
    max_tokens: PositiveInt | None = None
    context_window: PositiveInt | None = None


_FILE: TypeAdapter[list[str | Message | Response] | _ScriptFile] = TypeAdapter(
    list[str | Message | Response] | _ScriptFile, config={"defer_build": True}
)


def _words_of(request: Request) -> int:
    return len(request.system.split()) + sum(map(_words, request.messages))


def _words(message: Message) -> int:
    return sum(
        len(part.text.split()) if isinstance(part, Text | ToolResult) else 1 for part in message.content
    )


def _cut(message: Message, limit: int) -> Message:
    """The message with no more words than the limit leaves to its texts; all else is kept."""
    left = limit
    kept: list[Content] = []
    for part in message.content:
        if not isinstance(part, Text):
            kept.append(part)
            left -= 1
            continue
        words = part.text.split()
        if len(words) <= left:
            kept.append(part)
        elif left > 0:
            kept.append(Text(text=" ".join(words[:left])))
        left -= len(words)
    return message.model_copy(update={"content": tuple(kept)})


def _usage(reply: Reply) -> Usage | None:
    return reply.usage if isinstance(reply, Response | ProviderError) else None
