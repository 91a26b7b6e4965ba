"""How long a server asks to wait: in its headers, or only in the text of its error.

Layer: providers; stdlib alone.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_SECONDS_BY_UNIT = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_PART = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)")
_DURATION = r"(?:\d+(?:\.\d+)?(?:ms|s|m|h|d))+"
_IN_BODY = (
    # Gemini: {"@type": ".../google.rpc.RetryInfo", "retryDelay": "39s"} (pydantic-ai#1879)
    re.compile(rf'"retry_?delay"\s*:\s*"({_DURATION})"', re.IGNORECASE),
    # OpenAI: "Please try again in 1m2.5s"; Gemini: "Please retry in 39.5s"
    re.compile(rf"\b(?:try again|retry) (?:in|after) ({_DURATION})\b", re.IGNORECASE),
    # Azure: "Please retry after 30 seconds."
    re.compile(r"\b(?:try again|retry) (?:in|after) (\d+(?:\.\d+)?) ?(?=sec)", re.IGNORECASE),
)


def retry_after_s(headers: Mapping[str, str], body: str, now: datetime) -> float | None:
    """Seconds the server asks to wait, at least 0; None when it says nothing that can be read.

    `headers` must find names in any case, or have them in lower case. The most exact source wins:
    `retry-after-ms`, `retry-after` (seconds or an HTTP date, against `now`), the body's text, then the
    window of a rate limit that is used up (`x-ratelimit-reset-*`: "6s", "2m59s").
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    if milliseconds is not None:
        return milliseconds / 1000
    retry_after = headers.get("retry-after", "").strip()
    if retry_after:
        seconds = _number(retry_after)
        return seconds if seconds is not None else _until_date(retry_after, now)
    for pattern in _IN_BODY:
        if found := pattern.search(body):
            return duration_s(found[1])
    return used_up_s(headers, now)


def used_up_s(headers: Mapping[str, str], now: datetime) -> float | None:
    """Seconds until a rate limit that is used up has room again; None when none is.

    Of OpenAI and its likes (`x-ratelimit-reset-requests: 6s`) and of Anthropic
    (`anthropic-ratelimit-requests-reset`, an RFC 3339 date against `now`).
    """
    found = [
        duration_s(headers.get(f"x-ratelimit-reset-{kind}", ""))
        for kind in ("requests", "tokens")
        if headers.get(f"x-ratelimit-remaining-{kind}") == "0"
    ]
    found += [
        _until_moment(headers.get(f"anthropic-ratelimit-{kind}-reset", ""), now)
        for kind in ("requests", "tokens", "input-tokens", "output-tokens")
        if headers.get(f"anthropic-ratelimit-{kind}-remaining") == "0"
    ]
    return max((seconds for seconds in found if seconds is not None), default=None)


def duration_s(text: str) -> float | None:
    """Seconds in a duration such as "39s", "2m59s", "350ms" or "12"; None when it is none."""
    text = text.strip()
    if re.fullmatch(_DURATION, text):
        return sum(float(number) * _SECONDS_BY_UNIT[unit] for number, unit in _PART.findall(text))
    return _number(text)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return max(value, 0.0) if math.isfinite(value) else None


def _until_moment(text: str, now: datetime) -> float | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return None if moment.tzinfo is None else max((moment - now).total_seconds(), 0.0)


def _until_date(text: str, now: datetime) -> float | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max((moment - now).total_seconds(), 0.0)
