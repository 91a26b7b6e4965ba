"""Usage of one exchange: tokens counted once, money exact.

Layer: providers; imports `messages` for the value base.
"""

from __future__ import annotations

from decimal import Decimal

from pydantic import NonNegativeInt

from palaver.providers.messages import Value


class Usage(Value):
    """Tokens of one exchange and what they cost.

    Each input token is counted in exactly one of the three input fields, whatever the provider's own
    habit. `output_tokens` includes `thinking_tokens`. `cost_usd` is None when the price is unknown,
    which is not the same as 0 (free).
    """

    input_tokens: NonNegativeInt = 0
    """Input read at the full price: neither read from a cache nor written to one."""
    cache_read_input_tokens: NonNegativeInt = 0
    cache_creation_input_tokens: NonNegativeInt = 0
    """Input written to a cache, whatever its lifetime."""
    cache_creation_1h_input_tokens: NonNegativeInt = 0
    """The part of `cache_creation_input_tokens` kept for an hour, which costs more (Anthropic)."""
    output_tokens: NonNegativeInt = 0
    thinking_tokens: NonNegativeInt = 0
    cost_usd: Decimal | None = None

    @property
    def total_input_tokens(self) -> int:
        """All input tokens, cached or not."""
        return self.input_tokens + self.cache_read_input_tokens + self.cache_creation_input_tokens

    def __add__(self, other: Usage) -> Usage:
        """The sum. Its cost is unknown as soon as one of the two is."""
        unknown = self.cost_usd is None or other.cost_usd is None
        return Usage(
            input_tokens=self.input_tokens + other.input_tokens,
            cache_read_input_tokens=self.cache_read_input_tokens + other.cache_read_input_tokens,
            cache_creation_input_tokens=self.cache_creation_input_tokens + other.cache_creation_input_tokens,
            cache_creation_1h_input_tokens=(
                self.cache_creation_1h_input_tokens + other.cache_creation_1h_input_tokens
            ),
            output_tokens=self.output_tokens + other.output_tokens,
            thinking_tokens=self.thinking_tokens + other.thinking_tokens,
            cost_usd=None if unknown else (self.cost_usd or Decimal()) + (other.cost_usd or Decimal()),
        )
