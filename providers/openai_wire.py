"""Chat completions, on the way out: neutral requests to JSON.

Facts: the official SDK (`openai` 3.54 on PyPI) and the quirk table of PROVIDERS.md, November 2026.
The way back is in `openai_answer`.

Layer: providers; pure functions, no I/O.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Sequence
from typing import Any

from palaver.providers.call_ids import WireIds
from palaver.providers.messages import Image, Message, Opaque, Text, Thinking, ToolResult, ToolUse
from palaver.providers.profiles import Profile
from palaver.providers.provider import OutputSchema, Request, ToolChoice, ToolSpec, demanded_alone
from palaver.providers.schemas import plain_schema, strict_schema
from palaver.providers.worst_case import Overhead

_NO_OUTPUT = "(no output)"
"""Some servers refuse an empty tool message."""

_IMAGE_TOKENS = 36_000
"""The most for one picture when `detail` is left to the server: 30,000 patches, times 1.2, of OpenAI's models
that keep the original size (developers.openai.com images-vision, November 2026). Elsewhere it is less: 2,240
at Gemini (ai.google.dev media-resolution), 16,384 of Qwen's open models (their processor's max_pixels)."""
_IMAGE_TOKENS_4O_MINI = 2_833 + 8 * 5_667
"""Of gpt-4o-mini: a base, and as many tiles as 768 by 2,048 pixels have (same page)."""


def overhead(model: str) -> Overhead:
    """What a server may add to a request. None documents it: chat templates bring system prompts of their
    own where there is none, instructions for tools, and the day's date. The longest known, Devstral's, is
    under 1,000 tokens (its template on huggingface.co, November 2026).
    """
    family = model.lower().rsplit("/", 1)[-1]
    return Overhead(
        per_request=1_024,
        for_tools=512,
        for_tool_choice=256,
        for_output_schema=256,
        per_image=_IMAGE_TOKENS_4O_MINI if family.startswith("gpt-4o-mini") else _IMAGE_TOKENS,
    )


def to_wire(
    request: Request,
    *,
    model: str,
    origin: str,
    profile: Profile,
    max_tokens: int | None = None,
    reasoning_effort: str | None = None,
) -> dict[str, Any]:
    """The body of POST /chat/completions, with no more fields than it needs.

    `origin` names the server: reasoning and unknown fields of calls go back to it alone. `max_tokens`
    holds where the request names none; None leaves it to the server.
    """
    body: dict[str, Any] = {"model": model, "messages": _messages(request, origin, profile)}
    bound = request.max_tokens or max_tokens
    if bound is not None:
        body[profile.max_tokens_field] = bound
    if request.tools:
        body["tools"] = [_tool(tool, profile) for tool in _offered(request, profile)]
        if request.tool_choice is not None:
            choice = _tool_choice(request.tool_choice, profile)
            if choice != "auto":  # what a server does by itself; DeepSeek refuses the field (any-llm#1384)
                body["tool_choice"] = choice
            if not request.tool_choice.parallel and profile.parallel_tool_calls:
                body["parallel_tool_calls"] = False
    if request.output_schema is not None:
        body["response_format"] = _response_format(request.output_schema, profile)
    effort = reasoning_effort or (profile.effort_with_tools if request.tools else None)
    if effort is not None:
        body["reasoning_effort"] = effort
    return body


def _response_format(output: OutputSchema, profile: Profile) -> dict[str, Any]:
    """Strict where the schema can be; `strict` is left out, which means false, where it cannot."""
    if profile.plain_schemas:
        wire = {"name": output.name, "schema": plain_schema(output.json_schema)}
    elif strict := strict_schema(output.json_schema, limits=profile.limits_in_output_schema):
        wire = {"name": output.name, "schema": strict, "strict": True}
    else:
        wire = {"name": output.name, "schema": output.json_schema}
    return {"type": "json_schema", "json_schema": wire}


def _system(request: Request, profile: Profile) -> str:
    if request.output_schema is None or profile.tells_output_schema:
        return request.system
    schema = json.dumps(request.output_schema.json_schema, ensure_ascii=False, separators=(",", ":"))
    told = f"Answer with nothing but a JSON object that fits this schema:\n{schema}"
    return f"{request.system}\n\n{told}" if request.system.strip() else told


def _offered(request: Request, profile: Profile) -> Sequence[ToolSpec]:
    """The tools; the one alone that has to be called, where the server takes no name of it."""
    return demanded_alone(request) if profile.forced_choice == "any" else request.tools


def _tool(tool: ToolSpec, profile: Profile) -> dict[str, Any]:
    schema = plain_schema(tool.input_schema) if profile.plain_schemas else tool.input_schema
    described = {"description": tool.description} if tool.description else {}
    return {"type": "function", "function": {"name": tool.name, **described, "parameters": schema}}


def _tool_choice(choice: ToolChoice, profile: Profile) -> str | dict[str, Any]:
    if choice.type not in ("any", "tool"):
        return choice.type
    if profile.forced_choice == "never":
        return "auto"
    if choice.type == "tool" and profile.forced_choice == "named":
        return {"type": "function", "function": {"name": choice.name}}
    return "required"


def _messages(request: Request, origin: str, profile: Profile) -> list[dict[str, Any]]:
    ids = WireIds(request.messages, origin, profile.tool_call_id_pattern)
    wire: list[dict[str, Any]] = []
    system = _system(request, profile)
    if system.strip():
        # Never "developer": that role is OpenAI's alone (pydantic-ai#5812).
        wire.append({"role": "system", "content": system})
    for message in request.messages:
        if message.role == "assistant":
            wire += _assistant(message, ids, origin, profile)
        else:
            wire += _user(message, ids, profile)
    return wire


def _user(message: Message, ids: WireIds, profile: Profile) -> list[dict[str, Any]]:
    """The tool messages of a turn, in order, then one user message with everything else."""
    wire = [_tool_message(result, ids, profile) for result in message.tool_results]
    parts: list[Text | Image] = []
    if not profile.images_in_tool_results:
        for result in message.tool_results:
            images = [part for part in result.content if isinstance(part, Image)]
            if images:
                parts += [Text(text=f"Images in the result of tool call {ids[result.tool_use_id]}:"), *images]
    parts += [part for part in message.content if isinstance(part, Text | Image)]
    content = _content(parts)
    if not content:
        return wire
    if wire and not profile.user_may_follow_tool:
        wire.append({"role": "assistant", "content": "OK."})
    return [*wire, {"role": "user", "content": content}]


def _tool_message(result: ToolResult, ids: WireIds, profile: Profile) -> dict[str, Any]:
    shown = [part for part in result.content if isinstance(part, Text) or profile.images_in_tool_results]
    if result.is_error:
        # There is no field for it: unless the text says so, the model takes the failure for a result.
        shown.insert(0, Text(text="The tool failed:"))
    content = _content(shown)
    if not content:
        has_images = any(isinstance(part, Image) for part in result.content)
        content = "(images follow)" if has_images else _NO_OUTPUT
    return {"role": "tool", "tool_call_id": ids[result.tool_use_id], "content": content}


def _content(parts: Iterable[Text | Image]) -> str | list[dict[str, Any]]:
    """Plain text where there are no images: some servers take nothing else."""
    shown = [part for part in parts if isinstance(part, Image) or part.text.strip()]
    if not any(isinstance(part, Image) for part in shown):
        return "\n".join(part.text for part in shown if isinstance(part, Text))
    return [
        {"type": "text", "text": part.text}
        if isinstance(part, Text)
        else {"type": "image_url", "image_url": {"url": data_url(part)}}
        for part in shown
    ]


def data_url(image: Image) -> str:
    """The picture as a URL that holds it."""
    return f"data:{image.media_type};base64,{base64.b64encode(image.data).decode()}"


def _assistant(message: Message, ids: WireIds, origin: str, profile: Profile) -> list[dict[str, Any]]:
    """One assistant message; none when nothing of it may be sent, since an empty one is refused."""
    wire: dict[str, Any] = {"role": "assistant"}
    text = message.text
    calls = [_tool_call(call, ids, origin) for call in message.tool_uses]
    if not text.strip() and not calls:
        return []
    if text.strip():
        wire["content"] = text
    elif profile.content_beside_calls != "absent":
        wire["content"] = None if profile.content_beside_calls == "null" else ""
    if calls:
        wire["tool_calls"] = calls
    for part in message.content:
        if isinstance(part, Thinking) and not profile.replay_reasoning:
            continue
        if isinstance(part, Thinking | Opaque) and part.origin == origin:
            wire.update(part.raw)
    return [wire]


def _tool_call(call: ToolUse, ids: WireIds, origin: str) -> dict[str, Any]:
    # Arguments that were no JSON stay out: a server that parses the history would refuse it for ever
    # (llama.cpp#25510). `input` is {} then.
    arguments = json.dumps(call.input, ensure_ascii=False, separators=(",", ":"))
    return {
        **(call.extra if call.origin == origin else {}),
        "id": ids[call.id],
        "type": "function",
        "function": {"name": call.name, "arguments": arguments},
    }
