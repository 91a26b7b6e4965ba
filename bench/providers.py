"""Requests through each adapter, against the same requests in bare httpx and through the official SDK: how
many a second, and how soon the first token of a stream is there.

The server is a process of its own on this machine that answers at once, always the same.
"""

from __future__ import annotations

import asyncio
import json
import multiprocessing
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, cast

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import anthropic
import httpx
import openai
from report import ratio, report
from stream_fakes import anthropic_events, chat_events, responses_events, sse

from palaver.providers import Anthropic, Message, OpenAI, OpenAIResponses, Price, Request, TextDelta
from palaver.providers.stream import Streams

REQUESTS = 300
AT_ONCE = 8
STREAMS = 60
ROUNDS = 7
TEXT = "The quick brown fox jumps over the lazy dog. " * 20
PRICE = Price.per_million_tokens(1, 10)
REQUEST = Request(
    messages=(Message.user("Tell me about the fox. " * 20),), system="Be brief.", max_tokens=500
)

CHAT: dict[str, Any] = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "gpt-4.1",
    "choices": [
        {"index": 0, "message": {"role": "assistant", "content": TEXT}, "finish_reason": "stop"},
    ],
    "usage": {"prompt_tokens": 100, "completion_tokens": 200, "total_tokens": 300},
}
MESSAGES: dict[str, Any] = {
    "id": "msg_1",
    "type": "message",
    "role": "assistant",
    "model": "claude-sonnet-4-5",
    "content": [{"type": "text", "text": TEXT}],
    "stop_reason": "end_turn",
    "stop_sequence": None,
    "usage": {"input_tokens": 100, "output_tokens": 200},
}

RESPONSES: dict[str, Any] = {
    "id": "resp_1",
    "object": "response",
    "created_at": 1,
    "status": "completed",
    "error": None,
    "model": "gpt-4.1",
    "output": [
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": TEXT, "annotations": []}],
        }
    ],
    "parallel_tool_calls": True,
    "tool_choice": "auto",
    "tools": [],
    "usage": {
        "input_tokens": 100,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": 200,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 300,
    },
}


def serve(port: Any) -> None:
    """Answer every request at once: whole, or its first event and a moment later the rest."""
    answers = {b"/chat/completions ": CHAT, b"/messages ": MESSAGES, b"/responses ": RESPONSES}
    whole = {path: json.dumps(each).encode() for path, each in answers.items()}
    events = {
        b"/chat/completions ": chat_events(CHAT),
        b"/messages ": anthropic_events(MESSAGES),
        b"/responses ": responses_events(RESPONSES),
    }
    begun = {b"/chat/completions ": 2, b"/messages ": 4, b"/responses ": 3}

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while head := await _head(reader):
            length = next(
                int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")
            )
            body = await reader.readexactly(length)
            kind = next(path for path in answers if path in head)
            if b'"stream":true' not in body.replace(b" ", b""):
                content = whole[kind]
                writer.write(
                    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
                    % len(content)
                )
                writer.write(content)
                continue
            writer.write(
                b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
            )
            first, rest = events[kind][: begun[kind]], events[kind][begun[kind] :]
            for part in (sse(first), sse(rest, done=kind == b"/chat/completions ")):
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await writer.drain()
                await asyncio.sleep(0.002)
            writer.write(b"0\r\n\r\n")
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        port.value = server.sockets[0].getsockname()[1]
        await server.serve_forever()

    asyncio.run(main())


async def _head(reader: asyncio.StreamReader) -> bytes:
    try:
        return (await reader.readuntil(b"\r\n\r\n")).lower()
    except (asyncio.IncompleteReadError, ConnectionResetError):
        return b""


async def per_second(ask: Callable[[], Awaitable[Any]]) -> float:
    """How many requests a second, AT_ONCE of them at once."""

    async def work() -> None:
        for _ in range(REQUESTS // AT_ONCE):
            await ask()

    began = time.perf_counter()
    await asyncio.gather(*(work() for _ in range(AT_ONCE)))
    return REQUESTS / (time.perf_counter() - began)


async def first_token_s(first: Callable[[], Awaitable[float]]) -> float:
    """The median time until the first token of a stream."""
    return statistics.median([await first() for _ in range(STREAMS)])


async def measure(name: str, provider: Any, url: str, path: str, sdk: Any) -> None:
    """Compare one adapter with bare httpx and with the SDK."""
    body = cast("Any", provider)._to_wire(REQUEST)
    async with httpx.AsyncClient(timeout=60, limits=httpx.Limits(max_connections=None)) as client:

        async def bare() -> None:
            answer = await client.post(f"{url}/{path}", json=body)
            answer.raise_for_status()
            answer.json()

        async def ours() -> None:
            await provider.generate(REQUEST)

        async def sdks() -> None:
            await sdk(body)

        async def bare_first() -> float:
            began, first = time.perf_counter(), 0.0
            async with client.stream("POST", f"{url}/{path}", json={**body, "stream": True}) as answer:
                async for line in answer.aiter_lines():
                    if not first and line.startswith("data: ") and b"The" in line.encode():
                        json.loads(line[6:])
                        first = time.perf_counter() - began
            return first

        async def our_first() -> float:
            assert isinstance(provider, Streams)
            began, first = time.perf_counter(), 0.0
            async for part in provider.stream(REQUEST):
                if not first and isinstance(part, TextDelta):
                    first = time.perf_counter() - began
            return first

        rates: list[tuple[float, float, float]] = []
        firsts: list[tuple[float, float]] = []
        for _ in range(ROUNDS + 1):
            rates.append((await per_second(ours), await per_second(bare), await per_second(sdks)))
            firsts.append((await first_token_s(our_first), await first_token_s(bare_first)))
    await provider.aclose()
    rates, firsts = rates[1:], firsts[1:]  # the first of each warms up
    report(
        f"{name}: requests a second",
        ratio=ratio([(mine, bare_one) for mine, bare_one, _ in rates]),
        target="0.8 or more of bare httpx",
        by_sdk=ratio([(mine, theirs) for mine, _, theirs in rates]),
        per_second=statistics.median(mine for mine, _, _ in rates),
        bare_per_second=statistics.median(bare_one for _, bare_one, _ in rates),
        sdk_per_second=statistics.median(theirs for _, _, theirs in rates),
    )
    report(
        f"{name}: first token",
        ratio=ratio(firsts),
        target="1.2 or less of bare httpx",
        first_token_ms=1e3 * statistics.median(mine for mine, _ in firsts),
        bare_first_token_ms=1e3 * statistics.median(bare_one for _, bare_one in firsts),
    )


async def compare(url: str) -> None:
    """Measure each adapter."""
    options: dict[str, Any] = {"api_key": "key", "price": PRICE, "rate_limits": None}
    chat, claude = OpenAI("gpt-4.1", base_url=url, **options), Anthropic(base_url=url, **options)
    responses = OpenAIResponses("gpt-4.1", base_url=url, **options)
    async with openai.AsyncOpenAI(base_url=url, api_key="key") as openais:
        ask = openais.chat.completions.create
        await measure("chat", chat, url, "chat/completions", lambda body: ask(**body))
        create_response = openais.responses.create
        await measure("responses", responses, url, "responses", lambda body: create_response(**body))
    async with anthropic.AsyncAnthropic(base_url=url, api_key="key") as anthropics:
        create = anthropics.messages.create
        await measure("anthropic", claude, url, "v1/messages", lambda body: create(**body))


def main() -> None:
    """Start the server, measure, and end it."""
    port = multiprocessing.Value("i", 0)
    server = multiprocessing.Process(target=serve, args=(port,), daemon=True)
    server.start()
    try:
        while not port.value:
            time.sleep(0.01)
        asyncio.run(compare(f"http://127.0.0.1:{port.value}"))
    finally:
        server.terminate()
        server.join()


if __name__ == "__main__":
    main()
