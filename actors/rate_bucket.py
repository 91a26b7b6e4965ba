"""A bucket of the rate gate: who may send now, of all that share one provider, key and model.

It owns two invariants. What was given (requests and tokens per minute, requests at once) is never passed. And
whoever waits goes, in turn: root conversations take turns, whatever the number of their descendants, each in
the order in which its requests came; one that was refused goes first.

What was not given is learned from refusals, both as requests at once and as requests a second, since some
servers limit the one and some the other. Requests at once double with each round that is accepted, until
one is refused; from then on a refusal takes a tenth and each round adds one. Requests a second are what was
accepted until the first refusal; each refusal cuts them, by a fifth and later by a twentieth. They come
back to where they were refused, slowly near it, and then grow faster and faster, as TCP's window does after
a lost packet (CUBIC, RFC 9438). So a limit that stays is touched now and then, and one that was raised is
found.

Layer: actors, core; no Ray, and no clock: each call says what time it is, in seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict, deque
from contextlib import suppress
from dataclasses import dataclass

from palaver.providers.rate_limits import Outcome, RateLimits, Told

FIRST_AT_ONCE = 2.0
"""Requests at once before anything is known; doubled with each round accepted, until one is refused."""

ACCEPTED_AFTER_S = 1.0
"""A request that is not refused by then is taken to be accepted, though its answer may take minutes."""

CUT_AT_ONCE = 0.9
"""What a refusal leaves of the requests at once. One is added with each round of answers."""

CUTS = ((0.8, 6.0), (0.95, 120.0))
"""What the first, second, ... refusal leaves of what was allowed, and in how many seconds that is back: wide
steps while little is known, small ones from then on."""

DEEPER = 0.93
"""Who is refused before what was refused is allowed again takes that as refused."""

ELSEWHERE = 1.3
"""Who got that much more than was refused before has found another limit."""

MEASURED_WITHIN_S = 10.0
MEASURED_FROM_S = 3.0
ABOVE_ACCEPTED = 1.1
"""What was accepted in these seconds tells what a server accepts: not much more than that."""


FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 30.0
"""How long all wait when one refusal follows another, doubled each time, unless the server asks for more."""


_NO_LIMIT = 1 << 30


@dataclass(slots=True)
class Place:
    """A request in the line, or on its way. `root` is whose it is."""

    ticket: str
    root: str
    tokens: int
    arrived_s: float = 0.0
    sent_s: float = 0.0
    is_accepted: bool = False


@dataclass(frozen=True, slots=True)
class Learned:
    """What a bucket has learned by `at_s`; None for what was never refused.

    For `hold_s` from then on nobody should ask. `at_s` is Unix time, the same for all processes.
    """

    at_s: float
    per_second: float | None = None
    at_once: float | None = None
    hold_s: float = 0.0


class _Curve:
    """An allowance that is cut when refused, and grows back."""

    def __init__(self, refused_at: float, cuts: int) -> None:
        self.refused_at = refused_at
        self.cuts = cuts
        self._left, self._back_s = CUTS[min(cuts, len(CUTS)) - 1]
        self.grown_s = 0.0

    @property
    def allowed(self) -> float:
        part = self.grown_s / self._back_s - 1
        return self.refused_at * (1 + (1 - self._left if part < 0 else 1) * part**3)

    def cut(self, *, again_at_once: bool, at_most: float) -> _Curve:
        """The curve after another refusal; wide steps again where the limit is another than it was."""
        refused_at = min(self.allowed, at_most)
        if again_at_once or refused_at > ELSEWHERE * self.refused_at:
            return _Curve(refused_at, 1)
        if self.grown_s < self._back_s:
            return _Curve(DEEPER * refused_at, self.cuts)  # the limit is lower than it seemed
        return _Curve(refused_at, self.cuts + 1)


class _Pace:
    """An even pace: so many units a minute, none of them saved up."""

    def __init__(self, per_minute: float) -> None:
        self.per_minute = per_minute
        self.next_s = 0.0

    def spend(self, units: float, now_s: float) -> None:
        self.next_s = max(self.next_s, now_s) + 60 * units / self.per_minute


def _paced(pace: _Pace | None, per_minute: float | None) -> _Pace | None:
    """A pace of so many a minute, which goes on where another was."""
    if per_minute is None:
        return None
    new = _Pace(per_minute)
    if pace is not None:
        new.next_s = pace.next_s
    return new


class RateBucket:
    """The line of one bucket, and what goes through it."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits
        self._requests = _paced(None, limits.requests_per_minute)
        self._tokens = _paced(None, limits.tokens_per_minute)
        self._rate: _Curve | None = None
        # Where a pace is given, nothing has to be found out until something is refused.
        first = FIRST_AT_ONCE if limits == RateLimits() else float(limits.max_concurrent or _NO_LIMIT)
        self._at_once = first
        self._doubling = first == FIRST_AT_ONCE
        self._next_s = 0.0
        self._hold_until_s = 0.0
        self._adopted_s = float("-inf")
        self._again: deque[Place] = deque()
        self._lines: OrderedDict[str, deque[Place]] = OrderedDict()
        self._under_way: dict[str, Place] = {}
        self._accepted: deque[float] = deque()
        self._cut_s = self._resumed_s = float("-inf")
        self._began_s: float | None = None
        self._seen_s = 0.0
        self._refusals_in_a_row = 0

    # The line

    def enter(self, place: Place, *, again: bool) -> None:
        """Join the line; before all others when it comes `again`, having been refused."""
        line = self._again if again else self._lines.setdefault(place.root, deque())
        # Usually at its end: only those that waited at a gate before this one come late.
        index = len(line)
        while index and line[index - 1].arrived_s > place.arrived_s:
            index -= 1
        line.insert(index, place)

    def admit(self, now_s: float) -> list[Place]:
        """Those who may send now."""
        self._grow(now_s)
        admitted: list[Place] = []
        while self.waiting and len(self._under_way) < self.at_once and now_s >= self._free_s():
            place = self._pop()
            place.sent_s = now_s
            self._under_way[place.ticket] = place
            self._accepted.append(now_s)
            self._spend(place, now_s)
            admitted.append(place)
        return admitted

    def wakes_s(self) -> float | None:
        """When somebody may go next, if nothing ends before; None: not before something ends."""
        if not self.waiting:
            return None
        if len(self._under_way) < self.at_once:
            return self._free_s()
        if self.at_once == self._limits.max_concurrent:
            return None
        unsure = [place.sent_s for place in self._under_way.values() if not place.is_accepted]
        return min(unsure) + ACCEPTED_AFTER_S if unsure else None

    def give_up(self, ticket: str) -> None:
        """Leave the line, or what is under way without having told anything."""
        self._under_way.pop(ticket, None)
        for line in (self._again, *self._lines.values()):
            for place in line:
                if place.ticket == ticket:
                    line.remove(place)
                    break
        for root in [root for root, line in self._lines.items() if not line]:
            del self._lines[root]

    def tighten(self, limits: RateLimits) -> None:
        """Keep to these limits, too: somebody else knows others than those given first."""
        if limits == self._limits:
            return
        given = {
            name: min(known)
            for name in RateLimits.model_fields
            if (known := [each for each in (getattr(self._limits, name), getattr(limits, name)) if each])
        }
        self._limits = RateLimits(**given)
        self._requests = _paced(self._requests, self._limits.requests_per_minute)
        self._tokens = _paced(self._tokens, self._limits.tokens_per_minute)

    def sent_before(self, moment_s: float) -> list[str]:
        """The tickets of those under way that were let through before then."""
        return [place.ticket for place in self._under_way.values() if place.sent_s < moment_s]

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._again) + sum(map(len, self._lines.values()))

    @property
    def under_way(self) -> tuple[str, ...]:
        """The tickets of requests that were let through and have not ended, oldest first."""
        return tuple(self._under_way)

    @property
    def at_once(self) -> int:
        """How many may be under way at once."""
        allowed = max(1, int(self._at_once))
        return allowed if self._limits.max_concurrent is None else min(allowed, self._limits.max_concurrent)

    @property
    def per_second(self) -> float | None:
        """How many may be sent in a second; None while nothing bounds that."""
        given = self._limits.requests_per_minute
        rates = [None if given is None else given / 60, None if self._rate is None else self._rate.allowed]
        return min((rate for rate in rates if rate is not None), default=None)

    def learned(self, now_s: float, unix_s: float) -> Learned:
        """What was learned, for a bucket that takes over from this one."""
        return Learned(
            at_s=unix_s,
            per_second=None if self._rate is None else self._rate.allowed,
            at_once=None if self._doubling else self._at_once,
            hold_s=max(0.0, self._hold_until_s - now_s),
        )

    def adopt(self, learned: Learned, now_s: float, unix_s: float) -> None:
        """Go on from what another bucket has learned, unless this one knows something, or newer things."""
        if math.isfinite(self._cut_s) or learned.at_s <= self._adopted_s:
            return
        self._adopted_s = learned.at_s
        self._hold_until_s = max(self._hold_until_s, now_s + learned.hold_s - (unix_s - learned.at_s))
        if learned.at_once is not None:
            self._at_once, self._doubling = learned.at_once, False
        if learned.per_second is not None:
            self._rate = _Curve(learned.per_second, len(CUTS))
            self._rate.grown_s = CUTS[-1][1] / 2

    def _pop(self) -> Place:
        if self._again:
            return self._again.popleft()
        root, line = next(iter(self._lines.items()))
        place = line.popleft()
        self._lines.move_to_end(root)
        if not line:
            del self._lines[root]
        return place

    def _free_s(self) -> float:
        """When the next may be sent."""
        paces = [pace.next_s for pace in (self._requests, self._tokens) if pace is not None]
        return max(self._hold_until_s, self._next_s, *paces)

    def _spend(self, place: Place, now_s: float) -> None:
        if self._requests is not None:
            self._requests.spend(1, now_s)
        if self._tokens is not None:
            self._tokens.spend(place.tokens, now_s)
        if self._rate is not None:
            self._next_s = max(self._next_s, now_s) + 1 / self._rate.allowed

    # Learning

    def leave(self, ticket: str, told: Told, now_s: float) -> None:
        """A try has ended; what it told is learned from."""
        self._grow(now_s)
        place = self._under_way.pop(ticket, None)
        if told.hold_s > 0:
            self._hold_until_s = max(self._hold_until_s, now_s + told.hold_s)
        if place is None:
            return
        if self._tokens is not None and told.tokens is not None:
            self._tokens.spend(told.tokens - place.tokens, now_s)
        match told.outcome:
            case Outcome.ANSWERED:
                self._refusals_in_a_row = 0
                self._accept(place, len(self._under_way) + 1)
            case Outcome.REFUSED | Outcome.OVERLOADED:
                self._refuse(place, now_s)
            case Outcome.FAILED:
                pass

    def _refuse(self, place: Place, now_s: float) -> None:
        with suppress(ValueError):
            self._accepted.remove(place.sent_s)
        if place.sent_s <= self._cut_s:
            return  # sent before the last cut: it tells nothing new
        self._refusals_in_a_row += 1
        if self._refusals_in_a_row > 1:
            backoff_s = min(FIRST_BACKOFF_S * 2 ** (self._refusals_in_a_row - 2), LONGEST_BACKOFF_S)
            self._hold_until_s = max(self._hold_until_s, now_s + backoff_s)
        at_once = len(self._under_way) + 1
        if self._doubling or at_once >= self.at_once:
            self._at_once = max(1.0, CUT_AT_ONCE * min(at_once, self._at_once))
            self._doubling = False
        since_s = max(now_s - MEASURED_WITHIN_S, self._cut_s, self._resumed_s, self._began_s or 0.0)
        accepted = sum(sent_s >= since_s for sent_s in self._accepted)
        if self._rate is None:
            self._rate = _Curve(max(accepted, 1) / max(now_s - since_s, 1.0), 1)
        else:
            # What a server had saved up for us lets a rate seem possible that is not. But what was accepted
            # tells little of a rate that has just doubled.
            measured_s = now_s - since_s
            per_second = accepted / measured_s if measured_s >= MEASURED_FROM_S else 0.0
            at_most = ABOVE_ACCEPTED * per_second if per_second >= self._rate.allowed / 2 else math.inf
            self._rate = self._rate.cut(again_at_once=now_s - self._cut_s < 1, at_most=at_most)
        self._next_s = max(self._next_s, now_s + 1 / self._rate.allowed)
        self._cut_s = now_s
        self._resumed_s = max(now_s, self._hold_until_s)

    def _grow(self, now_s: float) -> None:
        """Allow more by the time since the last look, if all that is allowed is used."""
        # Nothing is tried, and nothing shown, while all are held.
        passed_s, self._seen_s = now_s - max(self._seen_s, min(self._hold_until_s, now_s)), now_s
        if self._began_s is None:
            self._began_s = now_s
            return
        while self._accepted and self._accepted[0] < now_s - MEASURED_WITHIN_S:
            self._accepted.popleft()
        if not self.waiting:
            return
        if self._rate is not None and len(self._under_way) < self.at_once:
            self._rate.grown_s += passed_s
        for place in self._under_way.values():
            if not place.is_accepted and now_s >= place.sent_s + ACCEPTED_AFTER_S:
                self._accept(place, len(self._under_way))

    def _accept(self, place: Place, at_once: int) -> None:
        """Allow more at once, of which so many were, by what was accepted: as much again, or one a round."""
        if not place.is_accepted and (self._doubling or at_once >= self.at_once):
            self._at_once += 1 if self._doubling else 1 / self._at_once
        place.is_accepted = True
