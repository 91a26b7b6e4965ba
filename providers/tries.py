"""The tries of one request: through the rate gate, again as the policy says, and an error when all fail.

What may be charged twice is not sent twice. A request that never left whole (refused connection, failed
name look-up, cut while sending) and one that the server refused for the moment (429, 5xx) are
retried. One that was sent whole and got no whole answer (time-out, cut connection) may have been
answered and charged: it fails with AnswerLost, unless `RetryPolicy.retry_lost_answers` says otherwise.
A stream that breaks off before anything of it was handed out is tried again, since what it was charged is
known or can be reckoned; after that it fails with StreamBroken.
`Request.retry_charged` False rules out all that was, or may have been, charged.

Layer: providers. tenacity is imported when a first try fails: time and memory that few processes pay.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from palaver.providers.errors import Overloaded, ProviderError, RateLimited
from palaver.providers.http_errors import AnswerLost, MalformedCall
from palaver.providers.provider import Response
from palaver.providers.rate_limits import Gate, Lane, Outcome, Told
from palaver.providers.retry import Clock, Retry, RetryPolicy, TellRetry
from palaver.providers.usage import Usage

if TYPE_CHECKING:
    from tenacity import RetryCallState

_log = logging.getLogger(__name__)


class Passage:
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

    @property
    def is_gated(self) -> bool:
        """Whether there is a gate to go through."""
        return self._gate is not None

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


class Tries:
    """The tries of one request, which goes through `passage`; `tell` hears of those that are made again."""

    def __init__(
        self,
        policy: RetryPolicy,
        clock: Clock,
        passage: Passage,
        tell: TellRetry | None,
        *,
        retry_charged: bool,
    ) -> None:
        self._policy = policy
        self._clock = clock
        self._passage = passage
        self._tell = tell
        self._retry_charged = retry_charged
        self._attempts = 0
        self._useless = 0
        """Tries for which the model wrote something, told or not, that is of no use."""
        self._charged: list[Usage] = []
        self._in_line_s = 0.0
        self._began_s = clock.monotonic_s()

    async def made(self, once: Callable[[], Awaitable[Response]]) -> Response:
        """Try until there is an answer, whose usage covers all tries that were charged.

        Raises ProviderError.
        """
        try:
            try:
                response = await self._one(once)
            except ProviderError as error:
                response = await self._again(once, error)
        except ProviderError as error:
            failure = error
        else:
            if not self._charged:
                return response
            return response.model_copy(update={"usage": sum(self._charged, response.usage)})
        elapsed_s = self._clock.monotonic_s() - self._began_s
        tries = f"; gave up after {self._attempts} tries in {elapsed_s:.1f} s" if self._attempts > 1 else ""
        usage = sum(self._charged[1:], self._charged[0]) if self._charged else None
        raise failure.retold(failure.message + tries, usage)

    async def _one(self, once: Callable[[], Awaitable[Response]]) -> Response:
        entered_s = self._clock.monotonic_s()
        async with self._passage:
            self._in_line_s += self._clock.monotonic_s() - entered_s
            self._attempts += 1
            try:
                response = await once()
            except ProviderError as error:
                if error.usage is not None:
                    self._charged.append(error.usage)
                if error.usage is not None or isinstance(error, MalformedCall):
                    self._useless += 1
                raise
            self._passage.answered(response.usage)
            return response

    async def _again(self, once: Callable[[], Awaitable[Response]], failed: ProviderError) -> Response:
        """The answer of a later try, after the first has `failed`."""
        from tenacity import AsyncRetrying, retry_if_exception

        first: ProviderError | None = failed

        async def attempt() -> Response:
            nonlocal first
            if first is not None:
                error, first = first, None
                raise error
            return await self._one(once)

        retrying = AsyncRetrying(
            sleep=self._clock.sleep,
            retry=retry_if_exception(self._may_retry),
            wait=self._wait_s,
            stop=self._must_stop,
            before_sleep=self._before_wait,
            reraise=True,
        )
        response: Response = await retrying(attempt)
        return response

    def _may_retry(self, error: BaseException) -> bool:
        if isinstance(error, AnswerLost):
            return self._policy.retry_lost_answers and self._retry_charged
        most = self._policy.max_charged_retries if self._retry_charged or not self._charged else 0
        return isinstance(error, ProviderError) and error.retryable and self._useless <= most

    def _must_stop(self, state: RetryCallState) -> bool:
        # Time in the line is no time of trying.
        next_s = self._clock.monotonic_s() - self._began_s - self._in_line_s + state.upcoming_sleep
        return self._attempts >= self._policy.max_attempts or next_s > self._policy.max_total_s

    def _wait_s(self, state: RetryCallState) -> float:
        error = _failure(state)
        if self._passage.is_gated and isinstance(error, RateLimited | Overloaded):
            return 0.0  # the gate holds it, and all others
        asked_s = error.retry_after_s if isinstance(error, ProviderError) else None
        return self._policy.wait_s(self._attempts, asked_s, self._clock.jitter())

    async def _before_wait(self, state: RetryCallState) -> None:
        error, next_s = _failure(state), state.upcoming_sleep
        _log.info("attempt %d failed, next in %.1f s: %s", self._attempts, next_s, error)
        if self._tell is not None and isinstance(error, ProviderError):
            await self._tell(Retry(error, self._attempts, next_s))


def _failure(state: RetryCallState) -> BaseException | None:
    return state.outcome.exception() if state.outcome is not None else None
