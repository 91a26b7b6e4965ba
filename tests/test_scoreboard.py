"""What each adapter can do, at each kind of server: the table of docs/scoreboard.md, found out anew.

PALAVER_SCOREBOARD=write writes the table; =record also records the exchanges with llama.cpp's server anew.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import exchanges
import httpx
import pytest
from exchanges import Recorder, Replayer
from llmock.scenarios import Fail, Match, Reply
from llmock.scenarios import ToolCall as MockCall
from llmock.testing import LLMockServer
from wire_fakes import KEY, FakeClock

from palaver.providers import (
    Answered,
    Anthropic,
    BadRequest,
    ContextTooLong,
    Image,
    Message,
    OpenAI,
    OpenAIResponses,
    Price,
    Request,
    Response,
    StopReason,
    TextDelta,
    Thinking,
    ToolChoice,
    ToolResult,
    ToolSpec,
)
from palaver.providers.local import WEIGHTS_MODEL

pytestmark = pytest.mark.local

Adapter: TypeAlias = Anthropic | OpenAI

TABLE = Path(__file__).parent.parent / "docs" / "scoreboard.md"
MODE = os.environ.get("PALAVER_SCOREBOARD", "")

ADAPTERS: dict[str, type[Anthropic | OpenAI]] = {
    "Anthropic": Anthropic,
    "OpenAI": OpenAI,
    "OpenAIResponses": OpenAIResponses,
}
SERVERS = {
    "llama.cpp": "llama.cpp's own server, with SmolLM2-135M, live",
    "recorded": "the exchanges with it, as they were recorded, replayed",
    "llmock": "llmock, a server for tests, live",
    "documented": "exchanges written after the documentation of Anthropic, OpenAI and DeepSeek, replayed",
}

PNG = Image(
    media_type="image/png",
    data=bytes.fromhex(
        "89504e470d0a1a0a0000000d49484452000000010000000108020000009077"
        "53de0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
    ),
)
PLACE = {"type": "object", "properties": {"place": {"type": "string"}}, "required": ["place"]}
WEATHER = ToolSpec(name="weather", description="The weather at a place", input_schema=PLACE)
CLOCK = ToolSpec(name="clock", description="The time at a place", input_schema=PLACE)
QUESTION = Message.user("The weather in Rome and in Paris?")


# Abilities


async def tools(provider: Adapter) -> None:
    """A tool is called with its input, and its result is taken."""
    asked = Request(messages=(QUESTION,), tools=(WEATHER,), max_tokens=200)
    called = await provider.generate(asked)
    assert called.stop_reason is StopReason.TOOL_USE
    assert called.message.tool_uses
    for call in called.message.tool_uses:
        assert (call.name, call.malformed_input) == ("weather", None)
        assert call.input["place"] in ("Rome", "Paris")
    assert (await with_results(provider, asked, called)).message.text.strip()


async def parallel_tools(provider: Adapter) -> None:
    """Two calls of one answer are told apart, and both results are taken."""
    asked = Request(messages=(QUESTION,), tools=(WEATHER,), max_tokens=200)
    called = await provider.generate(asked)
    assert {call.input["place"] for call in called.message.tool_uses} == {"Rome", "Paris"}
    assert len({call.id for call in called.message.tool_uses}) == 2
    assert (await with_results(provider, asked, called)).message.text.strip()


async def forced_choice(provider: Adapter) -> None:
    """The tool that is demanded is called, of two."""
    asked = Request(
        messages=(QUESTION,),
        tools=(WEATHER, CLOCK),
        tool_choice=ToolChoice(type="tool", name="clock"),
        max_tokens=200,
    )
    called = await provider.generate(asked)
    assert {call.name for call in called.message.tool_uses} == {"clock"}


async def images(provider: Adapter) -> None:
    """A picture is shown, by the user and in the result of a tool."""
    asked = Request(messages=(Message.user("What is this?", PNG),), tools=(WEATHER,), max_tokens=200)
    called = await provider.generate(asked)
    [call] = called.message.tool_uses
    result = Message.user(ToolResult(tool_use_id=call.id, content=(PNG,)))
    grown = asked.model_copy(update={"messages": (*asked.messages, called.message, result)})
    assert (await provider.generate(grown)).message.text.strip()


async def thinking_replay(provider: Adapter) -> None:
    """What the model thought before a call goes back with it, in the next request, as it came."""
    asked = Request(messages=(QUESTION,), tools=(WEATHER,), max_tokens=4_000)
    called = await provider.generate(asked)
    thoughts = [part for part in called.message.content if isinstance(part, Thinking)]
    assert thoughts
    # The replayed request holds them, or it is not the one that is expected.
    assert (await with_results(provider, asked, called)).message.text.strip()


async def streaming(provider: Adapter) -> None:
    """Text comes in parts, which add up to the answer, and usage comes with its end."""
    parts = [part async for part in provider.stream(Request(messages=(QUESTION,), max_tokens=24))]
    texts = [part.text for part in parts if isinstance(part, TextDelta)]
    assert len(texts) > 1
    assert isinstance(parts[-1], Answered)
    response = parts[-1].response
    assert "".join(texts) == response.message.text
    assert response.usage.input_tokens + response.usage.cache_read_input_tokens > 0
    assert response.usage.output_tokens > 0


async def cached_usage(provider: Adapter) -> None:
    """Input that was read from the cache is told as such, and once."""
    asked = Request(messages=(QUESTION,), system="Be brief.", prompt_caching=True, max_tokens=24)
    first, second = [(await provider.generate(asked)).usage for _ in range(2)]
    assert second.cache_read_input_tokens > 0
    assert first.total_input_tokens == second.total_input_tokens


async def errors(provider: Adapter) -> None:
    """What passes is tried again, what does not is told as what it is."""
    if isinstance(provider, Anthropic | OpenAI) and provider.model == WEIGHTS_MODEL:
        with pytest.raises(ContextTooLong, match="shorten the conversation"):
            await provider.generate(Request(messages=(Message.user("word " * 2_500),)))
        return
    assert (await provider.generate(Request(messages=(QUESTION,)))).message.text.strip()
    with pytest.raises(BadRequest, match="it will be refused again as it stands"):
        await provider.generate(Request(messages=(QUESTION,), tools=(WEATHER,)))


async def with_results(provider: Adapter, asked: Request, called: Response) -> Response:
    results = [
        ToolResult(tool_use_id=call.id, content=(Message.user("fine").content[0],))  # type: ignore[arg-type]
        for call in called.message.tool_uses
    ]
    messages = (*asked.messages, called.message, Message.user(*results))
    return await provider.generate(asked.model_copy(update={"messages": messages}))


ABILITIES: dict[str, Callable[[Adapter], Awaitable[None]]] = {
    "tools": tools,
    "parallel tools": parallel_tools,
    "forced choice": forced_choice,
    "images": images,
    "thinking replay": thinking_replay,
    "streaming": streaming,
    "cached usage": cached_usage,
    "errors": errors,
}
NOT_THERE = {
    ("llama.cpp", "images"): "its small model sees none",
    ("recorded", "images"): "its small model sees none",
    ("llama.cpp", "thinking replay"): "its small model does not think",
    ("recorded", "thinking replay"): "its small model does not think",
    ("llmock", "thinking replay"): "it does not think",
    ("llmock", "cached usage"): "it caches nothing",
}


# Servers


@pytest.fixture(scope="module")
def mock() -> Iterator[LLMockServer]:
    with LLMockServer() as server:
        yield server


def script(mock: LLMockServer, ability: str) -> None:
    """Tell llmock what its model is to say."""
    mock.state.reset()
    called = {"place": "Rome"}, {"place": "Paris"}
    says: dict[str, list[Any]] = {
        "tools": [Reply(tool_calls=(MockCall("weather", called[0]),)), Reply(text="fine")],
        "parallel tools": [
            Reply(tool_calls=tuple(MockCall("weather", given) for given in called)),
            Reply(text="fine"),
        ],
        "forced choice": [Reply(tool_calls=(MockCall("clock", called[0]),))],
        "images": [Reply(tool_calls=(MockCall("weather", called[0]),)), Reply(text="a dot")],
        "streaming": [Reply(text="It is fine in Rome and in Paris.")],
        "errors": [
            Fail(429, retry_after=0.01, match=Match(tools=False)),
            Reply(text="fine"),
            Fail(400, match=Match(tools=True)),
        ],
    }
    for each in says[ability]:
        mock.state.scenarios.add(each)


def replayed(adapter: str, name: str, ability: str) -> tuple[Adapter, Replayer]:
    recording = exchanges.load(f"{name}-{adapter}")
    settings: dict[str, Any] = {**recording["settings"], **recording["settings_of"].get(ability, {})}
    replayer = Replayer(recording["exchanges"][ability])
    made = ADAPTERS[adapter](
        **settings, api_key=KEY, price=Price.free(), transport=replayer, clock=FakeClock(), rate_limits=None
    )
    return made, replayer


# The table

found: dict[tuple[str, str, str], bool] = {}
recorded: dict[str, dict[str, Any]] = {}
CELLS = [
    (adapter, server, ability)
    for adapter in ADAPTERS
    for server in SERVERS
    for ability in ABILITIES
    if (server, ability) not in NOT_THERE
]


@pytest.mark.parametrize(("adapter", "server", "ability"), CELLS, ids=["-".join(cell) for cell in CELLS])
async def test_ability(adapter: str, server: str, ability: str, request: pytest.FixtureRequest) -> None:
    transport: Any = None
    settings: dict[str, Any] = {}
    if server == "llama.cpp":
        llama: dict[str, str] = request.getfixturevalue("llama")
        transport = Recorder(httpx.AsyncHTTPTransport(), llama["key"])
        path = "" if adapter == "Anthropic" else "/v1"
        settings = {"model": WEIGHTS_MODEL, "base_url": llama["url"] + path}
        if adapter == "OpenAI":
            settings["server"] = "llama.cpp"
        key: dict[str, Any] = {"api_key": llama["key"], "transport": transport}
        provider = ADAPTERS[adapter](**settings, **key, price=Price.free())
    elif server == "llmock":
        mock: LLMockServer = request.getfixturevalue("mock")
        script(mock, ability)
        settings = {"base_url": mock.base_url("anthropic" if adapter == "Anthropic" else "openai")}
        if adapter == "OpenAI":
            settings["profile"] = {"stream_usage": True, "forced_choice": "named"}
        provider = ADAPTERS[adapter](model="m", **settings, api_key="key", price=Price.free())
    else:
        provider, transport = replayed(adapter, "llama.cpp" if server == "recorded" else server, ability)
    found[adapter, server, ability] = False
    try:
        await asyncio.wait_for(ABILITIES[ability](provider), 60)
        if isinstance(transport, Replayer):
            assert not transport.left, "more was recorded than was asked"
        found[adapter, server, ability] = True
    finally:
        await provider.aclose()
    if MODE == "record" and isinstance(transport, Recorder):
        settings = {**settings, "base_url": "http://llama" + ("" if adapter == "Anthropic" else "/v1")}
        recording = recorded.setdefault(
            adapter,
            {
                "source": "recorded: llama.cpp's server of xllamacpp, with SmolLM2-135M-Instruct",
                "settings": settings,
                "settings_of": {},
                "exchanges": {},
            },
        )
        recording["exchanges"][ability] = transport.exchanges
        exchanges.save(f"llama.cpp-{adapter}", recording)


def table() -> str:
    reasons = list(dict.fromkeys(NOT_THERE.values()))

    def cell(adapter: str, server: str, ability: str) -> str:
        reason = NOT_THERE.get((server, ability))
        if reason is not None:
            return f"- ({reasons.index(reason) + 1})"
        return "✓" if found[adapter, server, ability] else "✗"

    lines = [
        "# Scoreboard",
        "",
        "What each adapter can do, and against which server that was seen. The tests find it out anew each",
        "time they run (`make scoreboard` writes this file); one that cannot be shown any more fails them.",
        "",
        f"| adapter | server | {' | '.join(ABILITIES)} |",
        f"|---|---|{'|'.join(':-:' for _ in ABILITIES)}|",
    ]
    for adapter in ADAPTERS:
        for server in SERVERS:
            cells = " | ".join(cell(adapter, server, ability) for ability in ABILITIES)
            lines.append(f"| `{adapter}` | {server} | {cells} |")
    lines += ["", *(f"{n}. {reason[0].upper()}{reason[1:]}." for n, reason in enumerate(reasons, 1)), ""]
    lines += ["The servers:", "", *(f"- **{name}**: {what}." for name, what in SERVERS.items())]
    lines += ["", "The abilities:", ""]
    lines += [f"- **{name}**: {(shows.__doc__ or '').strip()}" for name, shows in ABILITIES.items()]
    lines += [
        "",
        "No exchange with a vendor's own server is among them: those of `documented` are answers as the",
        "documentation and SDKs of November 2026 describe them, to requests as this project sends them,",
        "which other tests hold to the SDKs' own types.",
    ]
    return "\n".join(lines) + "\n"


def test_the_table_in_the_docs_tells_what_was_found() -> None:
    if len(found) < len(CELLS):
        pytest.skip("only a part of the abilities was tried")
    if MODE:
        TABLE.write_text(table())
    assert TABLE.read_text() == table(), "docs/scoreboard.md tells something else: make scoreboard"


# Recordings


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_was_thought_goes_back_in_the_documented_exchanges(adapter: str) -> None:
    first, second = exchanges.load(f"documented-{adapter}")["exchanges"]["thinking replay"]
    answer, sent = first["response"]["body"], second["request"]["body"]
    match adapter:
        case "Anthropic":
            assert sent["messages"][1]["content"] == answer["content"]
        case "OpenAI":
            thought = answer["choices"][0]["message"]["reasoning_content"]
            assert sent["messages"][1]["reasoning_content"] == thought
        case _:
            reasoning, message, _ = answer["output"]
            assert sent["input"][1:3] == [reasoning, message]


@pytest.mark.parametrize("path", sorted(exchanges.FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_no_recording_holds_a_key(path: Path) -> None:
    text = path.read_text()
    assert json.loads(text)["source"].startswith(("recorded: ", "documented: "))
    assert not exchanges.KEY.search(text), "it holds what looks like a key"
    assert KEY not in text


async def test_the_recorder_keeps_no_key_wherever_it_stands() -> None:
    planted = "planted-0123456789"

    def answer(request: httpx.Request) -> httpx.Response:
        said = {"echo": dict(request.headers), "other": "sk-ant-0123456789abcdef", "content": []}
        return httpx.Response(
            200, json=said, headers={"set-cookie": f"session={planted}", "retry-after": "1"}
        )

    recorder = Recorder(httpx.MockTransport(answer), planted)
    async with httpx.AsyncClient(transport=recorder) as client:
        await client.post(
            f"http://user:{planted}@server/v1/messages?key={planted}",
            headers={
                "authorization": f"Bearer {planted}",
                "x-api-key": planted,
                "openai-organization": "org-x",
            },
            json={"text": f"my key is {planted}", "other": "Bearer abcdefgh12345678"},
        )
    [kept] = recorder.exchanges
    text = json.dumps(kept)
    assert planted not in text
    assert not exchanges.KEY.search(text)
    assert kept["request"]["path"] == "/v1/messages"
    assert kept["response"]["headers"] == {"content-type": "application/json", "retry-after": "1"}
    assert "my key is ***" in text
