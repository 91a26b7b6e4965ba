"""Which MCP server: a command to run or a URL to connect to, and what it is given, secrets covered.

Layer: tools; no Ray, and not the protocol's SDK.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, parse_qsl, urlsplit

from palaver.providers.errors import ConfigurationError
from palaver.providers.secret import Secret

_LABEL_CHARS = 60

_COVERED_CHARS = 4
"""A shorter value of a variable (1, on, yes) is no secret, and covering it would garble what is left."""

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""A token of RFC 9110, 5.6.2."""

Secrets = tuple[tuple[str, Secret], ...]


@dataclass(frozen=True, slots=True, repr=False)
class McpServer:
    """An MCP server: by `command`, or by `url`, of which one is set.

    `label` is what people and models see of it. `env` are variables beside those that every server gets,
    `headers` go with every HTTP request. `cwd` is the folder the command runs in, absolute; None is the
    workspace for a server that works in one, else `home`, the folder that `mcp_tools` was called in.
    """

    label: str
    command: tuple[str, ...]
    url: Secret | None
    env: Secrets
    headers: Secrets
    cwd: str | None
    home: str
    start_timeout_s: float
    in_workspace: bool

    def __repr__(self) -> str:
        return f"McpServer({self.label!r})"

    def folder(self, workspace: str | None) -> str | None:
        """Where the command is to run on this node; None for wherever this process is.

        `home` counts where there is such a folder: on another machine there may be none.
        """
        if self.in_workspace and workspace is not None:
            return workspace
        return self.cwd or (self.home if os.path.isdir(self.home) else None)

    def cover(self, text: str) -> str:
        """The text with every secret of this server in it replaced."""
        values = [secret.reveal() for _, secret in (*self.env, *self.headers)]
        for value in list(values):
            # `Bearer ...`: the token is the secret.
            values += value.split()
        if self.url is not None:
            url = self.url.reveal()
            parts = urlsplit(url)
            values += [parts.password or "", parts.username or "", parts.query]
            values += [value for _, value in parse_qsl(parts.query)]
            if url != _without_secrets(parts):
                text = text.replace(url, _without_secrets(parts))
        for value in sorted(set(values), key=len, reverse=True):
            if len(value) >= _COVERED_CHARS:
                text = text.replace(value, "***")
        return text


def server_of(
    command: Sequence[str] | None,
    *,
    url: str | None,
    env: Mapping[str, str] | None,
    headers: Mapping[str, str] | None,
    cwd: str | os.PathLike[str] | None,
    name: str | None,
    start_timeout_s: float,
    in_workspace: bool,
) -> McpServer:
    """The server that `mcp_tools` was asked for. Raises ConfigurationError for what cannot be one."""
    if (command is None) == (url is None):
        given = "both" if url is not None else "neither"
        raise ConfigurationError(
            f"an MCP server needs a command or a url, and got {given}; mcp_tools(['program', 'argument'])"
            " runs one, mcp_tools(url='https://host/mcp') connects to one"
        )
    if not start_timeout_s > 0:
        raise ConfigurationError(
            f"start_timeout_s of an MCP server is {start_timeout_s}; use seconds above 0"
        )
    if command is not None:
        if isinstance(command, str) or not command or not all(map(_is_text, command)):
            raise ConfigurationError(
                f"command of an MCP server is {command!r:.80}; pass a list of strings, the program first, "
                "like ['uvx', 'mcp-server-time']"
            )
        if headers:
            raise ConfigurationError("headers are for an MCP server with a url; a command gets env")
        label, covered = _of_command(command), None
    else:
        assert url is not None
        refused = [
            word for word, value in (("env", env), ("cwd", cwd), ("in_workspace", in_workspace)) if value
        ]
        if refused:
            raise ConfigurationError(
                f"{', '.join(refused)} of an MCP server with a url: it runs elsewhere; pass headers, "
                "or a command"
            )
        parts = _url_parts(url)
        label, covered = _without_secrets(parts), Secret(url)
    if cwd is not None and in_workspace:
        raise ConfigurationError(
            f"an MCP server has cwd {os.fspath(cwd)!r} and in_workspace=True, which is a folder too; "
            "leave one of them out"
        )
    home = os.getcwd()
    folder = None if cwd is None else os.path.abspath(cwd)
    program = [*(command or ())][:1]
    if program and os.sep in program[0]:
        # As a shell would take it; workers run elsewhere.
        program = [os.path.join(folder or home, program[0])]
    server = McpServer(
        label=label if name is None else name,
        command=(*program, *(command or ())[1:]),
        url=covered,
        env=_secrets(env, "env"),
        headers=_secrets(headers, "headers"),
        cwd=folder,
        home=home,
        start_timeout_s=start_timeout_s,
        in_workspace=in_workspace,
    )
    wrong = [key for key, _ in server.env if not key or "=" in key or "\0" in key]
    wrong += [key for key, _ in server.headers if not _HEADER_NAME.fullmatch(key)]
    # The value is not shown.
    wrong += [key for key, value in server.env if "\0" in value.reveal()]
    wrong += [key for key, value in server.headers if not _fits_header(value.reveal())]
    if wrong:
        what = "env" if server.command else "headers"
        raise ConfigurationError(
            f"{what} of MCP server {server.label!r}: {wrong} cannot be sent; check the characters"
        )
    return server


def _secrets(values: Mapping[str, str] | None, what: str) -> Secrets:
    for key, value in (values or {}).items():
        if not _is_text(key) or not _is_text(value):
            raise ConfigurationError(
                f"{what}[{key!r}] of an MCP server is a {type(value).__name__}; both have to be text"
            )
    return tuple((key, Secret(value)) for key, value in sorted((values or {}).items()))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _fits_header(value: str) -> bool:
    return value.isascii() and value.isprintable() and value == value.strip()


def _of_command(command: Sequence[str]) -> str:
    text = shlex.join(command)
    return text if len(text) <= _LABEL_CHARS else text[: _LABEL_CHARS - 3] + "..."


def _url_parts(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        fits = (
            parts.scheme in ("http", "https")
            and bool(parts.hostname)
            and (parts.port is None or parts.port > 0)
        )
    except ValueError:
        fits = False
        parts = urlsplit("")
    if not fits:
        # Not shown: it may hold a token.
        raise ConfigurationError("url of an MCP server is no http:// or https:// URL with a host; check it")
    return parts


def _without_secrets(parts: SplitResult) -> str:
    host = parts.netloc.rpartition("@")[2]
    return f"{parts.scheme}://{host}{parts.path}"
