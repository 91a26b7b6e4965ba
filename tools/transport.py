"""An httpx transport that connects to no address that was not checked.

It owns that invariant. For each request, and so for each redirect, the name is looked up once, every address
it has is checked, and the connection goes to one of these by number; the name goes along for the Host header
and the certificate. A second look-up, which could give another answer, there is none.

Layer: tools; no Ray. Imports httpx: import it late, after `palaver.providers.http.load_httpx`.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import TypeAlias

import httpx

from palaver.tools.reach import Reach

Resolve: TypeAlias = Callable[[str, int], Awaitable[Sequence[str]]]
"""Looks up the addresses of a host, best first. Raises OSError, and UnicodeError for what can be no name."""


async def resolve(host: str, port: int) -> Sequence[str]:
    """The addresses of a host, by the system's resolver.

    In a thread of its own that nobody waits for in the end: one that gets no answer cannot be interrupted.
    """
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[Sequence[str]] = loop.create_future()

    def settle(found: Sequence[str] | OSError | UnicodeError) -> None:
        if answer.done():
            return
        if isinstance(found, OSError | UnicodeError):
            answer.set_exception(found)
        else:
            answer.set_result(found)

    def look_up() -> None:
        found: Sequence[str] | OSError | UnicodeError
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            found = list(dict.fromkeys(str(row[4][0]) for row in rows))
        except (OSError, UnicodeError) as error:
            found = error
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, found)

    threading.Thread(target=look_up, name="resolve", daemon=True).start()
    return await answer


class CheckedTransport(httpx.AsyncBaseTransport):
    """Sends requests where `reach` lets them go. Raises DownloadFailed for any other.

    `resolve` and `inner`, which sends what was checked, replace the network for tests.
    """

    def __init__(
        self, reach: Reach, *, resolve: Resolve = resolve, inner: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._reach = reach
        self._resolve = resolve
        # None is kept open: a connection belongs to the name it was made for, and the pool knows the number.
        no_pool = httpx.Limits(max_keepalive_connections=0)
        self._inner = inner or httpx.AsyncHTTPTransport(limits=no_pool, proxy=reach.proxy)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Check a request and send it, to the first of its host's addresses that can be connected to."""
        url = request.url
        self._reach.check_url(url)
        if self._reach.proxy is not None:
            return await self._inner.handle_async_request(request)
        host = url.raw_host.decode()
        addresses = await self._resolve(host, url.port or (443 if url.scheme == "https" else 80))
        self._reach.check_addresses(url.host, addresses)
        failure: Exception = socket.gaierror(socket.EAI_NONAME, "it has no address")
        for address in addresses:
            checked = httpx.Request(
                request.method,
                url.copy_with(host=address),
                headers=request.headers,
                stream=request.stream,
                extensions={**request.extensions, "sni_hostname": host},
            )
            try:
                return await self._inner.handle_async_request(checked)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                failure = error
        raise failure

    async def aclose(self) -> None:
        """Close the connections."""
        await self._inner.aclose()
