"""OpenAI's Responses, on the way back: the API's JSON to the neutral response.

Facts: the official SDK (`openai` 3.54 on PyPI, `types/responses`), November 2026. Each item is kept as it
came, so that it goes back so: a message as an opaque block without its texts, and these after it.

Layer: providers; pure functions, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from palaver.providers.call_ids import CallIds
from palaver.providers.errors import BadResponse
from palaver.providers.http_errors import Peer, error_from_object
from palaver.providers.messages import Content, Message, Opaque, Text, Thinking, ToolUse
from palaver.providers.openai_answer import tool_input
from palaver.providers.openai_answer import usage_from_wire as usage_of_chat
from palaver.providers.prices import Price
from palaver.providers.provider import Request, Response, StopReason
from palaver.providers.untyped import as_dict, as_list, as_text
from palaver.providers.usage import Usage

_CUT_SHORT: Mapping[str, StopReason] = {
    "max_output_tokens": StopReason.MAX_TOKENS,
    "content_filter": StopReason.REFUSAL,
}
_KNOWN_CALL_FIELDS = frozenset({"type", "call_id", "name", "arguments"})


def from_wire(
    answer: Mapping[str, Any],
    *,
    request: Request,
    peer: Peer,
    origin: str,
    price: Price | None,
    now: datetime,
) -> Response:
    """The response in an answer of POST /responses.

    Raises what its error says when the API failed within it, and BadResponse when there is no output at all;
    both with the usage.
    """
    if price is not None:
        price = price.served_at(as_text(answer.get("service_tier")))
    usage = usage_from_wire(answer.get("usage"), price)
    charged = usage if answer.get("usage") else None
    if answer.get("error"):
        raise error_from_object(answer["error"], {}, peer, now, charged)
    status = as_text(answer.get("status")) or "completed"
    if not isinstance(answer.get("output"), list) or status not in ("completed", "incomplete"):
        raise BadResponse(
            f"{peer.title} answered with status {status!r} and no output to use; it has {sorted(answer)}; "
            "check that base_url leads to the Responses API",
            peer.provider,
            200,
            usage=charged,
        )
    ids = CallIds(request)
    contents: list[Content] = []
    for item in map(as_dict, as_list(answer["output"])):
        contents += _contents(item, ids, origin)
    message = Message(role="assistant", content=tuple(contents))
    return Response(
        id=as_text(answer.get("id")),
        request_id=request.id,
        model=as_text(answer.get("model")) or peer.model,
        message=message,
        stop_reason=_stop_reason(answer, status, message),
        usage=usage,
    )


def usage_from_wire(wire: object, price: Price | None) -> Usage:
    """Usage with its cost; None when neither the server told it nor the price is known.

    `input_tokens` include what was cached, as in chat completions.
    """
    counts = as_dict(wire)
    names = {
        "input_tokens": "prompt_tokens",
        "output_tokens": "completion_tokens",
        "input_tokens_details": "prompt_tokens_details",
        "output_tokens_details": "completion_tokens_details",
    }
    return usage_of_chat({names.get(key, key): value for key, value in counts.items()}, price)


def _stop_reason(answer: Mapping[str, Any], status: str, message: Message) -> StopReason:
    if status == "incomplete":
        reason = as_text(as_dict(answer.get("incomplete_details")).get("reason"))
        return _CUT_SHORT.get(reason, StopReason.MAX_TOKENS)
    if message.tool_uses:
        return StopReason.TOOL_USE
    parts = (part for item in as_list(answer["output"]) for part in as_list(as_dict(item).get("content")))
    refused = any(as_dict(part).get("type") == "refusal" for part in parts)
    return StopReason.REFUSAL if refused else StopReason.END_TURN


def _contents(item: dict[str, Any], ids: CallIds, origin: str) -> list[Content]:
    match item.get("type"):
        case "reasoning":
            shown = as_list(item.get("summary")) or as_list(item.get("content"))
            text = "\n\n".join(as_text(as_dict(part).get("text")) for part in shown)
            return [Thinking(text=text, origin=origin, raw=item)]
        case "message":
            return _message(item, origin)
        case "function_call":
            return [_tool_use(item, ids, origin)]
        case _:
            return [Opaque(origin=origin, raw=item)]


def _message(item: dict[str, Any], origin: str) -> list[Content]:
    parts = [as_dict(part) for part in as_list(item.get("content"))]
    texts = [Text(text=as_text(part.get("text")) or as_text(part.get("refusal"))) for part in parts]
    if not any(text.text for text in texts):
        return []
    bare = [{key: value for key, value in part.items() if key not in ("text", "refusal")} for part in parts]
    return [Opaque(origin=origin, raw={**item, "content": bare}), *texts]


def _tool_use(item: Mapping[str, Any], ids: CallIds, origin: str) -> ToolUse:
    own_id, wire_id = ids.assign(as_text(item.get("call_id")))
    given, malformed = tool_input(item.get("arguments"))
    return ToolUse(
        id=own_id,
        wire_id=wire_id,
        # A call without a name is answered like one of an unknown tool; "" would be refused in history.
        name=as_text(item.get("name")) or "unnamed_tool",
        input=given,
        malformed_input=malformed,
        origin=origin,
        extra={
            key: value for key, value in item.items() if key not in _KNOWN_CALL_FIELDS and value is not None
        },
    )
