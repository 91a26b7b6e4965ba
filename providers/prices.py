"""Prices: what a model's tokens cost, exactly. Where they come from is in `price_list`.

Layer: providers; imports the neutral types and the errors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Context, Decimal, localcontext
from typing import Literal, NamedTuple, TypeAlias, cast

from pydantic import Field, NonNegativeInt, field_validator

from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Value
from palaver.providers.usage import Usage

_EXACT = Context(prec=60)
"""Wide enough that no price times no count is ever rounded, whatever the caller's decimal context is."""

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

    def times(self, factor: Decimal) -> Rates:
        """Each rate multiplied by `factor`, exactly."""

        def product(rate: Decimal | None) -> Decimal | None:
            return None if rate is None else rate * factor

        with localcontext(_EXACT):
            return Rates(
                input=self.input * factor,
                output=self.output * factor,
                cache_read=product(self.cache_read),
                cache_write=product(self.cache_write),
                cache_write_1h=product(self.cache_write_1h),
            )


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


STANDARD_TIERS = frozenset({"", "auto", "default", "standard", "on_demand"})
"""What providers call the tier that the list price is for: not told; OpenAI's setting that leaves it to the
project, which some servers echo; OpenAI's, Anthropic's and Groq's names (November 2026)."""


class Price(Value):
    """What a model costs.

    Where there are tiers, the size of the whole prompt selects one, and its rates hold for all tokens
    of the exchange, output included, not only for those above the mark (as genai-prices 0.2.3 states
    of Anthropic, Google and OpenAI). A price of 0 is free; an unknown price is no Price at all.
    """

    usd_per_million_tokens: Rates
    tiers: tuple[Tier, ...] = ()
    """In ascending order of `above_input_tokens`."""
    by_service_tier: Mapping[str, Price] = Field(default_factory=dict)
    """What it costs when it is served otherwise than usual, by what the provider then reports: "priority",
    "flex", "batch", "fast". A tier that is not here has no known price."""

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

        Raises ConfigurationError for a rate that is negative or no number.
        """
        given = {
            "input": input_usd,
            "output": output_usd,
            "cache_read": cache_read_usd,
            "cache_write": cache_write_usd,
            "cache_write_1h": cache_write_1h_usd,
        }
        rates: dict[str, Decimal] = {}
        for name, usd in given.items():
            if usd is None and name not in ("input", "output"):
                continue
            try:
                rates[name] = Decimal(cast("str", usd))
            except (ArithmeticError, TypeError, ValueError):
                rates[name] = Decimal("nan")
            if not rates[name].is_finite() or rates[name] < 0:
                raise ConfigurationError(
                    f"{name}_usd of a price is {usd!r}; use USD per million tokens, 0 or more, such as '0.15'"
                )
        return cls(usd_per_million_tokens=Rates.model_validate(rates))

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

    def served_at(self, service_tier: str) -> Price | None:
        """The price of what was served at a service tier, by the name that the provider reports.

        None when the tier has no known price; "" when none was reported.
        """
        name = service_tier.lower()
        return self if name in STANDARD_TIERS else self.by_service_tier.get(name)

    def times(self, factor: Decimal) -> Price:
        """The price with each rate multiplied by `factor`, exactly."""
        return Price(
            usd_per_million_tokens=self.usd_per_million_tokens.times(factor),
            tiers=tuple(
                Tier(
                    above_input_tokens=tier.above_input_tokens,
                    usd_per_million_tokens=tier.usd_per_million_tokens.times(factor),
                )
                for tier in self.tiers
            ),
            by_service_tier={name: price.times(factor) for name, price in self.by_service_tier.items()},
        )

    def worst_rates(
        self, input_tokens: int, *, cache_writes: CacheWrites, service_tiers: Iterable[str] = ()
    ) -> WorstRates:
        """The highest rates of an exchange with up to `input_tokens` tokens of input, cached or not.

        `cost` of no such exchange is more, however its input is split between cache and prompt. Input
        that is not all there may stay below a tier, and so every tier within reach counts, not the last.
        `service_tiers` are those that the provider may choose by itself, besides the usual one; one without
        a known price does not count.
        """
        prices = [
            self,
            *(self.by_service_tier[name] for name in service_tiers if name in self.by_service_tier),
        ]
        reachable = [rates for price in prices for rates in price._reachable(input_tokens)]
        return WorstRates(
            max(_worst_input(rates, cache_writes) for rates in reachable),
            max(rates.output for rates in reachable),
        )

    def _reachable(self, input_tokens: int) -> list[Rates]:
        return [self.usd_per_million_tokens] + [
            tier.usd_per_million_tokens for tier in self.tiers if input_tokens > tier.above_input_tokens
        ]

    def _rates_for(self, total_input_tokens: int) -> Rates:
        rates = self.usd_per_million_tokens
        for tier in self.tiers:
            if total_input_tokens > tier.above_input_tokens:
                rates = tier.usd_per_million_tokens
        return rates


def check_given(price: object) -> None:
    """Raise ConfigurationError for a `price` that is neither a Price nor None."""
    if price is not None and not isinstance(price, Price):
        raise ConfigurationError(
            f"price is a {type(price).__name__}; pass a Price, such as "
            "Price.per_million_tokens('0.15', '0.60'), or None to look it up"
        )


def _worst_input(rates: Rates, cache_writes: CacheWrites) -> Decimal:
    charged = [rates.input, rates.cache_read]
    if cache_writes != "never":
        charged.append(rates.cache_write)
    if cache_writes == "1h":
        charged.append(rates.cache_write_1h)
    return max(rate for rate in charged if rate is not None)
