"""Requests through a gate: each try enters and tells how it ended; what headers say; what a lane shows."""

from __future__ import annotations

import asyncio
import pickle
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from wire_fakes import KEY, Answer, FakeClock, FakeServer

from palaver.providers import (
    Anthropic,
    LlamaCPP,
    Message,
    OpenAI,
    Overloaded,
    Price,
    RateLimited,
    RateLimits,
    Request,
    RetryPolicy,
)
from palaver.providers.local import Local
from palaver.providers.rate_limits import Lane, Outcome, TakesGate, Told
from palaver.providers.retry_hints import used_up_s

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
ASKED = Request(messages=(Message.user("hi"),), max_tokens=50)


class FakeGate:
    """Lets everybody through, once `open` is set, and notes what it is told."""

    def __init__(self, clock: FakeClock | None = None) -> None:
        self.entered: list[tuple[Lane, int, bool]] = []
        self.told: list[Told] = []
        self.given_up = 0
        self.open = asyncio.Event()
        self.open.set()
        self._clock = clock

    async def enter(self, lane: Lane, tokens: int, *, again: bool) -> str:
        self.entered.append((lane, tokens, again))
        if self._clock is not None:
            self._clock.time_s += 1_000
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.given_up += 1
            raise
        return str(len(self.entered))

    def leave(self, ticket: str, told: Told) -> None:
        self.told.append(told)


def answer(**headers: str) -> httpx.Response:
    choice = {"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 7, "completion_tokens": 2}
    body = {"id": "1", "model": "m", "choices": [choice], "usage": usage}
    return httpx.Response(200, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def refused(status: int = 429, **headers: str) -> httpx.Response:
    body = {"error": {"message": "slow down"}}
    return httpx.Response(status, json=body, headers={k.replace("_", "-"): v for k, v in headers.items()})


def behind(gate: FakeGate, *answers: Answer, clock: FakeClock | None = None, **options: Any) -> OpenAI:
    provider = OpenAI(
        "m",
        base_url="https://acme.test/v1",
        api_key=KEY,
        price=Price.free(),
        transport=FakeServer(*answers),
        clock=clock or FakeClock(),
        **options,
    )
    provider.through(gate)
    return provider


async def test_a_request_enters_and_tells_what_it_used() -> None:
    gate = FakeGate()
    await behind(gate, answer()).generate(ASKED)
    ((lane, tokens, again),) = gate.entered
    assert lane.limits == RateLimits()
    assert 50 < tokens < 200
    assert not again
    assert gate.told == [Told(Outcome.ANSWERED, tokens=9)]


async def test_each_try_enters_and_one_that_was_refused_comes_again_at_once() -> None:
    gate, clock = FakeGate(), FakeClock()
    answers = (refused(retry_after="3"), refused(529), refused(500), answer())
    await behind(gate, *answers, clock=clock).generate(ASKED)
    assert [again for _, _, again in gate.entered] == [False, True, True, True]
    assert [(each.outcome, each.hold_s) for each in gate.told] == [
        (Outcome.REFUSED, 3.0),
        (Outcome.OVERLOADED, 0.0),
        (Outcome.OVERLOADED, 0.0),
        (Outcome.ANSWERED, 0.0),
    ]
    assert not any(clock.waits)  # the gate holds it, and all others


async def test_what_does_not_pass_is_told_as_no_word_on_limits() -> None:
    gate = FakeGate()
    with pytest.raises(Exception, match="HTTP 401"):
        await behind(gate, refused(401)).generate(ASKED)
    assert [each.outcome for each in gate.told] == [Outcome.FAILED]


async def test_the_wait_at_the_gate_is_no_time_of_trying() -> None:
    clock = FakeClock()
    gate = FakeGate(clock)
    policy = RetryPolicy(max_total_s=10)
    response = await behind(gate, refused(), answer(), clock=clock, retry=policy).generate(ASKED)
    assert response.message.text == "ok"


@pytest.mark.parametrize(("status", "error"), [(429, RateLimited), (529, Overloaded)])
async def test_tries_are_bounded_all_the_same(status: int, error: type[Exception]) -> None:
    gate = FakeGate()
    with pytest.raises(error, match="gave up after 4 tries"):
        await behind(gate, refused(status), retry=RetryPolicy(max_attempts=4)).generate(ASKED)
    assert len(gate.told) == 4


async def test_a_very_long_hold_is_cut() -> None:
    gate = FakeGate()
    with pytest.raises(RateLimited):
        await behind(gate, refused(retry_after="86400"), retry=RetryPolicy(max_attempts=1)).generate(ASKED)
    assert [each.hold_s for each in gate.told] == [60.0]


async def test_an_answer_that_uses_a_limit_up_holds_the_others() -> None:
    gate = FakeGate()
    headers = {"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6s"}
    await behind(gate, answer(**headers)).generate(ASKED)
    assert gate.told == [Told(Outcome.ANSWERED, hold_s=6.0, tokens=9)]


async def test_cancelled_in_the_line_it_gives_up_and_cancelled_under_way_it_tells() -> None:
    gate = FakeGate()
    gate.open.clear()
    waiting = asyncio.create_task(behind(gate, answer()).generate(ASKED))
    while not gate.entered:
        await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert (gate.given_up, gate.told) == (1, [])
    gate.open.set()
    started = asyncio.Event()

    async def never(request: httpx.Request) -> httpx.Response:
        started.set()
        await asyncio.Event().wait()
        raise AssertionError

    provider = OpenAI(
        "m", base_url="https://acme.test/v1", price=Price.free(), transport=httpx.MockTransport(never)
    )
    provider.through(gate)
    under_way = asyncio.create_task(provider.generate(ASKED))
    await started.wait()
    under_way.cancel()
    await asyncio.wait({under_way})
    assert [each.outcome for each in gate.told] == [Outcome.FAILED]


async def test_without_rate_limits_nothing_goes_through_the_gate() -> None:
    gate = FakeGate()
    provider = behind(gate, answer(), rate_limits=None)
    await provider.generate(ASKED)
    assert (gate.entered, provider.rate_limits) == ([], None)


def test_the_local_models_have_none_unless_they_are_given() -> None:
    assert LlamaCPP().rate_limits is None
    assert LlamaCPP(rate_limits=RateLimits(max_concurrent=2)).rate_limits == RateLimits(max_concurrent=2)
    assert not isinstance(Local(), TakesGate)
    assert Anthropic(api_key="sk-x", price=Price.free()).rate_limits == RateLimits()


async def test_a_gate_stays_behind_when_a_provider_travels() -> None:
    gate = FakeGate()
    provider = OpenAI("m", base_url="https://acme.test/v1", api_key=KEY, price=Price.free())
    provider.through(gate)
    copy = pickle.loads(pickle.dumps(provider))
    assert copy.rate_limits == RateLimits()
    assert copy._endpoint._gate is None


async def test_a_lane_is_one_of_provider_host_model_and_key_and_shows_no_key() -> None:
    lanes: list[str] = []
    for key, model, url in (
        (KEY, "m", "https://acme.test/v1"),
        (KEY, "m", "https://acme.test/v1"),
        (KEY + "x", "m", "https://acme.test/v1"),
        (KEY, "n", "https://acme.test/v1"),
        (KEY, "m", "https://other.test/v1"),
    ):
        gate, server = FakeGate(), FakeServer(answer())
        provider = OpenAI(model, base_url=url, api_key=key, price=Price.free(), transport=server)
        provider.through(gate)
        await provider.generate(ASKED)
        lanes.append(gate.entered[0][0].name)
    assert lanes[0] == lanes[1]
    assert len(set(lanes)) == 4
    assert all(KEY not in lane for lane in lanes)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"x-ratelimit-remaining-requests": "1", "x-ratelimit-reset-requests": "6s"}, None),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "6s"}, 6.0),
        (
            {
                "x-ratelimit-remaining-requests": "0",
                "x-ratelimit-reset-requests": "20ms",
                "x-ratelimit-remaining-tokens": "0",
                "x-ratelimit-reset-tokens": "1m2s",
            },
            62.0,
        ),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": "2026-11-01T12:00:30Z",
            },
            30.0,
        ),
        (
            {
                "anthropic-ratelimit-output-tokens-remaining": "0",
                "anthropic-ratelimit-output-tokens-reset": "2026-11-01T11:59:59Z",
            },
            0.0,
        ),
        (
            {
                "anthropic-ratelimit-tokens-remaining": "0",
                "anthropic-ratelimit-tokens-reset": "soon",
            },
            None,
        ),
    ],
)
def test_a_limit_that_is_used_up_says_when_there_is_room_again(
    headers: dict[str, str], seconds: float | None
) -> None:
    assert used_up_s(headers, NOW) == seconds
