"""Any server that speaks OpenAI's chat completions, answers whole or in parts.

Layer: providers; the wire format is in `openai_wire`, `openai_answer` and `openai_stream`, what sets
servers apart in `profiles`, HTTP in `http`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from palaver.providers.capabilities import check_context_window
from palaver.providers.errors import ConfigurationError
from palaver.providers.http import Endpoint
from palaver.providers.http_errors import Peer
from palaver.providers.keys import find_key
from palaver.providers.openai_answer import from_wire
from palaver.providers.openai_stream import OpenAIAssembler
from palaver.providers.openai_wire import overhead, to_wire
from palaver.providers.price_list import Listing, lookup
from palaver.providers.prices import Price, check_given
from palaver.providers.profiles import (
    Profile,
    profile_for,
    server_name,
    service_at,
)
from palaver.providers.provider import OutputBy, OutputSchema, Request, Response
from palaver.providers.rate_limits import Gate, RateLimits
from palaver.providers.reception import InParts
from palaver.providers.retry import Clock, RetryPolicy, TellRetry
from palaver.providers.secret import Secret
from palaver.providers.stream import LONG_ANSWER_TOKENS, Answered, Assembler, Delta, handed_out
from palaver.providers.worst_case import CountedInput, WorstCase, priced, worst_input_tokens

if TYPE_CHECKING:
    import httpx

OPENAI_URL = "https://api.openai.com/v1"
LLAMA_CPP_URL = "http://localhost:8080/v1"
"""Where llama.cpp's `llama-server` listens unless told otherwise."""


class OpenAI:
    """A model behind chat completions, at OpenAI or at any base URL that speaks the same.

    The key is `api_key`, else what the environment variable `api_key_env` holds now. `api_key_env` None
    takes the variable of the service at `base_url` (OPENAI_API_KEY for api.openai.com), and no key for a
    host that is not known: a key is never sent to a server it was not made for.

    `name` is who answers, by default the service or the host; reasoning goes back to the same name alone.
    The flags of the server are chosen by base URL and model, and by `server` where the URL does not tell
    what it is: "vllm", "sglang", "llama.cpp", "ollama", "lm-studio", "litellm" (see `SERVERS`). `profile`
    replaces them: all with a Profile, single ones with a mapping. `max_tokens` bounds each answer where the
    request names no bound; None leaves it to the server. `reasoning_effort` is passed on; None sends none,
    except "none" beside tools to the OpenAI models that need it. `price` and `context_window` (in
    tokens) are looked up in the list of known models where they are None (about a second in the first
    provider of a process); they stay None when they are unknown, and then so is every cost that the server
    does not tell itself. `timeout_s` bounds one try as a whole, or, of one
    that is streamed, the wait for each part. `rate_limits` are those of the key, kept by all conversations
    of a cluster together; what is not given is learned, and None lets each send as it likes.

    Raises MissingKey when the key's variable is not set, ConfigurationError for a wrong base URL, and for a
    server or a flag that is not known.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = OPENAI_URL,
        api_key: str | Secret | None = None,
        api_key_env: str | None = None,
        name: str | None = None,
        server: str | None = None,
        profile: Profile | Mapping[str, Any] | None = None,
        max_tokens: int | None = None,
        reasoning_effort: str | None = None,
        price: Price | None = None,
        context_window: int | None = None,
        retry: RetryPolicy | None = None,
        timeout_s: float = 600.0,
        rate_limits: RateLimits | None = RateLimits(),
        headers: Mapping[str, str] | None = None,
        clock: Clock | None = None,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        if max_tokens is not None and max_tokens < 1:
            raise ConfigurationError(f"max_tokens is {max_tokens}; an answer needs at least 1")
        self._model = model
        self._name = name or server_name(base_url)
        self._profile = (
            profile
            if isinstance(profile, Profile)
            else profile_for(base_url, model, server=server, changes=profile)
        )
        self._max_tokens = max_tokens
        self._reasoning_effort = reasoning_effort
        service = service_at(base_url)
        variable = api_key_env or (service.key_variable if service else None)
        self._endpoint = Endpoint(
            Peer(self._name, model, find_key(api_key, variable, self._name)),
            base_url,
            headers=headers,
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
        """Who answers: "openai", "gemini", ..., or the host and port of another server."""
        return self._name

    @property
    def model(self) -> str:
        """The model's id, as the server knows it."""
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
    def max_tokens(self) -> int | None:
        """The most tokens of an answer to a request that names no bound; None leaves it to the server."""
        return self._max_tokens

    @property
    def profile(self) -> Profile:
        """The flags in use for this server and model."""
        return self._profile

    def output_by(self, schema: OutputSchema, *, has_tools: bool) -> OutputBy:
        """By schema where the profile says that the server takes one, beside tools or not."""
        takes = self._profile.output_schema
        return "schema" if takes == "always" or (takes == "without_tools" and not has_tools) else "tool"

    def worst_case(self, request: Request, counted: CountedInput | None = None) -> WorstCase:
        """The most that one try of `request` can come to at `price`; see `BoundsCost`.

        Servers of this kind cache by themselves, so that any input may be charged as a write to the cache.
        The tier is the server's choice, too: OpenAI takes what a project is set to. The dearest that is
        known counts, often twice the usual price.
        A server that tells its own cost (OpenRouter) may charge by another price than the one known here.
        """
        return priced(
            self._price,
            worst_input_tokens(request, counted, self._to_wire, overhead(self._model)),
            output_tokens=request.max_tokens or self._max_tokens,
            cache_writes="5m",
            service_tiers=() if self._price is None else self._price.by_service_tier,
        )

    async def generate(self, request: Request) -> Response:
        """Answer one request; see `Provider.generate`. One that may be long is streamed inside."""
        is_long = (request.max_tokens or self._max_tokens or 0) > LONG_ANSWER_TOKENS
        return await self._answer(request, self._in_parts() if is_long else None)

    async def generate_in_parts(self, request: Request, hand_out: Callable[[Delta], None]) -> Response:
        """Answer one request, and hand out the parts of the answer as they come; see `Streams.stream`."""
        return await self._answer(request, self._in_parts(hand_out))

    def stream(self, request: Request) -> AsyncGenerator[Delta | Answered]:
        """The parts of one answer as they come; see `Streams.stream`."""
        return handed_out(lambda hand_out: self.generate_in_parts(request, hand_out))

    def _in_parts(self, hand_out: Callable[[Delta], None] | None = None) -> InParts:
        return InParts(self._assembler, self._price, hand_out)

    async def _answer(self, request: Request, in_parts: InParts | None) -> Response:
        body = self._to_wire(request)
        if in_parts is not None:
            body |= self._asks_for_parts()

        def read(answer: Mapping[str, Any]) -> Response:
            return self._from_wire(answer, request)

        started_at = self._clock.now()
        response = await self._endpoint.post(
            self._path,
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

    # What sets the API apart

    _path = "chat/completions"

    def _assembler(self) -> Assembler:
        return OpenAIAssembler(self._price)

    def _asks_for_parts(self) -> dict[str, Any]:
        usage = {"stream_options": {"include_usage": True}} if self._profile.stream_usage else {}
        return {"stream": True, **usage}

    def _from_wire(self, answer: Mapping[str, Any], request: Request) -> Response:
        return from_wire(
            answer,
            request=request,
            peer=self._endpoint.peer,
            origin=self._name,
            price=self._price,
            now=self._clock.now(),
        )

    def _to_wire(self, request: Request) -> dict[str, Any]:
        return to_wire(
            request,
            model=self._model,
            origin=self._name,
            profile=self._profile,
            max_tokens=self._max_tokens,
            reasoning_effort=self._reasoning_effort,
        )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(model={self._model!r}, host={self._endpoint.host!r})"


class LlamaCPP(OpenAI):
    """llama.cpp's own server on this machine: no key, no price, no rate limits.

    Start it with `llama-server --jinja`.
    """

    def __init__(self, model: str = "llama.cpp", *, base_url: str = LLAMA_CPP_URL, **options: Any) -> None:
        options.setdefault("price", Price.free())
        options.setdefault("rate_limits", None)
        options.setdefault("server", "llama.cpp")
        super().__init__(model, base_url=base_url, **options)
