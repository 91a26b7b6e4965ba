"""An answer that comes in parts: from server-sent events to the JSON of the whole, and what became of one
that broke off.

What had come was charged: as far as the provider told, and where it had not, reckoned at four bytes a token.

Layer: providers; the bytes come from `connection`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from palaver.providers.connection import Incoming
from palaver.providers.errors import BadResponse, ProviderError, StreamBroken, TransportFailed
from palaver.providers.http_errors import (
    IncompleteAnswer,
    Peer,
    error_from_object,
    error_object_in,
    request_id_in,
)
from palaver.providers.messages import Message
from palaver.providers.prices import Price
from palaver.providers.provider import Response
from palaver.providers.retry import Clock
from palaver.providers.sse import ServerSentEvent, SseParser
from palaver.providers.stream import (
    END,
    Assembler,
    Delta,
    TextDelta,
    ThinkingDelta,
    ToolInputDelta,
    UsageSoFar,
)
from palaver.providers.untyped import json_in, object_in
from palaver.providers.usage import Usage

BYTES_PER_TOKEN = 4

_RECKONED_EACH_BYTES = 1_024
_PING = "ping"
"""Tells that the connection stands, as comments do, and nothing of the answer (Anthropic)."""
_AFTER_THE_END_S = 5.0
"""How long to wait for what may follow an answer's end: its usage, and the end of the connection."""


@dataclass(frozen=True, slots=True)
class InParts:
    """How an answer is taken in parts."""

    assembler: Callable[[], Assembler]
    """Makes a fresh one for each try."""
    price: Price | None
    hand_out: Callable[[Delta], None] | None = None
    """Gets each part as it comes; None keeps them, and an answer that breaks off may be asked for again."""


class Reception:
    """Takes one answer. `sent_bytes` is the length of the request."""

    def __init__(
        self,
        incoming: Incoming,
        in_parts: InParts,
        peer: Peer,
        sent_bytes: int,
        *,
        patience_s: float,
        clock: Clock,
    ) -> None:
        self._incoming = incoming
        self._in_parts = in_parts
        self._assembler = in_parts.assembler()
        self._peer = peer
        self._sent_bytes = sent_bytes
        self._patience_s = patience_s
        self._clock = clock
        self._request_id = peer.shown(request_id_in(incoming.headers) or "") or None
        self._told: Usage | None = None
        self._came_bytes = 0
        self._reckoned_from = 0
        self._handed_out = False

    async def answer(self) -> dict[str, Any]:
        """The whole answer. Raises ProviderError."""
        parser = SseParser()
        self._incoming.wait_at_most(self._patience_s)
        async for chunk in self._incoming.chunks():
            for event in parser.feed(chunk):
                was_whole = self._assembler.complete
                self._take(event)
                if self._assembler.complete and not was_whole:
                    self._incoming.wait_at_most(_AFTER_THE_END_S)
                elif not was_whole and event.name != _PING:
                    self._incoming.wait_at_most(self._patience_s)
        last = parser.end()
        if last is not None and (last.data == END or object_in(json_in(last.data)) is not None):
            self._take(last)
        if not self._assembler.complete:
            raise self._incomplete("ended its stream before its answer was whole")
        return self._assembler.answer()

    def failure(
        self, error: ProviderError, read: Callable[[dict[str, Any]], Response]
    ) -> ProviderError | Response:
        """What an error comes to in the light of what had come: the answer itself where that was whole."""
        if self._assembler.complete and isinstance(error, TransportFailed):
            return read(self._assembler.answer())
        usage = error.usage or self._charged()
        if not self._handed_out:
            if usage is not None and isinstance(error, TransportFailed):
                error = self._incomplete(error.message)
            return error.retold(error.message, usage)
        return StreamBroken(
            f"{error.message}; parts of the answer were handed out already, so that it was not asked for "
            "again; the error carries them",
            error.provider,
            error.status,
            error.request_id or self._request_id,
            error.retry_after_s,
            usage,
            self._partial(read),
        )

    def _take(self, event: ServerSentEvent) -> None:
        if event.data == END:
            self._assembler.feed(END, {})
            return
        decoded = json_in(event.data, constants=True)
        error = error_object_in(decoded)
        if error is not None:
            raise error_from_object(error, self._incoming.headers, self._peer, self._clock.now())
        data = object_in(decoded)
        if data is None:
            said = self._peer.shown(event.data)
            raise self._incomplete(f"sent an event in its stream that is no JSON object: {said}")
        for delta in self._assembler.feed(event.name, data):
            self._note(delta)
            if self._in_parts.hand_out is not None:
                self._in_parts.hand_out(delta)
        if self._came_bytes and not self._assembler.complete:
            self._reckon()

    def _note(self, delta: Delta) -> None:
        if isinstance(delta, TextDelta | ThinkingDelta | ToolInputDelta):
            self._came_bytes += len(delta.text.encode())
            self._handed_out |= self._in_parts.hand_out is not None
        else:
            self._told = delta.usage

    def _reckon(self) -> None:
        """Hand out now and then what was used so far, since most providers tell it only at the end."""
        if self._in_parts.hand_out is not None and self._came_bytes >= self._reckoned_from:
            self._reckoned_from = self._came_bytes + _RECKONED_EACH_BYTES
            if (usage := self._charged()) is not None:
                self._in_parts.hand_out(UsageSoFar(usage=usage))

    def _charged(self) -> Usage | None:
        """What was charged for what had come; None when nothing had."""
        if self._told is None and not self._came_bytes:
            return None
        told = self._told or Usage(input_tokens=math.ceil(self._sent_bytes / BYTES_PER_TOKEN))
        came = math.ceil(self._came_bytes / BYTES_PER_TOKEN)
        if came <= told.output_tokens:
            return told
        usage = told.model_copy(update={"output_tokens": came, "cost_usd": None})
        price = self._in_parts.price
        return usage if price is None else usage.model_copy(update={"cost_usd": price.cost(usage)})

    def _incomplete(self, what: str) -> BadResponse:
        title = self._peer.title
        return IncompleteAnswer(
            what if what.startswith(title) else f"{title} {what}; what had come was charged",
            self._peer.provider,
            self._incoming.status,
            self._request_id,
        )

    def _partial(self, read: Callable[[dict[str, Any]], Response]) -> Message | None:
        try:
            return read(self._assembler.answer()).message
        except ProviderError:
            return None
