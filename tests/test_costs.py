"""What an exchange did cost: usage as providers report it, against sums worked out by hand.

Layer: tests. The rates are those of the price lists of November 2026, written down here, so that neither
the day nor another version of the lists changes a sum. Sums are in millionths of a dollar: a token at $3 per
million tokens costs 3 of them.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from wire_fakes import KEY, FakeClock, FakeServer, ok

from palaver.providers import (
    Anthropic,
    MalformedCall,
    Message,
    OpenAI,
    Price,
    Rates,
    Request,
    RetryPolicy,
    Tier,
    Usage,
)

D = Decimal


def rates(
    input: str, output: str, read: str | None = None, write: str | None = None, write_1h: str | None = None
) -> Rates:
    def usd(text: str | None) -> Decimal | None:
        return None if text is None else D(text)

    return Rates(
        input=D(input),
        output=D(output),
        cache_read=usd(read),
        cache_write=usd(write),
        cache_write_1h=usd(write_1h),
    )


def tiered(base: Rates, above: int, more: Rates, **by_service_tier: Price) -> Price:
    tier = Tier(above_input_tokens=above, usd_per_million_tokens=more)
    return Price(usd_per_million_tokens=base, tiers=(tier,), by_service_tier=by_service_tier)


SONNET_4_5 = tiered(
    rates("3", "15", "0.3", "3.75", "6"),
    200_000,
    rates("6", "22.5", "0.6", "7.5", "12"),
    batch=tiered(
        rates("1.5", "7.5", "0.15", "1.875", "3"),
        200_000,
        rates("3", "11.25", "0.3", "3.75", "6"),
    ),
)
OPUS_5_5 = Price(
    usd_per_million_tokens=rates("4", "20", "0.2", "5", "8"),
    by_service_tier={"fast": Price(usd_per_million_tokens=rates("8", "40", "0.4", "10", "16"))},
)
GPT_6_1 = tiered(
    rates("2", "10", "0.1", "2.5"),
    272_000,
    rates("4", "15", "0.2", "5"),
    flex=tiered(rates("1", "5", "0.05", "1.25"), 272_000, rates("2", "7.5", "0.1", "2.5")),
    priority=tiered(rates("4", "20", "0.2", "5"), 272_000, rates("8", "30", "0.4", "10")),
)
DEEPSEEK_V4 = Price(usd_per_million_tokens=rates("1.32", "3.96", "0.044"))
GEMINI_2_5_PRO = tiered(rates("1.25", "10", "0.125"), 200_000, rates("2.5", "15", "0.25"))
KIMI = Price(usd_per_million_tokens=rates("2", "10", "0.2"))
GPT_OSS = Price(usd_per_million_tokens=rates("0.15", "0.6", "0.075"))

URLS = {
    "openai": "https://api.openai.com/v1",
    "deepseek": "https://api.deepseek.com/v1",
    "gemini": "https://generativelanguage.googleapis.com/v1beta/openai",
    "openrouter": "https://openrouter.ai/api/v1",
    "together": "https://api.together.xyz/v1",
    "groq": "https://api.groq.com/openai/v1",
}


def message(**usage: Any) -> dict[str, Any]:
    """An answer of Anthropic's Messages API."""
    return {
        "id": "msg_01XFDUDYJgAACzvnptvVoYEL",
        "type": "message",
        "role": "assistant",
        "model": "claude",
        "content": [{"type": "text", "text": "Hi!"}],
        "stop_reason": "end_turn",
        "stop_sequence": None,
        "usage": usage,
    }


def completion(usage: dict[str, Any] | None, **more: Any) -> dict[str, Any]:
    """An answer of chat completions."""
    return {
        "id": "chatcmpl-B9MBs8CjcvOU2jLn4n570S5qMJKcT",
        "object": "chat.completion",
        "created": 1_795_000_000,
        "model": "m",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hi!", "refusal": None},
                "finish_reason": "stop",
            }
        ],
        **({} if usage is None else {"usage": usage}),
        **more,
    }


async def usage_of(service: str, price: Price | None, body: dict[str, Any]) -> Usage:
    options: dict[str, Any] = {
        "api_key": KEY,
        "price": price,
        "transport": FakeServer(ok(body)),
        "clock": FakeClock(),
    }
    if service == "anthropic":
        provider: Anthropic | OpenAI = Anthropic("claude-test-without-a-price", **options)
    else:
        provider = OpenAI("model-without-a-price", base_url=URLS[service], **options)
    return (await provider.generate(Request(messages=(Message.user("Hi"),)))).usage


PLAIN = {"prompt_tokens": 1_000, "completion_tokens": 100, "total_tokens": 1_100}
"""At $2 and $10: 1,000 * 2 + 100 * 10 = 3,000."""

REPORTS: dict[str, tuple[str, Price | None, dict[str, Any], Decimal | None]] = {
    "anthropic, plain": (
        "anthropic",
        SONNET_4_5,
        message(
            input_tokens=2_095,
            cache_creation_input_tokens=0,
            cache_read_input_tokens=0,
            cache_creation={"ephemeral_5m_input_tokens": 0, "ephemeral_1h_input_tokens": 0},
            output_tokens=503,
            service_tier="standard",
            inference_geo="not_available",
        ),
        # 2,095 * 3 + 503 * 15 = 6,285 + 7,545
        D("0.013830"),
    ),
    "anthropic, cache read and written for 5 minutes and for an hour, with thinking": (
        "anthropic",
        SONNET_4_5,
        message(
            input_tokens=21,
            cache_read_input_tokens=18_400,
            cache_creation_input_tokens=5_003,
            cache_creation={"ephemeral_5m_input_tokens": 3_001, "ephemeral_1h_input_tokens": 2_002},
            output_tokens=1_700,
            output_tokens_details={"thinking_tokens": 1_311},
            service_tier="standard",
        ),
        # 21 * 3 + 18,400 * 0.3 + 3,001 * 3.75 + 2,002 * 6 + 1,700 * 15, thinking being part of the 1,700
        # = 63 + 5,520 + 11,253.75 + 12,012 + 25,500
        D("0.05434875"),
    ),
    "anthropic, long context, reached with what was cached": (
        "anthropic",
        SONNET_4_5,
        message(
            input_tokens=1,
            cache_read_input_tokens=190_000,
            cache_creation_input_tokens=10_000,
            cache_creation={"ephemeral_5m_input_tokens": 10_000, "ephemeral_1h_input_tokens": 0},
            output_tokens=400,
        ),
        # 200,001 in all: 1 * 6 + 190,000 * 0.6 + 10,000 * 7.5 + 400 * 22.5 = 6 + 114,000 + 75,000 + 9,000
        D("0.198006"),
    ),
    "anthropic, one token below long context": (
        "anthropic",
        SONNET_4_5,
        message(input_tokens=0, cache_read_input_tokens=200_000, output_tokens=400),
        # 200,000 * 0.3 + 400 * 15 = 60,000 + 6,000
        D("0.066"),
    ),
    "anthropic, batch": (
        "anthropic",
        SONNET_4_5,
        message(input_tokens=1_001, cache_read_input_tokens=333, output_tokens=77, service_tier="batch"),
        # 1,001 * 1.5 + 333 * 0.15 + 77 * 7.5 = 1,501.5 + 49.95 + 577.5
        D("0.00212895"),
    ),
    "anthropic, batch, long context": (
        "anthropic",
        SONNET_4_5,
        message(input_tokens=300_000, output_tokens=100, service_tier="batch"),
        # 300,000 * 3 + 100 * 11.25
        D("0.901125"),
    ),
    "anthropic, priority by a commitment, whose price is between them": (
        "anthropic",
        SONNET_4_5,
        message(input_tokens=10, output_tokens=10, service_tier="priority"),
        None,
    ),
    "anthropic, fast": (
        "anthropic",
        OPUS_5_5,
        message(input_tokens=500, output_tokens=50, service_tier="standard", speed="fast"),
        # 500 * 8 + 50 * 40
        D("0.006"),
    ),
    "anthropic, in the US": (
        "anthropic",
        OPUS_5_5,
        message(
            input_tokens=501,
            cache_read_input_tokens=7,
            output_tokens=51,
            inference_geo="us",
            speed="standard",
        ),
        # (501 * 4 + 7 * 0.2 + 51 * 20) * 1.1 = (2,004 + 1.4 + 1,020) * 1.1 = 3,025.4 * 1.1
        D("0.00332794"),
    ),
    "anthropic, in a place without a known price": (
        "anthropic",
        OPUS_5_5,
        message(input_tokens=501, output_tokens=51, inference_geo="moon"),
        None,
    ),
    "anthropic, no usage": ("anthropic", SONNET_4_5, message(), None),
    "anthropic, unknown model": ("anthropic", None, message(input_tokens=10, output_tokens=1), None),
    "openai, cached and reasoning": (
        "openai",
        GPT_6_1,
        completion(
            {
                "prompt_tokens": 2_006,
                "completion_tokens": 300,
                "total_tokens": 2_306,
                "prompt_tokens_details": {"cached_tokens": 1_920, "audio_tokens": 0},
                "completion_tokens_details": {
                    "reasoning_tokens": 128,
                    "audio_tokens": 0,
                    "accepted_prediction_tokens": 0,
                    "rejected_prediction_tokens": 0,
                },
            },
            service_tier="default",
        ),
        # (2,006 - 1,920) * 2 + 1,920 * 0.1 + 300 * 10, reasoning being part of the 300 = 172 + 192 + 3,000
        D("0.003364"),
    ),
    "openai, written to the cache": (
        "openai",
        GPT_6_1,
        completion(
            {
                "prompt_tokens": 3_000,
                "completion_tokens": 10,
                "total_tokens": 3_010,
                "prompt_tokens_details": {"cached_tokens": 1_000, "cache_write_tokens": 1_500},
            },
            service_tier="default",
        ),
        # 500 * 2 + 1,000 * 0.1 + 1,500 * 2.5 + 10 * 10 = 1,000 + 100 + 3,750 + 100
        D("0.00495"),
    ),
    "openai, long context": (
        "openai",
        GPT_6_1,
        completion({"prompt_tokens": 272_001, "completion_tokens": 10, "total_tokens": 272_011}),
        # 272,001 * 4 + 10 * 15 = 1,088,004 + 150
        D("1.088154"),
    ),
    "openai, priority, as the project has it": (
        "openai",
        GPT_6_1,
        completion(PLAIN, service_tier="priority"),
        # 1,000 * 4 + 100 * 20
        D("0.006"),
    ),
    "openai, flex": (
        "openai",
        GPT_6_1,
        completion(PLAIN, service_tier="flex"),
        # 1,000 * 1 + 100 * 5
        D("0.0015"),
    ),
    "openai, scale, paid for in advance": ("openai", GPT_6_1, completion(PLAIN, service_tier="scale"), None),
    "openai, tier null": ("openai", GPT_6_1, completion(PLAIN, service_tier=None), D("0.003")),
    "openai, no usage": ("openai", GPT_6_1, completion(None), None),
    "openai, unknown model": ("openai", None, completion(PLAIN), None),
    "deepseek, cache hit": (
        "deepseek",
        DEEPSEEK_V4,
        completion(
            {
                "prompt_tokens": 1_100,
                "completion_tokens": 200,
                "total_tokens": 1_300,
                "prompt_cache_hit_tokens": 1_024,
                "prompt_cache_miss_tokens": 76,
                "completion_tokens_details": {"reasoning_tokens": 150},
            }
        ),
        # 76 * 1.32 + 1,024 * 0.044 + 200 * 3.96 = 100.32 + 45.056 + 792
        D("0.000937376"),
    ),
    "gemini, whose completion leaves thinking out": (
        "gemini",
        GEMINI_2_5_PRO,
        completion({"prompt_tokens": 800, "completion_tokens": 40, "total_tokens": 1_240}),
        # 1,240 - 800 - 40 = 400 of thinking: 800 * 1.25 + (40 + 400) * 10 = 1,000 + 4,400
        D("0.0054"),
    ),
    "gemini, long context": (
        "gemini",
        GEMINI_2_5_PRO,
        completion({"prompt_tokens": 200_001, "completion_tokens": 40, "total_tokens": 200_041}),
        # 200,001 * 2.5 + 40 * 15 = 500,002.5 + 600
        D("0.5006025"),
    ),
    "openrouter, whose own cost wins": (
        "openrouter",
        GPT_6_1,
        completion(
            {
                **PLAIN,
                "cost": 0.00293,
                "is_byok": False,
                "cost_details": {"upstream_inference_cost": None},
                "prompt_tokens_details": {"cached_tokens": 0},
            },
            provider="OpenAI",
            service_tier="priority",
        ),
        D("0.00293"),
    ),
    "openrouter, a small cost in scientific notation": (
        "openrouter",
        None,
        completion({**PLAIN, "cost": 9.5e-07}),
        D("0.00000095"),
    ),
    "together, cached": (
        "together",
        KIMI,
        completion(
            {
                "prompt_tokens": 500,
                "completion_tokens": 60,
                "total_tokens": 560,
                "cached_tokens": 128,
            }
        ),
        # (500 - 128) * 2 + 128 * 0.2 + 60 * 10 = 744 + 25.6 + 600
        D("0.0013696"),
    ),
    "groq, on demand": (
        "groq",
        GPT_OSS,
        completion(
            {
                "queue_time": 0.0378,
                "prompt_tokens": 18,
                "prompt_time": 0.000680594,
                "completion_tokens": 556,
                "completion_time": 0.463333333,
                "total_tokens": 574,
                "total_time": 0.464013927,
            },
            service_tier="on_demand",
        ),
        # 18 * 0.15 + 556 * 0.6 = 2.7 + 333.6
        D("0.0003363"),
    ),
}


@pytest.mark.parametrize("report", REPORTS)
async def test_cost_equals_what_is_worked_out_by_hand(report: str) -> None:
    service, price, body, cost_usd = REPORTS[report]
    assert (await usage_of(service, price, body)).cost_usd == cost_usd


@pytest.mark.parametrize(
    "counts",
    [
        {"prompt_tokens": None, "completion_tokens": None, "total_tokens": None},
        {"prompt_tokens": "12", "completion_tokens": "3"},
        {"prompt_tokens": -12, "completion_tokens": 3},
        {"prompt_tokens": 12},
        {"completion_tokens": 3},
        {"total_tokens": 15},
    ],
    ids=str,
)
async def test_usage_that_cannot_be_read_whole_costs_an_unknown_amount(counts: dict[str, Any]) -> None:
    assert (await usage_of("openai", GPT_6_1, completion(counts))).cost_usd is None
    renamed = {
        name.replace("prompt", "input").replace("completion", "output"): counts[name] for name in counts
    }
    assert (await usage_of("anthropic", SONNET_4_5, message(**renamed))).cost_usd is None


async def test_tries_that_were_charged_are_part_of_the_cost_each_at_its_own_tier() -> None:
    broken = completion(PLAIN, service_tier="priority")
    broken["choices"] = [{"finish_reason": "malformed_function_call", "message": {}}]
    server = FakeServer(ok(broken), ok(completion(PLAIN, service_tier="default")))
    options: dict[str, Any] = {"api_key": KEY, "price": GPT_6_1, "transport": server, "clock": FakeClock()}
    response = await OpenAI("m", **options).generate(Request(messages=(Message.user("a"),)))
    # 6,000 at priority, as above, and 3,000
    assert response.usage.cost_usd == D("0.009")
    server = FakeServer(ok(broken))
    options |= {"transport": server, "retry": RetryPolicy(max_attempts=1)}
    with pytest.raises(MalformedCall) as caught:
        await OpenAI("m", **options).generate(Request(messages=(Message.user("a"),)))
    assert caught.value.usage is not None
    assert caught.value.usage.cost_usd == D("0.006")
