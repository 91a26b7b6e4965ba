"""Posts JSON to a provider: one request, its bounded retries, and an error of `errors` when all fail.

What may be charged twice is not sent twice. A request that never left whole (refused connection, failed
name look-up, cut while sending) and one that the server refused for the moment (429, 5xx) are
retried. One that was sent whole and got no whole answer (time-out, cut connection) may have been
answered and charged: it fails with AnswerLost, unless `RetryPolicy.retry_lost_answers` says otherwise.
`Request.retry_charged` False rules out both that and another try after one that was charged.

A stream that breaks off before anything of it was handed out is tried again, since what it was charged is
known or can be reckoned; after that it fails with StreamBroken.

Layer: providers. tenacity is imported at the first request, as httpx is: time and memory which a process that
only builds providers need not pay.
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
    Overloaded,
    ProviderError,
    RateLimited,
)
from palaver.providers.http_errors import (
    AnswerLost,
    MalformedCall,
    Peer,
    error_from_object,
    error_from_status,
    error_object_in,
    request_id_in,
)
from palaver.providers.provider import Response
from palaver.providers.rate_limits import Gate, Lane, Outcome, RateLimits, Told
from palaver.providers.reception import BYTES_PER_TOKEN, InParts, Reception
from palaver.providers.retry import Clock, Retry, RetryPolicy, TellRetry
from palaver.providers.retry_hints import used_up_s
from palaver.providers.untyped import object_in
from palaver.providers.usage import Usage

if TYPE_CHECKING:
    import httpx
    from tenacity import RetryCallState

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
        from tenacity import AsyncRetrying, retry_if_exception

        content = self._encoded(body)
        self._connection.prepare()  # before the gate: what is let through is to be sent at once
        began_s = self._clock.monotonic_s()
        in_line_s = 0.0
        attempts = useless = 0
        charged: list[Usage] = []
        sending = _Sending(self._gate, self._lane, _tokens_at_most(body, content), self._retry.max_wait_s)

        async def attempt() -> Response:
            nonlocal attempts, in_line_s
            entered_s = self._clock.monotonic_s()
            async with sending:
                in_line_s += self._clock.monotonic_s() - entered_s
                attempts += 1
                return await charging_attempt()

        async def charging_attempt() -> Response:
            nonlocal useless
            try:
                response = await self._attempt(path, content, read, sending, in_parts)
                sending.answered(response.usage)
                return response
            except ProviderError as error:
                if error.usage is not None:
                    charged.append(error.usage)
                if error.usage is not None or isinstance(error, MalformedCall):
                    useless += 1  # the model wrote something, told or not
                raise

        def may_retry(error: BaseException) -> bool:
            if isinstance(error, AnswerLost):
                return self._retry.retry_lost_answers and retry_charged
            most = self._retry.max_charged_retries if retry_charged or not charged else 0
            affordable = useless <= most
            return isinstance(error, ProviderError) and error.retryable and affordable

        def must_stop(state: RetryCallState) -> bool:
            # Time in the line is no time of trying.
            next_s = self._clock.monotonic_s() - began_s - in_line_s + state.upcoming_sleep
            return attempts >= self._retry.max_attempts or next_s > self._retry.max_total_s

        def wait_s(state: RetryCallState) -> float:
            if self._gate is not None and isinstance(_failure(state), RateLimited | Overloaded):
                return 0.0  # the gate holds it, and all others
            return self._retry.wait_s(attempts, _asked_s(state), self._clock.jitter())

        async def before_sleep(state: RetryCallState) -> None:
            error, next_s = _failure(state), state.upcoming_sleep
            _log.info("attempt %d failed, next in %.1f s: %s", attempts, next_s, error)
            tell = self._telling.get(request_id)
            if tell is not None and isinstance(error, ProviderError):
                await tell(Retry(error, attempts, next_s))

        retrying = AsyncRetrying(
            sleep=self._clock.sleep,
            retry=retry_if_exception(may_retry),
            wait=wait_s,
            stop=must_stop,
            before_sleep=before_sleep,
            reraise=True,
        )
        try:
            response: Response = await retrying(attempt)
        except ProviderError as error:
            failure = error
        else:
            return response.model_copy(update={"usage": sum(charged, response.usage)})
        elapsed_s = self._clock.monotonic_s() - began_s
        tries = f"; gave up after {attempts} tries in {elapsed_s:.1f} s" if attempts > 1 else ""
        raise failure.retold(failure.message + tries, sum(charged[1:], charged[0]) if charged else None)

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Harmless when called twice."""
        await self._connection.aclose()

    async def _attempt(
        self,
        path: str,
        content: bytes,
        read: Callable[[dict[str, Any]], Response],
        sending: _Sending,
        in_parts: InParts | None,
    ) -> Response:
        reception: Reception | None = None
        request_id: str | None = None

        async def take(incoming: Incoming) -> Response:
            nonlocal reception, request_id
            request_id = self.peer.shown(request_id_in(incoming.headers) or "") or None
            sending.hold_s = used_up_s(incoming.headers, self._clock.now()) or 0.0
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
        try:
            answer: object = json.loads(text)
        except (ValueError, RecursionError):
            answer = None
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


class _Sending:
    """The tries of one request at the gate, if there is one; each tells how it ended."""

    def __init__(self, gate: Gate | None, lane: Lane | None, tokens: int, longest_hold_s: float) -> None:
        self._gate = gate
        self._lane = lane
        self._tokens = tokens
        self._longest_hold_s = longest_hold_s
        self._ticket: str | None = None
        self._was_refused = False
        self._used: int | None = None
        self.hold_s = 0.0
        """How long the answer's headers say that nobody should ask again."""

    def answered(self, usage: Usage) -> None:
        """The try was answered, and used so much."""
        self._used = usage.total_input_tokens + usage.output_tokens or None

    async def __aenter__(self) -> None:
        self._used, self.hold_s = None, 0.0
        if self._gate is not None and self._lane is not None:
            self._ticket = await self._gate.enter(self._lane, self._tokens, again=self._was_refused)

    async def __aexit__(self, kind: object, error: BaseException | None, _: object) -> None:
        if self._gate is None or self._ticket is None:
            return
        asked_s = self.hold_s
        match error:
            case None:
                outcome = Outcome.ANSWERED
            case RateLimited():
                outcome = Outcome.REFUSED
            case Overloaded():
                outcome = Outcome.OVERLOADED
            case _:
                outcome = Outcome.FAILED
        if isinstance(error, RateLimited | Overloaded):
            asked_s = max(asked_s, error.retry_after_s or 0.0)
        self._was_refused = outcome in (Outcome.REFUSED, Outcome.OVERLOADED)
        ticket, self._ticket = self._ticket, None
        self._gate.leave(ticket, Told(outcome, min(asked_s, self._longest_hold_s), self._used))


def _tokens_at_most(body: Mapping[str, Any], content: bytes) -> int:
    """About how many tokens a request counts as before it is answered: a limit a minute counts them then."""
    output = body.get("max_tokens") or body.get("max_completion_tokens") or _USUAL_OUTPUT_TOKENS
    return len(content) // BYTES_PER_TOKEN + int(output)


def _failure(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def _asked_s(state: RetryCallState) -> float | None:
    error = _failure(state)
    return error.retry_after_s if isinstance(error, ProviderError) else None
