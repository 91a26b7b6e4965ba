"""Which addresses a tool may reach that goes where a model tells it to."""

from __future__ import annotations

import pytest

from palaver.tools.addresses import why_closed


@pytest.mark.parametrize(
    "address",
    [
        "1.1.1.1",
        "93.184.216.34",
        "172.15.255.255",
        "172.32.0.0",
        "192.167.255.255",
        "100.63.255.255",
        "100.128.0.0",
        "2606:4700:4700::1111",
        "2a00:1450:4001:80f::200e",
        "::ffff:1.1.1.1",
        "64:ff9b::1.1.1.1",
    ],
)
def test_public_addresses_are_open(address: str) -> None:
    assert why_closed(address) is None


@pytest.mark.parametrize(
    ("address", "kind"),
    [
        ("0.0.0.0", "unspecified"),
        ("0.1.2.3", "private"),
        ("10.0.0.1", "private"),
        ("100.64.0.1", "not public"),
        ("100.100.100.200", "not public"),
        ("127.0.0.1", "loopback"),
        ("127.255.255.254", "loopback"),
        ("168.63.129.16", "reserved"),
        ("169.254.169.254", "link-local"),
        ("172.16.0.1", "private"),
        ("172.31.255.255", "private"),
        ("192.0.0.192", None),
        ("192.0.2.1", "private"),
        ("192.88.99.1", "reserved"),
        ("192.168.1.1", "private"),
        ("198.18.0.1", "private"),
        ("198.51.100.1", "private"),
        ("203.0.113.1", "private"),
        ("224.0.0.1", "multicast"),
        ("233.252.0.1", "multicast"),
        ("240.0.0.1", "private"),
        ("255.255.255.255", "private"),
        ("::", "unspecified"),
        ("::1", "loopback"),
        ("::127.0.0.1", "reserved"),
        ("::ffff:127.0.0.1", "loopback"),
        ("::ffff:169.254.169.254", "link-local"),
        ("::ffff:10.0.0.1", "private"),
        ("::ffff:a9fe:a9fe", "link-local"),
        ("64:ff9b::127.0.0.1", "loopback"),
        ("64:ff9b::a9fe:a9fe", "link-local"),
        ("64:ff9b:1::1", None),
        ("100::1", None),
        ("2001::1", None),
        ("2001:db8::1", None),
        ("2002:7f00:1::", None),
        ("3fff::1", None),
        ("5f00::1", None),
        ("fc00::1", "private"),
        ("fd00:ec2::254", "private"),
        ("fe80::1", "link-local"),
        ("fe80::1%eth0", "link-local"),
        ("fec0::1", None),
        ("ff02::1", "multicast"),
    ],
)
def test_all_other_addresses_are_closed_and_the_kind_is_told(address: str, kind: str | None) -> None:
    # Some are of another kind by another version of `ipaddress`: then any will do.
    assert why_closed(address) == kind if kind else why_closed(address) is not None


@pytest.mark.parametrize("text", ["", "example.com", "127.1", "0x7f000001", "2130706433", "1.2.3.4.5"])
def test_what_is_no_address_raises(text: str) -> None:
    with pytest.raises(ValueError, match="does not appear"):
        why_closed(text)
