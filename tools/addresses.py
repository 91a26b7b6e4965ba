"""Which network addresses are public: what a tool may reach that goes where a model tells it to.

The machines beside this one trust what comes from it. An address that is not public leads to them: to this
machine itself, to the network it is in, to the service from which a cloud's machines get their keys.

Layer: tools; no Ray.
"""

from __future__ import annotations

import socket
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network
from typing import TypeAlias

Address: TypeAlias = IPv4Address | IPv6Address

_GLOBAL_IPV6 = IPv6Network("2000::/3")
"""All that IANA has given out as global unicast (RFC 4291; the registry, November 2026)."""

_NAT64 = IPv6Network("64:ff9b::/96")
"""IPv4 behind a translator (RFC 6052): the last 32 bits are the address that is reached."""

_ALSO_CLOSED = tuple(
    ip_network(each)
    for each in (
        "192.0.0.0/24",  # protocol assignments (RFC 6890); older versions of `ipaddress` know parts of it
        "192.88.99.0/24",  # 6to4 relays, given up (RFC 7526)
        "168.63.129.16/32",  # a public number, behind which each Azure machine finds its host
        "2001::/23",  # protocol assignments: Teredo, ORCHID, benchmarks (RFC 2928)
        "2002::/16",  # 6to4: another way to write IPv4, given up (RFC 7526)
        "3fff::/20",  # documentation (RFC 9637); not known to older versions of `ipaddress`
    )
)


def why_closed(address: str) -> str | None:
    """What kind of address this is, when it is not a public one; None when it is.

    Addresses of IPv6 that stand for one of IPv4 are judged by that. Raises ValueError for what is no address.
    """
    return _why_closed(ip_address(address.partition("%")[0]))


def _why_closed(address: Address) -> str | None:
    if isinstance(address, IPv6Address):
        inner = address.ipv4_mapped
        if inner is None and address in _NAT64:
            inner = IPv4Address(int(address) & 0xFFFF_FFFF)
        if inner is not None:
            return _why_closed(inner)
    kinds = {
        "unspecified": address.is_unspecified,
        "loopback": address.is_loopback,
        "link-local": address.is_link_local,
        "multicast": address.is_multicast,
        "private": address.is_private,
        "reserved": address.is_reserved,
    }
    kind = next((name for name, applies in kinds.items() if applies), None)
    if kind is not None:
        return kind
    if any(address.version == closed.version and address in closed for closed in _ALSO_CLOSED):
        return "reserved"
    # Such as 100.64.0.0/10, which providers share out among their customers.
    public = address.is_global and (address.version == 4 or address in _GLOBAL_IPV6)
    return None if public else "not public"


def written_address(host: str) -> str | None:
    """The address that a URL's host is, however it is written (`127.1`, `0x7f000001`); None for a name."""
    try:
        return str(ip_address(host.partition("%")[0]))
    except ValueError:
        pass
    try:
        return socket.inet_ntoa(socket.inet_aton(host))
    except OSError:
        return None
