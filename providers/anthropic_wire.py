"""The Anthropic Messages API: neutral types to its JSON and back.

Facts: the official SDK (`anthropic` 2.12 on PyPI) and platform.claude.com/docs, November 2026. History
is append-only on current models: what came from Anthropic goes back as it came, in the same words in
every request; only `cache_control` marks may move.

Layer: providers; pure functions, no I/O.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Literal, TypeAlias

from palaver.providers.anthropic_cost import usage_from_wire
from palaver.providers.call_ids import CallIds, WireIds
from palaver.providers.errors import BadResponse
from palaver.providers.messages import Content, Image, Message, Opaque, Text, Thinking, ToolResult, ToolUse
from palaver.providers.prices import Price
from palaver.providers.provider import (
    OutputBy,
    OutputSchema,
    Request,
    Response,
    StopReason,
    ToolChoice,
    demanded_alone,
)
from palaver.providers.schemas import strict_schema
from palaver.providers.untyped import as_dict, as_list, as_text

ORIGIN = "anthropic"

Effort: TypeAlias = Literal["low", "medium", "high", "xhigh", "max"]
CacheTtl: TypeAlias = Literal["5m", "1h"]

_ID_PATTERN = r"[a-zA-Z0-9_-]+"
_MARKABLE = frozenset({"text", "image", "tool_use", "tool_result"})
"""Block types that may carry `cache_control` and that palaver writes itself."""
_MOST_MARKS = 4

_NO_FORCED_CHOICE = ("claude-fable-5", "claude-mythos-5", "claude-opus-5-5", "claude-sonnet-5-5")
"""Models that answer a forced tool choice with 400 (shared/PROVIDERS.md, November 2026)."""

_NO_OUTPUT_SCHEMA = (
    "claude-2",
    "claude-3-",
    "claude-instant",
    "claude-opus-4-0",
    "claude-opus-4-2025",
    "claude-sonnet-4-0",
    "claude-sonnet-4-2025",
)
"""Claude models older than structured outputs, which came with sonnet 4.5 and opus 4.1; all current ones
have them (platform.claude.com/docs structured-outputs, November 2026)."""

_STOP_REASONS: Mapping[str, StopReason] = {
    "end_turn": StopReason.END_TURN,
    "tool_use": StopReason.TOOL_USE,
    "max_tokens": StopReason.MAX_TOKENS,
    "stop_sequence": StopReason.STOP_SEQUENCE,
    "refusal": StopReason.REFUSAL,
    "pause_turn": StopReason.PAUSE,
    "model_context_window_exceeded": StopReason.CONTEXT_FULL,
}


def output_by(schema: OutputSchema, model: str) -> OutputBy:
    """By schema, beside tools too, on a model that has it; by tool for a schema that the API refuses."""
    takes = model.startswith("claude-") and not model.startswith(_NO_OUTPUT_SCHEMA)
    fits = takes and strict_schema(schema.json_schema, limits=False, recursion=False) is not None
    return "schema" if fits else "tool"


def may_force_calls(model: str, thinking: Mapping[str, Any] | None) -> bool:
    """Whether the API is known to take a choice that forces a call: not of some newest models, nor with
    thinking switched on.
    """
    thinks = thinking is not None and thinking.get("type") not in ("disabled", "between_tools")
    return not thinks and not model.startswith(_NO_FORCED_CHOICE)


def to_wire(
    request: Request,
    *,
    model: str,
    max_tokens: int,
    thinking: Mapping[str, Any] | None = None,
    effort: Effort | None = None,
    cache_ttl: CacheTtl = "5m",
    force_calls: bool = True,
    takes_names: bool = True,
) -> dict[str, Any]:
    """The body of POST /v1/messages. `max_tokens` holds where the request names none.

    A tool choice that forces a call becomes "auto" without `force_calls`, and where the API is known to
    refuse it. Without `takes_names`, a tool that has to be called is offered alone: llama.cpp passes over its
    name.
    """
    ids = WireIds(request.messages, ORIGIN, _ID_PATTERN)
    messages = [wire for message in request.messages if (wire := _message(message, ids))["content"]]
    body: dict[str, Any] = {
        "model": model,
        "max_tokens": request.max_tokens or max_tokens,
        "messages": messages,
    }
    if request.system.strip():
        body["system"] = [{"type": "text", "text": request.system}]
    if request.tools:
        body["tools"] = [
            {
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                "input_schema": tool.input_schema,
            }
            for tool in (request.tools if takes_names else demanded_alone(request))
        ]
        if request.tool_choice is not None:
            may_force = force_calls and may_force_calls(model, thinking)
            body["tool_choice"] = _tool_choice(request.tool_choice, may_force, takes_names)
    if thinking is not None:
        body["thinking"] = dict(thinking)
    output_config: dict[str, Any] = {} if effort is None else {"effort": effort}
    if request.output_schema is not None:
        schema = request.output_schema.json_schema
        wire_schema = strict_schema(schema, limits=False, recursion=False) or schema
        output_config["format"] = {"type": "json_schema", "schema": wire_schema}
    if output_config:
        body["output_config"] = output_config
    if request.prompt_caching:
        _mark_for_caching(body, cache_ttl)
    return body


def from_wire(answer: Mapping[str, Any], *, request: Request, model: str, price: Price | None) -> Response:
    """The response in an answer of POST /v1/messages.

    An empty content is a legal answer: the model had nothing to add. Raises BadResponse, with the
    usage, when there is no content list at all.
    """
    usage = usage_from_wire(answer.get("usage"), price)
    if not isinstance(answer.get("content"), list):
        raise BadResponse(
            f"anthropic ({model}) answered without a content list; it has {sorted(answer)}; "
            "check that base_url leads to the Messages API",
            ORIGIN,
            200,
            usage=usage,
        )
    ids = CallIds(request)
    message = Message(
        role="assistant",
        content=tuple(_content_from_wire(as_dict(block), ids) for block in as_list(answer["content"])),
    )
    otherwise = StopReason.TOOL_USE if message.tool_uses else StopReason.END_TURN
    return Response(
        id=as_text(answer.get("id")),
        request_id=request.id,
        model=as_text(answer.get("model")) or model,
        message=message,
        stop_reason=_STOP_REASONS.get(as_text(answer.get("stop_reason")), otherwise),
        stop_detail=_refusal(as_dict(answer.get("stop_details"))),
        usage=usage,
    )


def _message(message: Message, ids: WireIds) -> dict[str, Any]:
    # The API wants all results of a turn before any text.
    parts = sorted(message.content, key=lambda part: not isinstance(part, ToolResult))
    blocks = (_block(part, ids) for part in parts)
    return {"role": message.role, "content": [block for block in blocks if block is not None]}


def _block(part: Content, ids: WireIds) -> dict[str, Any] | None:
    """One content block; None for what the API refuses (blank text) or what is another provider's."""
    match part:
        case Text():
            extra = part.extra if part.origin == ORIGIN else {}
            return {**extra, "type": "text", "text": part.text} if part.text.strip() else None
        case Image():
            return _image(part)
        case Thinking() | Opaque():
            return dict(part.raw) if part.origin == ORIGIN else None
        case ToolUse():
            extra = part.extra if part.origin == ORIGIN else {}
            return {**extra, "type": "tool_use", "id": ids[part.id], "name": part.name, "input": part.input}
        case ToolResult():
            return _tool_result(part, ids)


def _image(image: Image) -> dict[str, Any]:
    data = base64.b64encode(image.data).decode()
    return {"type": "image", "source": {"type": "base64", "media_type": image.media_type, "data": data}}


def _tool_result(result: ToolResult, ids: WireIds) -> dict[str, Any]:
    content = [
        _image(part) if isinstance(part, Image) else {"type": "text", "text": part.text}
        for part in result.content
        if isinstance(part, Image) or part.text.strip()
    ]
    block: dict[str, Any] = {"type": "tool_result", "tool_use_id": ids[result.tool_use_id]}
    if result.is_error:
        block["is_error"] = True
        # "content cannot be empty if is_error is true"
        content = content or [{"type": "text", "text": "failed without a message"}]
    return {**block, "content": content} if content else block


def _tool_choice(choice: ToolChoice, may_force: bool, takes_names: bool) -> dict[str, Any]:
    if choice.type == "none":
        return {"type": "none"}
    forced = "any" if choice.type == "tool" and not takes_names else choice.type
    wire: dict[str, Any] = {"type": forced if may_force else "auto"}
    if wire["type"] == "tool":
        wire["name"] = choice.name
    return wire if choice.parallel else {**wire, "disable_parallel_tool_use": True}


def _mark_for_caching(body: dict[str, Any], ttl: CacheTtl) -> None:
    """Mark the end of the tools, of the system prompt, and of the last two user messages, as far as the API's
    four marks go: blocks that came with marks of their own count.

    The older of the two messages is where the request before this one was marked: the API looks back only 20
    blocks from a mark for an entry (platform.claude.com/docs prompt-caching, November 2026), which a
    turn with ten parallel calls exceeds.
    """
    mark = {"type": "ephemeral"} if ttl == "5m" else {"type": "ephemeral", "ttl": ttl}
    contents = [message["content"] for message in body["messages"]]
    from_user = [message["content"] for message in body["messages"] if message["role"] == "user"]
    older, newest = [None, None, *map(_last_markable, from_user)][-2:]
    system, tools = body.get("system", [None])[-1], body.get("tools", [None])[-1]
    marks = sum("cache_control" in block for content in contents for block in _with_inner(content))
    for block in (newest, system, tools, older):
        if block is not None and "cache_control" not in block and marks < _MOST_MARKS:
            block["cache_control"] = mark
            marks += 1


def _with_inner(content: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for block in content:
        yield block
        yield from (as_dict(inner) for inner in as_list(block.get("content")))


def _last_markable(content: Iterable[dict[str, Any]]) -> dict[str, Any] | None:
    return next((block for block in reversed(list(content)) if block["type"] in _MARKABLE), None)


def _content_from_wire(block: dict[str, Any], ids: CallIds) -> Content:
    match block.get("type"):
        case "text":
            extra = _extra(block, "text")
            return Text(text=as_text(block.get("text")), origin=ORIGIN if extra else "", extra=extra)
        case "thinking":
            return Thinking(text=as_text(block.get("thinking")), origin=ORIGIN, raw=block)
        case "redacted_thinking":
            return Thinking(origin=ORIGIN, raw=block)
        case "tool_use":
            return _tool_use_from_wire(block, ids)
        case _:
            return Opaque(origin=ORIGIN, raw=block)


def _tool_use_from_wire(block: dict[str, Any], ids: CallIds) -> ToolUse:
    own_id, wire_id = ids.assign(as_text(block.get("id")))
    given = block.get("input")
    return ToolUse(
        id=own_id,
        wire_id=wire_id,
        name=as_text(block.get("name")),
        input=as_dict(given),
        malformed_input=given if isinstance(given, str) and given else None,
        origin=ORIGIN,
        extra=_extra(block, "id", "name", "input"),
    )


def _extra(block: Mapping[str, Any], *known: str) -> dict[str, Any]:
    """What a block has besides its type and the fields that are `known`."""
    return {key: each for key, each in block.items() if key not in ("type", *known) and each is not None}


def _refusal(details: Mapping[str, Any]) -> str:
    return ": ".join(filter(None, (as_text(details.get("category")), as_text(details.get("explanation")))))
