"""Posts JSON to a provider and reads what answers, whole or in parts.

Layer: providers; the connection is in `connection`, when a request is sent again in `tries`.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from palaver.providers.connection import Connection, Incoming
from palaver.providers.errors import (
    BadRequest,
    BadResponse,
    ProviderError,
)
from palaver.providers.http_errors import (
    Peer,
    error_from_object,
    error_from_status,
    error_object_in,
    request_id_in,
)
from palaver.providers.provider import Response
from palaver.providers.rate_limits import Gate, Lane, RateLimits
from palaver.providers.reception import BYTES_PER_TOKEN, InParts, Reception
from palaver.providers.retry import Clock, RetryPolicy, TellRetry
from palaver.providers.retry_hints import used_up_s
from palaver.providers.tries import Passage, Tries
from palaver.providers.untyped import json_in, object_in

if TYPE_CHECKING:
    import httpx

_log = logging.getLogger(__name__)

_USUAL_OUTPUT_TOKENS = 1_000
"""What a request is taken for in a limit of tokens a minute, until its answer tells: English text, and an
answer of which nothing is known."""


class Endpoint:
    """One base URL with its key: sends requests there and reads their answers.

    It pickles at any time (connections and gate stay behind), and may be used from several event loops in
    turn. `timeout_s` bounds a whole answer, or the wait for each part of one that comes in parts.
    `transport` replaces the network, for tests.
    """

    def __init__(
        self,
        peer: Peer,
        base_url: str,
        *,
        key_header: str = "authorization",
        headers: Mapping[str, str] | None = None,
        retry: RetryPolicy,
        timeout_s: float,
        rate_limits: RateLimits | None = None,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self.peer = peer
        self._retry = retry
        self._clock = clock or Clock()
        self._timeout_s = timeout_s
        self._connection = Connection(
            peer,
            base_url,
            key_header=key_header,
            headers=headers,
            timeout_s=timeout_s,
            advice_when_lost=""
            if retry.retry_lost_answers
            else "; it is not sent twice, unless RetryPolicy(retry_lost_answers=True) allows it",
            transport=transport,
        )
        self._telling: dict[str, TellRetry] = {}
        self._gate: Gate | None = None
        self._lane = None if rate_limits is None else Lane(self._lane_name(), rate_limits)

    @property
    def rate_limits(self) -> RateLimits | None:
        """What is known of the limits; None when none are kept."""
        return None if self._lane is None else self._lane.limits

    def through(self, gate: Gate | None) -> None:
        """Send through a gate from now on, if there are rate limits; None sends without."""
        self._gate = None if self._lane is None else gate

    @contextmanager
    def telling(self, request_id: str, tell: TellRetry) -> Generator[None]:
        """Tell of the retries of one request; see `TellsRetries`."""
        self._telling[request_id] = tell
        try:
            yield
        finally:
            del self._telling[request_id]

    def _lane_name(self) -> str:
        key = "" if self.peer.key is None else self.peer.key.reveal()
        return f"{self.peer.provider} {self.host} {self.peer.model} {sha256(key.encode()).hexdigest()[:12]}"

    @property
    def host(self) -> str:
        """Host and port, without what else a base URL may hold: user name, password, query."""
        return self._connection.host

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[dict[str, Any]], Response],
        *,
        request_id: str = "",
        retry_charged: bool = True,
        in_parts: InParts | None = None,
    ) -> Response:
        """Post `body` and give the JSON object that comes back to `read`.

        `read` may raise ProviderError, which is retried like any other. The response's usage covers
        every try that was charged. `retry_charged` False ends it with the first try that was, or may have
        been, charged, whatever the policy says. With `in_parts`, of a body that asks for a stream, the
        object is put together from its parts, and nothing is tried again once one was handed out.
        `request_id` is ours, under which `telling` tells of retries.
        Raises ProviderError; when cancelled, stops at once.
        """
        content = self._encoded(body)
        self._connection.prepare()  # before the gate: what is let through is to be sent at once
        passage = Passage(self._gate, self._lane, _tokens_at_most(body, content), self._retry.max_wait_s)

        async def once() -> Response:
            return await self._attempt(path, content, read, passage, in_parts)

        tries = Tries(
            self._retry, self._clock, passage, self._telling.get(request_id), retry_charged=retry_charged
        )
        return await tries.made(once)

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Harmless when called twice."""
        await self._connection.aclose()

    async def _attempt(
        self,
        path: str,
        content: bytes,
        read: Callable[[dict[str, Any]], Response],
        passage: Passage,
        in_parts: InParts | None,
    ) -> Response:
        reception: Reception | None = None
        request_id: str | None = None

        async def take(incoming: Incoming) -> Response:
            nonlocal reception, request_id
            request_id = self.peer.shown(request_id_in(incoming.headers) or "") or None
            passage.hold_s = used_up_s(incoming.headers, self._clock.now()) or 0.0
            is_stream = incoming.headers.get("content-type", "").startswith("text/event-stream")
            if in_parts is None or not is_stream or not 200 <= incoming.status < 300:
                return read(self._object_in(incoming.status, incoming.headers, await incoming.whole()))
            reception = Reception(
                incoming, in_parts, self.peer, len(content), patience_s=self._timeout_s, clock=self._clock
            )
            return read(await reception.answer())

        try:
            return await self._connection.post(path, content, take, in_parts=in_parts is not None)
        except ProviderError as error:
            failure = error if reception is None else reception.failure(error, read)
        if isinstance(failure, Response):
            return failure
        raise failure.identified(request_id)

    def _object_in(self, status: int, headers: Mapping[str, str], raw: bytes) -> dict[str, Any]:
        """The JSON object of a whole answer. Raises ProviderError for any other answer."""
        text = raw.decode(errors="replace")
        if not 200 <= status < 300:
            raise error_from_status(status, headers, text, self.peer, self._clock.now())
        answer = json_in(text, constants=True)
        error = error_object_in(answer)
        if error is not None:
            raise error_from_object(error, headers, self.peer, self._clock.now())
        decoded = object_in(answer)
        if decoded is None:
            said = self.peer.shown(text) or "an empty body"
            raise BadResponse(
                f"{self.peer.title} answered HTTP {status} with no JSON object: {said}; check base_url",
                self.peer.provider,
                status,
            )
        return decoded

    def _encoded(self, body: Mapping[str, Any]) -> bytes:
        try:
            return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
        except (ValueError, TypeError) as error:
            reason = str(error)
        raise BadRequest(
            f"the request to {self.peer.title} is no JSON: {reason}; nothing was sent", self.peer.provider
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_gate": None, "_telling": {}}

    def __repr__(self) -> str:
        return f"Endpoint({self.host!r})"


def _tokens_at_most(body: Mapping[str, Any], content: bytes) -> int:
    """About how many tokens a request counts as before it is answered: a limit a minute counts them then."""
    bounds = (body.get(name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens"))
    return len(content) // BYTES_PER_TOKEN + int(next(filter(None, bounds), _USUAL_OUTPUT_TOKENS))
