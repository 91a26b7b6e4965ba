from __future__ import annotations

import json
import pickle
from decimal import Decimal
from pathlib import Path

import pytest

from palaver.providers import (
    ConfigurationError,
    Message,
    Provider,
    RateLimited,
    Request,
    Response,
    Scripted,
    ScriptEnded,
    StopReason,
    ToolUse,
    Usage,
)


def ask(text: str) -> Request:
    return Request(messages=(Message.user(text),))


async def test_replies_come_in_order_and_requests_are_kept() -> None:
    provider = Scripted(["one", ToolUse(id="t", name="bash"), ["two", ToolUse(id="u", name="bash")]])
    assert isinstance(provider, Provider)
    answers = [await provider.generate(ask(str(turn))) for turn in range(3)]
    assert [answer.message.text for answer in answers] == ["one", "", "two"]
    assert [answer.stop_reason for answer in answers] == [
        StopReason.END_TURN,
        StopReason.TOOL_USE,
        StopReason.TOOL_USE,
    ]
    assert [request.messages[0].text for request in provider.requests] == ["0", "1", "2"]


async def test_one_request_too_many_says_how_many_replies_there_are() -> None:
    provider = Scripted(["one"])
    await provider.generate(ask("a"))
    with pytest.raises(ScriptEnded, match="has 1 replies and got request 2"):
        await provider.generate(ask("b"))


async def test_function_decides_from_the_request() -> None:
    provider = Scripted(lambda request: request.messages[-1].text.upper())
    assert (await provider.generate(ask("hello"))).message.text == "HELLO"


async def test_error_in_the_script_is_raised() -> None:
    with pytest.raises(RateLimited, match="slow down"):
        await Scripted([RateLimited("slow down")]).generate(ask("a"))


async def test_whole_response_is_given_with_the_id_of_the_request() -> None:
    request = ask("a")
    reply = Response(message=Message.assistant("x"), usage=Usage(output_tokens=7))
    answer = await Scripted([reply]).generate(request)
    assert answer == reply.model_copy(update={"request_id": request.id})


async def test_words_are_charged_as_tokens_at_the_given_cost() -> None:
    provider = Scripted(["three little words"], cost_usd=Decimal("0.5"))
    usage = (await provider.generate(ask("two words"))).usage
    assert (usage.input_tokens, usage.output_tokens, usage.cost_usd) == (2, 3, Decimal("0.5"))


async def test_unknown_cost_stays_unknown() -> None:
    assert (await Scripted(["a"], cost_usd=None).generate(ask("b"))).usage.cost_usd is None


async def test_pickled_copy_plays_from_the_beginning() -> None:
    provider = Scripted(["one", "two"])
    await provider.generate(ask("a"))
    copy = pickle.loads(pickle.dumps(provider))
    assert (await copy.generate(ask("b"))).message.text == "one"
    assert (await provider.generate(ask("b"))).message.text == "two"


async def test_requests_are_recorded_where_any_process_can_read_them(tmp_path: Path) -> None:
    provider = Scripted(["one"], record_to=tmp_path / "log")
    request = ask("a")
    await provider.generate(request)
    lines = (tmp_path / "log").read_text().splitlines()
    assert [Request.model_validate_json(line) for line in lines] == [request]


async def test_script_is_read_from_a_file(tmp_path: Path) -> None:
    message = Message.assistant(ToolUse(id="t", name="bash"))
    response = Response(message=Message.assistant("r"))
    path = tmp_path / "s.json"
    path.write_text(json.dumps(["one", message.model_dump(mode="json"), response.model_dump(mode="json")]))
    provider = Scripted.from_file(path)
    answers = [(await provider.generate(ask("a"))).message for _ in range(3)]
    assert answers == [Message.assistant("one"), message, Message.assistant("r")]


def test_bad_script_file_says_what_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        Scripted.from_file(tmp_path / "none.json")
    (tmp_path / "bad.json").write_text('{"a": 1}')
    with pytest.raises(ConfigurationError, match="is no list of replies"):
        Scripted.from_file(tmp_path / "bad.json")


async def test_script_file_may_say_how_it_is_played(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text('{"replies": ["one"], "model": "slow", "delay_s": 0.01, "cost_usd": "0.001"}')
    provider = Scripted.from_file(path)
    answer = await provider.generate(ask("a"))
    assert (provider.model, answer.usage.cost_usd) == ("slow", Decimal("0.001"))
    assert Scripted.from_file(path, model="other").model == "other"


def test_script_file_with_a_wrong_setting_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.json"
    path.write_text('{"replies": ["one"], "delay_s": -1}')
    with pytest.raises(ConfigurationError, match=r"is no list of replies: .*For more than a list"):
        Scripted.from_file(path)
