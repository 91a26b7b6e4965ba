from __future__ import annotations

import decimal
import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import partial
from typing import Any, cast

import genai_prices
import pytest
from genai_prices.types import (
    ClauseEquals,
    ConditionalPrice,
    ModelInfo,
    ModelPrice,
    PriceVariant,
    StartDateConstraint,
    TieredPrices,
    TimeOfDateConstraint,
)
from genai_prices.types import (
    Tier as GenaiTier,
)

from palaver.providers import (
    Anthropic,
    ConfigurationError,
    OpenAI,
    OpenAIResponses,
    Price,
    Rates,
    Scripted,
    Tier,
    Usage,
    lookup_price,
)
from palaver.providers.price_list import price_at, price_from

MODELS = [
    ("claude-sonnet-4-5", "https://api.anthropic.com"),
    ("claude-opus-5-5", "https://api.anthropic.com"),
    ("claude-haiku-5-5", "anthropic"),
    ("claude-3-5-haiku-20241022", "anthropic"),
    ("gpt-4.1-2025-04-14", "https://api.openai.com/v1"),
    ("gpt-6.1-sol", "openai"),
    ("gpt-5.4", "openai"),
    ("gemini-2.5-pro", "https://generativelanguage.googleapis.com/v1beta/openai"),
    ("gemini-2.5-flash", "google"),
    ("openai/gpt-oss-120b", "https://api.together.xyz/v1"),
    ("accounts/fireworks/models/deepseek-v4-pro", "https://api.fireworks.ai/inference/v1"),
]
USAGES = [
    Usage(),
    Usage(input_tokens=1, output_tokens=1),
    Usage(input_tokens=12_345, output_tokens=678, thinking_tokens=600),
    Usage(input_tokens=100, cache_read_input_tokens=50_001, cache_creation_input_tokens=3_333),
    Usage(input_tokens=7, cache_creation_input_tokens=900, cache_creation_1h_input_tokens=400),
    *(Usage(input_tokens=start + over, output_tokens=9) for start in (200_000, 272_000) for over in (0, 1)),
    # The tier follows from all input, cached or not.
    Usage(input_tokens=10, cache_read_input_tokens=300_000, output_tokens=5),
]


def genai_cost(model: str, provider: str, usage: Usage, context: dict[str, str] | None = None) -> Decimal:
    tokens = genai_prices.Usage(
        input_tokens=usage.total_input_tokens,
        cache_read_tokens=usage.cache_read_input_tokens,
        cache_write_tokens=usage.cache_creation_input_tokens,
        cache_write_1h_tokens=usage.cache_creation_1h_input_tokens,
        output_tokens=usage.output_tokens,
    )
    if "://" in provider:
        priced = genai_prices.calc_price(tokens, model, provider_api_url=provider, price_context=context)
    else:
        priced = genai_prices.calc_price(tokens, model, provider_id=provider, price_context=context)
    return priced.total_price


@pytest.mark.parametrize(("model", "provider"), MODELS)
def test_cost_equals_that_of_genai_prices(model: str, provider: str) -> None:
    price = lookup_price(model, provider)
    assert price is not None
    for usage in USAGES:
        assert price.cost(usage) == genai_cost(model, provider, usage), usage


@pytest.mark.parametrize(
    ("model", "provider", "context"),
    [
        ("claude-sonnet-4-5", "anthropic", {"processing": "batch"}),
        ("claude-opus-5-5", "https://api.anthropic.com", {"speed": "fast"}),
        ("gpt-4.1-2025-04-14", "openai", {"service_tier": "priority"}),
        ("gpt-5.4", "https://api.openai.com/v1", {"service_tier": "flex"}),
        ("gpt-6.1-sol", "openai", {"service_tier": "fast"}),
        ("gemini-2.5-pro", "google", {"processing": "batch"}),
    ],
)
def test_cost_at_a_service_tier_equals_that_of_genai_prices(
    model: str, provider: str, context: dict[str, str]
) -> None:
    price = lookup_price(model, provider)
    assert price is not None
    (tier,) = context.values()
    served = price.served_at(tier)
    assert served is not None
    for usage in USAGES:
        assert served.cost(usage) == genai_cost(model, provider, usage, context), usage


def test_a_tier_that_is_not_listed_has_no_price_and_the_usual_one_many_names() -> None:
    price = lookup_price("gpt-6.1-sol", "openai")
    assert price is not None
    assert "default" not in price.by_service_tier
    for usual in ("", "default", "standard", "auto", "on_demand", "DEFAULT"):
        assert price.served_at(usual) is price
    assert price.served_at("scale") is None
    assert Price.free().served_at("priority") is None


def test_a_tier_that_is_not_yet_offered_has_no_price() -> None:
    info = ModelInfo(
        id="m",
        match=ClauseEquals("m"),
        prices=ModelPrice(input_mtok=Decimal(2), output_mtok=Decimal(2)),
        price_variants=[
            PriceVariant({"service_tier": "flex"}, ModelPrice(), StartDateConstraint(date(2999, 1, 1))),
            # The same price as usual, but offered.
            PriceVariant({"service_tier": "priority"}, ModelPrice()),
            PriceVariant({"processing": "batch"}, ModelPrice(input_mtok=Decimal(1))),
            PriceVariant({"search_type": "fast"}, ModelPrice(input_mtok=Decimal(9))),
            PriceVariant({"speed": "fast", "processing": "batch"}, ModelPrice(input_mtok=Decimal(9))),
        ],
    )
    price = price_at(info, datetime(2026, 11, 1, tzinfo=UTC))
    assert price is not None
    usual, batch = Price.per_million_tokens(2, 2), Price.per_million_tokens(1, 2)
    assert price.by_service_tier == {"priority": usual, "batch": batch}


def test_the_worst_rates_are_those_of_the_dearest_tier_that_may_be_chosen() -> None:
    dear = Price(
        usd_per_million_tokens=Rates(input=Decimal(4), output=Decimal(20)),
        tiers=(
            Tier(above_input_tokens=10, usd_per_million_tokens=Rates(input=Decimal(8), output=Decimal(30))),
        ),
    )
    price = Price.per_million_tokens(2, 10).model_copy(update={"by_service_tier": {"priority": dear}})
    assert price.worst_rates(11, cache_writes="never") == (2, 10)
    assert price.worst_rates(10, cache_writes="never", service_tiers=["priority", "flex"]) == (4, 20)
    assert price.worst_rates(11, cache_writes="never", service_tiers=price.by_service_tier) == (8, 30)


def test_a_price_times_a_factor_costs_so_many_times_as_much() -> None:
    for model, provider in MODELS:
        price = lookup_price(model, provider)
        assert price is not None
        for usage in USAGES:
            assert price.times(Decimal("1.1")).cost(usage) == price.cost(usage) * Decimal("1.1")
    dear = price_with_flex().times(Decimal(3)).served_at("flex")
    assert dear is not None
    assert dear.cost(Usage(output_tokens=1_000_000)) == 9


def price_with_flex() -> Price:
    flex = Price.per_million_tokens(1, 3)
    return Price.per_million_tokens(2, 6).model_copy(update={"by_service_tier": {"flex": flex}})


def test_unknown_model_or_provider_has_no_price_rather_than_none_to_pay() -> None:
    assert lookup_price("no-such-model-9", "https://api.openai.com/v1") is None
    assert lookup_price("gpt-4.1", "https://llm.example.com/v1") is None
    assert lookup_price("gpt-4.1", "nobody") is None
    assert lookup_price("gpt-4.1", "http://127.0.0.1:4000/v1") is None


@pytest.mark.parametrize("usd", ["x", -1, "nan", "inf", None, [1]])
def test_a_rate_that_is_none_is_refused_by_name(usd: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"output_usd of a price is .*; use USD per million tokens"):
        Price.per_million_tokens(1, usd)


def test_what_is_no_price_is_refused_by_every_provider() -> None:
    makers: list[Callable[..., object]] = [Anthropic, partial(OpenAI, "m"), partial(OpenAIResponses, "m")]
    for make in makers:
        with pytest.raises(ConfigurationError, match="price is a int; pass a Price"):
            make(price=5, api_key="k")
    with pytest.raises(ConfigurationError, match="price is a int; pass a Price"):
        Scripted((), price=cast("Any", 5))
    with pytest.raises(ConfigurationError, match="cost_usd is -1; a reply costs 0 or more"):
        Scripted((), cost_usd=-1)


def test_cost_is_exact_whatever_the_callers_decimal_context() -> None:
    price = Price.per_million_tokens("0.123456789", "9.87654321", cache_read_usd="0.000000001")
    usage = Usage(input_tokens=987_654_321, cache_read_input_tokens=1, output_tokens=123_456_789)
    expected = (Decimal(987_654_321) * Decimal("0.123456789") + Decimal("0.000000001")).scaleb(-6)
    expected += (Decimal(123_456_789) * Decimal("9.87654321")).scaleb(-6)
    with decimal.localcontext(prec=3):
        assert price.cost(usage) == expected


def test_missing_rates_fall_back_to_the_dearer_kind() -> None:
    price = Price.per_million_tokens(2, 8)
    usage = Usage(
        cache_read_input_tokens=1_000_000,
        cache_creation_input_tokens=2_000_000,
        cache_creation_1h_input_tokens=1_000_000,
    )
    assert price.cost(usage) == 6
    dearer = Price.per_million_tokens(2, 8, cache_read_usd="0.5", cache_write_usd=3)
    assert dearer.cost(usage) == Decimal("6.5")


def test_tier_holds_for_all_tokens_once_the_prompt_is_larger() -> None:
    price = Price(
        usd_per_million_tokens=Rates(input=Decimal(1), output=Decimal(2)),
        tiers=tuple(
            Tier(
                above_input_tokens=mark,
                usd_per_million_tokens=Rates(input=Decimal(rate), output=Decimal(rate)),
            )
            for mark, rate in ((2_000_000, 20), (1_000_000, 10))
        ),
    )
    costs = [
        price.cost(Usage(input_tokens=n, output_tokens=1_000_000)) for n in (1_000_000, 1_500_000, 3_000_000)
    ]
    assert costs == [3, 25, 80]


def test_free_costs_nothing_and_is_not_unknown() -> None:
    assert Price.free().cost(USAGES[2]) == 0
    assert Usage(cost_usd=Price.free().cost(USAGES[2])).cost_usd is not None


def test_price_survives_pickle_and_json() -> None:
    price = lookup_price("gemini-2.5-pro", "google")
    assert price is not None
    assert price.tiers
    assert price.by_service_tier
    assert pickle.loads(pickle.dumps(price)) == price == Price.model_validate_json(price.model_dump_json())


def test_tiers_that_begin_at_different_marks_are_merged() -> None:
    genai = ModelPrice(
        input_mtok=TieredPrices(base=Decimal(1), tiers=[GenaiTier(start=100, price=Decimal(2))]),
        output_mtok=TieredPrices(
            base=Decimal(5),
            tiers=[GenaiTier(start=300, price=Decimal(7)), GenaiTier(start=200, price=Decimal(6))],
        ),
    )
    price = price_from(vars(genai))
    assert price is not None
    for tokens, output in itertools.product((100, 101, 200, 201, 300, 301), (0, 11)):
        counted = genai_prices.Usage(input_tokens=tokens, output_tokens=output)
        usage = Usage(input_tokens=tokens, output_tokens=output)
        assert price.cost(usage) == genai.calc_price(counted)["total_price"]


@pytest.mark.parametrize("key", ["requests_kcount", "output_reasoning_mtok"])
def test_price_with_a_part_that_cannot_be_expressed_is_unknown(key: str) -> None:
    assert price_from({"input_mtok": Decimal(1), "output_mtok": Decimal(1), key: Decimal(5)}) is None
    assert price_from({"input_mtok": Decimal(1)}) is None


def test_price_by_the_hour_is_the_highest_of_the_day() -> None:
    price = lookup_price("deepseek-v4-pro", "deepseek")
    assert price is not None
    snapshot_costs = {
        genai_prices.calc_price(
            genai_prices.Usage(input_tokens=1_000_000),
            "deepseek-v4-pro",
            provider_id="deepseek",
            genai_request_timestamp=datetime.combine(datetime.now(UTC), time(hour), UTC),
        ).total_price
        for hour in range(24)
    }
    assert price.cost(Usage(input_tokens=1_000_000)) == max(snapshot_costs)
    assert len(snapshot_costs) > 1


def test_genai_prices_conditions_mean_what_the_lookup_relies_on() -> None:
    cheap, dear = (ModelPrice(input_mtok=Decimal(n), output_mtok=Decimal(n)) for n in (1, 2))
    info = ModelInfo(
        id="m",
        match=ClauseEquals("m"),
        prices=[
            ConditionalPrice(prices=cheap),
            ConditionalPrice(TimeOfDateConstraint(time(1), time(2)), prices=dear),
            ConditionalPrice(StartDateConstraint(date(2999, 1, 1)), prices=dear),
        ],
    )
    assert info.get_prices(datetime(2026, 1, 1, 1, 30, tzinfo=UTC)) is dear
    assert info.get_prices(datetime(2026, 1, 1, 2, 0, tzinfo=UTC)) is cheap


def test_importing_prices_does_not_import_genai_prices() -> None:
    script = "import sys, palaver.providers.price_list; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
