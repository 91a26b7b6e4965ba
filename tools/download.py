"""One GET in the open web: its redirects, and as much of the body as is wanted, for as long as that may take.

What a server sends is not trusted: it may never end, come a byte at a time, or become a thousand times as
much when it is decompressed.

Layer: tools; no Ray. httpx is imported at the first download.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
import zlib
from typing import TYPE_CHECKING, NamedTuple

from palaver.providers.connection import load_httpx
from palaver.tools.media import HEAD_BYTES, ContentType, Kind, kind_of
from palaver.tools.reach import DownloadFailed, Reach, shown

if TYPE_CHECKING:
    import httpx

MAX_REDIRECTS = 10

_CONNECT_WITHIN_S = 10.0

_ERROR_BYTES = 50_000
"""How much of an error's page is read."""

_HEADERS = {
    "user-agent": "palaver",
    # Servers that have Markdown give it to those who ask.
    "accept": "text/markdown, text/html, application/xhtml+xml, text/plain;q=0.9, */*;q=0.8",
    "accept-encoding": "gzip, deflate",
}


class Download(NamedTuple):
    """What came. `cut` says why `body` is not all of it; empty when it is. `size` is the whole body's, in
    bytes, as the server said it; None when it did not say.
    """

    url: str
    status: int
    reason: str
    content_type: ContentType
    kind: Kind
    body: bytes
    cut: str
    size: int | None
    redirects: int


async def download(url: str, reach: Reach, transport: httpx.AsyncBaseTransport | None = None) -> Download:
    """What is at `url`, as far as `reach` lets it be read. Raises DownloadFailed.

    `transport` replaces the checked one, for tests.
    """
    load_httpx()
    import httpx

    from palaver.tools.transport import CheckedTransport

    deadline_s = asyncio.get_running_loop().time() + reach.within_s
    where = url
    try:
        async with httpx.AsyncClient(
            transport=transport or CheckedTransport(reach),
            headers=_HEADERS,
            timeout=httpx.Timeout(None, connect=_CONNECT_WITHIN_S),
            trust_env=False,
        ) as client:
            request = client.build_request("GET", url)
            for redirects in range(MAX_REDIRECTS + 1):
                where = str(request.url)
                async with asyncio.timeout_at(deadline_s):
                    response = await client.send(request, stream=True)
                try:
                    if response.next_request is None:
                        return await _read(response, redirects, reach, deadline_s)
                    request = response.next_request
                finally:
                    await response.aclose()
    except TimeoutError:
        raise DownloadFailed(f"{shown(where)} gave no answer within {reach.within_s:g} s") from None
    except (httpx.HTTPError, httpx.StreamError, httpx.InvalidURL, OSError, UnicodeError) as error:
        raise DownloadFailed(_told(error, where)) from None
    raise DownloadFailed(
        f"{shown(url)} redirects more than {MAX_REDIRECTS} times; the last is {shown(where)}"
    )


async def _read(response: httpx.Response, redirects: int, reach: Reach, deadline_s: float) -> Download:
    import httpx

    headers = response.headers
    content_type = ContentType.from_header(headers.get("content-type", ""))
    encoding = headers.get("content-encoding", "").strip().lower()
    length = headers.get("content-length", "")
    size = int(length) if length.isdecimal() and encoding in ("", "identity") else None
    most = reach.max_bytes if response.status_code < 400 else min(_ERROR_BYTES, reach.max_bytes)
    inflater = _Inflater(encoding)
    body = bytearray()
    kind: Kind | None = None
    cut = ""
    try:
        async with asyncio.timeout_at(deadline_s):
            async for chunk in response.aiter_raw():
                body += inflater.inflate(chunk, most + 1 - len(body))
                if kind is None and len(body) >= HEAD_BYTES:
                    kind = kind_of(content_type, bytes(body[:HEAD_BYTES]))
                if kind is Kind.BINARY or (kind is Kind.IMAGE and (size or 0) > most):
                    cut = "it was not read"
                    break
                if len(body) > most:
                    cut = f"only its first {most} bytes were read"
                    break
    except TimeoutError:
        cut = f"the server had not sent the rest within {reach.within_s:g} s"
    except zlib.error:
        cut = "the rest cannot be decompressed"
    except (httpx.HTTPError, httpx.StreamError) as error:
        cut = f"the connection broke off before the rest came ({type(error).__name__})"
    if cut and not body:
        raise DownloadFailed(
            f"{shown(str(response.url))} answered {response.status_code} with no body: {cut}"
        )
    return Download(
        str(response.url),
        response.status_code,
        response.reason_phrase,
        content_type,
        kind or kind_of(content_type, bytes(body[:HEAD_BYTES])),
        bytes(body[:most]),
        cut,
        size,
        redirects,
    )


class _Inflater:
    """Undoes the compression of a body, and never makes more of it than is asked for."""

    def __init__(self, encoding: str) -> None:
        if encoding not in ("", "identity", "gzip", "x-gzip", "deflate"):
            raise DownloadFailed(
                f"the server sent its answer compressed by {encoding!r:.100}, which it was not asked for and "
                "which cannot be read"
            )
        # zlib tells its own format from gzip's; deflate may also come without either.
        self._inflate = None if encoding in ("", "identity") else zlib.decompressobj(zlib.MAX_WBITS | 32)
        self._may_be_bare = encoding == "deflate"

    def inflate(self, chunk: bytes, most: int) -> bytes:
        """What a chunk becomes: the first `most` bytes of it, after which nothing more can be had."""
        if self._inflate is None:
            return chunk[:most]
        out = b""
        while chunk and len(out) < most:
            try:
                out += self._inflate.decompress(chunk, most - len(out))
            except zlib.error:
                if not self._may_be_bare:
                    raise
                self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                self._may_be_bare = False
                continue
            self._may_be_bare = False
            chunk = self._inflate.unused_data if self._inflate.eof else b""
            if chunk:  # gzip files may follow one another
                self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        return out


def _told(error: Exception, url: str) -> str:
    """What went wrong, for a model to read."""
    import httpx

    where = shown(url)
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) is not None:
        causes.append(cause)
    for each in causes:
        match each:
            case ssl.SSLCertVerificationError():
                return f"the certificate of {where} is not to be trusted: {each.verify_message}"
            case ssl.SSLError():
                return f"no secure connection to {where}: {each.reason or each}"
            case socket.gaierror() | UnicodeError():
                reason = each.strerror if isinstance(each, OSError) else "it can be no name"
                return f"the host of {where} is not known: {reason}; check its name"
            case ConnectionRefusedError():
                return f"the host of {where} refuses connections to that port; check host and port"
            case httpx.ConnectTimeout():
                return f"the host of {where} could not be connected to within {_CONNECT_WITHIN_S:g} s"
            case httpx.InvalidURL() if each is error:  # else it is where a redirect leads
                return f"{where} is no URL: {each}"
            case _:
                pass
    said = str(error) or type(error).__name__
    return f"{where} could not be fetched: {said}"
