"""The rate gate of a cluster: one named actor, through which all conversations send that use the same key.

It holds no request, only the line for sending. When it dies, whoever waits makes it anew and goes on
waiting, in the order in which all had come; what it had learned, they tell it. It ends by itself when
nobody has used it for a while.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol, cast

import ray
import ray.actor
from ray.exceptions import RayError

from palaver.actors.errors import ConvoClosed, ConvoUnreachable
from palaver.actors.rate_bucket import Learned, Place, RateBucket
from palaver.actors.replies import reply
from palaver.providers.provider import new_request_id
from palaver.providers.rate_limits import Lane, Told

_ray = cast("Any", ray)

_log = logging.getLogger(__name__)

NAME, NAMESPACE = "palaver-rate-gate", "palaver"

IDLE_S = 60.0
"""How long the gate stays when nobody uses it."""

CHECKED_AFTER_S = 5.0
"""While others wait, whoever is under way for so long is asked now and then whether it still is."""

_AGAIN_AFTER_S = 0.2
_CALLS_AT_ONCE = 1_000_000


class Sender(Protocol):
    """A conversation that sends through the gate, as far as it has to be watched."""

    async def is_sending(self, ticket: str) -> bool:
        """Whether it waits with a ticket, or is under way with it. Raises ConvoClosed."""
        ...


class _Remote:
    """A sender that is an actor, by its handle."""

    def __init__(self, convo_id: str, handle: Any) -> None:
        self._convo_id = convo_id
        self._handle = handle

    async def is_sending(self, ticket: str) -> bool:
        return await reply(self._handle.is_sending.remote(ticket), self._convo_id)


class _Line:
    """A bucket, who waits at it, and when somebody may go next."""

    def __init__(self, lane: Lane, now_s: Callable[[], float]) -> None:
        self.bucket = RateBucket(lane.limits)
        self._now_s = now_s
        self._let: dict[str, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self.senders: dict[str, str] = {}
        """Whose each ticket is."""

    async def enter(self, place: Place, sender: str, *, again: bool) -> None:
        let = self._let[place.ticket] = asyncio.get_running_loop().create_future()
        self.senders[place.ticket] = sender
        self.bucket.enter(place, again=again)
        self.serve()
        await let

    def leave(self, ticket: str, told: Told) -> None:
        self.bucket.leave(ticket, told, self._now_s())
        self._forget(ticket)

    def give_up(self, ticket: str) -> None:
        self.bucket.give_up(ticket)
        self._forget(ticket)

    def _forget(self, ticket: str) -> None:
        self.senders.pop(ticket, None)
        if let := self._let.pop(ticket, None):
            let.cancel()
        self.serve()

    def close(self) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def serve(self) -> None:
        """Let go whoever may, and look again when the next may."""
        now_s = self._now_s()
        for place in self.bucket.admit(now_s):
            let = self._let.pop(place.ticket)
            if not let.done():
                let.set_result(None)
        if self._timer is not None:
            self._timer.cancel()
        wakes_s = self.bucket.wakes_s()
        self._timer = None
        if wakes_s is not None:
            # A hold may be ended by nothing else, so a timer that is a little early costs nothing.
            self._timer = asyncio.get_running_loop().call_later(max(wakes_s - now_s, 0.0), self.serve)


class RateGate:
    """All lines of a cluster. One event loop uses it."""

    def __init__(self, now_s: Callable[[], float] = time.monotonic) -> None:
        self._now_s = now_s
        self._lines: dict[str, _Line] = {}
        self._senders: dict[str, Sender] = {}
        self._given_up: set[str] = set()
        """Tickets that were given up before they came: calls of actors may overtake each other."""
        self._checking: asyncio.Task[None] | None = None
        self._used_s = now_s()

    def introduce(self, convo_id: str, sender: Sender) -> None:
        """Tell who a conversation is, so that what it holds comes back when its process is gone."""
        self._senders[convo_id] = sender

    async def enter(
        self,
        lane: Lane,
        ticket: str,
        *,
        root: str,
        convo_id: str,
        tokens: int,
        again: bool,
        waited_s: float = 0.0,
        learned: Learned | None = None,
    ) -> Learned:
        """Wait until a request may be sent; what its bucket has learned, for a gate after this one.

        `waited_s` is how long it waited at a gate before this one, which had `learned` so much.
        """
        self._used_s = self._now_s()
        if ticket in self._given_up:
            self._given_up.remove(ticket)
            raise asyncio.CancelledError
        line = self._lines.get(lane.name)
        if line is None:
            line = self._lines[lane.name] = _Line(lane, self._now_s)
        line.bucket.tighten(lane.limits)
        if learned is not None:
            line.bucket.adopt(learned, self._now_s(), time.time())
        if self._checking is None:
            self._checking = asyncio.create_task(self._check_now_and_then())
        place = Place(ticket, root, tokens, arrived_s=self._now_s() - waited_s)
        try:
            await line.enter(place, convo_id, again=again)
        except asyncio.CancelledError:
            line.give_up(ticket)
            raise
        return line.bucket.learned(self._now_s(), time.time())

    def leave(self, lane_name: str, ticket: str, told: Told | None) -> None:
        """A try has ended, or its place is given up, which tells nothing: None."""
        self._used_s = self._now_s()
        line = self._lines.get(lane_name)
        if told is None and (line is None or ticket not in line.senders):
            self._given_up.add(ticket)
        elif line is not None and told is None:
            line.give_up(ticket)
        elif line is not None and told is not None:
            line.leave(ticket, told)

    async def until_idle(self) -> None:
        """Wait until nobody has used it for IDLE_S, and nobody waits or is under way."""
        while True:
            left_s = self._used_s + IDLE_S - self._now_s()
            if left_s <= 0 and not self._is_in_use():
                return
            await asyncio.sleep(max(left_s, IDLE_S / 10))

    def _is_in_use(self) -> bool:
        return any(line.bucket.waiting or line.bucket.under_way for line in self._lines.values())

    async def _check_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(CHECKED_AFTER_S)
            await self.check()

    async def check(self) -> None:
        """Where somebody waits, take back what those hold whose processes are gone."""
        for line in list(self._lines.values()):
            if line.bucket.waiting:
                old = line.bucket.sent_before(self._now_s() - CHECKED_AFTER_S)
                await asyncio.gather(*(self._check_one(line, ticket) for ticket in old))

    async def aclose(self) -> None:
        """Stop looking after the lines."""
        for line in self._lines.values():
            line.close()
        if self._checking is not None:
            self._checking.cancel()
            await asyncio.wait({self._checking})

    async def _check_one(self, line: _Line, ticket: str) -> None:
        sender = self._senders.get(line.senders.get(ticket, ""))
        if sender is None:
            return
        with suppress(ConvoUnreachable):
            try:
                is_sending = await sender.is_sending(ticket)
            except ConvoUnreachable:
                raise
            except ConvoClosed:
                is_sending = False
            if not is_sending:
                line.give_up(ticket)


class RateGateActor:
    """The actor around a RateGate."""

    def __init__(self) -> None:
        self._gate = RateGate()
        context = cast("Any", ray.get_runtime_context())
        self._leaving = context.current_actor.leave_when_idle.remote()

    async def introduce(self, convo_id: str, convo: Any) -> None:
        self._gate.introduce(convo_id, _Remote(convo_id, convo))

    async def enter(self, lane: Lane, ticket: str, **options: Any) -> Learned:
        return await self._gate.enter(lane, ticket, **options)

    async def leave(self, lane_name: str, ticket: str, told: Told | None) -> None:
        self._gate.leave(lane_name, ticket, told)

    async def leave_when_idle(self) -> None:
        await self._gate.until_idle()
        ray.actor.exit_actor()


def gate_actor() -> Any:
    """The gate of this cluster, made when there is none."""
    gate_class = _ray.remote(num_cpus=0, max_concurrency=_CALLS_AT_ONCE)(RateGateActor)
    return gate_class.options(
        name=NAME, namespace=NAMESPACE, lifetime="detached", get_if_exists=True, max_restarts=0
    ).remote()


class GateClient:
    """The gate as a conversation sees it. Implements `palaver.providers.rate_limits.Gate`."""

    def __init__(
        self, convo_id: str, root_id: str, convo: Any, look_up: Callable[[], Any] = gate_actor
    ) -> None:
        self._convo_id = convo_id
        self._root_id = root_id
        self._convo = convo
        self._look_up = look_up
        self._gate: Any = None
        self._finding: asyncio.Task[Any] | None = None
        self._learned: dict[str, tuple[Any, Learned]] = {}
        """What was learned of each lane, and the gate that told it."""
        self.sending: dict[str, str] = {}
        """The tickets it waits with or is under way with, and their lanes."""

    async def enter(self, lane: Lane, tokens: int, *, again: bool) -> str:
        """Wait until a request may be sent; see `Gate`. When the gate is gone, waits at the next one."""
        ticket, began_s = new_request_id(), time.monotonic()
        self.sending[ticket] = lane.name
        try:
            while True:
                try:
                    gate = await self._found()
                    told_by, learned = self._learned.get(lane.name, (gate, None))
                    learned = await gate.enter.remote(
                        lane,
                        ticket,
                        root=self._root_id,
                        convo_id=self._convo_id,
                        tokens=tokens,
                        again=again,
                        waited_s=time.monotonic() - began_s,
                        learned=None if told_by is gate else learned,
                    )
                    self._learned[lane.name] = gate, learned
                    return ticket
                except RayError as error:
                    _log.info("the rate gate is gone (%s); waiting for another", type(error).__name__)
                    self._gate = None
                    await asyncio.sleep(_AGAIN_AFTER_S)
        except BaseException:
            self._tell(ticket, None)
            raise

    def leave(self, ticket: str, told: Told) -> None:
        """The try has ended; see `Gate`."""
        self._tell(ticket, told)

    def _tell(self, ticket: str, told: Told | None) -> None:
        lane_name = self.sending.pop(ticket)
        if self._gate is not None:
            with suppress(RayError):
                self._gate.leave.remote(lane_name, ticket, told)

    async def _found(self) -> Any:
        """The gate, which knows this conversation then."""
        if self._gate is None:
            if self._finding is None or self._finding.done():
                self._finding = asyncio.create_task(asyncio.to_thread(self._find))
            await asyncio.shield(self._finding)
        return self._gate

    def _find(self) -> None:
        """Look the gate up, and introduce the conversation; blocks while Ray's head node is asked."""
        gate = self._look_up()
        gate.introduce.remote(self._convo_id, self._convo)
        self._gate = gate
