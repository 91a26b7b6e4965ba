"""A clock that does not wait and a server that answers from a list, for the tests of the adapters."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeAlias

import httpx

from palaver.providers.retry import Clock

KEY = "sk-very-secret-0123456789"

Answer: TypeAlias = httpx.Response | Exception | Callable[[httpx.Request], httpx.Response]


class FakeClock(Clock):
    """Time moves when something sleeps, and by `step_s` at each answer."""

    def __init__(self, jitter: float = 0.0) -> None:
        self.waits: list[float] = []
        self.time_s = 0.0
        self._jitter = jitter

    def monotonic_s(self) -> float:
        return self.time_s

    def now(self) -> datetime:
        return datetime(2026, 11, 1, 12, tzinfo=UTC) + timedelta(seconds=self.time_s)

    async def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.time_s += seconds

    def jitter(self) -> float:
        return self._jitter


class FakeServer(httpx.MockTransport):
    """Gives its answers in order, the last one for ever, and keeps what it was asked."""

    def __init__(self, *answers: Answer) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = answers
        super().__init__(self._answer)

    @property
    def bodies(self) -> list[dict[str, Any]]:
        return [json.loads(request.content) for request in self.requests]

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers[min(len(self.requests), len(self._answers)) - 1]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, httpx.Response):
            # Fresh each time: a response is read once.
            return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)
        return answer(request)


def ok(body: object) -> httpx.Response:
    return httpx.Response(200, json=body)
