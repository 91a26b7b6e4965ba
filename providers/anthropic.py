"""Anthropic: the Messages API, answers whole or in parts.

Layer: providers; the wire format is in `anthropic_wire` and `anthropic_stream`, HTTP in `http`.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, get_args

from palaver.providers.anthropic_cost import dearest, overhead
from palaver.providers.anthropic_stream import AnthropicAssembler
from palaver.providers.anthropic_wire import ORIGIN, CacheTtl, Effort, from_wire, output_by, to_wire
from palaver.providers.capabilities import check_context_window
from palaver.providers.errors import BadRequest, ConfigurationError
from palaver.providers.http import Endpoint
from palaver.providers.http_errors import Peer
from palaver.providers.keys import find_key
from palaver.providers.price_list import Listing, lookup
from palaver.providers.prices import CacheWrites, Price, check_given
from palaver.providers.provider import OutputBy, OutputSchema, Request, Response
from palaver.providers.rate_limits import Gate, RateLimits
from palaver.providers.reception import InParts
from palaver.providers.retry import Clock, RetryPolicy, TellRetry
from palaver.providers.secret import Secret
from palaver.providers.stream import LONG_ANSWER_TOKENS, Answered, Delta, handed_out
from palaver.providers.worst_case import CountedInput, WorstCase, priced, worst_input_tokens

if TYPE_CHECKING:
    import httpx

ANTHROPIC_URL = "https://api.anthropic.com"
ANTHROPIC_KEY_VARIABLE = "ANTHROPIC_API_KEY"

API_VERSION = "2023-06-01"
"""Works with every model; 2026-10-21 refuses sampling parameters (PROVIDERS.md, November 2026)."""

_DEFAULT_MAX_TOKENS = 16_384
_MAX_TOKENS_BY_PREFIX: Mapping[str, int] = {
    # Output limits of models which have less (platform.claude.com/docs models overview); opus 4.0 and
    # 4.1 without streaming: `MODEL_NONSTREAMING_TOKENS` of `anthropic` 2.12, November 2026.
    "claude-3-5-": 8_192,
    "claude-3-7-": 16_384,
    "claude-3-": 4_096,
    "claude-opus-4-0": 8_192,
    "claude-opus-4-1": 8_192,
    "claude-opus-4-2025": 8_192,
}
_MIN_THINKING_TOKENS = 1_024

Thinking: TypeAlias = Literal["adaptive", "between_tools", "disabled"]

_log = logging.getLogger(__name__)


class Anthropic:
    """A Claude model behind the Anthropic Messages API, or behind another server that speaks it.

    `api_key` None takes ANTHROPIC_API_KEY from the environment now, not later: the key travels with
    the provider. `max_tokens` bounds each answer where the request names no bound; None takes 16,384,
    or the model's own limit where that is lower. `price` and `context_window` (in tokens) are looked up in
    the list of known models where they are None (about a second in the first provider of a process); they
    stay None when they are unknown, and every cost with the price. `timeout_s` bounds one try from its first
    byte to its last, or, of one that is streamed, the wait for each part. `rate_limits` are those of the key,
    kept by all conversations of a cluster together; what is not given is learned, and None lets each send
    as it likes.

    `thinking` is "adaptive" (the model decides), a budget in tokens (1,024 or more, less than
    `max_tokens`), "between_tools" or "disabled"; None leaves it to the model. `thinking_display` is whether
    adaptive thinking is shown; None leaves that to the model, too. Which of them a model takes is for the
    server to say, as it is for `effort`. A tool choice that forces a call is sent as "auto" to models that
    are known to refuse it, and to one that refused it once.

    Raises MissingKey without a key, and ConfigurationError for what cannot work.
    """

    def __init__(
        self,
        model: str = "claude-sonnet-5-5",
        *,
        api_key: str | Secret | None = None,
        base_url: str = ANTHROPIC_URL,
        max_tokens: int | None = None,
        thinking: Thinking | int | None = None,
        thinking_display: Literal["summarized", "omitted"] | None = None,
        effort: Effort | None = None,
        cache_ttl: CacheTtl = "5m",
        price: Price | None = None,
        context_window: int | None = None,
        retry: RetryPolicy | None = None,
        timeout_s: float = 600.0,
        rate_limits: RateLimits | None = RateLimits(),
        headers: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._model = model
        self._max_tokens = _checked_max_tokens(model, max_tokens)
        self._thinking = _thinking_config(thinking, thinking_display, self._max_tokens)
        _refuse_unknown("effort", effort, (None, *get_args(Effort)))
        _refuse_unknown("cache_ttl", cache_ttl, get_args(CacheTtl))
        self._effort: Effort | None = effort
        self._cache_ttl: CacheTtl = cache_ttl
        self._forces_calls = True
        key = find_key(api_key, ANTHROPIC_KEY_VARIABLE, ORIGIN)
        self._endpoint = Endpoint(
            Peer(ORIGIN, model, key),
            base_url,
            key_header="x-api-key",
            headers={"anthropic-version": API_VERSION, **(headers or {})},
            retry=retry or RetryPolicy(),
            timeout_s=timeout_s,
            rate_limits=rate_limits,
            clock=clock,
            transport=transport,
        )
        self._clock = clock or Clock()
        check_given(price)
        check_context_window(context_window)
        listed = Listing() if price is not None and context_window is not None else lookup(model, base_url)
        self._price = price if price is not None else listed.price
        self._context_window = context_window or listed.context_window

    @property
    def name(self) -> str:
        """Always "anthropic"."""
        return ORIGIN

    @property
    def model(self) -> str:
        """The model's id, as Anthropic knows it."""
        return self._model

    @property
    def price(self) -> Price | None:
        """What the model costs; None when that is unknown."""
        return self._price

    @property
    def context_window(self) -> int | None:
        """The most tokens of input and output together; None when unknown."""
        return self._context_window

    @property
    def max_tokens(self) -> int:
        """The most tokens of an answer to a request that names no bound of its own."""
        return self._max_tokens

    def output_by(self, schema: OutputSchema, *, has_tools: bool) -> OutputBy:
        """By schema, beside tools too, unless the model is too old or the schema is more than it takes.

        The API takes no schema that refers to itself, and no object whose properties have no names.
        """
        return output_by(schema, self._model)

    def worst_case(self, request: Request, counted: CountedInput | None = None) -> WorstCase:
        """The most that one try of `request` can come to; see `BoundsCost`.

        An answer needs its thinking budget, where there is one, before it has a word of use. Unasked, the
        server never hurries; it may serve an organisation that has committed itself at "priority", and
        keep inference in the US.
        """
        writes: CacheWrites = self._cache_ttl if request.prompt_caching else "never"
        thinking = self._thinking or {}
        return priced(
            dearest(self._price, self._model),
            worst_input_tokens(request, counted, self._to_wire, overhead(self._model)),
            output_tokens=request.max_tokens or self._max_tokens,
            cache_writes=writes,
            service_tiers=("priority",),
            thinking_tokens=thinking.get("budget_tokens", 0),
        )

    async def generate(self, request: Request) -> Response:
        """Answer one request; see `Provider.generate`. One that may be long is streamed inside."""
        is_long = (request.max_tokens or self._max_tokens) > LONG_ANSWER_TOKENS
        return await self._answer(request, self._in_parts() if is_long else None)

    def stream(self, request: Request) -> AsyncGenerator[Delta | Answered]:
        """The parts of one answer as they come; see `Streams.stream`."""
        return handed_out(lambda hand_out: self._answer(request, self._in_parts(hand_out)))

    def _in_parts(self, hand_out: Callable[[Delta], None] | None = None) -> InParts:
        return InParts(lambda: AnthropicAssembler(self._price), self._price, hand_out)

    async def _answer(self, request: Request, in_parts: InParts | None) -> Response:
        try:
            return await self._sent(request, in_parts)
        except BadRequest as error:
            forced = self._forces_calls and request.tool_choice is not None
            if not forced or error.usage is not None or "tool_choice" not in error.message:
                raise
            # Nothing was charged; and whoever demands a call looks whether one came.
            _log.info("%s refuses a forced tool choice, and is asked for calls as with auto", self._model)
            self._forces_calls = False
        return await self._sent(request, in_parts)

    async def _sent(self, request: Request, in_parts: InParts | None) -> Response:
        body = self._to_wire(request)
        if in_parts is not None:
            body["stream"] = True

        def read(answer: Mapping[str, Any]) -> Response:
            return from_wire(answer, request=request, model=self._model, price=self._price)

        started_at = self._clock.now()
        response = await self._endpoint.post(
            "v1/messages",
            body,
            read,
            request_id=request.id,
            retry_charged=request.retry_charged,
            in_parts=in_parts,
        )
        return response.model_copy(update={"started_at": started_at, "ended_at": self._clock.now()})

    @property
    def rate_limits(self) -> RateLimits | None:
        """What is known of the limits of its key; None when it keeps none."""
        return self._endpoint.rate_limits

    def telling(self, request_id: str, tell: TellRetry) -> AbstractContextManager[None]:
        """Tell of the retries of one request; see `TellsRetries`."""
        return self._endpoint.telling(request_id, tell)

    def through(self, gate: Gate | None) -> None:
        """Send through a gate, unless `rate_limits` is None; see `TakesGate`."""
        self._endpoint.through(gate)

    async def aclose(self) -> None:
        """Close the connections. Harmless when called twice."""
        await self._endpoint.aclose()

    def _to_wire(self, request: Request) -> dict[str, Any]:
        return to_wire(
            request,
            model=self._model,
            max_tokens=self._max_tokens,
            thinking=self._thinking,
            effort=self._effort,
            cache_ttl=self._cache_ttl,
            force_calls=self._forces_calls,
            takes_names=ANTHROPIC_URL.endswith(f"//{self._endpoint.host}"),
        )

    def __repr__(self) -> str:
        return f"Anthropic(model={self._model!r}, host={self._endpoint.host!r})"


def _checked_max_tokens(model: str, max_tokens: int | None) -> int:
    if max_tokens is None:
        limits = (limit for prefix, limit in _MAX_TOKENS_BY_PREFIX.items() if model.startswith(prefix))
        return next(limits, _DEFAULT_MAX_TOKENS)
    if max_tokens < 1:
        raise ConfigurationError(f"max_tokens is {max_tokens}; an answer needs at least 1")
    return max_tokens


def _refuse_unknown(what: str, given: object, known: Collection[object]) -> None:
    if given not in known:
        raise ConfigurationError(f"{what} is {given!r}; use one of {', '.join(map(repr, known))}")


def _thinking_config(
    thinking: Thinking | int | None, display: str | None, max_tokens: int
) -> dict[str, Any] | None:
    _refuse_unknown("thinking_display", display, (None, "summarized", "omitted"))
    if display is not None and thinking != "adaptive":
        raise ConfigurationError("thinking_display goes with thinking='adaptive' alone")
    if not isinstance(thinking, int):
        _refuse_unknown("thinking", thinking, (*get_args(Thinking), None))
        shown = {} if display is None else {"display": display}
        return None if thinking is None else {"type": thinking, **shown}
    if not _MIN_THINKING_TOKENS <= thinking < max_tokens:
        raise ConfigurationError(
            f"thinking has a budget of {thinking} tokens; it must be at least {_MIN_THINKING_TOKENS} and "
            f"less than max_tokens, {max_tokens}"
        )
    return {"type": "enabled", "budget_tokens": thinking}
