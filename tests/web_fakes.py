"""A web site on loopback, for tests of what fetches pages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ssl import SSLContext
from typing import Any, TypeAlias

Answer: TypeAlias = Callable[["Visit"], None]


class Visit(BaseHTTPRequestHandler):
    """One request, and the means to answer it in any way, wrong ones included."""

    site: Site
    timeout = 10
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.site.visits.append((self.path, self.headers))
        answer = self.site.answers.get(self.path.partition("?")[0])
        with suppress(OSError):  # the client may not want all of it
            if answer is None:
                self.say("no such page", status=404, type="text/plain")
            else:
                self.close_connection = True  # unless all is said
                answer(self)

    def say(
        self, body: str | bytes = b"", *, type: str = "text/html", status: int = 200, **headers: str
    ) -> None:
        """Answer as servers do. Underscores in names of headers stand for dashes."""
        raw = body.encode() if isinstance(body, str) else body
        given = {"content-type": type, "content-length": str(len(raw))}
        given |= {name.replace("_", "-"): value for name, value in headers.items()}
        self.begin(status, given)
        self.wfile.write(raw)
        self.close_connection = not given["content-length"]

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        """The answer's head."""
        self.send_response(status)
        for name, value in headers.items():
            if value:
                self.send_header(name, value)
        self.end_headers()

    def wait(self) -> None:
        """Wait until the site closes."""
        self.site.closing.wait(30)

    def log_message(self, format: str, *args: Any) -> None:
        return


class Site:
    """Answers by path; keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.visits: list[tuple[str, Message]] = []
        self.closing = threading.Event()
        self.port = 0
        self.scheme = "http"

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"{self.scheme}://{host}:{self.port}{path}"

    def has(self, path: str, *args: Any, **kwargs: Any) -> str:
        """Answer a path as `Visit.say` does; its URL."""
        self.answers[path] = lambda visit: visit.say(*args, **kwargs)
        return self.url(path)

    def redirects(self, path: str, to: str, status: int = 302) -> str:
        return self.has(path, "gone there", status=status, location=to)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        return


@contextmanager
def web_site(context: SSLContext | None = None) -> Iterator[Site]:
    """A site for as long as the block runs; with a context it speaks TLS."""
    site = Site()
    server = _Server(("127.0.0.1", 0), type("Visit", (Visit,), {"site": site}))
    if context is not None:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        site.scheme = "https"
    site.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:
        site.closing.set()
        server.shutdown()
        server.server_close()
        thread.join()
