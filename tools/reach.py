"""Where a tool may go in the web, and how far: what a URL, a host and its addresses are checked against.

Layer: tools; no Ray, and no network.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from palaver.tools.addresses import why_closed, written_address

if TYPE_CHECKING:
    import httpx

MAX_BYTES = 5_000_000
"""How much of a body is read, decompressed: the largest picture that a model takes, and of text more than a
million tokens."""

WITHIN_S = 30.0
"""How long a download may take in all: with its redirects, and until the last byte that is read."""


class DownloadFailed(Exception):
    """Nothing came that can be shown; the text tells a model why, and what may help."""


@dataclass(frozen=True, slots=True)
class Reach:
    """Where downloads may go, and how far.

    `allow_private` opens addresses that are not public. `allowed_hosts` None is any host; `*.example.com`
    stands for all below example.com. `proxy` is the URL of one, None for none, whatever the environment
    says: a proxy looks names up itself, so that only addresses that stand in a URL can be checked. A
    download ends after `within_s` seconds and `max_bytes` bytes.
    """

    allow_private: bool = False
    allowed_hosts: tuple[str, ...] | None = None
    proxy: str | None = None
    within_s: float = WITHIN_S
    max_bytes: int = MAX_BYTES

    def check_url(self, url: httpx.URL) -> None:
        """Raise DownloadFailed for a URL that must not be fetched, by what it says itself."""
        if url.scheme not in ("http", "https") or not url.host:
            raise DownloadFailed(
                f"{shown(str(url))} is no http or https URL; write all of it, like https://example.com/page"
            )
        if url.userinfo:
            raise DownloadFailed(
                f"the URL of {url.host} has a user name or password in it, which are not sent; leave them out"
            )
        if self.allowed_hosts is not None and not any(_fits(url.host, each) for each in self.allowed_hosts):
            raise DownloadFailed(
                f"host {url.host!r} is not among those that may be fetched: {', '.join(self.allowed_hosts)}"
            )
        if self.proxy is not None:
            self._check_for_proxy(url.host)

    def check_addresses(self, host: str, addresses: Iterable[str]) -> None:
        """Raise DownloadFailed when one of a host's addresses must not be reached."""
        if self.allow_private:
            return
        for address in addresses:
            kind = why_closed(address)
            if kind is not None:
                what = f"host {host!r}" + ("" if host == address else f" has address {address}, which")
                raise DownloadFailed(f"{what} is {kind}; only public addresses may be fetched")

    def _check_for_proxy(self, host: str) -> None:
        name = host.rstrip(".").lower()
        written = "127.0.0.1" if name.rpartition(".")[2] == "localhost" else written_address(name)
        self.check_addresses(host, () if written is None else (written,))


def _fits(host: str, allowed: str) -> bool:
    host, allowed = host.rstrip(".").lower(), allowed.rstrip(".").lower()
    return host.endswith(allowed[1:]) if allowed.startswith("*.") else host == allowed


def shown(url: str) -> str:
    """A URL for people and models to read: without user name and password, and not for ever."""
    scheme, separator, rest = url.partition("://")
    authority, slash, path = rest.partition("/")
    clean = f"{scheme}{separator}{authority.rpartition('@')[2]}{slash}{path}"
    return clean if len(clean) <= 300 else f"{clean[:297]}..."
