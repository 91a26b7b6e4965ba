"""Chat completions, on the way back: a server's JSON to the neutral response.

Facts: the official SDK (`openai` 3.54 on PyPI) and the quirk table of PROVIDERS.md, November 2026.
The way out is in `openai_wire`.

Layer: providers; pure functions, no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from palaver.providers.call_ids import CallIds
from palaver.providers.errors import BadResponse, Overloaded
from palaver.providers.http_errors import MalformedCall, Peer, error_from_object
from palaver.providers.messages import Content, Message, Opaque, Text, Thinking, ToolUse
from palaver.providers.prices import Price
from palaver.providers.provider import Request, Response, StopReason
from palaver.providers.untyped import (
    as_count,
    as_dict,
    as_list,
    as_text,
    count_in,
    json_in,
    list_in,
    object_in,
)
from palaver.providers.usage import Usage

_CUT_SHORT: Mapping[str, StopReason] = {
    "length": StopReason.MAX_TOKENS,
    "max_tokens": StopReason.MAX_TOKENS,
    "model_length": StopReason.CONTEXT_FULL,  # Mistral
    "content_filter": StopReason.REFUSAL,
    "safety": StopReason.REFUSAL,  # Gemini
    "recitation": StopReason.REFUSAL,
}
_REASONING_FIELDS = ("reasoning_content", "reasoning")
"""DeepSeek and llama.cpp; vLLM, OpenRouter and Groq (vllm#27755)."""
_OTHER_REASONING_FIELDS = ("reasoning_details", "reasoning_signature")
_KNOWN_CALL_FIELDS = frozenset({"id", "type", "function", "index"})


def from_wire(
    answer: Mapping[str, Any],
    *,
    request: Request,
    peer: Peer,
    origin: str,
    price: Price | None,
    now: datetime,
) -> Response:
    """The response in an answer of POST /chat/completions.

    Raises BadResponse when nothing in it can be used, MalformedCall when the server could not read the
    model's tool call, and for an error inside the choice what its code says; all with the usage.
    """
    if price is not None:
        price = price.served_at(as_text(answer.get("service_tier")))
    usage = usage_from_wire(answer.get("usage"), price)
    choice = as_dict(next(iter(as_list(answer.get("choices"))), None))
    if choice.get("error"):
        raise error_from_object(choice["error"], {}, peer, now, usage)
    wire = as_dict(choice.get("message"))
    finish = as_text(choice.get("finish_reason")).lower()
    _refuse_useless(choice, wire, finish, peer, usage)
    message = Message(role="assistant", content=tuple(_contents(wire, CallIds(request), origin)))
    return Response(
        id=as_text(answer.get("id")),
        request_id=request.id,
        model=as_text(answer.get("model")) or peer.model,
        message=message,
        stop_reason=_stop_reason(finish, wire, message),
        usage=usage,
    )


def usage_from_wire(wire: object, price: Price | None) -> Usage:
    """Usage with its cost; None when the server did not tell it, and either the price is not known or one of
    the two counts that it needs is missing or no number.

    `prompt_tokens` include what was cached. A total that exceeds prompt and completion is reasoning
    which the completion leaves out (Gemini, xAI): it is charged as output.
    """
    counts = as_dict(wire)
    if not counts:
        return Usage()
    of_prompt = as_dict(counts.get("prompt_tokens_details"))
    of_completion = as_dict(counts.get("completion_tokens_details"))
    told = count_in(counts.get("prompt_tokens")), count_in(counts.get("completion_tokens"))
    prompt, completion = (count or 0 for count in told)
    cached = (
        as_count(of_prompt.get("cached_tokens"))
        or as_count(counts.get("prompt_cache_hit_tokens"))  # DeepSeek
        or as_count(counts.get("cached_tokens"))  # Kimi (earendil-works/pi#8075), Together
    )
    cached = min(cached, prompt)
    written = min(as_count(of_prompt.get("cache_write_tokens")), prompt - cached)
    left_out = max(as_count(counts.get("total_tokens")) - prompt - completion, 0) if None not in told else 0
    usage = Usage(
        input_tokens=prompt - cached - written,
        cache_read_input_tokens=cached,
        cache_creation_input_tokens=written,
        output_tokens=completion + left_out,
        thinking_tokens=max(as_count(of_completion.get("reasoning_tokens")), left_out),
    )
    cost = _reported_cost(counts)
    if cost is None and price is not None and None not in told:
        cost = price.cost(usage)
    return usage.model_copy(update={"cost_usd": cost})


def _reported_cost(counts: Mapping[str, Any]) -> Decimal | None:
    """What the server says it charged, in USD (OpenRouter `cost`; Perplexity `cost.total_cost`)."""
    cost = as_dict(counts.get("cost")).get("total_cost", counts.get("cost"))
    if isinstance(cost, bool) or not isinstance(cost, int | float) or not 0 <= cost < float("inf"):
        return None
    total = Decimal(repr(cost))
    if counts.get("is_byok"):
        # OpenRouter with one's own key: `cost` is its fee, the model is paid elsewhere.
        upstream = as_dict(counts.get("cost_details")).get("upstream_inference_cost")
        if isinstance(upstream, bool) or not isinstance(upstream, int | float):
            return None
        total += Decimal(repr(upstream))
    return total


def _refuse_useless(
    choice: Mapping[str, Any], wire: Mapping[str, Any], finish: str, peer: Peer, usage: Usage
) -> None:
    kind = BadResponse
    if not choice:
        what = "answered without a choice"
    elif "malformed_function_call" in finish or finish == "tool_use_failed":
        kind, what = MalformedCall, "could not read the tool call its model wrote"
    elif finish == "insufficient_system_resource":  # DeepSeek
        kind, what = Overloaded, "ran out of capacity while it answered"
    elif finish == "error":
        what = "broke off with finish_reason 'error' and no explanation"
    elif not finish and not any(
        wire.get(field) for field in ("content", "tool_calls", "function_call", "refusal")
    ):
        what = "answered with neither content nor finish_reason"
    else:
        return
    raise kind(
        f"{peer.title} {what}; the answer cannot be used, and may have been charged",
        peer.provider,
        200,
        usage=usage,
    )


def _stop_reason(finish: str, wire: Mapping[str, Any], message: Message) -> StopReason:
    """By what is there rather than by what is said (sglang#2877), unless the answer was cut short."""
    if finish in _CUT_SHORT:
        return _CUT_SHORT[finish]
    if message.tool_uses:
        return StopReason.TOOL_USE
    return StopReason.REFUSAL if as_text(wire.get("refusal")) else StopReason.END_TURN


def _contents(wire: Mapping[str, Any], ids: CallIds, origin: str) -> list[Content]:
    contents: list[Content] = []
    thinking, text = _thinking_and_text(wire)
    reasoning = {
        field: wire[field] for field in (*_REASONING_FIELDS, *_OTHER_REASONING_FIELDS) if wire.get(field)
    }
    if reasoning or thinking:
        shown = next((as_text(wire.get(field)) for field in _REASONING_FIELDS if wire.get(field)), thinking)
        contents.append(Thinking(text=shown, origin=origin, raw=reasoning))
    if text:
        contents.append(Text(text=text))
    if wire.get("extra_content"):
        contents.append(Opaque(origin=origin, raw={"extra_content": wire["extra_content"]}))
    calls = as_list(wire.get("tool_calls"))
    if not calls and wire.get("function_call"):
        calls = [{"function": wire["function_call"]}]  # the old form, for one call
    contents += [_tool_use(as_dict(call), ids, origin) for call in calls]
    return contents


def _thinking_and_text(wire: Mapping[str, Any]) -> tuple[str, str]:
    """Content is a text, or (Mistral) a list of text and thinking parts, or beside it a refusal."""
    listed = list_in(wire.get("content"))
    if listed is None:
        return "", as_text(wire.get("content")) or as_text(wire.get("refusal"))
    parts = [as_dict(part) for part in listed]
    thoughts = [as_dict(part) for whole in parts for part in as_list(whole.get("thinking"))]
    return (
        "".join(as_text(part.get("text")) for part in thoughts),
        "".join(as_text(part.get("text")) for part in parts),
    )


def _tool_use(call: Mapping[str, Any], ids: CallIds, origin: str) -> ToolUse:
    function = as_dict(call.get("function"))
    own_id, wire_id = ids.assign(as_text(call.get("id")))
    given, malformed = tool_input(function.get("arguments"))
    return ToolUse(
        id=own_id,
        wire_id=wire_id,
        # A call without a name is answered like one of an unknown tool; "" would be refused in history.
        name=as_text(function.get("name")) or "unnamed_tool",
        input=given,
        malformed_input=malformed,
        origin=origin,
        extra={
            key: value for key, value in call.items() if key not in _KNOWN_CALL_FIELDS and value is not None
        },
    )


def tool_input(wire: object) -> tuple[dict[str, Any], str | None]:
    """The input of a call by its arguments, and the text of what is no JSON object.

    Arguments come as text, as an object (llama.cpp#20198), or empty (openai-agents-js#664).
    """
    given = object_in(wire)
    if given is not None:
        return given, None
    if wire is None or (isinstance(wire, str) and not wire.strip()):
        return {}, None
    text = wire if isinstance(wire, str) else json.dumps(wire)
    given = object_in(json_in(text))
    return ({}, text) if given is None else (given, None)
