from __future__ import annotations

import json
import pickle
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wire_fakes import KEY, FakeClock, FakeServer, ok

from palaver.providers import (
    Anthropic,
    BoundsCost,
    ConfigurationError,
    CountedInput,
    Image,
    LlamaCPP,
    Message,
    OpenAI,
    OutputSchema,
    Price,
    ProviderError,
    Rates,
    Request,
    Response,
    Scripted,
    StopReason,
    Text,
    Thinking,
    Tier,
    ToolResult,
    ToolSpec,
    ToolUse,
    Usage,
)
from palaver.providers.local import Local
from palaver.providers.prices import CacheWrites

PRICE = Price.per_million_tokens(3, 15, cache_read_usd="0.3", cache_write_usd="3.75", cache_write_1h_usd=6)
PNG = Image(media_type="image/png", data=b"x" * 100_000)
SEARCH = ToolSpec(
    name="search",
    description="Searches",
    input_schema={"type": "object", "properties": {"words": {"type": "string"}}},
)
PET = OutputSchema(
    name="pet",
    json_schema={"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]},
)


def claude(**options: Any) -> Anthropic:
    return Anthropic(**{"model": "claude-sonnet-4-5", "api_key": KEY, "price": PRICE, **options})


def gpt(model: str = "gpt-x", **options: Any) -> OpenAI:
    return OpenAI(model, **{"api_key": KEY, "price": PRICE, **options})


CLAUDE, GPT = claude(), gpt()


def ask(*parts: Any, **fields: Any) -> Request:
    return Request(messages=(Message.user(*parts),), **fields)


def input_of(provider: BoundsCost, request: Request, counted: CountedInput | None = None) -> int:
    return provider.worst_case(request, counted).input_tokens


# Money

RATE = st.decimals(0, 100, places=6)
RATES = st.builds(
    Rates,
    input=RATE,
    output=RATE,
    cache_read=st.none() | RATE,
    cache_write=st.none() | RATE,
    cache_write_1h=st.none() | RATE,
)
MARK = st.integers(0, 3_000)
PRICES = st.builds(
    Price,
    usd_per_million_tokens=RATES,
    tiers=st.lists(st.builds(Tier, above_input_tokens=MARK, usd_per_million_tokens=RATES), max_size=3).map(
        tuple
    ),
)
COUNT = st.integers(0, 1_500)


@given(price=PRICES, plain=COUNT, read=COUNT, written=COUNT, kept=COUNT, output=COUNT, slack=COUNT)
def test_no_usage_within_the_bounds_costs_more_than_the_worst_case(
    price: Price, plain: int, read: int, written: int, kept: int, output: int, slack: int
) -> None:
    writes: dict[CacheWrites, tuple[int, int]] = {
        "never": (0, 0),
        "5m": (written, 0),
        "1h": (written, min(kept, written)),
    }
    for cache_writes, (created, created_1h) in writes.items():
        usage = Usage(
            input_tokens=plain,
            cache_read_input_tokens=read,
            cache_creation_input_tokens=created,
            cache_creation_1h_input_tokens=created_1h,
            output_tokens=output,
        )
        bound = usage.total_input_tokens + slack
        rates = price.worst_rates(bound, cache_writes=cache_writes)
        assert price.cost(usage) <= rates.input_usd(bound) + output * rates.usd_per_output_token


@given(price=PRICES, tokens=st.integers(0, 5_000), output=COUNT)
def test_the_worst_case_is_reached_where_all_input_is_of_the_dearest_kind(
    price: Price, tokens: int, output: int
) -> None:
    flat = Price(usd_per_million_tokens=price.usd_per_million_tokens)
    rates = flat.worst_rates(tokens, cache_writes="1h")
    kinds = [
        Usage(input_tokens=tokens, output_tokens=output),
        Usage(cache_read_input_tokens=tokens, output_tokens=output),
        Usage(cache_creation_input_tokens=tokens, output_tokens=output),
        Usage(
            cache_creation_input_tokens=tokens, cache_creation_1h_input_tokens=tokens, output_tokens=output
        ),
    ]
    dearest = max(flat.cost(usage) for usage in kinds)
    assert rates.input_usd(tokens) + output * rates.usd_per_output_token == dearest


def test_a_cheaper_tier_below_the_mark_counts_as_long_as_it_may_hold() -> None:
    """Output may be dearer for small prompts, and a prompt be smaller than its bound."""
    price = Price(
        usd_per_million_tokens=Rates(input=Decimal(1), output=Decimal(9)),
        tiers=(
            Tier(
                above_input_tokens=100,
                usd_per_million_tokens=Rates(input=Decimal(2), output=Decimal(5)),
            ),
        ),
    )
    assert price.worst_rates(100, cache_writes="never") == (1, 9)
    assert price.worst_rates(101, cache_writes="never") == (2, 9)


@pytest.mark.parametrize(
    ("ttl", "caching", "rate"),
    [("5m", False, "3"), ("1h", False, "3"), ("5m", True, "3.75"), ("1h", True, "6")],
)
def test_claude_charges_for_the_cache_only_when_asked_to_fill_it(ttl: Any, caching: bool, rate: str) -> None:
    worst = claude(cache_ttl=ttl).worst_case(ask("hello", prompt_caching=caching))
    assert worst.input_usd == worst.input_tokens * Decimal(rate) / 1_000_000
    assert worst.usd_per_output_token == Decimal("0.000015")


def test_other_servers_may_fill_their_cache_unasked() -> None:
    worst = gpt().worst_case(ask("hello"))
    assert worst.input_usd == worst.input_tokens * Decimal("3.75") / 1_000_000


def test_a_tier_that_a_server_may_choose_by_itself_counts() -> None:
    served: Any = {name: Price.per_million_tokens(9, 90) for name in ("priority", "fast", "batch")}
    price = PRICE.model_copy(update={"by_service_tier": served})
    assert gpt(price=price).worst_case(ask("a")).usd_per_output_token == Decimal("0.00009")
    assert claude(price=price).worst_case(ask("a")).usd_per_output_token == Decimal("0.00009")
    del served["priority"]  # the others have to be asked for, at Anthropic
    assert claude(price=price).worst_case(ask("a")).usd_per_output_token == Decimal("0.000015")
    assert gpt(price=price).worst_case(ask("a")).usd_per_output_token == Decimal("0.00009")


def test_a_workspace_may_keep_newer_models_in_the_us_which_costs_a_tenth_more() -> None:
    worst = claude(model="claude-opus-5-5").worst_case(ask("hello"))
    assert worst.input_usd == worst.input_tokens * Decimal("3.3") / 1_000_000
    assert worst.usd_per_output_token == Decimal("0.0000165")
    assert claude(model="claude-sonnet-4-5").worst_case(ask("a")).usd_per_output_token == Decimal("0.000015")


def test_an_unknown_price_is_unknown_and_a_free_model_free() -> None:
    worst = OpenAI("m", base_url="http://127.0.0.1:9/v1").worst_case(ask("hello"))
    assert (worst.input_usd, worst.usd_per_output_token) == (None, None)
    assert worst.input_tokens > 0
    for free in (LlamaCPP(), Local()):
        worst = free.worst_case(ask("hello"))
        assert (worst.input_usd, worst.usd_per_output_token) == (0, 0)


# Output


def test_output_is_bounded_by_the_request_else_by_the_provider_else_by_nothing() -> None:
    assert claude(max_tokens=9_000).worst_case(ask("a", max_tokens=700)).output_tokens == 700
    assert claude(max_tokens=9_000).worst_case(ask("a")).output_tokens == 9_000
    assert gpt(max_tokens=9_000).worst_case(ask("a")).output_tokens == 9_000
    assert gpt().worst_case(ask("a")).output_tokens is None
    assert Local(context_tokens=4_000).worst_case(ask("a")).output_tokens == 1_000


def test_an_answer_of_use_has_256_tokens_or_all_that_was_asked_for() -> None:
    assert gpt().worst_case(ask("a")).min_output_tokens == 256
    assert gpt().worst_case(ask("a", max_tokens=10)).min_output_tokens == 10
    assert claude().worst_case(ask("a")).min_output_tokens == 256


def test_a_thinking_budget_is_needed_before_the_first_word() -> None:
    thinker = claude(thinking=2_000, max_tokens=8_000)
    assert thinker.worst_case(ask("a")).min_output_tokens == 2_256
    assert thinker.worst_case(ask("a", max_tokens=2_100)).min_output_tokens == 2_100
    assert claude(thinking="adaptive").worst_case(ask("a")).min_output_tokens == 256


# Input


def texts_of(request: Request) -> list[str]:
    """Every text that the model reads, as it was given."""
    texts = [request.system]
    for tool in request.tools:
        texts += [tool.name, tool.description, json.dumps(tool.input_schema)]
    for message in request.messages:
        for part in message.content:
            match part:
                case ToolResult():
                    texts.append(part.text)
                case ToolUse():
                    texts += [part.name, json.dumps(part.input)]
                case Thinking():
                    texts.append(json.dumps(part.raw))
                case _:
                    texts.append(getattr(part, "text", ""))
    return texts


def long_talk() -> Request:
    call = ToolUse(id="call_1", name="search", input={"words": "naïve 猫"})
    signed = {"type": "thinking", "thinking": "hm", "signature": "c2lnbmVk" * 20}
    return Request(
        system="Be brief. Ünïcode: 猫🐈",
        tools=(SEARCH,),
        messages=(
            Message.user("where is the cat? 猫"),
            Message.assistant(Thinking(text="hm", origin="anthropic", raw=signed), "I look.", call),
            Message.user(ToolResult(tool_use_id="call_1", content=(Text(text="on the mat"),))),
            Message.assistant("On the mat."),
            Message.user("and the dog?"),
        ),
    )


@pytest.mark.parametrize("provider", [claude(), gpt(), LlamaCPP(), Local()], ids=repr)
def test_every_byte_the_model_reads_is_a_token_at_most(provider: BoundsCost) -> None:
    assert isinstance(provider, BoundsCost)
    request = long_talk()
    if not isinstance(provider, Anthropic):
        request = request.model_copy(
            update={"messages": tuple(Message.user(m.text) for m in request.messages)}
        )
    assert input_of(provider, request) > sum(len(text.encode()) for text in texts_of(request))


@given(text=st.text(max_size=50), more=st.text(min_size=1, max_size=50))
def test_a_longer_request_never_has_a_lower_bound(text: str, more: str) -> None:
    for provider in (CLAUDE, GPT):
        assert input_of(provider, ask(text + more)) >= input_of(provider, ask(text))
        assert input_of(provider, ask(text, more)) >= input_of(provider, ask(text))
        assert input_of(provider, ask(text, system=more)) >= input_of(provider, ask(text))


@pytest.mark.parametrize(
    ("provider", "most"),
    [
        (claude(model="claude-sonnet-4-5"), 1_600),
        (claude(model="claude-opus-5-5"), 4_784),
        (gpt("gpt-6.1-sol"), 36_000),
        (gpt("gpt-4o-mini"), 48_169),
    ],
    ids=lambda value: getattr(value, "model", str(value)),
)
def test_a_picture_counts_by_the_most_its_family_makes_of_one_not_by_its_bytes(
    provider: Anthropic | OpenAI, most: int
) -> None:
    none = input_of(provider, ask("look"))
    one = input_of(provider, ask("look", PNG))
    result = ToolResult(tool_use_id="c", content=(PNG,))
    in_result = Request(messages=(Message.user("look"), Message.user(result)))
    assert most <= one - none < most + 300
    assert most <= input_of(provider, in_result) - none < most + 400


def test_tools_and_an_output_schema_count_with_what_the_provider_says_of_them() -> None:
    plain, tools = input_of(CLAUDE, ask("a")), input_of(CLAUDE, ask("a", tools=(SEARCH,)))
    assert tools - plain > 804 + len(json.dumps(SEARCH.input_schema))
    schema = input_of(CLAUDE, ask("a", output_schema=PET))
    assert schema - plain > len(json.dumps(PET.json_schema))
    assert input_of(GPT, ask("a", output_schema=PET)) - input_of(GPT, ask("a")) > len(
        json.dumps(PET.json_schema)
    )


def test_what_the_provider_counted_is_not_estimated_again() -> None:
    request = long_talk()
    for provider in (CLAUDE, GPT):
        counted = CountedInput(messages=3, input_tokens=900, output_tokens=40)
        longer = request.model_copy(update={"system": "x" * 10_000})
        bound = input_of(provider, longer, counted)
        assert 940 + len("and the dog?") <= bound < 940 + 600
        # Of the first exchange the answer with its signature is covered, and the result is new.
        earlier = CountedInput(messages=1, input_tokens=850, output_tokens=30)
        assert bound < input_of(provider, longer, earlier) < 880 + 900


def test_results_are_sent_with_the_ids_that_the_server_gave() -> None:
    wire_id = "call_" + "x" * 3_000
    call = ToolUse(id="short", wire_id=wire_id, name="search", origin="anthropic")
    messages = (
        Message.user("a"),
        Message.assistant(call),
        Message.user(ToolResult(tool_use_id="short")),
    )
    counted = CountedInput(messages=1, input_tokens=10, output_tokens=10)
    assert input_of(CLAUDE, Request(messages=messages), counted) > 20 + len(wire_id)


def test_a_count_of_an_empty_answer_leaves_out_no_message() -> None:
    messages = (Message.user("a"), Message.user("b" * 500))
    counted = CountedInput(messages=1, input_tokens=10, output_tokens=0)
    assert input_of(CLAUDE, Request(messages=messages), counted) > 510


def test_a_count_that_covers_more_than_there_is_is_not_used() -> None:
    counted = CountedInput(messages=5, input_tokens=1, output_tokens=1)
    assert input_of(CLAUDE, ask("a" * 100), counted) == input_of(CLAUDE, ask("a" * 100))


def test_text_that_is_no_utf8_is_counted_all_the_same() -> None:
    assert input_of(CLAUDE, ask("\ud83d" * 100)) > 300


def test_values_pickle() -> None:
    worst = CLAUDE.worst_case(ask("a"))
    assert pickle.loads(pickle.dumps(worst)) == worst


# Retries of the provider


def malformed(prompt_tokens: int) -> Any:
    return ok(
        {
            "choices": [{"finish_reason": "malformed_function_call", "message": {}}],
            "usage": {"prompt_tokens": prompt_tokens, "completion_tokens": 0},
        }
    )


async def test_a_charged_try_is_not_repeated_where_the_request_says_so() -> None:
    server = FakeServer(malformed(1_000_000))
    provider = gpt(transport=server, clock=FakeClock())
    with pytest.raises(ProviderError) as caught:
        await provider.generate(ask("a", retry_charged=False))
    assert len(server.requests) == 1
    assert caught.value.usage is not None
    assert caught.value.usage.cost_usd == 3


# A script


def test_words_of_a_script_are_counted_and_not_bounded() -> None:
    script = Scripted(["a"], price=Price.per_million_tokens(1, 2), max_tokens=50)
    worst = script.worst_case(ask("three little words", system="be brief"))
    assert (worst.input_tokens, worst.output_tokens, worst.min_output_tokens) == (5, 50, 50)
    assert worst.input_usd == Decimal("0.000005")
    assert worst.usd_per_output_token == Decimal("0.000002")
    assert script.worst_case(ask("a", max_tokens=7)).output_tokens == 7
    assert Scripted(["a"]).worst_case(ask("a")).output_tokens is None


def test_a_script_with_a_fixed_cost_costs_that() -> None:
    worst = Scripted(["a"], cost_usd=Decimal("0.5")).worst_case(ask("b"))
    assert (worst.input_usd, worst.usd_per_output_token) == (Decimal("0.5"), 0)
    unknown = Scripted(["a"], cost_usd=None).worst_case(ask("b"))
    assert (unknown.input_usd, unknown.usd_per_output_token) == (None, None)


def test_replies_with_usage_of_their_own_cost_up_to_the_dearest_of_them() -> None:
    def reply(cost_usd: Decimal | None) -> Response:
        return Response(message=Message.assistant("a"), usage=Usage(cost_usd=cost_usd))

    failure = ProviderError("charged all the same", usage=Usage(cost_usd=Decimal(3)))
    assert Scripted(["a", reply(Decimal(2))], cost_usd=1).worst_case(ask("b")).input_usd == 2
    assert Scripted(["a", reply(Decimal(2)), failure], cost_usd=1).worst_case(ask("b")).input_usd == 3
    assert Scripted(["a", reply(Decimal(0))], cost_usd=1).worst_case(ask("b")).input_usd == 1
    assert Scripted(["a", reply(None)], cost_usd=1).worst_case(ask("b")).input_usd is None
    assert Scripted(lambda _: reply(Decimal(2)), cost_usd=1).worst_case(ask("b")).input_usd == 1


@given(
    words=st.integers(0, 20),
    calls=st.integers(0, 4),
    asked=st.none() | st.integers(1, 12),
    own=st.none() | st.integers(1, 12),
    prompt=st.integers(0, 9),
)
async def test_a_script_never_costs_more_than_its_worst_case(
    words: int, calls: int, asked: int | None, own: int | None, prompt: int
) -> None:
    uses = [ToolUse(id=str(number), name="t") for number in range(calls)]
    script = Scripted(
        [["word " * words, *uses]], price=Price.per_million_tokens("0.7", "1.3"), max_tokens=own
    )
    request = ask("p " * prompt, max_tokens=asked)
    worst = script.worst_case(request)
    response = await script.generate(request)
    assert worst.input_usd is not None
    assert worst.usd_per_output_token is not None
    output = response.usage.output_tokens if worst.output_tokens is None else worst.output_tokens
    assert response.usage.cost_usd is not None
    assert response.usage.cost_usd <= worst.input_usd + output * worst.usd_per_output_token
    assert response.message.tool_uses == tuple(uses)


async def test_a_script_is_cut_where_a_server_would_cut_it() -> None:
    call = ToolUse(id="t", name="bash")
    script = Scripted(["one two three four", [" one  two ", call], call], max_tokens=3)
    cut, whole, tool = [await script.generate(ask("a")) for _ in range(3)]
    assert (cut.message.text, cut.stop_reason) == ("one two three", StopReason.MAX_TOKENS)
    assert cut.usage.output_tokens == 3
    assert (whole.message.content[0], whole.stop_reason) == (
        Message.user(" one  two ").content[0],
        StopReason.TOOL_USE,
    )
    assert tool.stop_reason == StopReason.TOOL_USE
    again = await Scripted(["one two three four"], max_tokens=3).generate(ask("a", max_tokens=1))
    assert (again.message.text, again.stop_reason) == ("one", StopReason.MAX_TOKENS)


@pytest.mark.parametrize("cost", [None, 1, Decimal("0.5")])
def test_a_script_has_a_price_or_a_cost(cost: Decimal | int | None) -> None:
    with pytest.raises(ConfigurationError, match="give one of the two"):
        Scripted(["a"], price=PRICE, cost_usd=cost)
    with pytest.raises(ConfigurationError, match="max_tokens is 0"):
        Scripted(["a"], max_tokens=0)


async def test_a_script_file_may_have_a_price_and_a_limit(tmp_path: Any) -> None:
    path = tmp_path / "script.json"
    path.write_text(
        '{"replies": ["one two three"], "max_tokens": 2, "price": {"input_usd": 0.15, "output_usd": "0.6"}}'
    )
    response = await Scripted.from_file(path).generate(ask("a"))
    assert response.message.text == "one two"
    # 1 word in at 0.15 and 2 out at 0.60 per million
    assert response.usage.cost_usd == Decimal("0.00000135")
    path.write_text('{"replies": ["a"], "cost_usd": 0, "price": {"input_usd": 1, "output_usd": 1}}')
    with pytest.raises(ConfigurationError, match="give one of the two"):
        Scripted.from_file(path)
