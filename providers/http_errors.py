"""Turns what a server answered instead of a reply into the errors of `errors`.

    BadResponse
      MalformedCall     the model's tool call could not be read by its own server      (retryable)
      IncompleteAnswer  a stream ended before its answer did                           (retryable)
    TransportFailed
      AnswerLost        sent whole, answer lost: it may have been charged              (not retryable)

Layer: providers; pure functions, no I/O.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar, NamedTuple

from palaver.providers.errors import (
    AuthenticationFailed,
    BadRequest,
    BadResponse,
    ContextTooLong,
    Overloaded,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    TransportFailed,
)
from palaver.providers.retry_hints import retry_after_s
from palaver.providers.secret import Secret
from palaver.providers.untyped import as_count, as_dict, as_list, as_text, json_in
from palaver.providers.usage import Usage

_SHOWN_CHARACTERS = 500
_SHORTEST_KEY = 4
"""Shorter "keys" are placeholders such as "x", which would turn every message into stars."""

_REQUEST_ID_HEADERS = (
    "request-id",
    "x-request-id",
    "x-ds-trace-id",
    "x-kong-request-id",
    "x-litellm-call-id",
)
"""Anthropic; OpenAI, xAI and most others; DeepSeek; whatever stands behind a Kong gateway; LiteLLM (as seen
in public code that reads their answers, November 2026). Gemini sends none."""

_STATUS_BY_CODE = {
    # Anthropic: platform.claude.com/docs/en/api/errors, November 2026
    "invalid_request_error": 400, "authentication_error": 401, "billing_error": 402,
    "permission_error": 403, "not_found_error": 404, "request_too_large": 413, "rate_limit_error": 429,
    "api_error": 500, "timeout_error": 504, "overloaded_error": 529, "conflict_error": 409,
    # OpenAI and its likes
    "invalid_api_key": 401, "rate_limit_exceeded": 429, "server_error": 500, "internal_server_error": 500,
    "service_unavailable": 503, "engine_overloaded": 503, "model_not_found": 404, "upstream_error": 502,
    # OpenAI's Responses: ResponseError of its SDK (openai 3.54 on PyPI)
    "invalid_prompt": 400, "bio_policy": 400, "misalignment_policy_violation": 400,
    "data_residency_mismatch": 400, "vector_store_timeout": 504, "image_content_policy_violation": 400,
    **dict.fromkeys(
        ("invalid_image", "invalid_image_format", "invalid_base64_image", "invalid_image_url",
         "image_too_large", "image_too_small", "image_parse_error", "invalid_image_mode",
         "image_file_too_large", "unsupported_image_media_type", "empty_image_file",
         "failed_to_download_image", "image_file_not_found"), 400),
    # google.rpc.Code
    "invalid_argument": 400, "failed_precondition": 400, "unauthenticated": 401,
    "permission_denied": 403, "not_found": 404, "resource_exhausted": 429, "internal": 500,
    "unavailable": 503, "deadline_exceeded": 504,
}  # fmt: skip

_QUOTA = re.compile(
    r"insufficient_quota|credit_balance_exhausted|(?:enforced|contract)_spend_limit_reached"
    r"|billing_hard_limit_reached|billing_error|credit balance is too low|insufficient balance"
    # xAI (continue#10373); Fireworks' 412; LiteLLM's budgets (docs.litellm.ai proxy/users)
    r"|used all available credits|doesn't have any credits|spending limit|budget_exceeded|budget has been",
    re.IGNORECASE,
)
"""Not "exceeded your current quota": Gemini says that of its limits per minute too, which pass."""
_TOO_LONG = re.compile(
    r"context_length_exceeded|exceed_context_size|prompt is too long|maximum context length"
    r"|input is too long|exceeds? (?:the |this model'?s? )?(?:available )?(?:maximum )?context"
    r"|input token count.{0,40}exceeds the maximum"
    # xAI; SGLang; LM Studio; Together; LiteLLM
    r"|maximum prompt length|longer than the model'?s context length|context length of (?:only )?\d"
    r"|max_new_tokens`? must be <=|contextwindowexceeded",
    re.IGNORECASE,
)
_BAD_KEY = re.compile(r"api_key_invalid|invalid_api_key|api key not valid|incorrect api key", re.IGNORECASE)
_MODERATED = re.compile(r"moderation|flagged", re.IGNORECASE)
"""OpenRouter refuses an input for what it says with a 403 (openrouter.ai/docs errors)."""
_NEVER = re.compile(r"image input is not supported", re.IGNORECASE)
"""llama.cpp says so with a 500, of a model that sees none."""
_BAD_CALL = re.compile(r"tool_use_failed|malformed_function_call", re.IGNORECASE)

_NEXT_STEP: Mapping[type[ProviderError], str] = {
    RateLimited: "send fewer requests at once, or ask the provider for a higher limit",
    Overloaded: "try again later, or use another model",
    BadRequest: "it will be refused again as it stands",
    ContextTooLong: "shorten the conversation, or begin a new one with a summary",
    AuthenticationFailed: "check the API key, and that it may use this model",
    QuotaExhausted: "add credit or raise the spending limit; waiting does not help",
    BadResponse: "the answer cannot be used, and may have been charged",
}


class AnswerLost(TransportFailed):
    """The request was sent whole and its answer never came whole: the provider may have charged for it.

    Not retried unless `RetryPolicy.retry_lost_answers` says so, since a second try may pay twice.
    """

    retryable: ClassVar[bool] = False


class MalformedCall(BadResponse):
    """The model wrote a tool call that its own server could not read (Groq `tool_use_failed`, Gemini
    `MALFORMED_FUNCTION_CALL`). A second try usually succeeds.
    """

    retryable: ClassVar[bool] = True


class IncompleteAnswer(BadResponse):
    """A stream ended before its answer did, and nothing of it was handed out. What came was charged."""

    retryable: ClassVar[bool] = True


class Peer(NamedTuple):
    """Whom a request went to: what an error message needs, and the key it must not show."""

    provider: str
    model: str
    key: Secret | None = None

    @property
    def title(self) -> str:
        """The provider and the model, for people."""
        return f"{self.provider} ({self.model})"

    def shown(self, text: str) -> str:
        """Text of a server fit for a message: without the key, on one line, shortened."""
        if self.key is not None and len(self.key.reveal()) >= _SHORTEST_KEY:
            text = text.replace(self.key.reveal(), "***")
        text = " ".join(text.split())
        return text if len(text) <= _SHOWN_CHARACTERS else text[:_SHOWN_CHARACTERS] + " ..."


def error_from_status(
    status: int, headers: Mapping[str, str], body: str, peer: Peer, now: datetime
) -> ProviderError:
    """The error for an HTTP answer with another status than 2xx. `now` counts for HTTP dates."""
    kind = _kind(status, body)
    told = headers.get("x-should-retry")  # OpenAI's and Anthropic's, which their SDKs heed
    if told == "false" and kind.retryable:
        kind = QuotaExhausted if status == 429 else BadRequest
    elif told == "true" and kind is BadRequest:
        kind = Overloaded
    return _worded(kind, status, headers, body, peer=peer, now=now)


def error_from_object(
    error: object, headers: Mapping[str, str], peer: Peer, now: datetime, usage: Usage | None = None
) -> ProviderError:
    """The error for an error object inside an answer with HTTP status 200 (litellm#21755).

    Its own code decides, a number or one of the known names; without one it is a BadResponse.
    """
    body = json.dumps({"error": error})
    status = _status_in(as_dict(error))
    kind = BadResponse if status is None and not _special(400, body) else _kind(status or 400, body)
    return _worded(kind, 200, headers, body, peer=peer, now=now, usage=usage)


def error_object_in(answer: object) -> object | None:
    """The error object inside a decoded answer, None when it holds none. Gemini wraps it in an array.

    One of Responses that failed is a whole answer, with its usage: whoever reads it tells its error.
    """
    entries = as_list(answer)
    top = as_dict(entries[0] if entries else answer)
    if top.get("object") == "response":
        return None
    if top.get("error"):
        return top["error"]
    return top if top.get("type") == "error" or top.get("object") == "error" else None


def request_id_in(headers: Mapping[str, str], body: str = "") -> str | None:
    """The provider's id of the request, for its support, in headers or body; None when it gave none."""
    found = next((headers[name] for name in _REQUEST_ID_HEADERS if headers.get(name)), None)
    if found is None and '"request_id"' in body:
        found = as_text(as_dict(json_in(body)).get("request_id"))
    return found or None


def _kind(status: int, body: str) -> type[ProviderError]:
    special = _special(status, body)
    if special is not None:
        return special
    if status == 403 and _MODERATED.search(body):
        return BadRequest
    if status in (401, 403):
        return AuthenticationFailed
    if status == 429:
        return RateLimited
    # 408: the server did not get the request in time; 409: it is locked for the moment (the official SDKs
    # retry both); 498: Groq's flex tier is full (console.groq.com errors); 501: it will never know how.
    passes = status in (408, 409, 498) or (status >= 500 and status != 501)
    return Overloaded if passes else BadRequest


def _special(status: int, body: str) -> type[ProviderError] | None:
    """What the body says more exactly than the status."""
    if status == 402 or (status in (400, 403, 412, 429) and _QUOTA.search(body)):
        return QuotaExhausted
    if status in (400, 413, 422, 500) and _TOO_LONG.search(body):  # 500: old llama.cpp
        return ContextTooLong
    if status == 500 and _NEVER.search(body):
        return BadRequest
    if status == 400 and _BAD_KEY.search(body):  # Gemini
        return AuthenticationFailed
    return MalformedCall if status == 400 and _BAD_CALL.search(body) else None


def _status_in(error: Mapping[str, Any]) -> int | None:
    for field in ("code", "status", "status_code", "type"):
        value = error.get(field)
        number = int(value) if isinstance(value, str) and value.isdecimal() else as_count(value)
        if 400 <= number < 600:
            return number
        if (known := _STATUS_BY_CODE.get(as_text(value).lower())) is not None:
            return known
    return None


def _explanation(body: str) -> str:
    """What a human would want to read of an error body: its code and message, or else all of it."""
    answer = json_in(body)
    if answer is None:
        return body  # an HTML page of a proxy (nanobot#2289)
    error = error_object_in(answer)
    if isinstance(error, str):
        return error
    fields = as_dict(error) or as_dict(answer)
    message = as_text(fields.get("message")) or as_text(fields.get("detail"))
    if not message:
        return body
    # What the server behind OpenRouter said: "Provider returned error" alone tells nothing.
    message = " ".join(filter(None, (message, as_text(as_dict(fields.get("metadata")).get("raw")))))
    names = [as_text(fields.get(field)) for field in ("type", "code", "status")]
    name = next((name for name in names if name and name not in message and name != "error"), "")
    return f"{name}: {message}" if name else message


def _worded(
    kind: type[ProviderError],
    status: int,
    headers: Mapping[str, str],
    body: str,
    *,
    peer: Peer,
    now: datetime,
    usage: Usage | None = None,
) -> ProviderError:
    said = peer.shown(_explanation(body)) or "an empty body"
    step = next(_NEXT_STEP[base] for base in kind.__mro__ if base in _NEXT_STEP)
    if status in range(300, 400):
        step = "set base_url to where it redirects"
        said = f"{said} (location: {peer.shown(headers.get('location', 'none'))})"
    elif status == 404:
        step = "check the model's id and base_url"
    wait_s = retry_after_s(headers, body, now) if kind.retryable else None
    if wait_s is not None:
        step = f"it asks to wait {wait_s:g} s; {step}"
    request_id = peer.shown(request_id_in(headers, body) or "") or None
    message = f"{peer.title} answered HTTP {status}: {said}; {step}"
    return kind(message, peer.provider, status, request_id, wait_s, usage)
