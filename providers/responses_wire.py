"""OpenAI's Responses, on the way out: neutral requests to JSON.

Facts: the official SDK (`openai` 3.54 on PyPI, `types/responses`), November 2026. Nothing is stored at the
server: each request holds all items, those of the model as they came, its sealed reasoning among them. The
way back is in `responses_answer`.

Layer: providers; pure functions, no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from palaver.providers.call_ids import WireIds
from palaver.providers.messages import Content, Image, Message, Opaque, Text, Thinking, ToolResult, ToolUse
from palaver.providers.openai_wire import data_url
from palaver.providers.provider import OutputSchema, Request, ToolChoice, demanded_alone
from palaver.providers.schemas import strict_schema
from palaver.providers.untyped import as_dict, as_list, as_text

MIN_OUTPUT_TOKENS = 16
"""The API refuses less."""

SEALED = "reasoning.encrypted_content"

_ID_PATTERN = r".{1,64}"
_REASONS = ("gpt-5", "gpt-6", "o1", "o3", "o4")
_REASONS_NOT = ("gpt-5-chat",)
"""Only models that reason may be asked for their sealed reasoning; the others answer 400."""


def to_wire(
    request: Request,
    *,
    model: str,
    origin: str,
    max_tokens: int | None = None,
    reasoning_effort: str | None = None,
    reasoning_summary: str | None = None,
    takes_names: bool = True,
) -> dict[str, Any]:
    """The body of POST /responses. `max_tokens` holds where the request names none; None sends none.

    Without `takes_names`, a tool that has to be called is offered alone: llama.cpp passes over its name.
    """
    body: dict[str, Any] = {"model": model, "input": _items(request, origin), "store": False}
    if request.system.strip():
        body["instructions"] = request.system
    bound = request.max_tokens or max_tokens
    if bound is not None:
        body["max_output_tokens"] = max(bound, MIN_OUTPUT_TOKENS)
    if request.tools:
        body["tools"] = [
            {
                "type": "function",
                "name": tool.name,
                **({"description": tool.description} if tool.description else {}),
                "parameters": tool.input_schema,
                # It would be made strict otherwise, which not every schema can be.
                "strict": False,
            }
            for tool in (request.tools if takes_names else demanded_alone(request))
        ]
        if request.tool_choice is not None:
            body["tool_choice"] = _tool_choice(request.tool_choice, takes_names)
            if not request.tool_choice.parallel:
                body["parallel_tool_calls"] = False
    if request.output_schema is not None:
        body["text"] = {"format": _format(request.output_schema)}
    told = {"effort": reasoning_effort, "summary": reasoning_summary}
    if reasoning := {key: value for key, value in told.items() if value is not None}:
        body["reasoning"] = reasoning
    if model.startswith(_REASONS) and not model.startswith(_REASONS_NOT):
        body["include"] = [SEALED]
    return body


def _tool_choice(choice: ToolChoice, takes_names: bool) -> str | dict[str, Any]:
    if choice.type == "tool" and takes_names:
        return {"type": "function", "name": choice.name}
    return "required" if choice.type in ("any", "tool") else choice.type


def _format(output: OutputSchema) -> dict[str, Any]:
    strict = strict_schema(output.json_schema, limits=True)
    wire: dict[str, Any] = {"type": "json_schema", "name": output.name}
    return {**wire, "schema": strict, "strict": True} if strict else {**wire, "schema": output.json_schema}


def _items(request: Request, origin: str) -> list[dict[str, Any]]:
    ids = WireIds(request.messages, origin, _ID_PATTERN)
    items: list[dict[str, Any]] = []
    for message in request.messages:
        items += _of_model(message, ids, origin) if message.role == "assistant" else _of_user(message, ids)
    return items


def _of_user(message: Message, ids: WireIds) -> list[dict[str, Any]]:
    """The results of a turn, in order, then one message with everything else."""
    results: list[dict[str, Any]] = [
        {
            "type": "function_call_output",
            "call_id": ids[result.tool_use_id],
            "output": _output(result),
        }
        for result in message.tool_results
    ]
    content = _parts(part for part in message.content if isinstance(part, Text | Image))
    return [*results, {"role": "user", "content": content}] if content else results


def _output(result: ToolResult) -> str | list[dict[str, Any]]:
    """Plain text where there are no images."""
    # There is no field for a failure: unless the text says so, the model takes it for a result.
    failed = [Text(text="The tool failed:")] if result.is_error else []
    shown = [*failed, *result.content]
    if any(isinstance(part, Image) for part in shown):
        return _parts(shown)
    return "\n".join(part.text for part in shown if isinstance(part, Text) and part.text.strip())


def _parts(parts: Iterable[Text | Image]) -> list[dict[str, Any]]:
    return [
        {"type": "input_text", "text": part.text}
        if isinstance(part, Text)
        else {"type": "input_image", "image_url": data_url(part), "detail": "auto"}
        for part in parts
        if isinstance(part, Image) or part.text.strip()
    ]


def _of_model(message: Message, ids: WireIds, origin: str) -> list[dict[str, Any]]:
    items: list[dict[str, Any]] = []
    left = list(message.content)
    while left:
        match left.pop(0):
            case Opaque(origin=of, raw=raw) if of == origin and raw.get("type") == "message":
                items.append(_filled(raw, left))
            case Thinking(origin=of, raw=raw) | Opaque(origin=of, raw=raw) if of == origin:
                items.append(raw)
            case Text(text=text) if text.strip():
                items.append({"role": "assistant", "content": text})
            case ToolUse() as call:
                items.append(_call(call, ids, origin))
            case _:
                pass
    return _with_what_was_thought(items)


def _with_what_was_thought(items: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items without the reasoning that cannot go back, and without the ids of those it belonged to.

    The API refuses reasoning that nothing follows, as in an answer that was cut short; reasoning that is
    neither sealed nor open, since nothing of it is stored; and a message or a call whose id names one whose
    reasoning is not there (OpenAI's 400 "without its required following item", openai-dotnet#1050).
    """
    kept: list[dict[str, Any]] = []
    while items and items[-1].get("type") == "reasoning":
        items = items[:-1]
    lost = False
    for item in items:
        if item.get("type") == "reasoning":
            lost = not (item.get("encrypted_content") or item.get("content"))
            if not lost:
                kept.append(item)
        else:
            kept += _without_id(item) if lost else [item]
    return kept


def _without_id(item: dict[str, Any]) -> list[dict[str, Any]]:
    """The item as the caller's own; none for what only the server makes, as a search of its own."""
    if "id" not in item:
        return [item]
    if item.get("type") == "message":
        parts = map(as_dict, as_list(item.get("content")))
        texts = [as_text(part.get("text")) or as_text(part.get("refusal")) for part in parts]
        return [{"role": "assistant", "content": "\n".join(texts)}]
    if item.get("type") != "function_call":
        return []
    return [{key: value for key, value in item.items() if key != "id"}]


def _filled(raw: dict[str, Any], left: list[Content]) -> dict[str, Any]:
    """A message of the model as it came, with its texts, which follow it, put back."""
    parts: Sequence[Any] = as_list(raw.get("content"))
    filled: list[dict[str, Any]] = []
    for part in map(as_dict, parts):
        text = ""
        if left and isinstance(left[0], Text):
            text = left[0].text
            del left[0]
        filled.append({**part, "refusal" if part.get("type") == "refusal" else "text": text})
    return {**raw, "content": filled}


def _call(call: ToolUse, ids: WireIds, origin: str) -> dict[str, Any]:
    return {
        **(call.extra if call.origin == origin else {}),
        "type": "function_call",
        "call_id": ids[call.id],
        "name": call.name,
        "arguments": json.dumps(call.input, ensure_ascii=False, separators=(",", ":")),
    }
