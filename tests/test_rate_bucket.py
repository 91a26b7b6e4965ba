"""The rate bucket in virtual time: who may send when, and what it learns from servers of many kinds."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import pytest
from limited_servers import (
    AtOnceServer,
    FixedWindowServer,
    LimitedServer,
    SlidingWindowServer,
    TokenBucketServer,
)

from palaver.actors.rate_bucket import FIRST_AT_ONCE, Learned, Place, RateBucket
from palaver.providers.rate_limits import Outcome, RateLimits, Told

ANSWERED = Told(Outcome.ANSWERED)
REFUSED = Told(Outcome.REFUSED)


@dataclass
class Simulation:
    """Clients that send one request after the other through one bucket to one server, in virtual time."""

    server: LimitedServer
    latency_s: float = 0.05
    retry_after: bool = True
    limits: RateLimits = RateLimits()
    learned: Learned | None = None
    sent: int = 0
    refused: int = 0
    took_s: float = 0.0
    sent_at_s: list[float] = field(default_factory=list[float])
    waited_s: dict[str, float] = field(default_factory=dict[str, float])
    ended_s: dict[str, float] = field(default_factory=dict[str, float])

    def run(self, clients: Mapping[str, str], requests: int) -> None:
        """Run to the end: `clients` are names with the root each belongs to."""
        chance, bucket = random.Random(1), RateBucket(self.limits)
        if self.learned is not None:
            bucket.adopt(self.learned, 0, self.learned.at_s)
        events: list[tuple[float, int, Place, float | None]] = []
        left, joined_s = dict.fromkeys(clients, requests), dict.fromkeys(clients, 0.0)
        self.waited_s = dict.fromkeys(clients, 0.0)
        owner: dict[str, str] = {}
        now_s, number = 0.0, 0

        def join(client: str, *, again: bool) -> None:
            nonlocal number
            number += 1
            owner[str(number)] = client
            if not again:
                joined_s[client] = now_s
            bucket.enter(Place(str(number), clients[client], 100, arrived_s=now_s), again=again)

        for client in clients:
            join(client, again=False)
        while True:
            for place in bucket.admit(now_s):
                client = owner[place.ticket]
                self.sent += 1
                self.sent_at_s.append(now_s)
                asked_s = self.server.ask(now_s)
                if asked_s is None:
                    self.waited_s[client] += now_s - joined_s[client]
                takes_s = 0.01 if asked_s is not None else self.latency_s * chance.uniform(0.8, 1.2)
                number += 1
                heapq.heappush(events, (now_s + takes_s, number, place, asked_s))
            wakes_s = bucket.wakes_s()
            moments = [events[0][0]] if events else []
            moments += [] if wakes_s is None else [wakes_s]
            if not moments:
                break
            now_s = max(now_s, min(moments))
            while events and events[0][0] <= now_s:
                _, _, place, asked_s = heapq.heappop(events)
                client = owner[place.ticket]
                if asked_s is None:
                    self.server.done()
                    bucket.leave(place.ticket, ANSWERED, now_s)
                    left[client] -= 1
                    self.took_s = self.ended_s[client] = now_s
                    if left[client]:
                        join(client, again=False)
                else:
                    self.refused += 1
                    hold_s = math.ceil(asked_s) if self.retry_after else 0.0
                    bucket.leave(place.ticket, Told(Outcome.REFUSED, hold_s), now_s)
                    join(client, again=True)
        assert not any(left.values())

    @property
    def refused_part(self) -> float:
        return self.refused / self.sent

    def used_part(self, per_second: float) -> float:
        """What was answered, of what was allowed in the time."""
        return (self.sent - self.refused) / (self.took_s * per_second)

    @property
    def longest_wait(self) -> float:
        """The longest wait by the median."""
        return max(self.waited_s.values()) / statistics.median(self.waited_s.values())


def hundred() -> dict[str, str]:
    return {str(number): "root" for number in range(100)}


# What is given


@pytest.mark.parametrize("per_minute", [6.0, 60.0, 3_000.0])
def test_given_requests_a_minute_are_paced_evenly_from_the_first(per_minute: float) -> None:
    simulation = Simulation(TokenBucketServer(1e9, 1e9), limits=RateLimits(requests_per_minute=per_minute))
    simulation.run(hundred(), 1)
    gaps = [later - sooner for sooner, later in itertools.pairwise(simulation.sent_at_s)]
    assert min(gaps) == pytest.approx(60 / per_minute)
    assert max(gaps) == pytest.approx(60 / per_minute)


def test_given_tokens_a_minute_are_kept_and_corrected_by_what_was_used() -> None:
    bucket = RateBucket(RateLimits(tokens_per_minute=600))
    for ticket in "abc":
        bucket.enter(Place(ticket, "r", 100), again=False)
    assert [each.ticket for each in bucket.admit(0)] == ["a"]
    assert bucket.wakes_s() == 10
    bucket.leave("a", Told(Outcome.ANSWERED, tokens=40), 1)
    assert bucket.wakes_s() == 4
    assert [each.ticket for each in bucket.admit(4)] == ["b"]
    bucket.leave("b", Told(Outcome.ANSWERED, tokens=200), 5)
    assert bucket.wakes_s() == 24


def test_no_more_are_under_way_at_once_than_was_given() -> None:
    bucket = RateBucket(RateLimits(max_concurrent=2))
    for ticket in "abc":
        bucket.enter(Place(ticket, "r", 1), again=False)
    assert len(bucket.admit(0)) == 2
    assert bucket.wakes_s() is None
    bucket.leave("a", ANSWERED, 1)
    assert [each.ticket for each in bucket.admit(1)] == ["c"]


def test_of_limits_that_differ_the_tighter_holds() -> None:
    bucket = RateBucket(RateLimits(requests_per_minute=60, max_concurrent=5))
    bucket.tighten(RateLimits(requests_per_minute=30, tokens_per_minute=1_000))
    assert (bucket.per_second, bucket.at_once) == (0.5, 5)
    bucket.tighten(RateLimits(requests_per_minute=600, max_concurrent=2))
    assert (bucket.per_second, bucket.at_once) == (0.5, 2)


# The line


def test_roots_take_turns_however_many_requests_each_has() -> None:
    bucket = RateBucket(RateLimits(max_concurrent=4))
    for number in range(6):
        bucket.enter(Place(f"many {number}", "many", 1), again=False)
    bucket.enter(Place("one", "one", 1), again=False)
    assert [each.ticket for each in bucket.admit(0)] == ["many 0", "one", "many 1", "many 2"]


def test_who_was_refused_goes_before_all_others() -> None:
    bucket = RateBucket(RateLimits(max_concurrent=1))
    for ticket in "ab":
        bucket.enter(Place(ticket, "r", 1), again=False)
    bucket.admit(0)
    bucket.leave("a", REFUSED, 0)
    bucket.enter(Place("a again", "r", 1), again=True)
    assert [each.ticket for each in bucket.admit(10)] == ["a again"]


def test_who_waited_at_a_gate_before_this_one_keeps_the_place() -> None:
    bucket = RateBucket(RateLimits(max_concurrent=1))
    for ticket, arrived_s in (("b", 2), ("c", 3), ("a", 1)):
        bucket.enter(Place(ticket, "r", 1, arrived_s=arrived_s), again=False)
    order: list[str] = []
    for now_s in range(3):
        order += [each.ticket for each in bucket.admit(now_s)]
        bucket.leave(order[-1], ANSWERED, now_s)
    assert order == ["a", "b", "c"]


def test_a_place_given_up_in_the_line_or_under_way_leaves_no_hole() -> None:
    bucket = RateBucket(RateLimits(max_concurrent=1))
    for ticket in "abc":
        bucket.enter(Place(ticket, "r", 1), again=False)
    bucket.admit(0)
    bucket.give_up("b")
    bucket.give_up("a")
    assert [each.ticket for each in bucket.admit(0)] == ["c"]
    bucket.give_up("c")
    assert (bucket.waiting, bucket.under_way, bucket.wakes_s()) == (0, (), None)


# What is learned


def test_requests_at_once_double_with_each_round_of_answers_until_one_is_refused() -> None:
    bucket = RateBucket(RateLimits())
    for number in range(100):
        bucket.enter(Place(str(number), "r", 1), again=False)
    sizes: list[int] = []
    for now_s in range(4):
        admitted = bucket.admit(now_s)
        sizes.append(len(admitted))
        for place in admitted:
            bucket.leave(place.ticket, ANSWERED, now_s + 0.5)
    first = int(FIRST_AT_ONCE)
    assert sizes == [first, 2 * first, 4 * first, 8 * first]
    under_way = bucket.admit(9)
    bucket.leave(under_way[0].ticket, Told(Outcome.OVERLOADED), 9.5)
    assert bucket.at_once == int(0.9 * len(under_way))


def test_a_hold_that_one_was_told_holds_all() -> None:
    bucket = RateBucket(RateLimits())
    for ticket in "ab":
        bucket.enter(Place(ticket, "r", 1), again=False)
    bucket.admit(0)
    bucket.leave("a", Told(Outcome.ANSWERED, hold_s=7), 1)
    bucket.enter(Place("c", "other", 1), again=False)
    assert bucket.admit(7.9) == []
    assert bucket.wakes_s() == 8
    assert len(bucket.admit(8)) == 1


def test_refusals_of_requests_sent_before_a_cut_do_not_cut_again() -> None:
    bucket = RateBucket(RateLimits())
    for ticket in "abcd":
        bucket.enter(Place(ticket, "r", 1), again=False)
    bucket.admit(0)
    bucket.leave("a", REFUSED, 0.1)
    learned = bucket.learned(0.1, 0)
    for ticket in "bcd":
        bucket.leave(ticket, REFUSED, 0.1)
    assert bucket.learned(0.1, 0) == learned


def test_while_everything_is_refused_the_waits_grow() -> None:
    bucket = RateBucket(RateLimits())
    tries: list[float] = []
    now_s = 0.0
    for number in range(8):
        bucket.enter(Place(str(number), "r", 1), again=True)
        now_s = bucket.wakes_s() or now_s
        (place,) = bucket.admit(now_s)
        tries.append(now_s)
        now_s += 0.01
        bucket.leave(place.ticket, Told(Outcome.OVERLOADED), now_s)
    gaps = [later - sooner for sooner, later in itertools.pairwise(tries)]
    assert gaps[-1] > 15
    assert sorted(gaps[1:]) == gaps[1:]


SERVERS: dict[str, Callable[[], LimitedServer]] = {
    "five saved up": lambda: TokenBucketServer(5, 5),
    "none saved up": lambda: TokenBucketServer(5, 1),
    "fixed window": lambda: FixedWindowServer(5),
    "sliding window": lambda: SlidingWindowServer(5),
}


@pytest.mark.parametrize("latency_s", [0.05, 0.5])
@pytest.mark.parametrize(
    ("server", "retry_after"),
    [
        ("five saved up", True),
        ("five saved up", False),
        ("fixed window", True),
        ("sliding window", True),
    ],
)
def test_a_hundred_find_out_what_a_server_allows(server: str, retry_after: bool, latency_s: float) -> None:
    simulation = Simulation(SERVERS[server](), latency_s, retry_after)
    simulation.run(hundred(), 3)
    assert simulation.refused_part < 0.05
    assert simulation.used_part(5) >= 0.9
    assert simulation.longest_wait < 3


@pytest.mark.parametrize("retry_after", [True, False], ids=["retry-after", "silent"])
@pytest.mark.parametrize("latency_s", [0.02, 0.05, 0.5, 2.0])
@pytest.mark.parametrize("server", SERVERS)
def test_whatever_a_server_counts_by_few_are_refused_and_most_is_used(
    server: str, latency_s: float, retry_after: bool
) -> None:
    simulation = Simulation(SERVERS[server](), latency_s, retry_after)
    simulation.run(hundred(), 3)
    assert simulation.refused_part < 0.05
    assert simulation.used_part(5) >= 0.55
    assert simulation.longest_wait < 2


@pytest.mark.parametrize("server", SERVERS)
def test_what_was_learned_lets_another_bucket_go_on(server: str) -> None:
    simulation = Simulation(SERVERS[server](), learned=Learned(at_s=1, per_second=4.9, at_once=5.0))
    simulation.run(hundred(), 3)
    assert simulation.refused_part < 0.03
    assert simulation.used_part(5) >= 0.85


def test_of_what_was_learned_the_newest_holds_until_something_is_refused_here() -> None:
    bucket = RateBucket(RateLimits())
    bucket.adopt(Learned(at_s=100, per_second=5, hold_s=3), now_s=50, unix_s=101)
    bucket.adopt(Learned(at_s=99, per_second=1), now_s=50, unix_s=101)
    assert bucket.per_second == pytest.approx(5, rel=0.01)
    bucket.enter(Place("a", "r", 1), again=False)
    assert bucket.wakes_s() == 52
    bucket.adopt(Learned(at_s=101, per_second=7), now_s=50, unix_s=101)
    assert bucket.per_second == pytest.approx(7, rel=0.01)
    bucket.admit(52)
    bucket.leave("a", REFUSED, 53)
    learned = bucket.learned(53, 0)
    bucket.adopt(Learned(at_s=200, per_second=1_000), now_s=53, unix_s=200)
    assert bucket.learned(53, 0) == learned


def test_a_server_that_limits_how_many_at_once_refuses_few() -> None:
    simulation = Simulation(AtOnceServer(5), latency_s=1.0)
    simulation.run(hundred(), 3)
    assert simulation.refused_part < 0.06


def test_nobody_waits_long_beside_a_root_with_a_hundred() -> None:
    clients = {**hundred(), "alone": "another root"}
    simulation = Simulation(TokenBucketServer(5, 5))
    simulation.run(clients, 3)
    assert simulation.ended_s["alone"] < 5
    assert simulation.took_s > 50
