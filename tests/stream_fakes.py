"""Streams as servers send them: answers cut into events, and bodies that come in chunks or break off."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from typing import Any

import httpx

Events = list[dict[str, Any]]
Cut = Callable[[str], list[str]]
"""Cuts a text into pieces."""


def by_words(text: str) -> list[str]:
    """A piece for each word, its space before it."""
    return [word if n == 0 else f" {word}" for n, word in enumerate(text.split(" "))] if text else []


def anthropic_events(answer: dict[str, Any], cut: Cut = by_words) -> Events:
    """The events of the Messages API that come to this answer."""
    usage = answer["usage"]
    ends = {key: answer.get(key) for key in ("stop_reason", "stop_sequence")}
    start = {**answer, "content": [], "stop_reason": None, "usage": {**usage, "output_tokens": 1}}
    events: Events = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, block in enumerate(answer["content"]):
        begun, deltas = _block_events(block, cut)
        events.append({"type": "content_block_start", "index": index, "content_block": begun})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    events.append(
        {"type": "message_delta", "delta": ends, "usage": {"output_tokens": usage["output_tokens"]}}
    )
    return [*events, {"type": "message_stop"}]


def _block_events(block: dict[str, Any], cut: Cut) -> tuple[dict[str, Any], Events]:
    match block["type"]:
        case "text":
            deltas: Events = [{"type": "text_delta", "text": piece} for piece in cut(block["text"])]
            cited = [{"type": "citations_delta", "citation": each} for each in block.get("citations") or ()]
            return {**block, "text": "", **({"citations": []} if cited else {})}, [*deltas, *cited]
        case "thinking":
            deltas = [{"type": "thinking_delta", "thinking": piece} for piece in cut(block["thinking"])]
            signature = {"type": "signature_delta", "signature": block["signature"]}
            return {**block, "thinking": "", "signature": ""}, [*deltas, signature]
        case "tool_use" | "server_tool_use":
            given = json.dumps(block["input"]) if block["input"] else ""
            deltas = [{"type": "input_json_delta", "partial_json": piece} for piece in cut(given)]
            return {**block, "input": {}}, deltas
        case _:
            return block, []


def chat_events(answer: dict[str, Any], cut: Cut = by_words) -> Events:
    """The chunks of chat completions that come to this answer, with the usage in a last one of its own."""
    [choice] = answer["choices"]
    message, finish = choice["message"], choice["finish_reason"]
    top = {key: value for key, value in answer.items() if key not in ("choices", "usage")}
    deltas: Events = [{"role": "assistant", "content": ""}]
    for field in ("reasoning_content", "content", "refusal"):
        deltas += [{field: piece} for piece in cut(message.get(field) or "")]
    for index, call in enumerate(message.get("tool_calls") or ()):
        function = call["function"]
        begun = {**call, "index": index, "function": {"name": function["name"], "arguments": ""}}
        deltas.append({"tool_calls": [begun]})
        deltas += [
            {"tool_calls": [{"index": index, "function": {"arguments": piece}}]}
            for piece in cut(function["arguments"])
        ]
    chunks = [
        *({**top, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas),
        {**top, "choices": [{"index": 0, "delta": {}, "finish_reason": finish}]},
    ]
    return [*chunks, *([{**top, "choices": [], "usage": answer["usage"]}] if answer.get("usage") else [])]


def responses_events(answer: dict[str, Any], cut: Cut = by_words) -> Events:
    """The events of Responses that come to this answer."""
    begun = {**answer, "status": "in_progress", "output": [], "usage": None}
    events: Events = [{"type": "response.created", "response": begun}]
    for index, item in enumerate(answer["output"]):
        place = {"output_index": index, "item_id": item.get("id")}
        match item["type"]:
            case "message":
                empty, name = {**item, "content": []}, "response.output_text.delta"
                texts = [part.get("text") or part.get("refusal") for part in item["content"]]
            case "function_call":
                empty, name = {**item, "arguments": ""}, "response.function_call_arguments.delta"
                texts = [item["arguments"]]
            case "reasoning":
                empty, name = {**item, "summary": []}, "response.reasoning_summary_text.delta"
                texts = [part["text"] for part in item["summary"]]
            case _:
                empty, name, texts = item, "", []
        events.append({"type": "response.output_item.added", **place, "item": empty})
        events += [{"type": name, **place, "delta": piece} for text in texts for piece in cut(text)]
        events.append({"type": "response.output_item.done", **place, "item": item})
    return [*events, {"type": f"response.{answer['status']}", "response": answer}]


def sse(events: Iterable[dict[str, Any]], *, done: bool = False) -> bytes:
    """The bytes of these events; an event's `type` is its name, where it has one."""
    lines = [
        (f"event: {event['type']}\n" if "type" in event else "") + f"data: {json.dumps(event)}\n\n"
        for event in events
    ]
    return "".join([*lines, "data: [DONE]\n\n" if done else ""]).encode()


class Chunks(httpx.AsyncByteStream):
    """A body that comes in chunks, and then ends, breaks off with an error, or never ends: `stalls`, or sends
    `alive` over and over."""

    def __init__(
        self,
        chunks: Sequence[bytes],
        end: Exception | None = None,
        *,
        stalls: bool = False,
        alive: bytes | None = None,
    ) -> None:
        self._chunks = chunks
        self._end = end
        self._stalls = stalls
        self._alive = alive
        self.closed = False
        self.begun = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for chunk in self._chunks:
            yield chunk
            self.begun.set()
        while self._alive is not None:
            await asyncio.sleep(0.01)
            yield self._alive
        if self._stalls:
            await asyncio.Event().wait()
        if self._end is not None:
            raise self._end

    async def aclose(self) -> None:
        self.closed = True


def streaming(
    chunks: Sequence[bytes] | bytes,
    end: Exception | None = None,
    *,
    stalls: bool = False,
    alive: bytes | None = None,
) -> Callable[[httpx.Request], httpx.Response]:
    """An answer for a FakeServer: a stream of server-sent events, made anew for each request."""
    pieces = [chunks] if isinstance(chunks, bytes) else chunks

    def answer(_: httpx.Request) -> httpx.Response:
        return httpx.Response(
            200,
            headers={"content-type": "text/event-stream; charset=utf-8", "request-id": "req_1"},
            stream=Chunks(pieces, end, stalls=stalls, alive=alive),
        )

    return answer


def pieces_of(lengths: Iterable[int]) -> Cut:
    """Cuts every text into pieces of these lengths, over and over."""
    sizes = list(lengths) or [1]

    def cut(text: str) -> list[str]:
        left: Iterator[str] = iter(text)
        found = ("".join(itertools.islice(left, size)) for size in itertools.cycle(sizes))
        return list(itertools.takewhile(bool, found))

    return cut
