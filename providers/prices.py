"""Prices: what a model's tokens cost, exactly.

Layer: providers; imports the neutral types, and genai-prices inside one function: it costs 107 MB and
a second (measured November 2026), so only the process that builds a provider pays for it, once.
Conversations get the numbers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from decimal import Context, Decimal, localcontext
from functools import cache
from typing import Any, Literal, NamedTuple, TypeAlias
from urllib.parse import urlsplit

from pydantic import Field, NonNegativeInt, field_validator

from palaver.providers.messages import Value
from palaver.providers.usage import Usage

_EXACT = Context(prec=60)
"""Wide enough that no price times no count is ever rounded, whatever the caller's decimal context is."""

_LOOPBACK = frozenset({"localhost", "127.0.0.1", "::1"})

_PRICED_KEYS = frozenset(
    {"input_mtok", "output_mtok", "cache_read_mtok", "cache_write_mtok", "cache_write_1h_mtok"}
)
_KEYS_WE_CANNOT_CHARGE = frozenset({"requests_kcount", "output_reasoning_mtok", "output_citation_mtok"})
"""Charges that arise in plain text exchanges and that `Rates` cannot express (genai-prices 0.2.3: four
Perplexity models). Such a price is unknown rather than too low. Searches, audio, pictures made and
pages are never asked for by palaver."""


CacheWrites: TypeAlias = Literal["never", "5m", "1h"]
"""Whether input may be written to a cache, and be charged as that: for an hour, for the time that is usual
with a provider ("5m"), or not at all."""


class Rates(Value):
    """USD per million tokens, by kind of token."""

    input: Decimal = Field(ge=0)
    output: Decimal = Field(ge=0)
    cache_read: Decimal | None = Field(default=None, ge=0)
    """None: charged as input."""
    cache_write: Decimal | None = Field(default=None, ge=0)
    """Kept for five minutes, or for as long as the provider keeps it. None: charged as input."""
    cache_write_1h: Decimal | None = Field(default=None, ge=0)
    """Kept for an hour. None: charged as `cache_write`."""


class WorstRates(NamedTuple):
    """The highest rates that an exchange may be charged at, in USD per million tokens."""

    input: Decimal
    output: Decimal

    def input_usd(self, tokens: int) -> Decimal:
        """What so many input tokens cost at most, exactly."""
        with localcontext(_EXACT):
            return (tokens * self.input).scaleb(-6)

    @property
    def usd_per_output_token(self) -> Decimal:
        """What an output token costs at most, exactly."""
        with localcontext(_EXACT):
            return self.output.scaleb(-6)


class Tier(Value):
    """Rates of a prompt with strictly more than `above_input_tokens` tokens, cached ones included."""

    above_input_tokens: NonNegativeInt
    usd_per_million_tokens: Rates


class Price(Value):
    """What a model costs.

    Where there are tiers, the size of the whole prompt selects one, and its rates hold for all tokens
    of the exchange, output included, not only for those above the mark (as genai-prices 0.2.3 states
    of Anthropic, Google and OpenAI). A price of 0 is free; an unknown price is no Price at all.
    """

    usd_per_million_tokens: Rates
    tiers: tuple[Tier, ...] = ()
    """In ascending order of `above_input_tokens`."""

    @field_validator("tiers")
    @classmethod
    def _ascending(cls, tiers: tuple[Tier, ...]) -> tuple[Tier, ...]:
        return tuple(sorted(tiers, key=lambda tier: tier.above_input_tokens))

    @classmethod
    def per_million_tokens(
        cls,
        input_usd: Decimal | int | str,
        output_usd: Decimal | int | str,
        *,
        cache_read_usd: Decimal | int | str | None = None,
        cache_write_usd: Decimal | int | str | None = None,
        cache_write_1h_usd: Decimal | int | str | None = None,
    ) -> Price:
        """A price without tiers, in USD per million tokens; None as in `Rates`.

        Raises pydantic.ValidationError for a negative rate and decimal.InvalidOperation for a text
        that is no number.
        """

        def exact(usd: Decimal | int | str | None) -> Decimal | None:
            return None if usd is None else Decimal(usd)

        rates = Rates(
            input=Decimal(input_usd),
            output=Decimal(output_usd),
            cache_read=exact(cache_read_usd),
            cache_write=exact(cache_write_usd),
            cache_write_1h=exact(cache_write_1h_usd),
        )
        return cls(usd_per_million_tokens=rates)

    @classmethod
    def free(cls) -> Price:
        """Nothing is charged: a model on one's own machine."""
        return cls.per_million_tokens(0, 0)

    def cost(self, usage: Usage) -> Decimal:
        """What the tokens of one exchange cost in USD, exactly; `usage.cost_usd` is not looked at.

        Not for a sum of exchanges: each exchange selects its own tier.
        """
        rates = self._rates_for(usage.total_input_tokens)
        cache_write = rates.input if rates.cache_write is None else rates.cache_write
        write_1h_tokens = min(usage.cache_creation_1h_input_tokens, usage.cache_creation_input_tokens)
        charges = (
            (usage.input_tokens, rates.input),
            (usage.cache_read_input_tokens, rates.input if rates.cache_read is None else rates.cache_read),
            (usage.cache_creation_input_tokens - write_1h_tokens, cache_write),
            (write_1h_tokens, cache_write if rates.cache_write_1h is None else rates.cache_write_1h),
            (usage.output_tokens, rates.output),
        )
        with localcontext(_EXACT):
            return sum((tokens * rate for tokens, rate in charges), Decimal()).scaleb(-6)

    def worst_rates(self, input_tokens: int, *, cache_writes: CacheWrites) -> WorstRates:
        """The highest rates of an exchange with up to `input_tokens` tokens of input, cached or not.

        `cost` of no such exchange is more, however its input is split between cache and prompt. Input
        that is not all there may stay below a tier, and so every tier within reach counts, not the last.
        """
        reachable = [self.usd_per_million_tokens] + [
            tier.usd_per_million_tokens for tier in self.tiers if input_tokens > tier.above_input_tokens
        ]
        return WorstRates(
            max(_worst_input(rates, cache_writes) for rates in reachable),
            max(rates.output for rates in reachable),
        )

    def _rates_for(self, total_input_tokens: int) -> Rates:
        rates = self.usd_per_million_tokens
        for tier in self.tiers:
            if total_input_tokens > tier.above_input_tokens:
                rates = tier.usd_per_million_tokens
        return rates


def _worst_input(rates: Rates, cache_writes: CacheWrites) -> Decimal:
    charged = [rates.input, rates.cache_read]
    if cache_writes != "never":
        charged.append(rates.cache_write)
    if cache_writes == "1h":
        charged.append(rates.cache_write_1h)
    return max(rate for rate in charged if rate is not None)


def lookup_price(model: str, provider_hint: str) -> Price | None:
    """The list price of a model today, from the data inside the installed genai-prices; no network.

    `provider_hint` is a base URL ("https://api.openai.com/v1") or a provider's name as genai-prices
    has it ("openai", "anthropic", "google"). None when model or provider is unknown there, or when
    the price has a part that `Price` cannot express: unknown, which is not free.

    Where a price depends on the time of day (DeepSeek), it is the highest of the day, so that a budget
    holds around the clock. Batch and priority rates are not considered: palaver asks for neither.

    The first call in a process takes about a second and 107 MB.
    """
    if urlsplit(provider_hint).hostname in _LOOPBACK:
        return None  # known without paying for the import: no price list covers one's own machine
    return _lookup(model, provider_hint, datetime.now(UTC).date().isoformat())


@cache
def _lookup(model: str, provider_hint: str, today: str) -> Price | None:
    from genai_prices.data_snapshot import get_snapshot  # 107 MB, see above
    from genai_prices.types import TimeOfDateConstraint

    is_url = "://" in provider_hint
    try:
        _, info = get_snapshot().find_provider_model(
            model, None, None if is_url else provider_hint, provider_hint if is_url else None
        )
    except LookupError:
        return None
    midnight = datetime.fromisoformat(today).replace(tzinfo=UTC)
    constraints = [item.constraint for item in info.prices] if isinstance(info.prices, list) else []
    moments = [midnight] + [
        datetime.combine(midnight, constraint.start_time, constraint.start_time.tzinfo or UTC)
        for constraint in constraints
        if isinstance(constraint, TimeOfDateConstraint)
    ]
    candidates = [price_from(vars(info.get_prices(moment))) for moment in moments]
    if None in candidates:
        return None
    known = [price for price in candidates if price is not None]
    return max(known, key=lambda price: price.usd_per_million_tokens.input, default=None)


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
