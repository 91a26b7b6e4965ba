"""The list of models: what genai-prices knows of their prices, as our `Price`, and context windows.

Layer: providers; imports the prices alone, and genai-prices inside one function: it costs 107 MB and a
second (measured November 2026), so only the process that builds a provider pays for it, once.
Conversations get the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import urlsplit

from palaver.providers.prices import STANDARD_TIERS, Price, Rates, Tier

if TYPE_CHECKING:
    from genai_prices.types import ModelInfo

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_PRICED_KEYS = frozenset(
    {"input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok"}
)
_KEYS_WE_CANNOT_CHARGE = frozenset({"requests_kcount", "output_reasoning_mtok", "output_citation_mtok"})
"""Charges that arise in plain text exchanges and that `Rates` cannot express (genai-prices 0.2.3: four
Perplexity models). Such a price is unknown rather than too low. Searches, audio, pictures made and
pages are never asked for by palaver."""
_CONTEXTS_WE_READ = ("service_tier", "processing", "speed")
"""What genai-prices calls the choices that usage reports tell of: the tier, batch, Anthropic's fast mode."""


class Listing(NamedTuple):
    """What the list says of a model. `context_window` is in tokens; None is unknown."""

    price: Price | None = None
    context_window: int | None = None


def lookup(model: str, provider_hint: str) -> Listing:
    """What the list says of a model. See `lookup_price`, as to the cost too."""
    if urlsplit(provider_hint).hostname in _LOOPBACK:
        return Listing()  # known without paying for the import: no list covers one's own machine
    return _lookup(model, provider_hint, datetime.now(UTC).date().isoformat())


def lookup_price(model: str, provider_hint: str) -> Price | None:
    """The list price of a model today, from the data inside the installed genai-prices; no network.

    `provider_hint` is a base URL ("https://api.openai.com/v1") or a provider's name as genai-prices
    has it ("openai", "anthropic", "google"). None when model or provider is unknown there, or when
    the price has a part that `Price` cannot express: unknown, which is not free.

    Where a price depends on the time of day (DeepSeek), it is the highest of the day, so that a budget
    holds around the clock. Rates of other service tiers are `by_service_tier`, where they are listed.

    The first call in a process takes about a second and 107 MB.
    """
    return lookup(model, provider_hint).price


@cache
def _lookup(model: str, provider_hint: str, today: str) -> Listing:
    from genai_prices.data_snapshot import get_snapshot  # 107 MB, see above

    is_url = "://" in provider_hint
    try:
        _, info = get_snapshot().find_provider_model(
            model, None, None if is_url else provider_hint, provider_hint if is_url else None
        )
    except LookupError:
        return Listing()
    return Listing(_price(info, today), info.context_window)


def _price(info: ModelInfo, today: str) -> Price | None:
    from genai_prices.types import TimeOfDateConstraint

    midnight = datetime.fromisoformat(today).replace(tzinfo=UTC)
    constraints = [item.constraint for item in info.prices] if isinstance(info.prices, list) else []
    moments = [midnight] + [
        datetime.combine(midnight, constraint.start_time, constraint.start_time.tzinfo or UTC)
        for constraint in constraints
        if isinstance(constraint, TimeOfDateConstraint)
    ]
    candidates = [price_at(info, moment) for moment in moments]
    if None in candidates:
        return None
    known = [price for price in candidates if price is not None]
    return max(known, key=lambda price: price.usd_per_million_tokens.input, default=None)


def price_at(info: ModelInfo, moment: datetime) -> Price | None:
    """The price that holds at a moment, with those of the service tiers that genai-prices lists."""
    price = price_from(vars(info.get_prices(moment)))
    contexts = [
        variant.when
        for variant in info.price_variants or ()
        if variant.constraint is None or variant.constraint.active(moment)
    ]
    by_tier = {
        value: served
        for context in contexts
        for key, value in context.items()
        if len(context) == 1 and key in _CONTEXTS_WE_READ and value not in STANDARD_TIERS
        if (served := price_from(vars(info.get_prices(moment, context)))) is not None
    }
    return None if price is None else price.model_copy(update={"by_service_tier": by_tier})


def price_from(genai_price: Mapping[str, Any]) -> Price | None:
    """Turn one genai-prices price, {key: Decimal or tiered}, into ours; None when it cannot be."""
    given = {key: value for key, value in genai_price.items() if value is not None}
    if not {"input_mtok", "output_mtok"} <= given.keys() or _KEYS_WE_CANNOT_CHARGE & given.keys():
        return None
    rates = {key: value for key, value in given.items() if key in _PRICED_KEYS}
    starts = sorted({tier.start for value in rates.values() for tier in getattr(value, "tiers", ())})
    return Price(
        usd_per_million_tokens=_rates_above(rates, None),
        tiers=tuple(
            Tier(above_input_tokens=start, usd_per_million_tokens=_rates_above(rates, start))
            for start in starts
        ),
    )


def _rates_above(genai_rates: Mapping[str, Any], start: int | None) -> Rates:
    """The rates that hold just above `start` tokens, or below every tier when it is None."""

    def rate(key: str) -> Decimal | None:
        value = genai_rates.get(key)
        if value is None or isinstance(value, Decimal):
            return value
        current: Decimal = value.base
        for tier in value.tiers:  # sorted by genai-prices
            if start is not None and tier.start <= start:
                current = tier.price
        return current

    return Rates(
        input=rate("input_mtok") or Decimal(),
        output=rate("output_mtok") or Decimal(),
        cache_read=rate("cache_read_mtok"),
        cache_write=rate("cache_write_mtok"),
        cache_write_1h=rate("cache_write_1h_mtok"),
    )
