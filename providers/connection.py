"""One base URL over HTTP: posts there, hands over what answers, and turns what fails into our errors.

Layer: providers. httpx is imported at the first request: time and memory which a process that only builds
providers need not pay.
"""

from __future__ import annotations

import asyncio
import importlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from functools import cache, lru_cache
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit
from urllib.request import getproxies
from weakref import WeakKeyDictionary

from palaver.providers.errors import BadResponse, ConfigurationError, ProviderError, TransportFailed
from palaver.providers.http_errors import AnswerLost, Peer

if TYPE_CHECKING:
    import ssl

    import httpx

T = TypeVar("T")

MAX_ANSWER_BYTES = 64 * 1024 * 1024
"""An answer of 128,000 tokens is about 1 MB (November 2026), and 50 times that as a stream of a token each:
more than this is no answer but a fault."""

_LOOPBACK = ("all://127.0.0.1", "all://localhost", "all://[::1]")
"""Never through the proxy that HTTP_PROXY names, which reaches another machine's loopback."""

_CLOSE_AFTER_A_STREAM = ("llama.cpp",)
"""Servers, by what they call themselves, that close the connection after each stream although they say that
it is kept (November 2026): a request that is sent before one sees that is lost."""

_CONNECT_TIMEOUT_S = 10.0
_REQUESTS_OF_ONE_CLIENT = 50
_KEPT_FOR_S = 3.0
"""How long a connection that nobody uses is kept. Many servers (uvicorn, cpp-httplib, Node) close theirs
after 5 s, and a request that is sent at that moment is lost."""


class Incoming:
    """An answer that is coming in."""

    def __init__(self, answer: httpx.Response, peer: Peer, patience: asyncio.Timeout | None) -> None:
        self.status = answer.status_code
        self.headers: Mapping[str, str] = answer.headers
        self._answer = answer
        self._peer = peer
        self._patience = patience

    async def chunks(self) -> AsyncIterator[bytes]:
        """Its body, as it comes. Raises BadResponse when it is larger than MAX_ANSWER_BYTES."""
        read = 0
        async for chunk in self._answer.aiter_bytes():
            read += len(chunk)
            if read > MAX_ANSWER_BYTES:
                raise BadResponse(
                    f"{self._peer.title} sent more than {MAX_ANSWER_BYTES} bytes; the rest was not read; "
                    "check base_url and what lies between",
                    self._peer.provider,
                    self.status,
                )
            yield chunk

    def wait_at_most(self, seconds: float) -> None:
        """How long to wait for the next part, of an answer that is taken in parts."""
        if self._patience is not None:
            self._patience.reschedule(asyncio.get_running_loop().time() + seconds)

    async def whole(self) -> bytes:
        """The body, or what of it has not been read yet."""
        return b"".join([chunk async for chunk in self.chunks()])


class _Pool:
    """The clients of one event loop, each for so many requests at once.

    A client looks at all of its connections whenever a request begins or ends: a thousand at once take it
    seconds (httpcore 1.0).
    """

    def __init__(self, new_client: Callable[[], httpx.AsyncClient]) -> None:
        self._new_client = new_client
        self._under_way: dict[httpx.AsyncClient, int] = {}

    def prepare(self) -> None:
        """Make what the next request needs."""
        self._free()

    def lend(self) -> httpx.AsyncClient:
        """A client for one request; `take_back` ends it."""
        client = self._free()
        self._under_way[client] += 1
        return client

    def take_back(self, client: httpx.AsyncClient) -> None:
        """A request has ended."""
        if client in self._under_way:
            self._under_way[client] -= 1

    async def aclose(self) -> None:
        """Close all connections."""
        clients = list(self._under_way)
        self._under_way.clear()
        for client in clients:
            await client.aclose()

    def _free(self) -> httpx.AsyncClient:
        """The first that has room, so that connections are used again."""
        for client, under_way in self._under_way.items():
            if under_way < _REQUESTS_OF_ONE_CLIENT:
                return client
        client = self._new_client()
        self._under_way[client] = 0
        return client


class Connection:
    """Connections to one base URL.

    It pickles at any time (connections stay behind), and may be used from several event loops in
    turn: each has connections of its own. `transport` replaces the network, for tests.
    """

    def __init__(
        self,
        peer: Peer,
        base_url: str,
        *,
        key_header: str,
        headers: Mapping[str, str] | None,
        timeout_s: float,
        advice_when_lost: str,
        transport: httpx.AsyncBaseTransport | None,
    ) -> None:
        parts = urlsplit(base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ConfigurationError(
                f"base URL {peer.shown(base_url)!r} of provider {peer.provider!r} is no http(s) URL; "
                "give one such as 'http://localhost:8080/v1'"
            )
        if timeout_s <= 0:
            raise ConfigurationError(f"timeout_s is {timeout_s:g}; a request needs more than 0 seconds")
        self._peer = peer
        self._base_url = base_url.rstrip("/")
        self._key_header = key_header
        self._headers = {"content-type": "application/json", **(headers or {})}
        self._timeout_s = timeout_s
        self._advice_when_lost = advice_when_lost
        self._transport = transport
        self._pools = _no_pools()

    @property
    def host(self) -> str:
        """Host and port, without what else a base URL may hold: user name, password, query."""
        parts = urlsplit(self._base_url)
        return f"{parts.hostname}:{parts.port}" if parts.port else str(parts.hostname)

    def prepare(self) -> None:
        """Make what the next request needs, so that it is sent at once."""
        self._pool().prepare()

    async def post(
        self, path: str, content: bytes, take: Callable[[Incoming], Awaitable[T]], *, in_parts: bool = False
    ) -> T:
        """Send once, and give the answer to `take`.

        The time-out bounds the whole; with `in_parts` the wait until it begins, and `take` says how long to
        wait further. Raises ProviderError, and what `take` raises. httpx exceptions end here, with what they
        carry: the request they hold shows the key, so that none may stay attached as a cause or context.
        """
        load_httpx()
        import httpx

        failure: ProviderError
        what = "further part of its answer" if in_parts else "whole answer"
        pool = self._pool()
        client = pool.lend()
        try:
            async with (
                asyncio.timeout(self._timeout_s) as patience,
                client.stream(
                    "POST", _url(f"{self._base_url}/{path}"), content=content, auth=self._authorized
                ) as answer,
            ):
                taken = await take(Incoming(answer, self._peer, patience if in_parts else None))
                stream = answer.extensions.get("network_stream")  # a transport of the user's may have none
                if in_parts and stream is not None and answer.headers.get("server") in _CLOSE_AFTER_A_STREAM:
                    await stream.aclose()
                return taken
        except TimeoutError:
            failure = self._lost(f"gave no {what} in time ({self._timeout_s:g} s); raise timeout_s")
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.ProxyError) as error:
            failure = self._unsent(f"could not be reached at {self.host}", error)
        except (httpx.WriteError, httpx.WriteTimeout) as error:
            failure = self._unsent("cut the connection before the request was sent whole", error)
        except httpx.DecodingError:
            failure = BadResponse(
                f"{self._peer.title} sent an answer that cannot be decompressed; check what lies between",
                self._peer.provider,
            )
        except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL) as error:
            said = self._peer.shown(str(error)) or type(error).__name__
            failure = self._lost(f"broke off before its answer was whole ({said}); check the connection")
        finally:
            pool.take_back(client)
        raise failure

    async def aclose(self) -> None:
        """Close the connections of the running event loop. Harmless when called twice."""
        pool = self._pools.pop(asyncio.get_running_loop(), None)
        if pool is not None:
            await pool.aclose()

    def _unsent(self, what: str, error: Exception) -> TransportFailed:
        said = self._peer.shown(str(error)) or type(error).__name__
        return TransportFailed(
            f"{self._peer.title} {what}: {said}; nothing was charged; check the network and base_url",
            self._peer.provider,
        )

    def _lost(self, what: str) -> AnswerLost:
        return AnswerLost(
            f"{self._peer.title} {what}; the request was sent and may have been charged"
            f"{self._advice_when_lost}",
            self._peer.provider,
        )

    def _authorized(self, request: httpx.Request) -> httpx.Request:
        # The key enters here, as late as can be: no frame of a traceback has it in a variable.
        if self._peer.key is not None:
            prefix = "Bearer " if self._key_header == "authorization" else ""
            request.headers[self._key_header] = prefix + self._peer.key.reveal()
        return request

    def _pool(self) -> _Pool:
        loop = asyncio.get_running_loop()
        pool = self._pools.get(loop)
        if pool is None:
            for other in [known for known in self._pools if known.is_closed()]:
                del self._pools[other]  # its sockets died with its loop
            pool = self._pools[loop] = _Pool(self._new_client)
        return pool

    def _new_client(self) -> httpx.AsyncClient:
        load_httpx()
        import httpx

        return httpx.AsyncClient(
            headers=self._headers,
            timeout=httpx.Timeout(self._timeout_s, connect=_CONNECT_TIMEOUT_S),
            # How many run at once is the rate gate's business, not the pool's.
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=_KEPT_FOR_S
            ),
            transport=self._transport,
            mounts=proxies(),
            verify=_tls(),
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pools": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._pools = _no_pools()


def proxies() -> dict[str, None] | None:
    """What goes past the proxies of the environment, as httpx wants it; None when there are none."""
    return dict.fromkeys(_LOOPBACK) if getproxies() else None


def load_httpx() -> None:
    """Import httpx without its command line: what that imports is six of its seven megabytes.

    httpx goes without it where click is missing, so click is missing for as long as the import takes.
    """
    if "httpx" in sys.modules or "click" in sys.modules:
        return
    sys.modules["click"] = None  # pyright: ignore[reportArgumentType] - how Python marks a missing module
    try:
        importlib.import_module("httpx")
    finally:
        del sys.modules["click"]


@lru_cache(maxsize=64)
def _url(url: str) -> httpx.URL:
    """Parsed once: a request takes a twentieth longer otherwise."""
    import httpx

    return httpx.URL(url)


@cache
def _tls() -> ssl.SSLContext:
    """Whom to trust, read once in a process: it takes 30 ms (November 2026)."""
    import httpx

    return httpx.create_ssl_context()


def _no_pools() -> WeakKeyDictionary[asyncio.AbstractEventLoop, _Pool]:
    return WeakKeyDictionary()
