"""One GET: redirects, bounds of size and time, compression, and what goes wrong on the way."""

from __future__ import annotations

import asyncio
import gzip
import socket
import tracemalloc
import zlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from web_fakes import Site, Visit, web_site

from palaver.tools.download import MAX_REDIRECTS, Download, download
from palaver.tools.media import ContentType, Kind
from palaver.tools.reach import DownloadFailed, Reach
from palaver.tools.transport import CheckedTransport

LOCAL = Reach(allow_private=True)
BRIEF = Reach(allow_private=True, within_s=0.3)
PATIENT = Reach(allow_private=True, within_s=2)
SMALL = Reach(allow_private=True, max_bytes=10_000)


@pytest.fixture
def site() -> Iterator[Site]:
    with web_site() as site:
        yield site


async def failure(url: str, reach: Reach = LOCAL) -> str:
    with pytest.raises(DownloadFailed) as caught:
        await download(url, reach)
    assert caught.value.__cause__ is None
    return str(caught.value)


async def test_what_comes_is_the_body_and_what_the_server_says_of_it(site: Site) -> None:
    came = await download(site.has("/page", "<p>é", type="text/html; charset=utf-8"), LOCAL)
    assert came == Download(
        url=site.url("/page"),
        status=200,
        reason="OK",
        content_type=ContentType("text/html", "utf-8"),
        kind=Kind.PAGE,
        body="<p>é".encode(),
        cut="",
        size=5,
        redirects=0,
    )
    ((path, headers),) = site.visits
    assert path == "/page"
    assert headers["accept-encoding"] == "gzip, deflate"
    assert headers["accept"].startswith("text/markdown, text/html")
    assert headers["user-agent"] == "palaver"
    assert not {"cookie", "authorization", "referer"} & {name.lower() for name in headers}


async def test_environment_gives_no_proxy_and_no_password(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:1")
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login me password secret")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert (await download(site.has("/", "x"), LOCAL)).status == 200
    assert "authorization" not in site.visits[0][1]


async def test_proxy_that_is_named_is_used(site: Site) -> None:
    site.answers["http://a.test/x"] = lambda visit: visit.say("by proxy")
    came = await download("http://a.test/x", Reach(proxy=site.url("")))
    assert (came.body, came.url) == (b"by proxy", "http://a.test/x")
    assert "is loopback" in await failure("http://127.0.0.1/", Reach(proxy=site.url("")))


# Redirects


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_followed_and_the_last_url_is_told(site: Site, status: int) -> None:
    site.has("/c/end", "there")
    site.redirects("/b", "c/end?x=1", status)
    came = await download(site.redirects("/a", site.url("/b"), status), LOCAL)
    assert (came.url, came.status, came.body, came.redirects) == (site.url("/c/end?x=1"), 200, b"there", 2)


async def test_cookies_of_a_redirect_go_along_and_are_forgotten_afterwards(site: Site) -> None:
    site.has("/end", "there")
    start = site.has("/", status=302, location="/end", set_cookie="seen=1")
    await download(start, LOCAL)
    await download(site.url("/end"), LOCAL)
    assert [headers["cookie"] for _, headers in site.visits] == [None, "seen=1", None]


async def test_redirects_end_after_ten(site: Site) -> None:
    for number in range(MAX_REDIRECTS + 1):
        site.redirects(f"/{number}", f"/{number + 1}")
    site.has(f"/{MAX_REDIRECTS + 1}", "there")
    assert (await download(site.url("/1"), LOCAL)).redirects == MAX_REDIRECTS == 10
    message = await failure(site.url("/0"))
    assert message == f"{site.url('/0')} redirects more than 10 times; the last is {site.url('/10')}"
    assert "redirects more than 10 times" in await failure(site.redirects("/loop", "/loop"))


@pytest.mark.parametrize(
    ("to", "message"),
    [
        ("file:///etc/passwd", "is no http or https URL"),
        ("ftp://127.0.0.1/x", "is no http or https URL"),
        ("http://user:secret@127.0.0.1/", "has a user name or password in it"),
        ("http://elsewhere.test/", "not among those that may be fetched"),
        ("http://[::1", "could not be fetched: Invalid URL in location header"),
    ],
)
async def test_every_redirect_is_checked(site: Site, to: str, message: str) -> None:
    reach = Reach(allow_private=True, allowed_hosts=("127.0.0.1",))
    told = await failure(site.redirects("/", to), reach)
    assert message in told
    assert "secret" not in told


async def test_redirect_into_the_private_network_is_refused() -> None:
    hosts = {"a.test": "93.184.216.34", "metadata.test": "169.254.169.254"}
    sent: list[str] = []

    async def resolve(host: str, port: int) -> list[str]:
        return [hosts[host]]

    def answer(request: httpx.Request) -> httpx.Response:
        sent.append(request.url.host)
        return httpx.Response(302, headers={"location": "http://metadata.test/keys"})

    reach = Reach()
    transport = CheckedTransport(reach, resolve=resolve, inner=httpx.MockTransport(answer))
    with pytest.raises(DownloadFailed, match=r"'metadata.test' has address 169.254.169.254, which is link-"):
        await download("http://a.test/", reach, transport)
    assert sent == ["93.184.216.34"]


async def test_body_of_a_redirect_is_not_read(site: Site) -> None:
    def endless(visit: Visit) -> None:
        visit.begin(302, {"location": "/end"})
        visit.wait()

    site.answers["/"] = endless
    site.has("/end", "there")
    assert (await download(site.url("/"), LOCAL)).body == b"there"


# Bounds


async def test_body_that_never_ends_is_cut_at_the_limit(site: Site) -> None:
    def endless(visit: Visit) -> None:
        visit.begin(200, {"content-type": "text/plain"})
        while not visit.site.closing.is_set():
            visit.wfile.write(b"x" * 1000)

    site.answers["/"] = endless
    came = await download(site.url("/"), SMALL)
    assert (len(came.body), came.cut) == (10_000, "only its first 10000 bytes were read")
    exact = await download(site.has("/exact", "x" * 10_000), SMALL)
    assert (len(exact.body), exact.cut) == (10_000, "")


async def test_body_that_comes_too_slowly_is_cut_when_the_time_is_over(site: Site) -> None:
    def slow(visit: Visit) -> None:
        visit.begin(200, {"content-type": "text/plain", "content-length": "1000"})
        visit.wfile.write(b"begin")
        while not visit.site.closing.wait(0.02):
            visit.wfile.write(b".")

    site.answers["/"] = slow
    came = await download(site.url("/"), PATIENT)
    assert came.body.startswith(b"begin.")
    assert (came.cut, came.size) == ("the server had not sent the rest within 2 s", 1000)


async def test_server_that_does_not_answer_fails_in_time(site: Site) -> None:
    site.answers["/"] = Visit.wait
    assert await failure(site.url("/"), BRIEF) == f"{site.url('/')} gave no answer within 0.3 s"

    def head_only(visit: Visit) -> None:
        visit.begin(200, {"content-length": "5"})
        visit.wait()

    site.answers["/head"] = head_only
    assert "answered 200 with no body: the server had not sent" in await failure(site.url("/head"), PATIENT)

    def dribbles(visit: Visit) -> None:
        while not visit.site.closing.wait(0.02):
            visit.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")

    site.answers["/dribbles"] = dribbles
    assert "gave no answer within 0.3 s" in await failure(site.url("/dribbles"), BRIEF)


async def test_name_server_that_does_not_answer_fails_in_time() -> None:
    async def silent(host: str, port: int) -> list[str]:
        await asyncio.Event().wait()
        return []

    with pytest.raises(DownloadFailed, match=r"http://a.test gave no answer within 0.3 s"):
        await download("http://a.test", BRIEF, CheckedTransport(BRIEF, resolve=silent))


async def test_connection_that_breaks_off_leaves_what_came(site: Site) -> None:
    def breaks(visit: Visit) -> None:
        visit.begin(200, {"content-type": "text/plain", "content-length": "1000"})
        visit.wfile.write(b"begin")

    site.answers["/"] = breaks
    came = await download(site.url("/"), LOCAL)
    assert came.body == b"begin"
    assert came.cut == "the connection broke off before the rest came (RemoteProtocolError)"


async def test_what_is_neither_text_nor_a_picture_is_not_read(site: Site) -> None:
    def endless(visit: Visit) -> None:
        visit.begin(200, {"content-type": "application/zip", "content-length": "10000000000"})
        visit.wfile.write(b"PK\x03\x04" + bytes(2000))
        visit.wait()

    site.answers["/"] = endless
    came = await download(site.url("/"), LOCAL)
    assert (came.kind, came.size, came.cut) == (Kind.BINARY, 10_000_000_000, "it was not read")


async def test_picture_too_large_to_show_is_not_read(site: Site) -> None:
    def large(visit: Visit) -> None:
        visit.begin(200, {"content-type": "image/png", "content-length": "20000"})
        visit.wfile.write(b"\x89PNG\r\n\x1a\n" + b"\0" * 2000)
        visit.wait()

    site.answers["/"] = large
    came = await download(site.url("/"), SMALL)
    assert (came.kind, came.size, came.cut) == (Kind.IMAGE, 20_000, "it was not read")


# Compression


def _bare(body: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(body) + compressor.flush()


@pytest.mark.parametrize(
    ("encoding", "raw"),
    [
        ("", b"hello " * 1000),
        ("identity", b"hello " * 1000),
        ("gzip", gzip.compress(b"hello " * 1000)),
        ("X-GZIP", gzip.compress(b"hello " * 1000)),
        ("gzip", gzip.compress(b"hello " * 400) + gzip.compress(b"hello " * 600)),
        ("deflate", zlib.compress(b"hello " * 1000)),
        ("deflate", _bare(b"hello " * 1000)),
    ],
)
async def test_compression_that_was_asked_for_is_undone(site: Site, encoding: str, raw: bytes) -> None:
    came = await download(site.has("/", raw, type="text/plain", content_encoding=encoding), LOCAL)
    assert (came.body, came.cut) == (b"hello " * 1000, "")


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
async def test_decompression_bomb_becomes_no_more_than_the_limit(site: Site, encoding: str) -> None:
    zeros = b"a" * 100_000_000
    raw = gzip.compress(zeros) if encoding == "gzip" else zlib.compress(zeros)
    assert len(raw) < 150_000
    del zeros
    url = site.has("/", raw, type="text/plain", content_encoding=encoding)
    tracemalloc.start()
    try:
        came = await download(url, SMALL)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (len(came.body), came.cut) == (10_000, "only its first 10000 bytes were read")
    # One block of what the network gives becomes 64 MB when all of it is decompressed.
    assert peak_bytes < 20_000_000


async def test_compression_that_cannot_be_undone_is_told(site: Site) -> None:
    assert "compressed by 'br'" in await failure(site.has("/br", b"x", content_encoding="br"))
    assert "compressed by 'gzip, gzip'" in await failure(site.has("/2", b"x", content_encoding="gzip, gzip"))
    told = await failure(site.has("/no", b"no gzip", content_encoding="gzip"))
    assert told.endswith("answered 200 with no body: the rest cannot be decompressed")


# What goes wrong


async def test_status_is_no_failure_of_the_download_and_little_of_its_page_is_read(site: Site) -> None:
    came = await download(site.has("/", "x" * 100_000, status=404), LOCAL)
    assert (came.status, came.reason, len(came.body)) == (404, "Not Found", 50_000)


async def test_server_that_is_not_there_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    assert await failure(url) == (f"the host of {url} refuses connections to that port; check host and port")


async def test_host_that_is_not_known_is_told() -> None:
    async def unknown(host: str, port: int) -> list[str]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(DownloadFailed) as caught:
        await download("http://a.test/", LOCAL, CheckedTransport(LOCAL, resolve=unknown))
    told = "the host of http://a.test/ is not known: Name or service not known; check its name"
    assert str(caught.value) == told


async def test_certificate_and_other_trouble_with_tls_are_told(site: Site) -> None:
    site.scheme = "https"  # which it is not
    assert "no secure connection to https://" in await failure(site.url("/"))


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "is no http or https URL"),
        ("example.com", "write all of it, like https://example.com/page"),
        ("http://", "is no http or https URL"),
        ("http://a.test:port/", "http://a.test:port/ is no URL: Invalid port"),
        ("http://[::1/", "is no URL"),
        ("http://a\x00b/", "is no URL"),
        ("http://" + "a" * 64 + ".test/", "is not known: it can be no name"),
        ("https://user:secret@a.test/", "has a user name or password in it"),
        ("https://user:secret@a.test:port/", "https://a.test:port/ is no URL"),
        ("file:///etc/passwd", "is no http or https URL"),
        ("http://" + "a" * 70_000, "is no URL: URL too long"),
    ],
)
async def test_what_is_no_url_is_told(url: str, message: str) -> None:
    told = await failure(url)
    assert message in told
    assert "secret" not in told
    assert len(told) < 500


async def test_answer_that_is_no_http_is_told(site: Site) -> None:
    def other(visit: Visit) -> None:
        visit.wfile.write(b"SSH-2.0-x\r\n")

    site.answers["/"] = other
    assert "could not be fetched" in await failure(site.url("/"))
