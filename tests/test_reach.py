"""What URLs, hosts and addresses a tool may go to."""

from __future__ import annotations

import httpx
import pytest

from palaver.tools.reach import DownloadFailed, Reach, shown

PROXY = "http://proxy.test:3128"


@pytest.mark.parametrize(
    ("url", "reach", "refused"),
    [
        ("http://example.com", Reach(), None),
        ("HTTPS://Example.com:8443/a?b#c", Reach(), None),
        ("http://[::1]/", Reach(), None),  # its address is checked when it is looked up
        ("ftp://example.com/x", Reach(), "is no http or https URL"),
        ("file:///etc/passwd", Reach(), "is no http or https URL"),
        ("data:text/html,x", Reach(), "is no http or https URL"),
        ("javascript:alert(1)", Reach(), "is no http or https URL"),
        ("example.com/page", Reach(), "write all of it, like https://"),
        ("//example.com", Reach(), "is no http or https URL"),
        ("http:///x", Reach(), "is no http or https URL"),
        ("https://user@example.com", Reach(), "has a user name or password in it"),
        ("https://user:secret@example.com", Reach(), "has a user name or password in it"),
        ("https://example.com", Reach(allowed_hosts=("example.com",)), None),
        ("https://EXAMPLE.com.", Reach(allowed_hosts=("Example.COM",)), None),
        ("https://www.example.com", Reach(allowed_hosts=("example.com",)), "not among those that may"),
        ("https://www.example.com", Reach(allowed_hosts=("*.example.com",)), None),
        ("https://a.b.example.com", Reach(allowed_hosts=("x.test", "*.example.com")), None),
        ("https://example.com", Reach(allowed_hosts=("*.example.com",)), "fetched: *.example.com"),
        ("https://badexample.com", Reach(allowed_hosts=("*.example.com",)), "not among those"),
        ("https://example.com.evil.test", Reach(allowed_hosts=("example.com",)), "not among those"),
        ("https://example.com", Reach(allowed_hosts=()), "not among those"),
        ("https://example.com", Reach(proxy=PROXY), None),
        ("https://10.0.0.1", Reach(proxy=PROXY), "is private"),
        ("https://10.0.0.1", Reach(proxy=PROXY, allow_private=True), None),
        ("https://[::ffff:10.0.0.1]", Reach(proxy=PROXY), "is private"),
        ("https://127.1", Reach(proxy=PROXY), "is loopback"),
        ("https://0x7f000001", Reach(proxy=PROXY), "is loopback"),
        ("https://2852039166", Reach(proxy=PROXY), "169.254.169.254, which is link-local"),
        ("https://localhost", Reach(proxy=PROXY), "is loopback"),
        ("https://a.LOCALHOST.", Reach(proxy=PROXY), "is loopback"),
    ],
)
def test_urls_are_checked_by_what_they_say(url: str, reach: Reach, refused: str | None) -> None:
    if refused is None:
        reach.check_url(httpx.URL(url))
        return
    with pytest.raises(DownloadFailed) as caught:
        reach.check_url(httpx.URL(url))
    assert refused in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_host_with_one_closed_address_is_closed() -> None:
    Reach().check_addresses("a.test", ["1.1.1.1", "2606:4700::1111"])
    with pytest.raises(DownloadFailed, match=r"'a.test' has address 10.0.0.1, which is private; only public"):
        Reach().check_addresses("a.test", ["1.1.1.1", "10.0.0.1"])
    with pytest.raises(DownloadFailed, match=r"host '10.0.0.1' is private"):
        Reach().check_addresses("10.0.0.1", ["10.0.0.1"])
    Reach(allow_private=True).check_addresses("a.test", ["1.1.1.1", "10.0.0.1"])


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://a.test/x@y?z", "http://a.test/x@y?z"),
        ("http://user:secret@a.test/x", "http://a.test/x"),
        ("http://user:se@cret@a.test", "http://a.test"),
        ("no url", "no url"),
        ("http://a.test/" + "x" * 400, "http://a.test/" + "x" * 283 + "..."),
    ],
)
def test_urls_are_shown_without_secrets_and_not_for_ever(url: str, expected: str) -> None:
    assert shown(url) == expected
