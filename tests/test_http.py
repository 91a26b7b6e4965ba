from __future__ import annotations

import asyncio
import logging
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from wire_fakes import KEY, Answer, FakeClock, FakeServer, ok

from palaver.providers import (
    AnswerLost,
    AuthenticationFailed,
    BadRequest,
    BadResponse,
    ConfigurationError,
    ContextTooLong,
    MalformedCall,
    Message,
    Overloaded,
    ProviderError,
    QuotaExhausted,
    RateLimited,
    Response,
    RetryPolicy,
    TransportFailed,
    Usage,
)
from palaver.providers.connection import MAX_ANSWER_BYTES
from palaver.providers.http import Endpoint
from palaver.providers.http_errors import Peer
from palaver.providers.retry_hints import duration_s, retry_after_s
from palaver.providers.secret import Secret

NOW = datetime(2026, 11, 1, 12, tzinfo=UTC)
PEER = Peer("acme", "model-1", Secret(KEY))


def read(answer: dict[str, Any]) -> Response:
    return Response(
        message=Message.assistant(str(answer["text"])), usage=Usage(output_tokens=1, cost_usd=None)
    )


def endpoint(*answers: Answer, clock: FakeClock | None = None, **options: Any) -> tuple[Endpoint, FakeServer]:
    server = FakeServer(*answers)
    options = {"retry": RetryPolicy(), "timeout_s": 5.0, "transport": server, **options}
    return Endpoint(PEER, "https://acme.test/v1/", clock=clock or FakeClock(), **options), server


async def failure_of(*answers: Answer, **options: Any) -> ProviderError:
    options.setdefault("retry", RetryPolicy(max_attempts=1))
    target, _ = endpoint(*answers, **options)
    with pytest.raises(ProviderError) as caught:
        await target.post("chat", {}, read)
    return caught.value


def failed(status: int, json: object = None, text: str = "", **headers: str) -> httpx.Response:
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    if json is None:
        return httpx.Response(status, text=text, headers=headers)
    return httpx.Response(status, json=json, headers=headers)


GOOD = ok({"text": "hello"})
BUSY = failed(429, {"error": {"message": "slow down", "type": "rate_limit_error"}})


async def test_json_goes_out_with_the_key_and_its_answer_is_read() -> None:
    target, server = endpoint(GOOD)
    response = await target.post("chat", {"a": "ü\ud800"}, read)
    assert response.message.text == "hello"
    (request,) = server.requests
    assert str(request.url) == "https://acme.test/v1/chat"
    assert request.headers["authorization"] == f"Bearer {KEY}"
    assert request.headers["content-type"] == "application/json"
    assert server.bodies == [{"a": "ü\ud800"}]


async def test_nan_in_a_request_is_refused_before_anything_is_sent() -> None:
    target, server = endpoint(GOOD)
    with pytest.raises(BadRequest, match="nothing was sent"):
        await target.post("chat", {"a": float("nan")}, read)
    assert server.requests == []


@pytest.mark.parametrize(
    ("answer", "kind", "shown"),
    [
        (failed(400, {"type": "error", "error": {"type": "invalid_request_error", "message": "bad field"}}),
         BadRequest, "invalid_request_error: bad field"),
        (failed(404, {"error": "model 'x' not found"}), BadRequest, "model 'x' not found; check the model"),
        (failed(413, {"error": {"type": "request_too_large", "message": "over 32 MB"}}), BadRequest, "32 MB"),
        (failed(422, {"detail": [{"loc": ["body"], "msg": "extra"}]}), BadRequest, '"msg":"extra"'),
        (failed(301, text="", location="https://new.test"), BadRequest, "location: https://new.test"),
        (failed(501, text="no"), BadRequest, "HTTP 501"),
        (failed(400, {"error": {"message": "This model's maximum context length is 8192 tokens. However",
                                "code": "context_length_exceeded"}}), ContextTooLong, "8192"),
        (failed(400, {"error": {"type": "invalid_request_error", "message": "prompt is too long: 9 > 8"}}),
         ContextTooLong, "9 > 8"),
        (failed(400, {"error": {"type": "exceed_context_size_error", "n_ctx": 4096,
                                "message": "request (5000 tokens) exceeds the available context size"}}),
         ContextTooLong, "5000 tokens"),
        (failed(400, [{"error": {"code": 400, "status": "INVALID_ARGUMENT",
                 "message": "The input token count (9) exceeds the maximum number of tokens allowed (8)."}}]),
         ContextTooLong, "INVALID_ARGUMENT: The input token count"),
        (failed(401, {"error": {"message": "invalid x-api-key"}}), AuthenticationFailed, "check the API key"),
        (failed(403, {"error": {"message": "no access"}}), AuthenticationFailed, "no access"),
        (failed(400, [{"error": {"code": 400, "message": "API key not valid."}}]), AuthenticationFailed, ""),
        (failed(402, {"error": {"message": "Insufficient Balance"}}), QuotaExhausted, "add credit"),
        (failed(429, {"error": {"code": "insufficient_quota", "message": "no more"}}), QuotaExhausted, ""),
        (failed(429, {"error": {"type": "credit_balance_exhausted", "message": "x"}}), QuotaExhausted, ""),
        (failed(429, {"error": {"type": "rate_limit_error", "message": "enforced_spend_limit_reached"}}),
         QuotaExhausted, ""),
        (failed(400, {"error": {"type": "invalid_request_error",
                                "message": "Your credit balance is too low"}}), QuotaExhausted, "too low"),
        (BUSY, RateLimited, "rate_limit_error: slow down"),
        (failed(429, [{"error": {"code": 429, "status": "RESOURCE_EXHAUSTED",
                 "message": "You exceeded your current quota, please check your plan"}}]), RateLimited, ""),
        *((failed(status, {"error": {"message": "down"}}), Overloaded, f"HTTP {status}")
          for status in (408, 500, 502, 503, 504, 529)),
        (failed(502, text="<html>\n <h1>Bad   Gateway</h1></html>"), Overloaded, "<h1>Bad Gateway</h1>"),
        (failed(500, text=""), Overloaded, "an empty body"),
        (failed(400, {"error": {"code": "tool_use_failed", "message": "Failed to call"}}), MalformedCall, ""),
        (ok({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}), Overloaded, "busy"),
        (ok({"error": {"code": 429, "message": "slow"}}), RateLimited, "HTTP 200"),
        (ok({"error": {"code": "502", "message": "upstream"}}), Overloaded, "upstream"),
        (ok([{"error": {"status": "UNAUTHENTICATED", "message": "who?"}}]), AuthenticationFailed, "who?"),
        (ok({"error": {"code": "context_length_exceeded", "message": "long"}}), ContextTooLong, ""),
        (ok({"error": {"code": "insufficient_quota", "message": "none"}}), QuotaExhausted, ""),
        (ok({"error": "something odd"}), BadResponse, "something odd"),
        (failed(200, text="<html>hello</html>"), BadResponse, "no JSON object: <html>hello</html>"),
        (failed(200, text=""), BadResponse, "an empty body"),
        (ok(["a"]), BadResponse, "no JSON object"),
        (failed(204), BadResponse, "an empty body"),
        (httpx.ConnectError("name or service not known"), TransportFailed, "nothing was charged"),
        (httpx.ConnectTimeout("slow"), TransportFailed, "acme.test"),
        (httpx.WriteError("broken pipe"), TransportFailed, "broken pipe"),
        (httpx.ReadTimeout("slow"), AnswerLost, "may have been charged"),
        (httpx.RemoteProtocolError("Server disconnected"), AnswerLost, "disconnected"),
        (httpx.DecodingError("bad gzip"), BadResponse, "decompressed"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_becomes_one_of_our_errors(
    answer: Answer, kind: type[ProviderError], shown: str
) -> None:
    error = await failure_of(answer)
    assert type(error) is kind
    assert shown in str(error)
    assert "acme (model-1)" in str(error)
    assert error.provider == "acme"
    assert error.status == (answer.status_code if isinstance(answer, httpx.Response) else None)


async def test_request_id_of_the_provider_is_kept() -> None:
    assert (await failure_of(failed(400, text="x", request_id="req_1"))).request_id == "req_1"
    assert (await failure_of(failed(400, text="x", x_request_id="req_2"))).request_id == "req_2"


async def test_long_bodies_are_shortened_in_the_message() -> None:
    assert len(str(await failure_of(failed(400, text="x" * 100_000)))) < 800


async def test_answer_larger_than_the_bound_is_not_read_to_its_end() -> None:
    chunks_read = 0

    class Endless(httpx.AsyncByteStream):
        async def __aiter__(self):
            nonlocal chunks_read
            while True:
                chunks_read += 1
                yield bytes(MAX_ANSWER_BYTES // 4)

    error = await failure_of(lambda _: httpx.Response(200, stream=Endless()))
    assert isinstance(error, BadResponse)
    assert "sent more than" in str(error)
    assert chunks_read == 5


@pytest.mark.parametrize(
    ("headers", "body", "seconds"),
    [
        ({"retry-after": "7"}, "", 7.0),
        ({"retry-after": "1.5"}, "", 1.5),
        ({"retry-after": "-3"}, "", 0.0),
        ({"retry-after": "Sun, 01 Nov 2026 12:00:30 GMT"}, "", 30.0),
        ({"retry-after": "Sun, 01 Nov 2026 11:00:00 GMT"}, "", 0.0),
        ({"retry-after": "soon"}, "", None),
        ({"retry-after": "inf"}, "", None),
        ({"retry-after-ms": "250", "retry-after": "9"}, "", 0.25),
        ({}, '[{"error": {"details": [{"retryDelay": "39s"}]}}]', 39.0),
        ({}, "Please retry in 39.5s.", 39.5),
        ({}, "Please try again in 1m2.5s. Visit", 62.5),
        ({}, "Please try again in 350ms.", 0.35),
        ({}, "Please retry after 30 seconds.", 30.0),
        ({}, "nothing of use", None),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "2m59s"}, "", 179.0),
        ({"x-ratelimit-remaining-tokens": "5", "x-ratelimit-reset-tokens": "2m59s"}, "", None),
    ],
)
def test_hint_to_wait_is_found(headers: dict[str, str], body: str, seconds: float | None) -> None:
    assert retry_after_s(headers, body, NOW) == pytest.approx(seconds)


def test_durations_are_read_in_every_unit() -> None:
    assert [duration_s(text) for text in ("6s", "1h1m", "20ms", "12", "x")] == [6, 3660, 0.02, 12, None]


@pytest.mark.parametrize(
    ("answer", "wait_s"),
    [
        (failed(429, text="x", retry_after="7"), 7.0),
        (failed(429, text="x", retry_after="Sun, 01 Nov 2026 12:00:30 GMT"), 30.0),
        (failed(529, text="x", retry_after_ms="1500"), 1.5),
        (failed(429, [{"error": {"code": 429, "details": [{"retryDelay": "39s"}]}}]), 39.0),
        (failed(429, text="x", retry_after="3600"), 60.0),
    ],
)
async def test_server_decides_the_wait_up_to_the_cap(answer: Answer, wait_s: float) -> None:
    clock = FakeClock()
    target, _ = endpoint(answer, GOOD, clock=clock)
    await target.post("chat", {}, read)
    assert clock.waits == [wait_s]


async def test_waits_double_with_jitter_up_to_the_cap() -> None:
    policy = RetryPolicy(max_attempts=6, first_wait_s=1, max_wait_s=5, max_total_s=1000)
    for jitter, waits in ((1.0, [1, 2, 4, 5, 5]), (0.0, [0.5, 1, 2, 2.5, 2.5])):
        clock = FakeClock(jitter)
        error = await failure_of(BUSY, clock=clock, retry=policy)
        assert clock.waits == waits
        assert f"gave up after 6 tries in {sum(waits):.1f} s" in str(error)


async def test_no_try_begins_after_the_total_time() -> None:
    clock = FakeClock()
    answer = failed(429, text="x", retry_after="40")
    error = await failure_of(answer, clock=clock, retry=RetryPolicy(max_attempts=99, max_total_s=100))
    assert clock.waits == [40, 40]
    assert error.retry_after_s == 40


@pytest.mark.parametrize(
    ("answer", "tries"),
    [
        (BUSY, 3),
        (failed(503, text=""), 3),
        (httpx.ConnectError("refused"), 3),
        (httpx.WriteError("cut"), 3),
        (ok({"error": {"code": 503, "message": "busy"}}), 3),
        (failed(400, text=""), 1),
        (failed(401, text=""), 1),
        (failed(429, {"error": {"code": "insufficient_quota", "message": "x"}}), 1),
        (failed(200, text="no json"), 1),
        (httpx.ReadTimeout("slow"), 1),
        (httpx.ReadError("cut"), 1),
        (httpx.RemoteProtocolError("Server disconnected"), 1),
    ],
)
async def test_only_what_cannot_have_been_charged_is_tried_again(answer: Answer, tries: int) -> None:
    target, server = endpoint(answer, retry=RetryPolicy(max_attempts=3))
    with pytest.raises(ProviderError):
        await target.post("chat", {}, read)
    assert len(server.requests) == tries


async def test_lost_answer_is_retried_where_the_policy_allows_it() -> None:
    target, server = endpoint(httpx.ReadError("cut"), GOOD, retry=RetryPolicy(retry_lost_answers=True))
    assert (await target.post("chat", {}, read)).message.text == "hello"
    assert len(server.requests) == 2


async def test_retried_request_is_sent_again_as_it_was() -> None:
    target, server = endpoint(BUSY, httpx.ConnectError("x"), GOOD)
    await target.post("chat", {"a": 1}, read)
    assert server.bodies == [{"a": 1}] * 3


def charged(tokens: int) -> Callable[[dict[str, Any]], Response]:
    """Reads answers as charged; those that say "bad" are malformed calls."""

    def read_charged(answer: dict[str, Any]) -> Response:
        usage = Usage(output_tokens=tokens, cost_usd=None)
        if answer["text"] == "bad":
            raise MalformedCall("bad call", "acme", 200, usage=usage)
        return Response(message=Message.assistant("fine"), usage=usage)

    return read_charged


async def test_usage_covers_every_charged_try() -> None:
    target, _ = endpoint(ok({"text": "bad"}), BUSY, GOOD)
    assert (await target.post("chat", {}, charged(5))).usage.output_tokens == 10


async def test_charged_tries_are_bounded_and_their_usage_is_in_the_error() -> None:
    target, server = endpoint(ok({"text": "bad"}), retry=RetryPolicy(max_charged_retries=1))
    with pytest.raises(MalformedCall) as caught:
        await target.post("chat", {}, charged(5))
    assert len(server.requests) == 2
    assert caught.value.usage == Usage(output_tokens=10)


async def test_no_charged_or_lost_try_is_repeated_for_who_keeps_a_budget() -> None:
    policy = RetryPolicy(retry_lost_answers=True)
    target, server = endpoint(BUSY, ok({"text": "bad"}), GOOD, retry=policy)
    with pytest.raises(MalformedCall) as caught:
        await target.post("chat", {}, charged(5), retry_charged=False)
    assert len(server.requests) == 2  # the one that was refused cost nothing
    assert caught.value.usage == Usage(output_tokens=5)
    target, server = endpoint(httpx.ReadTimeout("x"), GOOD, retry=policy)
    with pytest.raises(AnswerLost):
        await target.post("chat", {}, read, retry_charged=False)
    assert len(server.requests) == 1


async def test_key_that_the_server_echoes_is_not_shown(caplog: pytest.LogCaptureFixture) -> None:
    echo = f"key {KEY} is bad; " * 40
    answers = [
        failed(401, {"error": {"message": echo}}, request_id=KEY),
        failed(503, text=echo),
        failed(200, text=echo),
        ok({"error": {"message": echo}}),
        httpx.ConnectError(echo),
        httpx.ReadError(echo),
    ]
    with caplog.at_level(logging.DEBUG):
        for answer in answers:
            error = await failure_of(answer, retry=RetryPolicy(max_attempts=2))
            shown = (
                f"{error!r} {error} {error.args} {vars(error)} {''.join(traceback.format_exception(error))}"
            )
            assert KEY not in shown, answer
            assert KEY[:12] not in str(error), answer
    assert KEY not in caplog.text
    assert caplog.text


async def test_no_httpx_exception_hides_in_the_error() -> None:
    error: BaseException | None = await failure_of(httpx.ConnectError("x"), retry=RetryPolicy(max_attempts=2))
    while error is not None:
        assert type(error).__module__.startswith("palaver")
        error = error.__cause__ or error.__context__


async def test_key_shows_in_neither_repr_nor_pickle() -> None:
    target, _ = endpoint(GOOD)
    target = Endpoint(PEER, "https://user:hunter2@acme.test", retry=RetryPolicy(), timeout_s=1)
    assert KEY.encode() not in pickle.dumps(target)
    assert KEY not in repr(vars(target))
    assert "hunter2" not in repr(target)


async def test_cancelling_stops_a_request_in_flight_at_once() -> None:
    begun = asyncio.Event()

    async def hang(_: httpx.Request) -> httpx.Response:
        begun.set()
        await asyncio.Event().wait()
        raise AssertionError

    target, _ = endpoint(GOOD, transport=httpx.MockTransport(hang))
    task = asyncio.create_task(target.post("chat", {}, read))
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelling_stops_the_wait_before_a_retry_at_once() -> None:
    waiting = asyncio.Event()

    class Waits(FakeClock):
        async def sleep(self, seconds: float) -> None:
            waiting.set()
            await asyncio.Event().wait()

    target, server = endpoint(BUSY, clock=Waits())
    task = asyncio.create_task(target.post("chat", {}, read))
    await waiting.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert len(server.requests) == 1


async def test_silent_server_is_given_up_after_the_timeout() -> None:
    async def hang(_: httpx.Request) -> httpx.Response:
        await asyncio.Event().wait()
        raise AssertionError

    error = await failure_of(GOOD, transport=httpx.MockTransport(hang), timeout_s=0.01)
    assert isinstance(error, AnswerLost)
    assert "gave no whole answer in time (0.01 s)" in str(error)


def test_each_event_loop_gets_connections_of_its_own() -> None:
    target, server = endpoint(GOOD)
    for _ in range(3):
        asyncio.run(target.post("chat", {}, read))
    assert len(server.requests) == 3


async def test_closing_twice_and_using_it_again_is_harmless() -> None:
    target, server = endpoint(GOOD)
    await target.post("chat", {}, read)
    await target.aclose()
    await target.aclose()
    await target.post("chat", {}, read)
    assert len(server.requests) == 2


def answer_hello(_: httpx.Request) -> httpx.Response:
    return GOOD


async def test_endpoint_pickles_after_use_and_its_copy_works() -> None:
    transport = httpx.MockTransport(answer_hello)
    target = Endpoint(PEER, "https://acme.test", retry=RetryPolicy(), timeout_s=1, transport=transport)
    await target.post("chat", {}, read)
    copy = pickle.loads(pickle.dumps(target))
    assert (await copy.post("chat", {}, read)).message.text == "hello"


async def test_real_sockets_work_and_a_refused_connection_is_retried() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b'HTTP/1.1 200 OK\r\ncontent-length: 17\r\nconnection: close\r\n\r\n{"text":"socket"}')
        await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = Endpoint(PEER, f"http://127.0.0.1:{port}", retry=RetryPolicy(), timeout_s=5)
        assert (await target.post("chat", {}, read)).message.text == "socket"
        await target.aclose()
    clock = FakeClock()
    gone = Endpoint(PEER, f"http://127.0.0.1:{port}", retry=RetryPolicy(), timeout_s=5, clock=clock)
    with pytest.raises(TransportFailed, match="gave up after 6 tries"):
        await gone.post("chat", {}, read)
    await gone.aclose()


async def test_connection_cut_after_the_request_was_sent_is_not_retried() -> None:
    connections = 0

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await reader.readuntil(b"{}")
        writer.close()

    async with await asyncio.start_server(cut, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        target = Endpoint(
            PEER, f"http://127.0.0.1:{port}", retry=RetryPolicy(), timeout_s=5, clock=FakeClock()
        )
        with pytest.raises(AnswerLost):
            await target.post("chat", {}, read)
        await target.aclose()
    assert connections == 1


@pytest.mark.parametrize("url", ["ftp://x", "localhost:8080", "", "https://"])
def test_base_url_that_cannot_work_is_refused_at_once(url: str) -> None:
    with pytest.raises(ConfigurationError, match="is no http"):
        Endpoint(PEER, url, retry=RetryPolicy(), timeout_s=1)


def test_importing_http_imports_neither_httpx_nor_tenacity() -> None:
    script = (
        "import sys, palaver.providers.http as _; sys.exit(bool({'httpx', 'tenacity'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0
