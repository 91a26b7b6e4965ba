"""What each service says when it refuses: the error it becomes, whether it is tried again, how long it asks
to wait, and the request id, which is in the error and in its text.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

import httpx
import pytest
from chat_fakes import answer, provider
from wire_fakes import ok

from palaver.providers import (
    AuthenticationFailed,
    BadRequest,
    BadResponse,
    ContextTooLong,
    MalformedCall,
    Message,
    Overloaded,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    Request,
    RetryPolicy,
)
from palaver.providers.http_errors import Peer, error_from_status

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ASK = Request(messages=(Message.user("a"),))


class Said(NamedTuple):
    """What a server said, and what that is."""

    who: str
    status: int
    body: object
    kind: type[ProviderError]
    headers: Mapping[str, str] = MappingProxyType({})
    wait_s: float | None = None
    request_id: str | None = None


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


def google(code: int, status: str, message: str, **details: Any) -> list[dict[str, Any]]:
    more = {"details": [details]} if details else {}
    return [error(message, code=code, status=status, **more)]


ID = {"x-request-id": "req_1"}

SAID = [
    # platform.openai.com error codes; the headers of `openai` 3.54
    Said("openai", 400, error("Unknown parameter: 'x'.", type="invalid_request_error"), BadRequest, ID, None,
         "req_1"),
    Said("openai", 400, error("This model's maximum context length is 8 tokens.",
                              code="context_length_exceeded"), ContextTooLong),
    Said("openai", 401, error("Incorrect API key provided: sk-x.", code="invalid_api_key"),
         AuthenticationFailed),
    Said("openai", 403, error("Country not supported", code="unsupported_country_region_territory"),
         AuthenticationFailed),
    Said("openai", 404, error("The model `x` does not exist", code="model_not_found"), BadRequest),
    Said("openai", 409, error("Could not acquire the lock"), Overloaded),
    Said("openai", 429, error("Rate limit reached for m on tokens per min. Please try again in 1m2.5s. Visit",
                              code="rate_limit_exceeded"), RateLimited, ID, 62.5, "req_1"),
    Said("openai", 429, error("slow"), RateLimited,
         {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6s"}, 6.0),
    Said("openai", 429, error("slow"), RateLimited, {"retry-after-ms": "250", "retry-after": "9"}, 0.25),
    Said("openai", 429, error("You exceeded your current quota", code="insufficient_quota"), QuotaExhausted,
         {"retry-after": "9"}),
    Said("openai", 429, error("no more"), QuotaExhausted, {"x-should-retry": "false"}),
    Said("openai", 400, error("try once more"), Overloaded, {"x-should-retry": "true"}),
    Said("openai", 500, error("never", type="server_error"), BadRequest, {"x-should-retry": "false"}),
    Said("openai", 500, error("The server had an error", type="server_error"), Overloaded),
    Said("openai", 503, error("The engine is currently overloaded"), Overloaded, {"retry-after": "3"}, 3.0),
    # platform.claude.com errors
    Said("anthropic", 529, {"type": "error", "error": {"type": "overloaded_error", "message": "Overloaded"},
                            "request_id": "req_2"}, Overloaded, {}, None, "req_2"),
    Said("anthropic", 429, {"type": "error", "error": {"type": "rate_limit_error", "message": "slow"}},
         RateLimited, {"request-id": "req_3", "anthropic-ratelimit-requests-remaining": "0",
                       "anthropic-ratelimit-requests-reset": "2026-11-01T12:00:30Z"}, 30.0, "req_3"),
    Said("anthropic", 429, {"type": "error", "error": {"type": "rate_limit_error",
                            "message": "enforced_spend_limit_reached"}}, QuotaExhausted),
    # google.rpc errors, in an array (pydantic-ai#1879)
    Said("gemini", 429, google(429, "RESOURCE_EXHAUSTED", "You exceeded your current quota",
                               retryDelay="39s"), RateLimited, {}, 39.0),
    Said("gemini", 400, google(400, "INVALID_ARGUMENT", "API key not valid. Please pass a valid API key."),
         AuthenticationFailed),
    Said("gemini", 400, google(400, "INVALID_ARGUMENT",
                               "The input token count (9) exceeds the maximum number of tokens allowed (8)."),
         ContextTooLong),
    Said("gemini", 400, google(400, "FAILED_PRECONDITION", "User location is not supported"), BadRequest),
    Said("gemini", 503, google(503, "UNAVAILABLE", "The model is overloaded."), Overloaded),
    # together.ai error codes
    Said("together", 402, error("You have reached your credit limit"), QuotaExhausted),
    Said("together", 422, error("Input validation error: `inputs` tokens + `max_new_tokens` must be <= 8193"),
         ContextTooLong),
    Said("together", 429, error("You have reached the rate limit", type="model_rate_limit"), RateLimited),
    Said("fireworks", 412, error("Account x is suspended, possibly due to reaching the monthly spending "
                                 "limit or failure to pay past invoices"), QuotaExhausted),
    Said("fireworks", 400, error("The prompt is too long: 40000, model maximum context length: 32767"),
         ContextTooLong),
    # console.groq.com errors
    Said("groq", 400, error("Failed to call a function.", code="tool_use_failed", failed_generation="<f"),
         MalformedCall),
    Said("groq", 413, error("Request too large on tokens per minute: Limit 6000, Requested 9000",
                            code="rate_limit_exceeded"), BadRequest),
    Said("groq", 429, error("Rate limit reached. Please try again in 7.66s. Visit"), RateLimited, {}, 7.66),
    Said("groq", 498, error("Flex tier capacity exceeded", code="capacity_exceeded"), Overloaded),
    # openrouter.ai errors
    Said("openrouter", 402, error("This request requires more credits", code=402), QuotaExhausted),
    Said("openrouter", 403, error("x requires moderation. Your input was flagged", code=403), BadRequest),
    Said("openrouter", 429, error("Provider returned error", code=429, metadata={"raw": "m is busy"}),
         RateLimited),
    Said("openrouter", 502, error("Provider returned error", code=502), Overloaded),
    # api-docs.deepseek.com error codes
    Said("deepseek", 402, error("Insufficient Balance", type="unknown_error"), QuotaExhausted,
         {"x-ds-trace-id": "trace"}, None, "trace"),
    Said("deepseek", 400, error("Thinking mode does not support this tool_choice"), BadRequest),
    Said("mistral", 401, {"message": "Unauthorized", "request_id": "m1"}, AuthenticationFailed, {}, None,
         "m1"),
    Said("mistral", 422, {"object": "error", "message": {"detail": [{"msg": "Extra inputs are not permitted",
                          "loc": ["body", "stream_options"]}]}}, BadRequest),
    Said("mistral", 429, {"object": "error", "message": "Service tier capacity exceeded for this model.",
                          "type": "service_tier_capacity_exceeded", "code": "3505"}, RateLimited),
    # docs.x.ai; continue#10373
    Said("xai", 400, {"code": "Client specified an invalid argument",
                      "error": "Incorrect API key provided: xa***"}, AuthenticationFailed),
    Said("xai", 400, {"code": "Client specified an invalid argument", "error":
                      "This model's maximum prompt length is 131072 but the request contains 200000 tokens."},
         ContextTooLong),
    Said("xai", 429, {"code": "Some resource has been exhausted", "error": "Your team x has either used all "
                      "available credits or reached its monthly spending limit."}, QuotaExhausted),
    Said("xai", 429, {"code": "Some resource has been exhausted", "error": "Too many requests"}, RateLimited),
    # their sources
    Said("vllm", 400, {"object": "error", "message": "This model's maximum context length is 4096 tokens.",
                       "type": "BadRequestError", "code": 400}, ContextTooLong),
    Said("sglang", 400, {"object": "error", "message": "The input (9000 tokens) is longer than the model's "
                         "context length (4096 tokens).", "type": "BadRequestError"}, ContextTooLong),
    Said("llama.cpp", 400, error("request (5000 tokens) exceeds the available context size (4096 tokens)",
                                 type="exceed_context_size_error"), ContextTooLong),
    Said("llama.cpp", 500, error("image input is not supported - hint: if this is unexpected, you "
                                 "may need to provide the mmproj", type="server_error"), BadRequest),
    Said("llama.cpp", 503, error("Loading model", code=503, type="unavailable_error"), Overloaded),
    Said("ollama", 404, error('model "x" not found, try pulling it first', type="api_error"), BadRequest),
    Said("ollama", 400, error("registry.ollama.ai/library/x does not support tools"), BadRequest),
    Said("ollama", 503, error("server busy, please try again. maximum pending requests"), Overloaded),
    Said("lm-studio", 400, {"error": "Trying to keep the first 6000 tokens when context the overflows. But "
                            "the model is loaded with context length of only 4096 tokens"}, ContextTooLong),
    Said("lm-studio", 400, {"error": "Invalid tool_choice type: 'object'. Supported string values: none"},
         BadRequest),
    Said("litellm", 400, error("Budget has been exceeded! Current cost: 5, Max budget: 5",
                               type="budget_exceeded", code="400"), QuotaExhausted),
    Said("litellm", 400, error("litellm.BadRequestError: litellm.ContextWindowExceededError: x"),
         ContextTooLong),
    Said("litellm", 429, error("litellm.RateLimitError: slow", type="throttling_error", code="429"),
         RateLimited, {"x-litellm-call-id": "l1"}, None, "l1"),
    # what lies between
    Said("proxy", 502, "<html><h1>502 Bad Gateway</h1></html>", Overloaded),
    Said("proxy", 524, "error code: 524", Overloaded),
    Said("proxy", 500, "", Overloaded),
    Said("proxy", 404, {"error": "no such route"}, BadRequest),
    Said("proxy", 429, '{"request_id', RateLimited),
    Said("kong", 401, {"message": "Unauthorized"}, AuthenticationFailed, {"x-kong-request-id": "k1"}, None,
         "k1"),
]  # fmt: skip


def shape(said: Said) -> str:
    return f"{said.who} {said.status} {said.kind.__name__}"


@pytest.mark.parametrize("said", SAID, ids=shape)
def test_each_refusal_is_told_as_what_it_is(said: Said) -> None:
    response = httpx.Response(said.status, headers=said.headers, **content(said.body))
    found = error_from_status(said.status, response.headers, response.text, Peer(said.who, "m"), NOW)
    assert type(found) is said.kind
    assert found.retryable is (said.kind in (RateLimited, Overloaded, MalformedCall))
    assert found.retry_after_s == pytest.approx(said.wait_s)
    assert (found.status, found.request_id) == (said.status, said.request_id)
    assert said.request_id is None or f"(request id {said.request_id})" in str(found)
    assert f"{said.who} (m) answered HTTP {said.status}: " in str(found)


@pytest.mark.parametrize("said", SAID, ids=shape)
async def test_what_passes_is_tried_again_and_what_does_not_is_not(said: Said) -> None:
    refused = httpx.Response(said.status, headers=said.headers, **content(said.body))
    model, server = provider(refused, ok(answer({"content": "x"})))
    if said.kind.retryable:
        assert (await model.generate(ASK)).message.text == "x"
    else:
        with pytest.raises(said.kind):
            await model.generate(ASK)
    assert len(server.requests) == 1 + said.kind.retryable


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (httpx.Response(200, json={"error": {"code": 503, "message": "busy"}}, headers=ID), Overloaded),
        (httpx.Response(200, text="<html>", headers=ID), BadResponse),
        (httpx.Response(200, json={"choices": []}, headers=ID), BadResponse),
        (httpx.Response(200, json=answer(None, "MALFORMED_FUNCTION_CALL"), headers=ID), MalformedCall),
        (httpx.Response(200, json={"choices": [{"error": {"code": 429}}]}, headers=ID), RateLimited),
    ],
)
async def test_request_id_is_in_the_errors_of_answers_under_http_200_too(
    given: httpx.Response, kind: type[ProviderError]
) -> None:
    model, _ = provider(given, retry=RetryPolicy(max_attempts=1))
    with pytest.raises(kind) as caught:
        await model.generate(ASK)
    assert caught.value.request_id == "req_1"
    assert str(caught.value).endswith("(request id req_1)")


async def test_request_id_is_in_the_error_of_a_connection_that_was_cut_within_its_answer() -> None:
    class Cut(httpx.AsyncByteStream):
        async def __aiter__(self):
            yield b'{"choices'
            raise httpx.ReadError("cut")

    model, _ = provider(lambda _: httpx.Response(200, stream=Cut(), headers=ID))
    with pytest.raises(ProviderError, match=r"\(request id req_1\)"):
        await model.generate(ASK)


def test_what_the_server_behind_a_router_said_is_told() -> None:
    body = '{"error": {"message": "Provider returned error", "code": 429, "metadata": {"raw": "m is busy"}}}'
    assert "Provider returned error m is busy" in str(error_from_status(429, {}, body, Peer("or", "m"), NOW))


def content(body: object) -> dict[str, Any]:
    return {"text": body} if isinstance(body, str) else {"json": body}
