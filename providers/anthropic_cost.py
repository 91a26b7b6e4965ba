"""What a request to Anthropic comes to: what the API adds to it beforehand, and its usage afterwards.

Facts: platform.claude.com/docs, November 2026.

Layer: providers; pure functions, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from palaver.providers.prices import Price
from palaver.providers.untyped import as_count, as_dict, as_text, count_in
from palaver.providers.usage import Usage
from palaver.providers.worst_case import Overhead

_BEFORE_4_6 = (
    "claude-2",
    "claude-3-",
    "claude-haiku-4-",
    "claude-instant",
    "claude-opus-4-0",
    "claude-opus-4-1",
    "claude-opus-4-2025",
    "claude-opus-4-5",
    "claude-sonnet-4-0",
    "claude-sonnet-4-2025",
    "claude-sonnet-4-5",
)
_BEFORE_4_7 = (*_BEFORE_4_6, "claude-opus-4-6", "claude-sonnet-4-6")

_IMAGE_TOKENS_BEFORE_4_7 = 1_600
_IMAGE_TOKENS = 4_784
"""The most that a picture counts, however large: 1,568 before 4.7, about 1,600 by the older formula of width
times height by 750 (vision)."""

_US_ONLY = Decimal("1.1")
"""What inference kept in the US multiplies all rates by, of models from 4.6 on; a workspace may have it as
its default (data-residency)."""
_ANYWHERE = frozenset({"", "global", "not_available"})


def overhead(model: str) -> Overhead:
    """What the API adds to a request. It documents tokens of a system prompt for tools alone: from 159
    (Claude 3 Sonnet) to 804 (Opus 4.7 with a forced call, 129 more than without), and none yet for some of
    the newest (tool-use overview). The rest leaves room for what it only says to exist: a prompt for an
    output schema, and for thinking.
    """
    return Overhead(
        per_request=64,
        for_tools=1_024,
        for_tool_choice=256,
        for_output_schema=512,
        per_image=_IMAGE_TOKENS_BEFORE_4_7 if model.startswith(_BEFORE_4_7) else _IMAGE_TOKENS,
    )


def usage_from_wire(wire: object, price: Price | None) -> Usage:
    """Usage with its cost; the cost is None when the price or one of the counts is unknown, or the price of
    how it was served: in haste, in a batch, at a tier, in a part of the world.

    Anthropic's `input_tokens` exclude what was read from or written to the cache, as ours do.
    """
    counts = as_dict(wire)
    if not counts:
        return Usage()
    written = as_count(counts.get("cache_creation_input_tokens"))
    written_1h = as_count(as_dict(counts.get("cache_creation")).get("ephemeral_1h_input_tokens"))
    usage = Usage(
        input_tokens=as_count(counts.get("input_tokens")),
        cache_read_input_tokens=as_count(counts.get("cache_read_input_tokens")),
        cache_creation_input_tokens=max(written, written_1h),
        cache_creation_1h_input_tokens=written_1h,
        output_tokens=as_count(counts.get("output_tokens")),
        thinking_tokens=as_count(as_dict(counts.get("output_tokens_details")).get("thinking_tokens")),
    )
    told = count_in(counts.get("input_tokens")), count_in(counts.get("output_tokens"))
    price = _served(price, counts) if None not in told else None
    return usage if price is None else usage.model_copy(update={"cost_usd": price.cost(usage)})


def dearest(price: Price | None, model: str) -> Price | None:
    """The price of a model wherever a workspace has its requests served by default."""
    return price if price is None or model.startswith(_BEFORE_4_6) else price.times(_US_ONLY)


def _served(price: Price | None, counts: Mapping[str, Any]) -> Price | None:
    """The price at which a request was served, by its usage; None when it is not known."""
    where = as_text(counts.get("inference_geo"))
    if price is None or where not in (*_ANYWHERE, "us"):
        return None
    names = (as_text(counts.get("service_tier")), as_text(counts.get("speed")))
    for name in names:
        price = None if price is None else price.served_at(name)
    return price if price is None or where != "us" else price.times(_US_ONLY)
