from __future__ import annotations

import json
import pickle
from decimal import Decimal
from typing import Any

import httpx
import pytest
from chat_fakes import BASH, PRICE, answer, call, provider, response_to, wire
from wire_fakes import KEY, FakeServer, ok

from palaver.providers import (
    BadResponse,
    LlamaCPP,
    MalformedCall,
    Message,
    MissingKey,
    OpenAI,
    OutputSchema,
    Overloaded,
    Price,
    Profile,
    RateLimited,
    Request,
    StopReason,
    Thinking,
    ToolChoice,
    ToolUse,
    Usage,
)
from palaver.providers.openai_answer import usage_from_wire
from palaver.providers.profiles import profile_for, server_name


async def test_request_goes_to_chat_completions_with_no_more_than_it_needs() -> None:
    gpt, server = provider(ok(answer({"role": "assistant", "content": "hi"})))
    request = Request(messages=(Message.user("hello"),), system="Be brief.")
    response = await gpt.generate(request)
    (sent,) = server.requests
    assert str(sent.url) == "https://api.openai.com/v1/chat/completions"
    assert sent.headers["authorization"] == f"Bearer {KEY}"
    assert server.bodies == [
        {
            "model": "gpt-4.1",
            "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "hello"}],
        }
    ]
    assert response.message == Message.assistant("hi")
    assert (response.id, response.request_id, response.model) == ("c1", request.id, "m-1")
    assert response.usage == Usage()  # the server told nothing: the cost is unknown


def test_tools_are_functions_and_their_choice_has_openais_words() -> None:
    named = Profile(forced_choice="named")
    body = wire(Message.user("a"), tools=(BASH,), tool_choice=ToolChoice(type="any"))
    function = {"name": "bash", "description": "Runs it", "parameters": BASH.input_schema}
    assert body["tools"] == [{"type": "function", "function": function}]
    assert body["tool_choice"] == "required"
    for choice, sent in (
        (ToolChoice(), None),  # a server's own choice is left out
        (ToolChoice(type="none"), "none"),
        (ToolChoice(type="tool", name="bash"), {"type": "function", "function": {"name": "bash"}}),
    ):
        body = wire(Message.user("a"), profile=named, tools=(BASH,), tool_choice=choice)
        assert body.get("tool_choice") == sent


def test_plain_text_is_sent_as_a_string() -> None:
    assert wire(Message.user("a", "b"))["messages"] == [{"role": "user", "content": "a\nb"}]


def test_empty_messages_are_not_sent() -> None:
    body = wire(Message.user("a"), Message.assistant(" "), Message.user(), Message.user("b"), system="  ")
    assert [message["content"] for message in body["messages"]] == ["a", "b"]


def test_text_beside_calls_is_kept() -> None:
    (sent,) = wire(Message.assistant("I look.", ToolUse(id="t1", name="bash")))["messages"]
    assert sent["content"] == "I look."


def test_mistrals_thinking_parts_are_told_from_its_text() -> None:
    thinking = {"type": "thinking", "thinking": [{"type": "text", "text": "so"}]}
    message = response_to(answer({"content": [thinking, {"type": "text", "text": "42"}]})).message
    assert message.text == "42"
    assert isinstance(message.content[0], Thinking)
    assert message.content[0].text == "so"
    assert wire(message)["messages"] == [{"role": "assistant", "content": "42"}]


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        (answer({"content": "a"}, "stop"), StopReason.END_TURN),
        (answer({"content": "a"}, "length"), StopReason.MAX_TOKENS),
        (answer({"content": "a"}, "content_filter"), StopReason.REFUSAL),
        (answer({"content": None, "refusal": "I won't"}, "stop"), StopReason.REFUSAL),
        (answer({"content": "a"}, "model_length"), StopReason.CONTEXT_FULL),
        (answer({"content": "a"}, None), StopReason.END_TURN),
        (answer({"content": "a"}, ""), StopReason.END_TURN),
        (answer({"content": "a"}, "eos"), StopReason.END_TURN),
        (answer({"content": "", "tool_calls": [call()]}, "stop"), StopReason.TOOL_USE),
        (answer({"content": "", "tool_calls": [call()]}, None), StopReason.TOOL_USE),
        (answer({"content": "", "tool_calls": [call()]}, "length"), StopReason.MAX_TOKENS),
        (answer({"content": "", "tool_calls": []}, "stop"), StopReason.END_TURN),
        (
            answer({"function_call": {"name": "bash", "arguments": "{}"}}, "function_call"),
            StopReason.TOOL_USE,
        ),
    ],
)
def test_stop_reason_follows_what_is_there(body: dict[str, Any], reason: StopReason) -> None:
    assert response_to(body).stop_reason is reason


def test_refusal_is_shown_as_text() -> None:
    assert response_to(answer({"content": None, "refusal": "I won't"})).message.text == "I won't"


def test_empty_answer_with_a_finish_is_legal() -> None:
    assert response_to(answer({"content": ""})).message == Message.assistant()


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        ({"choices": []}, BadResponse),
        ({"choices": None}, BadResponse),
        ({"hello": "world"}, BadResponse),
        (answer(None, None), BadResponse),
        (answer({"content": ""}, ""), BadResponse),
        (answer({"content": ""}, "error"), BadResponse),
        (answer({"content": ""}, "insufficient_system_resource"), Overloaded),
        (answer(None, "function_call_filter: MALFORMED_FUNCTION_CALL"), MalformedCall),
        ({"choices": [{"error": {"code": 429, "message": "slow"}, "finish_reason": "error"}]}, RateLimited),
        ({"choices": [{"error": {"code": 502, "message": "up"}, "finish_reason": "error"}]}, Overloaded),
        ({"choices": [{"error": {"message": "odd"}}]}, BadResponse),
    ],
)
def test_answer_of_no_use_is_an_error_that_carries_the_usage(body: dict[str, Any], kind: type) -> None:
    with pytest.raises(BadResponse if issubclass(kind, BadResponse) else kind) as caught:
        response_to({**body, "usage": {"prompt_tokens": 10, "completion_tokens": 1, "total_tokens": 11}})
    assert type(caught.value) is kind
    assert caught.value.usage == Usage(input_tokens=10, output_tokens=1, cost_usd=Decimal("0.000028"))


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110,
          "prompt_tokens_details": {"cached_tokens": 60},
          "completion_tokens_details": {"reasoning_tokens": 4}},
         Usage(input_tokens=40, cache_read_input_tokens=60, output_tokens=10, thinking_tokens=4)),
        ({"prompt_tokens": 100, "completion_tokens": 10, "prompt_cache_hit_tokens": 60,
          "prompt_cache_miss_tokens": 40},
         Usage(input_tokens=40, cache_read_input_tokens=60, output_tokens=10)),
        ({"prompt_tokens": 100, "completion_tokens": 10,
          "prompt_tokens_details": {"cached_tokens": 60, "cache_write_tokens": 30}},
         Usage(input_tokens=10, cache_read_input_tokens=60, cache_creation_input_tokens=30,
               output_tokens=10)),
        ({"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 150},
         Usage(input_tokens=100, output_tokens=50, thinking_tokens=40)),
        ({"prompt_tokens": 5, "completion_tokens": 1, "prompt_tokens_details": None,
          "completion_tokens_details": None}, Usage(input_tokens=5, output_tokens=1)),
        ({"prompt_tokens": 5, "completion_tokens": 0, "prompt_tokens_details": {"cached_tokens": 9}},
         Usage(cache_read_input_tokens=5)),
    ],
)  # fmt: skip
def test_each_token_is_counted_once(counts: dict[str, Any], expected: Usage) -> None:
    assert usage_from_wire(counts, None) == expected
    assert usage_from_wire(counts, PRICE).cost_usd == PRICE.cost(expected)


@pytest.mark.parametrize(
    ("counts", "expected"),
    [
        ({"prompt_tokens": 5, "completion_tokens": None, "total_tokens": 9}, Usage(input_tokens=5)),
        ({"prompt_tokens": "5", "completion_tokens": True, "total_tokens": -1}, Usage()),
    ],
)
def test_what_can_be_read_of_a_count_that_is_not_whole_is_kept_without_a_cost(
    counts: dict[str, Any], expected: Usage
) -> None:
    assert usage_from_wire(counts, PRICE) == expected


def test_missing_usage_is_unknown_rather_than_free() -> None:
    for usage in (None, {}, []):
        assert usage_from_wire(usage, PRICE).cost_usd is None


@pytest.mark.parametrize(
    ("counts", "cost"),
    [
        ({"prompt_tokens": 9, "cost": 0.00014}, Decimal("0.00014")),
        ({"prompt_tokens": 9, "cost": 0}, Decimal(0)),
        ({"prompt_tokens": 9, "cost": {"total_cost": 0.5}}, Decimal("0.5")),
        ({"prompt_tokens": 9, "cost": 0.01, "is_byok": True,
          "cost_details": {"upstream_inference_cost": 0.2}}, Decimal("0.21")),
        ({"prompt_tokens": 1_000_000, "completion_tokens": 0, "cost": None}, Decimal(2)),
        ({"prompt_tokens": 1_000_000, "completion_tokens": 0, "cost": "much"}, Decimal(2)),
    ],
)  # fmt: skip
def test_cost_the_server_reports_wins_over_the_price(counts: dict[str, Any], cost: Decimal) -> None:
    assert usage_from_wire(counts, PRICE).cost_usd == cost


@pytest.mark.parametrize(
    ("base_url", "model", "expected"),
    [
        ("https://api.openai.com/v1", "gpt-4.1", {"max_tokens_field": "max_completion_tokens"}),
        ("https://api.openai.com/v1", "gpt-5.6-sol", {"effort_with_tools": "none"}),
        ("https://api.openai.com/v1", "gpt-5.4", {"effort_with_tools": None}),
        ("https://openrouter.ai/api/v1", "openai/gpt-6-sol", {"effort_with_tools": None}),
        ("https://api.deepseek.com", "deepseek-chat", {"max_tokens_field": "max_tokens"}),
        ("https://api.together.xyz/v1", "mistralai/Mistral-Small-24B", {"user_may_follow_tool": False}),
        ("https://api.groq.com/openai/v1", "qwen", {"replay_reasoning": False}),
        (
            "https://generativelanguage.googleapis.com/v1beta/openai/",
            "gemini-2.5-pro",
            {"plain_schemas": True},
        ),
    ],
)
def test_profile_is_chosen_by_url_and_model(base_url: str, model: str, expected: dict[str, Any]) -> None:
    profile = profile_for(base_url, model).model_dump()
    assert {name: profile[name] for name in expected} == expected


def test_unknown_server_gets_the_most_conservative_profile_and_is_named_by_its_host() -> None:
    assert profile_for("http://gpu7:8000/v1", "anything") == Profile()
    assert server_name("http://gpu7:8000/v1") == "gpu7:8000"
    assert server_name("https://user:pw@llm.example.com/v1") == "llm.example.com"


async def test_profile_and_effort_of_the_user_win() -> None:
    done = ok(answer({"content": "x"}))
    request = Request(messages=(Message.user("a"),), tools=(BASH,), max_tokens=7)
    gpt, server = provider(done, model="gpt-6.1-sol")
    await gpt.generate(request)
    assert server.bodies[0]["reasoning_effort"] == "none"
    assert server.bodies[0]["max_completion_tokens"] == 7
    gpt, server = provider(done, model="gpt-6.1-sol", reasoning_effort="low", profile=Profile())
    await gpt.generate(request)
    assert server.bodies[0]["reasoning_effort"] == "low"
    assert server.bodies[0]["max_tokens"] == 7


def test_key_of_one_service_is_never_sent_to_another_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.delenv("TOGETHER_API_KEY", raising=False)
    server = FakeServer(ok(answer({"content": "x"})))
    stranger = OpenAI("m", base_url="http://gpu7:8000/v1", transport=server, price=PRICE)
    assert stranger.name == "gpu7:8000"
    with pytest.raises(MissingKey, match="set TOGETHER_API_KEY"):
        OpenAI("m", base_url="https://api.together.xyz/v1")


async def test_unknown_server_gets_no_authorization_header() -> None:
    server = FakeServer(ok(answer({"content": "x"})))
    stranger = OpenAI("m", base_url="http://gpu7:8000/v1", transport=server, price=PRICE)
    await stranger.generate(Request(messages=(Message.user("a"),)))
    assert "authorization" not in server.requests[0].headers


def test_variable_of_the_key_can_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GPU7_KEY", raising=False)
    with pytest.raises(MissingKey, match="set GPU7_KEY"):
        OpenAI("m", base_url="http://gpu7:8000/v1", api_key_env="GPU7_KEY")


async def test_llama_cpp_is_free_needs_no_key_and_pickles() -> None:
    counted = answer({"content": "x"}, usage={"prompt_tokens": 5, "completion_tokens": 2})
    server = FakeServer(ok(counted))
    llama = LlamaCPP(transport=server)
    response = await llama.generate(Request(messages=(Message.user("a"),)))
    assert str(server.requests[0].url) == "http://localhost:8080/v1/chat/completions"
    assert response.usage.cost_usd == 0
    assert (
        repr(pickle.loads(pickle.dumps(LlamaCPP()))) == "LlamaCPP(model='llama.cpp', host='localhost:8080')"
    )


async def test_provider_pickles_after_use_without_showing_its_key() -> None:
    gpt, _ = provider(transport=httpx.MockTransport(module_answer))
    await gpt.generate(Request(messages=(Message.user("a"),)))
    data = pickle.dumps(gpt)
    assert KEY.encode() not in data
    assert KEY not in repr(gpt)
    assert (await pickle.loads(data).generate(Request(messages=(Message.user("a"),)))).message.text == "hi"


def module_answer(_: httpx.Request) -> httpx.Response:
    return ok(answer({"content": "hi"}))


PET = OutputSchema(
    name="Pet",
    json_schema={
        "type": "object",
        "properties": {"legs": {"type": "integer", "minimum": 0}, "name": {"type": "string", "minLength": 1}},
        "required": ["legs"],
        "additionalProperties": False,
    },
)
GEMINI_URL = "https://generativelanguage.googleapis.com/v1beta/openai"


def test_an_output_schema_is_strict_where_it_can_be() -> None:
    body = wire(
        Message.user("a"), output_schema=PET, profile=profile_for("https://api.openai.com/v1", "gpt-5")
    )
    assert body["response_format"] == {
        "type": "json_schema",
        "json_schema": {
            "name": "Pet",
            "strict": True,
            "schema": {
                "type": "object",
                "properties": {
                    "legs": {"type": "integer", "minimum": 0},
                    "name": {"type": "string", "description": "minLength: 1"},
                },
                "required": ["legs", "name"],
                "additionalProperties": False,
            },
        },
    }
    assert body["messages"] == [{"role": "user", "content": "a"}]
    assert "response_format" not in wire(Message.user("a"))


def test_an_output_schema_that_cannot_be_strict_is_sent_as_it_is() -> None:
    schema = {"type": "object", "additionalProperties": {"type": "integer"}}
    body = wire(Message.user("a"), output_schema=OutputSchema(json_schema=schema))
    assert body["response_format"]["json_schema"] == {"name": "answer", "schema": schema}


def test_an_output_schema_for_a_server_of_plain_schemas_is_plain() -> None:
    body = wire(Message.user("a"), output_schema=PET, profile=profile_for(GEMINI_URL, "gemini-2.5-flash"))
    assert body["response_format"]["json_schema"] == {
        "name": "Pet",
        "schema": {key: each for key, each in PET.json_schema.items() if key != "additionalProperties"},
    }


@pytest.mark.parametrize("system", ["", "Be brief."])
def test_a_server_that_hides_the_schema_from_its_model_has_it_in_the_system_prompt(system: str) -> None:
    body = wire(Message.user("a"), output_schema=PET, system=system)
    told, question = body["messages"]
    assert question == {"role": "user", "content": "a"}
    assert told["role"] == "system"
    assert told["content"].startswith(system)
    assert json.loads(told["content"].splitlines()[-1]) == PET.json_schema


@pytest.mark.parametrize(
    ("base_url", "model", "alone", "beside_tools"),
    [
        ("https://api.openai.com/v1", "gpt-4.1", "schema", "schema"),
        ("https://api.openai.com/v1", "gpt-4o", "schema", "schema"),
        ("https://api.openai.com/v1", "gpt-6.1-sol", "schema", "schema"),
        ("https://api.openai.com/v1", "ft:gpt-4.1:acme", "schema", "schema"),
        ("https://api.openai.com/v1", "gpt-4", "tool", "tool"),
        ("https://api.openai.com/v1", "gpt-4-turbo", "tool", "tool"),
        ("https://api.openai.com/v1", "gpt-3.5-turbo", "tool", "tool"),
        (GEMINI_URL, "gemini-2.5-flash", "schema", "tool"),
        ("https://api.together.xyz/v1", "meta-llama/Llama-4-Maverick", "schema", "tool"),
        ("https://api.fireworks.ai/inference/v1", "accounts/fireworks/models/deepseek-v3", "schema", "tool"),
        ("https://api.mistral.ai/v1", "mistral-large-latest", "schema", "tool"),
        ("https://api.deepseek.com/v1", "deepseek-chat", "tool", "tool"),
        ("https://api.groq.com/openai/v1", "llama-4-scout", "tool", "tool"),
        ("https://openrouter.ai/api/v1", "openai/gpt-4.1", "tool", "tool"),
        ("http://gpu7:8000/v1", "qwen", "tool", "tool"),
        ("http://gpu7:8000/v1", "mistral-small", "tool", "tool"),
    ],
)
def test_answers_are_held_to_a_schema_by_servers_that_are_known_to(
    base_url: str, model: str, alone: str, beside_tools: str
) -> None:
    provider = OpenAI(model, base_url=base_url, api_key=KEY, price=Price.free())
    assert provider.output_by(PET, has_tools=False) == alone
    assert provider.output_by(PET, has_tools=True) == beside_tools


def test_a_server_that_is_not_known_takes_a_schema_when_its_profile_says_so() -> None:
    vllm = OpenAI(
        "qwen",
        base_url="http://gpu7:8000/v1",
        profile=Profile(output_schema="without_tools"),
        price=Price.free(),
    )
    assert vllm.output_by(PET, has_tools=False) == LlamaCPP().output_by(PET, has_tools=False) == "schema"
    assert vllm.output_by(PET, has_tools=True) == LlamaCPP().output_by(PET, has_tools=True) == "tool"
    own = Profile(output_schema="never")
    assert LlamaCPP(profile=own).output_by(PET, has_tools=False) == "tool"


def test_a_fine_tuned_model_is_told_limits_in_words() -> None:
    tuned = profile_for("https://api.openai.com/v1", "ft:gpt-4.1:acme")
    body = wire(Message.user("a"), output_schema=PET, profile=tuned)
    legs = body["response_format"]["json_schema"]["schema"]["properties"]["legs"]
    assert legs == {"type": "integer", "description": "minimum: 0"}
