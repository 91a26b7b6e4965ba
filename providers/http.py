"""Posts JSON to a provider: one request, its bounded retries, and an error of `errors` when all fail.

What may be charged twice is not sent twice. A request that never left whole (refused connection, failed
name look-up, cut while sending) and one that the server refused for the moment (429, 5xx) are
retried. One that was sent whole and got no whole answer (time-out, cut connection) may have been
answered and charged: it fails with AnswerLost, unless `RetryPolicy.retry_lost_answers` says otherwise.
`Request.retry_charged` False rules out both that and another try after one that was charged.

Layer: providers. httpx and tenacity are imported at the first request: time and memory which a process
that only builds providers need not pay.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import logging
import sys
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit
from weakref import WeakKeyDictionary

from palaver.providers.errors import (
    BadRequest,
    BadResponse,
    ConfigurationError,
    Overloaded,
    ProviderError,
    RateLimited,
    TransportFailed,
)
from palaver.providers.http_errors import (
    AnswerLost,
    Peer,
    error_from_object,
    error_from_status,
    error_object_in,
)
from palaver.providers.provider import Response
from palaver.providers.rate_limits import Gate, Lane, Outcome, RateLimits, Told
from palaver.providers.retry import Clock, RetryPolicy
from palaver.providers.retry_hints import used_up_s
from palaver.providers.untyped import object_in
from palaver.providers.usage import Usage

if TYPE_CHECKING:
    import ssl

    import httpx
    from tenacity import RetryCallState

_log = logging.getLogger(__name__)

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""An answer of 128,000 tokens is about 1 MB (November 2026): more than this is no answer but a fault."""

_LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""Never through the proxy that HTTP_PROXY names, which reaches another machine's loopback."""

_CONNECT_TIMEOUT_S = 10.0

_BYTES_PER_TOKEN = 4
_USUAL_OUTPUT_TOKENS = 1_000
"""What a request is taken for in a limit of tokens a minute, until its answer tells: English text, and an
answer of which nothing is known."""


class Endpoint:
    """One base URL with its key: sends requests there and reads their answers.

    It pickles at any time (connections stay behind), and may be used from several event loops in
    turn: each has connections of its own. `transport` replaces the network, for tests.
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
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"base URL {peer.shown(base_url)!r} of provider {peer.provider!r} is no http(s) URL; "
                "give one such as 'http://localhost:8080/v1'"
            )
        if timeout_s <= 0:
            raise ConfigurationError(f"timeout_s is {timeout_s:g}; a request needs more than 0 seconds")
        self.peer = peer
        self._base_url = base_url.rstrip("/")
        self._key_header = key_header
        self._headers = {"content-type": "application/json", **(headers or {})}
        self._retry = retry
        self._timeout_s = timeout_s
        self._clock = clock or Clock()
        self._transport = transport
        self._clients = _no_clients()
        self._gate: Gate | None = None
        self._lane = None if rate_limits is None else Lane(self._lane_name(), rate_limits)

    @property
    def rate_limits(self) -> RateLimits | None:
        """What is known of the limits; None when none are kept."""
        return None if self._lane is None else self._lane.limits

    def through(self, gate: Gate | None) -> None:
        """Send through a gate from now on, if there are rate limits; None sends without."""
        self._gate = None if self._lane is None else gate

    def _lane_name(self) -> str:
        key = "" if self.peer.key is None else self.peer.key.reveal()
        return f"{self.peer.provider} {self.host} {self.peer.model} {sha256(key.encode()).hexdigest()[:12]}"

    @property
    def host(self) -> str:
        """Host and port, without what else a base URL may hold: user name, password, query."""
        parts = urlsplit(self._base_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    async def post(
        self,
        path: str,
        body: Mapping[str, Any],
        read: Callable[[dict[str, Any]], Response],
        *,
        retry_charged: bool = True,
    ) -> Response:
        """Post `body` and give the JSON object that comes back to `read`.

        `read` may raise ProviderError, which is retried like any other. The response's usage covers
        every try that was charged. `retry_charged` False ends it with the first try that was, or may have
        been, charged, whatever the policy says. Raises ProviderError; when cancelled, stops at once.
        """
        from tenacity import AsyncRetrying, retry_if_exception

        content = self._encoded(body)
        self._client()  # before the gate: what is let through is to be sent at once
        began_s = self._clock.monotonic_s()
        in_line_s = 0.0
        attempts = 0
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
            try:
                response = await self._attempt(path, content, read, sending)
                sending.answered(response.usage)
                return response
            except ProviderError as error:
                if error.usage is not None:
                    charged.append(error.usage)
                raise

        def may_retry(error: BaseException) -> bool:
            if isinstance(error, AnswerLost):
                return self._retry.retry_lost_answers and retry_charged
            affordable = len(charged) <= (self._retry.max_charged_retries if retry_charged else 0)
            return isinstance(error, ProviderError) and error.retryable and affordable

        def must_stop(state: RetryCallState) -> bool:
            # Time in the line is no time of trying.
            next_s = self._clock.monotonic_s() - began_s - in_line_s + state.upcoming_sleep
            return attempts >= self._retry.max_attempts or next_s > self._retry.max_total_s

        def wait_s(state: RetryCallState) -> float:
            if self._gate is not None and isinstance(_failure(state), RateLimited | Overloaded):
                return 0.0  # the gate holds it, and all others
            return self._retry.wait_s(attempts, _asked_s(state), self._clock.jitter())

        retrying = AsyncRetrying(
            sleep=self._clock.sleep,
            retry=retry_if_exception(may_retry),
            wait=wait_s,
            stop=must_stop,
            before_sleep=lambda state: _log.info(
                "attempt %d failed, next in %.1f s: %s", attempts, state.upcoming_sleep, _failure(state)
            ),
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
        raise type(failure)(
            failure.message + tries,
            failure.provider,
            failure.status,
            failure.request_id,
            failure.retry_after_s,
            sum(charged[1:], charged[0]) if charged else None,
        )

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Harmless when called twice."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    async def _attempt(
        self,
        path: str,
        content: bytes,
        read: Callable[[dict[str, Any]], Response],
        sending: _Sending,
    ) -> Response:
        status, headers, raw = await self._exchange(path, content)
        sending.hold_s = used_up_s(headers, self._clock.now()) or 0.0
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
                headers.get("request-id") or headers.get("x-request-id"),
            )
        return read(decoded)

    async def _exchange(self, path: str, content: bytes) -> tuple[int, Mapping[str, str], bytes]:
        """Send once and read the whole answer. httpx exceptions end here, with what they carry: the
        request they hold shows the key, so that none may stay attached as a cause or context.
        """
        load_httpx()
        import httpx

        failure: ProviderError
        url = f"{self._base_url}/{path}"
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._client().stream(
                    "POST", url, content=content, headers=self._headers, auth=self._authorized
                ) as answer,
            ):
                raw = bytearray()
                async for chunk in answer.aiter_bytes():
                    raw += chunk
                    if len(raw) > MAX_ANSWER_BYTES:
                        raise self._oversized(answer.status_code)
                return answer.status_code, answer.headers, bytes(raw)
        except TimeoutError:
            failure = self._lost(f"gave no whole answer within {self._timeout_s:g} s", "raise timeout_s")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
            failure = self._unsent(f"could not be reached at {self.host}", error)
        except (httpx.WriteError, httpx.WriteTimeout) as error:
            failure = self._unsent("cut the connection before the request was sent whole", error)
        except httpx.DecodingError:
            failure = BadResponse(
                f"{self.peer.title} sent an answer that cannot be decompressed; check what lies between",
                self.peer.provider,
            )
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            said = self.peer.shown(str(error)) or type(error).__name__
            failure = self._lost(f"broke off before its answer was whole ({said})", "check the connection")
        raise failure

    def _unsent(self, what: str, error: Exception) -> TransportFailed:
        said = self.peer.shown(str(error)) or type(error).__name__
        return TransportFailed(
            f"{self.peer.title} {what}: {said}; nothing was charged; check the network and base_url",
            self.peer.provider,
        )

    def _lost(self, what: str, step: str) -> AnswerLost:
        if not self._retry.retry_lost_answers:
            step = f"it is not sent twice; {step}, or allow RetryPolicy(retry_lost_answers=True)"
        return AnswerLost(
            f"{self.peer.title} {what}; the request was sent and may have been charged; {step}",
            self.peer.provider,
        )

    def _oversized(self, status: int) -> BadResponse:
        return BadResponse(
            f"{self.peer.title} sent more than {MAX_ANSWER_BYTES} bytes; the rest was not read; "
            "check base_url and what lies between",
            self.peer.provider,
            status,
        )

    def _encoded(self, body: Mapping[str, Any]) -> bytes:
        try:
            return json.dumps(body, allow_nan=False, separators=(",", ":")).encode()
        except (ValueError, TypeError) as error:
            reason = str(error)
        raise BadRequest(
            f"the request to {self.peer.title} is no JSON: {reason}; nothing was sent", self.peer.provider
        )

    def _authorized(self, request: httpx.Request) -> httpx.Request:
        # The key enters here, as late as can be: no frame of a traceback has it in a variable.
        if self.peer.key is not None:
            prefix = "Bearer " if self._key_header == "authorization" else ""
            request.headers[self._key_header] = prefix + self.peer.key.reveal()
        return request

    def _client(self) -> httpx.AsyncClient:
        load_httpx()
        import httpx

        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            for other in [known for known in self._clients if known.is_closed()]:
                del self._clients[other]  # its sockets died with its loop
            client = self._clients[loop] = httpx.AsyncClient(
                timeout=httpx.Timeout(self._timeout_s, connect=_CONNECT_TIMEOUT_S),
                # How many run at once is the rate gate's business, not the pool's.
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=20),
                transport=self._transport,
                mounts=dict.fromkeys(_LOOPBACK),
                verify=_tls(),
            )
        return client

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_clients": None, "_gate": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._clients = _no_clients()

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
    return len(content) // _BYTES_PER_TOKEN + int(output)


def load_httpx() -> None:
    """Import httpx without its command line: what that imports is six of its seven megabytes.

    httpx goes without it where click is missing, so click is missing for as long as the import takes.
    """
    if "httpx" in sys.modules or "click" in sys.modules:
        return
    sys.modules["click"] = None  # pyright: ignore[reportArgumentType] - how Python marks a missing module
    try:
        importlib.import_module("httpx")
    finally:
        del sys.modules["click"]


@cache
def _tls() -> ssl.SSLContext:
    """Whom to trust, read once in a process: it takes 30 ms (November 2026)."""
    import httpx

    return httpx.create_ssl_context()


def _no_clients() -> WeakKeyDictionary[asyncio.AbstractEventLoop, httpx.AsyncClient]:
    return WeakKeyDictionary()


def _failure(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None


def _asked_s(state: RetryCallState) -> float | None:
    error = _failure(state)
    return error.retry_after_s if isinstance(error, ProviderError) else None
