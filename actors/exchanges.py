"""The exchanges of one conversation with its model: each request is granted, sent, kept and charged.

It owns an invariant: an answer that was paid for is kept and charged, to this conversation and every
ancestor, before anybody hears of it, cancelled or not; and whatever else becomes of a request, what was
reserved for it comes back.

Layer: actors, core; no Ray. Provider, treasury and clock are passed in.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import AbstractContextManager, aclosing, nullcontext

from palaver.actors.endings import to_the_end
from palaver.actors.entries import ResponseCharged
from palaver.actors.feed import Feed, deltas_of
from palaver.actors.ledger import Ask
from palaver.actors.listener import GuardedListener
from palaver.actors.transcript import Transcript
from palaver.actors.treasury import Treasury
from palaver.providers.errors import BadResponse, PalaverError, ProviderError
from palaver.providers.messages import Message
from palaver.providers.provider import Provider, Request, Response, StopReason, new_request_id
from palaver.providers.retry import Clock, Retry, RetryPolicy, TellsRetries
from palaver.providers.stream import Answered, Streams, UsageSoFar
from palaver.providers.usage import Usage
from palaver.providers.worst_case import USEFUL_TOKENS, BoundsCost, CountedInput, WorstCase

CHARGED_RETRIES = 2
"""How often a request is sent again whose answer was charged and of no use, each time within the budgets."""

MAX_PAUSES = 16
"""How often an answer that its provider paused is gone on with, each time as a request of its own."""

_WAITS = RetryPolicy()


class Exchanges:
    """Sends the requests of conversation `convo_id`, one at a time."""

    def __init__(
        self,
        convo_id: str,
        provider: Provider,
        transcript: Transcript,
        listener: GuardedListener,
        treasury: Treasury,
        clock: Clock,
    ) -> None:
        self._convo_id = convo_id
        self._provider = provider
        self._transcript = transcript
        self._listener = listener
        self._treasury = treasury
        self._clock = clock
        self._ended = asyncio.Event()
        self._last: tuple[Request, CountedInput] | None = None
        self.request_id: str | None = None
        """The request under way; None when there is none."""
        self.message: Message | None = None
        """What it ends with; None when there is none, or when it goes on with an answer that was paused."""
        self.began_s: float | None = None
        """When that was sent, or began to wait for its budgets, on the monotonic clock."""
        self.is_held = False
        """Whether that waits for its budgets."""
        self.failed_try: ProviderError | None = None
        """How the last try of the request under way, or of the last one, failed; None: no try did."""
        self._so_far: Usage | None = None
        """What the provider has counted of the answer that is on its way."""

    async def send(self, request: Request, message: Message) -> Response:
        """Send a request that ends with `message`; its answer, kept and charged.

        A try that was charged and is of no use is made again up to CHARGED_RETRIES times, if it may help. An
        answer that the provider paused is gone on with up to MAX_PAUSES times, and comes as one.
        Raises BudgetExceeded before anything is sent, or when the time is used up; UnknownPrice;
        ProviderError.
        """
        request = request.model_copy(update={"retry_charged": False})
        response = await self._sent(request, message)
        usage = response.usage
        for _ in range(MAX_PAUSES):
            if response.stop_reason is not StopReason.PAUSE or response.message.tool_uses:
                break
            paused = self._transcript.messages[-1:] if self._transcript.messages[-1].content else ()
            messages = (*request.messages, *paused)
            response = await self._sent(
                request.model_copy(update={"id": new_request_id(), "messages": messages}), None
            )
            usage += response.usage
            response = response.model_copy(update={"message": self._transcript.messages[-1], "usage": usage})
        return response

    async def _sent(self, request: Request, message: Message | None) -> Response:
        self.failed_try, retries = None, 0
        while True:
            try:
                return await self._try(request, message)
            except ProviderError as error:
                if error.usage is None or not error.retryable or retries == CHARGED_RETRIES:
                    raise
                retries += 1
                wait_s = _WAITS.wait_s(retries, error.retry_after_s, self._clock.jitter())
                await self._tell_retry(request.id, Retry(error, retries, wait_s))
            await self._clock.sleep(wait_s)
            request = request.model_copy(update={"id": new_request_id()})

    def counted(self, request: Request) -> CountedInput | None:
        """What the provider counted for the last request, where this one begins with all of that."""
        if self._last is None:
            return None
        last, counted = self._last
        same = (last.system, last.tools, last.output_schema) == (
            request.system,
            request.tools,
            request.output_schema,
        )
        return counted if same and counted.input_tokens else None

    def forget_counts(self) -> None:
        """The next request does not begin with what was sent before."""
        self._last = None

    async def until_request_ended(self, request_id: str) -> None:
        """Wait until a request is neither under way nor about to be."""
        while self.request_id == request_id:
            await self._ended.wait()

    async def _try(self, request: Request, message: Message | None) -> Response:
        self.request_id, self.message, self.began_s = request.id, message, time.monotonic()
        try:
            return await self._exchange(request, message)
        finally:
            self.request_id = self.message = self.began_s = None
            self._ended.set()
            self._ended = asyncio.Event()

    async def _exchange(self, request: Request, message: Message | None) -> Response:
        ask = Ask(self._convo_id, request.id, self._worst_case(request), self._provider.model)
        self.is_held = True
        try:
            grant = await self._treasury.reserve(ask)
        except asyncio.CancelledError:
            await to_the_end(self._treasury.release(self._convo_id, request.id))
            raise
        finally:
            self.is_held = False
        self.began_s = time.monotonic()
        if grant.max_tokens is not None:
            request = request.model_copy(update={"max_tokens": grant.max_tokens})
        answer = asyncio.create_task(self._answer(request, message))
        stopped: BaseException | None = None
        try:
            await self._until_answered(answer, grant.time_left_s)
        except BaseException as error:
            stopped = error
            answer.cancel()
            await asyncio.wait({answer})
        # It may have come, or failed at a cost, all the same.
        failure = None if answer.cancelled() else answer.exception()
        response = None if answer.cancelled() or failure else answer.result()
        await to_the_end(self._settle(request, message, response, failure))
        if isinstance(stopped, asyncio.CancelledError) or (stopped is not None and response is None):
            raise stopped
        return answer.result()

    async def _until_answered(self, answer: asyncio.Task[Response], time_left_s: float | None) -> None:
        """Wait for the answer. Raises BudgetExceeded when the time for it is used up."""
        while not (await asyncio.wait({answer}, timeout=time_left_s))[0]:
            time_left_s = await self._treasury.check_time(self._convo_id)  # there may be more by now

    async def _answer(self, request: Request, message: Message | None) -> Response:
        await self._listener.on_request(request.id, message or request.messages[-1])
        feed = self._listener.feed
        with self._telling_retries(request.id):
            response = await (self._provider.generate(request) if feed is None else self._fed(request, feed))
        counts = Counter(call.id for call in response.message.tool_uses)
        twice = [id for id, count in counts.items() if count > 1]
        if twice:
            raise BadResponse(
                f"{self._provider.name} {self._provider.model} answered with more than one tool call of id "
                f"{twice}, whose results nobody could tell apart; send again, or give each call its own id",
                self._provider.name,
                usage=response.usage,
            )
        return response

    def _telling_retries(self, request_id: str) -> AbstractContextManager[None]:
        if not isinstance(self._provider, TellsRetries):
            return nullcontext()
        return self._provider.telling(request_id, lambda retry: self._tell_retry(request_id, retry))

    async def _tell_retry(self, request_id: str, retry: Retry) -> None:
        self.failed_try = retry.error
        await self._listener.on_retry(request_id, retry)

    async def _fed(self, request: Request, feed: Feed) -> Response:
        """The answer, and its parts to the feed as they come."""
        if not isinstance(self._provider, Streams):
            response = await self._provider.generate(request)
            for delta in deltas_of(response):
                feed.put(delta)
            return response
        async with aclosing(self._provider.stream(request)) as parts:
            async for part in parts:
                if isinstance(part, Answered):
                    return part.response
                if isinstance(part, UsageSoFar):
                    self._so_far = part.usage
                feed.put(part)
        raise BadResponse(
            f"{self._provider.name} {self._provider.model} ended its stream without an answer",
            self._provider.name,
            usage=self._so_far,
        )

    async def _settle(
        self,
        request: Request,
        message: Message | None,
        response: Response | None,
        failure: BaseException | None,
    ) -> None:
        """Keep and charge what came of a request, and tell of it."""
        # Of an answer that was stopped on its way, what is known of it is charged.
        usage = response.usage if response is not None else self._so_far
        if response is not None:
            self._transcript.keep_exchange(message, response)
            self._last = (
                request,
                CountedInput(
                    # What an answer goes on with is one message with it from now on.
                    messages=len(request.messages) - (message is None),
                    input_tokens=response.usage.total_input_tokens,
                    output_tokens=response.usage.output_tokens,
                ),
            )
        elif isinstance(failure, ProviderError):
            usage = failure.usage
        self._so_far = None
        if usage is None:
            await self._treasury.release(self._convo_id, request.id)
        else:
            await self._treasury.settle(
                ResponseCharged(
                    convo_id=self._convo_id,
                    request_id=request.id,
                    usage=usage,
                    answered=response is not None,
                )
            )
        told = failure if isinstance(failure, PalaverError) else None
        await self._listener.on_response(request.id, response, told)

    def _worst_case(self, request: Request) -> WorstCase:
        if not isinstance(self._provider, BoundsCost):
            return _unpriced(request)
        return self._provider.worst_case(request, self.counted(request))


def _unpriced(request: Request) -> WorstCase:
    """The worst case of a request to a provider that tells none."""
    return WorstCase(
        input_tokens=len(request.model_dump_json().encode()),
        output_tokens=request.max_tokens,
        min_output_tokens=min(USEFUL_TOKENS, request.max_tokens or USEFUL_TOKENS),
        input_usd=None,
        usd_per_output_token=None,
    )
