"""That a connection goes to an address that was checked, and to no other."""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Sequence
from pathlib import Path

import httpx
import pytest
from web_fakes import web_site

from palaver.tools.reach import DownloadFailed, Reach
from palaver.tools.transport import CheckedTransport, resolve

PUBLIC = "93.184.216.34"


class Names:
    """A resolver that gives one answer after another, and the last for ever."""

    def __init__(self, *answers: Sequence[str]) -> None:
        self._answers = list(answers)
        self.asked: list[tuple[str, int]] = []

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append((host, port))
        return self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]


class Wire(httpx.AsyncBaseTransport):
    """Takes the place of the network: answers at the addresses that are up."""

    def __init__(self, *up: str) -> None:
        self._up = up
        self.requests: list[httpx.Request] = []

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        if request.url.host not in self._up:
            raise httpx.ConnectError(f"{request.url.host} is down")
        return httpx.Response(200, text="hello")


async def send(transport: CheckedTransport, url: str) -> httpx.Response:
    async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
        return await client.get(url)


@pytest.mark.parametrize("url", ["http://a.test/x", "https://a.test/x"])
async def test_request_goes_to_the_checked_address_under_the_name_of_its_host(url: str) -> None:
    names, wire = Names([PUBLIC]), Wire(PUBLIC)
    response = await send(CheckedTransport(Reach(), resolve=names, inner=wire), url)
    assert response.text == "hello"
    assert str(response.request.url) == url
    (sent,) = wire.requests
    assert sent.url == url.replace("a.test", PUBLIC)
    assert sent.headers["host"] == "a.test"
    assert sent.extensions["sni_hostname"] == "a.test"
    assert names.asked == [("a.test", 80 if url.startswith("http:") else 443)]


async def test_name_that_changes_its_address_after_the_check_is_reached_at_the_checked_one() -> None:
    names, wire = Names([PUBLIC], ["127.0.0.1"]), Wire(PUBLIC, "127.0.0.1")
    transport = CheckedTransport(Reach(), resolve=names, inner=wire)
    await send(transport, "http://rebinds.test:8080/")
    assert [sent.url.host for sent in wire.requests] == [PUBLIC]
    assert len(names.asked) == 1
    with pytest.raises(DownloadFailed, match=r"address 127.0.0.1, which is loopback"):
        await send(transport, "http://rebinds.test:8080/")
    assert [sent.url.host for sent in wire.requests] == [PUBLIC]


@pytest.mark.parametrize("addresses", [["127.0.0.1"], [PUBLIC, "169.254.169.254"], ["::ffff:10.0.0.1"]])
async def test_nothing_is_sent_when_one_address_of_the_host_is_closed(addresses: list[str]) -> None:
    wire = Wire(PUBLIC, *addresses)
    with pytest.raises(DownloadFailed, match="only public addresses may be fetched"):
        await send(CheckedTransport(Reach(), resolve=Names(addresses), inner=wire), "http://a.test/")
    assert wire.requests == []


async def test_next_address_is_tried_when_one_cannot_be_connected_to() -> None:
    ipv6 = "2606:2800:220:1:248:1893:25c8:1946"
    wire = Wire(PUBLIC)
    transport = CheckedTransport(Reach(), resolve=Names([ipv6, PUBLIC]), inner=wire)
    assert (await send(transport, "https://a.test/")).status_code == 200
    assert [str(sent.url) for sent in wire.requests] == [f"https://[{ipv6}]/", f"https://{PUBLIC}/"]
    with pytest.raises(httpx.ConnectError, match="is down"):
        await send(CheckedTransport(Reach(), resolve=Names([ipv6]), inner=wire), "https://a.test/")


async def test_host_without_addresses_is_not_known() -> None:
    with pytest.raises(socket.gaierror, match="no address"):
        await send(CheckedTransport(Reach(), resolve=Names([]), inner=Wire()), "https://a.test/")


async def test_through_a_proxy_no_name_is_looked_up_and_the_url_goes_as_it_is() -> None:
    names, wire = Names([PUBLIC]), Wire("a.test")
    transport = CheckedTransport(Reach(proxy="http://proxy.test:1"), resolve=names, inner=wire)
    await send(transport, "https://a.test/")
    assert (names.asked, [str(sent.url) for sent in wire.requests]) == ([], ["https://a.test/"])
    with pytest.raises(DownloadFailed, match="loopback"):
        await send(transport, "http://127.1/")


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1", "127.1", "0x7f.1", "2130706433", "017700000001", "localhost", "[::1]", "[::]", "0.0.0.0"],
)
async def test_this_machine_is_closed_however_it_is_written(host: str) -> None:
    with web_site() as site:
        with pytest.raises(DownloadFailed, match=r"loopback|unspecified"):
            await send(CheckedTransport(Reach()), site.url("/", host))
        assert site.visits == []


async def test_private_addresses_are_open_when_that_is_wanted() -> None:
    with web_site() as site:
        site.has("/", "hello")
        transport = CheckedTransport(Reach(allow_private=True), resolve=Names(["127.0.0.1"]))
        assert (await send(transport, site.url("/", "a.test"))).text == "hello"
        assert [headers["host"] for _, headers in site.visits] == [f"a.test:{site.port}"]


async def test_system_resolver_finds_this_machine_and_refuses_what_can_be_no_name() -> None:
    assert "127.0.0.1" in await resolve("localhost", 80)
    assert await resolve("127.1", 80) == ["127.0.0.1"]
    with pytest.raises(UnicodeError):
        await resolve("a" * 64 + ".test", 80)


async def test_a_look_up_without_an_answer_keeps_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    never = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: never.wait(30) and [])
    try:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await resolve("slow.test", 80)
    finally:
        never.set()


# TLS


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate for site.test with its key, which vouches for itself."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "site.test")])
    now = datetime.datetime.now(datetime.UTC)
    built = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName(
                [x509.DNSName("site.test"), x509.IPAddress(ipaddress.ip_address("127.0.0.2"))]
            ),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    path = tmp_path_factory.mktemp("certificate") / "site.pem"
    path.write_bytes(
        built.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return path


async def test_certificate_is_checked_against_the_name_and_not_the_number(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    asked: list[str | None] = []
    context.sni_callback = lambda _, name, __: asked.append(name)
    reach, names = Reach(allow_private=True), Names(["127.0.0.1"])
    with web_site(context) as site:
        site.has("/", "hello")
        transport = CheckedTransport(reach, resolve=names)
        assert (await send(transport, site.url("/", "site.test"))).text == "hello"
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await send(CheckedTransport(reach, resolve=names), site.url("/", "other.test"))
    assert asked == ["site.test", "other.test"]


async def test_a_connection_for_one_name_is_not_used_for_another_at_the_same_address(
    certificate: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    with web_site(context) as site:
        site.has("/", "hello")
        transport = CheckedTransport(Reach(allow_private=True), resolve=Names(["127.0.0.1"]))
        async with httpx.AsyncClient(transport=transport, trust_env=False) as client:
            await client.get(site.url("/", "site.test"))
            with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await client.get(site.url("/", "other.test"))
