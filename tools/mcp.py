"""`mcp_tools`: the tools of an MCP server, as tools a conversation can be given.

The server runs, or is connected to, where a conversation first calls one of them: see
`palaver.tools.mcp_servers`.

Layer: tools; no Ray, and not the protocol's SDK.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from palaver.providers.errors import ConfigurationError
from palaver.providers.provider import ToolSpec
from palaver.tools.errors import ToolDefinitionError
from palaver.tools.function import is_async
from palaver.tools.limits import ToolLimits
from palaver.tools.mcp_listing import listed
from palaver.tools.mcp_server import McpServer, server_of
from palaver.tools.tool import NeedsApproval, check_names

_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_-]")
_NAME_CHARS = 64
_HASH_CHARS = 8


@dataclass(frozen=True, slots=True, repr=False)
class McpTool:
    """A tool of an MCP server. `wire_name` is what the server calls it, `spec.name` what the model does.

    `repeatable` is whether the server says that a call may safely happen twice. `approval` is what decides
    whether a call waits for a yes: True, False, or a function of the input, pickled.
    """

    spec: ToolSpec
    server: McpServer
    wire_name: str
    limits: ToolLimits
    retries: int
    repeatable: bool
    approval: bool | bytes = field(default=False)

    @property
    def name(self) -> str:
        """The name the model calls it by."""
        return self.spec.name

    @property
    def in_workspace(self) -> bool:
        """Whether its server runs in the conversation's workspace."""
        return self.server.in_workspace

    @property
    def may_need_approval(self) -> bool:
        """Whether a call may have to wait for somebody's yes."""
        return self.approval is not False

    def __repr__(self) -> str:
        return f"McpTool({self.name!r}, {self.server!r})"


def mcp_tools(
    command: Sequence[str] | None = None,
    *,
    url: str | None = None,
    env: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
    cwd: str | os.PathLike[str] | None = None,
    name: str | None = None,
    only: Collection[str] | None = None,
    limits: ToolLimits | None = None,
    retries: int = 0,
    needs_approval: NeedsApproval = False,
    in_workspace: bool = False,
    start_timeout_s: float = 30,
) -> tuple[McpTool, ...]:
    """The tools of an MCP server: of a `command` (the program and its arguments), or at a `url`.

    Starts the server, or connects to it, to list its tools, and ends it again before this returns. It
    blocks meanwhile: in a running event loop, `await asyncio.to_thread(mcp_tools, ...)` does not. Each
    conversation that calls the tools has a server of its own, started at the first call, kept until the
    conversation is cancelled, closed or ends. A command has to be installed on every node.

    `env` are variables for the command, which otherwise gets HOME, LANG, PATH and the like, and no keys;
    `headers` go with every request to the url. Neither is shown anywhere, nor is the url's query; what
    stands in `command` is for all to see. `cwd` is the folder the command runs in; None is the folder this
    is called in, on nodes that have it. With `in_workspace` that is the conversation's workspace, but for
    the list.

    `name` is put before the tools' names, as `name_tool`, and stands for the server in errors. `only`
    keeps those that the server calls so. `limits` are those of each call (not `max_per_node`); the
    server's start does not count. `needs_approval` is as in `@tool`. A call whose server died before it
    had answered is made again when the server says of the tool that this is safe (readOnlyHint,
    idempotentHint), or when `retries` is above 0. `start_timeout_s` bounds the start, the first of which
    may have to install the server.

    Raises ConfigurationError when the server cannot be listed: not found, ended, no answer in time, HTTP
    errors, or no SDK (`pip install palaver[mcp]`).
    """
    server = server_of(
        command,
        url=url,
        env=env,
        headers=headers,
        cwd=cwd,
        name=name,
        start_timeout_s=start_timeout_s,
        in_workspace=in_workspace,
    )
    limits = limits or ToolLimits()
    limits.check(f"MCP server {server.label!r}")
    if limits.max_per_node is not None:
        raise ToolDefinitionError(
            f"max_per_node of MCP server {server.label!r} is {limits.max_per_node}; a conversation's "
            "calls all go to its one server, which bounds them itself. Leave it out"
        )
    if retries < 0:
        raise ToolDefinitionError(f"retries of MCP server {server.label!r} is {retries}; use 0 or more")
    approval = _approval(server, needs_approval)
    there = listed(server)
    missing = sorted(set(only or ()) - {each["name"] for each in there})
    if missing:
        raise ConfigurationError(
            f"MCP server {server.label!r} has no tool {', '.join(map(repr, missing))}; there are: "
            f"{sorted(each['name'] for each in there)}"
        )
    tools = tuple(
        McpTool(
            _spec(server, name, each), server, each["name"], limits, retries, each["repeatable"], approval
        )
        for each in there
        if only is None or each["name"] in only
    )
    check_names(tools)
    return tools


def name_for(wire_name: str, prefix: str | None = None) -> str:
    """The name a model calls a tool by: letters, digits, `_` and `-`, at most 64 of them.

    What is not allowed becomes `_`. Of a name that is too long the start stays, and a hash of all of it.
    """
    full = wire_name if not prefix else f"{prefix}_{wire_name}"
    name = _NOT_IN_NAMES.sub("_", full)
    if len(name) <= _NAME_CHARS:
        return name or "_"
    digest = hashlib.sha256(full.encode()).hexdigest()[:_HASH_CHARS]
    return f"{name[: _NAME_CHARS - _HASH_CHARS - 1]}_{digest}"


def _spec(server: McpServer, prefix: str | None, told: Mapping[str, Any]) -> ToolSpec:
    try:
        return ToolSpec(
            name=name_for(told["name"], prefix),
            description=told["description"],
            # Some leave out what the protocol has them say.
            input_schema={"type": "object", **told["input_schema"]},
        )
    except ValidationError as error:
        problem = error.errors(include_url=False)[0]["msg"]
        raise ConfigurationError(
            f"tool {told['name']!r} of MCP server {server.label!r} cannot be used: {problem}; leave it out "
            "with only=[the names of the others]"
        ) from None


def _approval(server: McpServer, needed: NeedsApproval) -> bool | bytes:
    if isinstance(needed, bool):
        return needed
    if not callable(needed) or is_async(needed):
        raise ToolDefinitionError(
            f"needs_approval of MCP server {server.label!r} is {needed!r:.80}; use True, False, or a plain "
            "function of the input (a dict) that returns one of them"
        )
    from palaver.tools.mcp_servers import packed_approval

    return packed_approval(server.label, needed)
