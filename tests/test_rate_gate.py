"""The rate gate: its lines without Ray, its actor on a real one, and requests that no death of it loses."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, cast

import pytest
import ray
from limited_servers import LimitedServer, TokenBucketServer
from ray.exceptions import RayActorError

from palaver.actors import Convo, reply
from palaver.actors.cluster import Cluster
from palaver.actors.errors import ConvoClosed
from palaver.actors.rate_bucket import Learned
from palaver.actors.rate_gate import GateClient, RateGate, gate_actor
from palaver.providers import OpenAI, Price, RateLimits
from palaver.providers.rate_limits import Lane, Outcome, Told

ONE_AT_ONCE = Lane("lane", RateLimits(max_concurrent=1))
ANSWERED = Told(Outcome.ANSWERED)


def entering(gate: RateGate, ticket: str, *, convo_id: str = "c", **more: Any) -> asyncio.Task[Learned]:
    return asyncio.create_task(
        gate.enter(ONE_AT_ONCE, ticket, root="r", convo_id=convo_id, tokens=1, again=False, **more)
    )


async def settle_down() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@asynccontextmanager
async def gate_of(now_s: Any = time.monotonic) -> AsyncIterator[RateGate]:
    gate = RateGate(now_s)
    try:
        yield gate
    finally:
        await gate.aclose()


async def test_who_enters_waits_until_there_is_room() -> None:
    async with gate_of() as gate:
        first, second = entering(gate, "1"), entering(gate, "2")
        await first
        await settle_down()
        assert not second.done()
        gate.leave("lane", "1", ANSWERED)
        await second


async def test_a_cancelled_wait_leaves_no_hole() -> None:
    async with gate_of() as gate:
        await entering(gate, "1")
        second, third = entering(gate, "2"), entering(gate, "3")
        await settle_down()
        second.cancel()
        await asyncio.wait({second})
        gate.leave("lane", "1", None)
        await third
        gate.leave("lane", "3", ANSWERED)
        await entering(gate, "4")


async def test_a_place_that_is_given_up_before_it_arrives_is_none() -> None:
    async with gate_of() as gate:
        gate.leave("lane", "1", None)
        with pytest.raises(asyncio.CancelledError):
            await entering(gate, "1")
        await entering(gate, "2")


async def test_a_hold_ends_by_itself() -> None:
    async with gate_of() as gate:
        await entering(gate, "1")
        gate.leave("lane", "1", Told(Outcome.REFUSED, hold_s=0.05))
        began = time.monotonic()
        await entering(gate, "2")
        assert time.monotonic() - began >= 0.04


class Dead:
    """A conversation whose process is gone."""

    async def is_sending(self, ticket: str) -> bool:
        raise ConvoClosed("dead")


class Alive:
    """A conversation that still waits for its answer."""

    async def is_sending(self, ticket: str) -> bool:
        return True


async def test_what_a_dead_process_held_comes_back_and_what_a_slow_one_holds_does_not() -> None:
    now_s = 0.0
    async with gate_of(lambda: now_s) as gate:
        gate.introduce("dead", Dead())
        gate.introduce("alive", Alive())
        await entering(gate, "1", convo_id="alive")
        second, third = entering(gate, "2", convo_id="dead"), entering(gate, "3")
        await settle_down()
        now_s = 10.0
        await gate.check()
        assert not second.done()
        gate.leave("lane", "1", ANSWERED)
        await second
        now_s = 20.0
        await gate.check()
        await third


async def test_it_is_idle_once_nobody_has_used_it_for_a_while() -> None:
    now_s = 0.0
    async with gate_of(lambda: now_s) as gate:
        await entering(gate, "1")
        now_s = 1_000.0
        idle = asyncio.create_task(gate.until_idle())
        await settle_down()
        assert not idle.done()
        idle.cancel()
        gate.leave("lane", "1", ANSWERED)
        now_s = 2_000.0
        await gate.until_idle()


# On Ray


class LimitingHttpServer(ThreadingHTTPServer):
    """Speaks chat completions, as far as `limit` lets it; 429 beyond."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(self, limit: LimitedServer, latency_s: float) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.limit = limit
        self.latency_s = latency_s
        self.lock = threading.Lock()
        self.answered = 0
        self.refused = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        server = cast("LimitingHttpServer", self.server)
        self.rfile.read(int(self.headers["content-length"]))
        with server.lock:
            asked_s = server.limit.ask(time.monotonic())
            server.answered += asked_s is None
            server.refused += asked_s is not None
        if asked_s is None:
            time.sleep(server.latency_s)
            choice = {"message": {"role": "assistant", "content": "ok"}, "finish_reason": "stop"}
            usage = {"prompt_tokens": 3, "completion_tokens": 1}
            self._answer(200, {"id": "1", "model": "m", "choices": [choice], "usage": usage})
        else:
            self._answer(429, {"error": {"message": "slow down", "code": "rate_limit_exceeded"}})

    def _answer(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if status == 429:
            self.send_header("retry-after", "1")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def limiting_server(per_second: float, latency_s: float = 0.05) -> Iterator[LimitingHttpServer]:
    server = LimitingHttpServer(TokenBucketServer(per_second, per_second), latency_s)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class Remotely:
    """A method of an actor, as a handle has it."""

    def __init__(self, method: Any) -> None:
        self.remote = method


class GateThatTells:
    """A gate that lets everybody through, tells what it has learned, and is gone when told so."""

    def __init__(self, per_second: float) -> None:
        self.heard: list[Learned | None] = []
        self.gone = False
        self._learned = Learned(at_s=per_second, per_second=per_second)
        self.introduce = self.leave = Remotely(lambda *_: None)
        self.enter = Remotely(self._enter)

    async def _enter(self, *_: Any, learned: Learned | None, **__: Any) -> Learned:
        if self.gone:
            raise RayActorError
        self.heard.append(learned)
        return self._learned


async def test_what_a_gate_learned_is_told_to_the_next_one_alone() -> None:
    # Told to the gate that it came from, it would count as another's, and be taken over again and again.
    first, second = GateThatTells(5), GateThatTells(4)
    gates = iter([first, second])
    client = GateClient("c", "r", None, lambda: next(gates))
    for _ in range(2):
        await client.enter(ONE_AT_ONCE, 1, again=False)
    first.gone = True
    for _ in range(2):
        await client.enter(ONE_AT_ONCE, 1, again=False)
    assert first.heard == [None, None]
    assert second.heard == [Learned(at_s=5, per_second=5), None]


async def test_conversations_share_a_limit_and_no_death_of_the_gate_loses_a_request(
    ray_cluster: Cluster,
) -> None:
    with limiting_server(per_second=8) as server:
        model = OpenAI("m", base_url=server.url, price=Price.free())
        root = Convo.remote(model)
        try:
            children = await reply(root.sub_convos.remote([{"label": str(n)} for n in range(6)]))
            await asyncio.gather(*(reply(each.id.remote()) for each in children))
            sending = [asyncio.create_task(_send(each, times=9)) for each in children]
            while server.answered < 20:
                await asyncio.sleep(0.01)
            cast("Any", ray).kill(gate_actor())
            answers = await asyncio.wait_for(asyncio.gather(*sending), 60)
        finally:
            await reply(root.close.remote())
    assert answers == [9] * 6
    assert server.answered == 54
    assert server.refused < 12


async def _send(convo: Any, times: int) -> int:
    for _ in range(times):
        assert (await reply(convo.send_user_text_message.remote("x"))).message.text == "ok"
    return times


async def test_a_killed_conversation_gives_up_its_place(ray_cluster: Cluster) -> None:
    with limiting_server(per_second=100, latency_s=60) as server:
        model = OpenAI("slow", base_url=server.url, price=Price.free(), rate_limits=ONE_AT_ONCE.limits)
        doomed, other = Convo.remote(model), Convo.remote(model)
        try:
            lost = doomed.send_user_text_message.remote("x")
            while not server.answered:
                await asyncio.sleep(0.01)
            waiting = other.send_user_text_message.remote("x")
            server.latency_s = 0.01
            cast("Any", ray).kill(doomed)
            assert (await asyncio.wait_for(reply(waiting), 30)).message.text == "ok"
            with pytest.raises(ConvoClosed):
                await reply(lost)
        finally:
            await reply(other.close.remote())


async def test_a_wait_at_the_gate_is_cancelled_at_once(ray_cluster: Cluster) -> None:
    with limiting_server(per_second=100) as server:
        limits = RateLimits(requests_per_minute=1)
        convo = Convo.remote(OpenAI("m", base_url=server.url, price=Price.free(), rate_limits=limits))
        try:
            await reply(convo.send_user_text_message.remote("x"))
            waiting = convo.run.remote("y")
            await asyncio.sleep(0.2)
            began = time.monotonic()
            await reply(convo.cancel.remote("enough"))
            assert (await reply(waiting)).stop == "cancelled"
            assert time.monotonic() - began < 2
            assert server.answered == 1
        finally:
            await reply(convo.close.remote())
