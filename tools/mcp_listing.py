"""Lists the tools of an MCP server once, in a process of its own, and leaves nothing of the server.

In a process of its own, because the server is watched as a tool's processes are, and whoever wants the list
may be anything: a script, a running event loop, a program that has children of its own.

Layer: tools; no Ray. The protocol's SDK is imported by that process alone.
"""

from __future__ import annotations

import asyncio
import json
import pickle
import subprocess
import sys
from typing import Any, cast

from palaver.providers.errors import ConfigurationError
from palaver.providers.provider import new_request_id
from palaver.tools.descendants import end_with_parent
from palaver.tools.guarded import guarded
from palaver.tools.mcp_server import McpServer

_ENDS_WITHIN_S = 15.0
"""What the process may take beside the server's start: its own, the list, the server's end."""

_PROGRAM = "from palaver.tools.mcp_listing import main; main()"


def listed(server: McpServer) -> list[dict[str, Any]]:
    """What the server says of its tools: dicts of name, description, input_schema, repeatable.

    Takes as long as the server takes to start. Raises ConfigurationError, which names the server and says
    what is wrong.
    """
    process = subprocess.Popen(
        # -P: no module in the working folder is taken for one of ours.
        [sys.executable, "-P", "-c", _PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # Ctrl-C is for us: we end it.
        start_new_session=True,
    )
    limit_s = server.start_timeout_s + _ENDS_WITHIN_S
    with process:
        try:
            answer, complaints = process.communicate(pickle.dumps(server), timeout=limit_s)
        except BaseException as error:
            # The node's guardian ends what it has started.
            process.kill()
            if not isinstance(error, subprocess.TimeoutExpired):
                raise
            raise _wrong(server, f"did not list its tools within {limit_s:g} s") from None
    told: dict[str, Any] = json.loads(answer) if answer else {}
    if "missing" in told:
        raise ConfigurationError(
            f"MCP servers need the protocol's SDK ({told['missing']}): pip install 'palaver[mcp]', here and "
            "on every node"
        )
    if "tools" not in told:
        last = server.cover(complaints.decode(errors="replace")).strip().splitlines()[-1:]
        raise _wrong(server, told.get("problem") or f"could not be asked for its tools: {last}")
    return cast("list[dict[str, Any]]", told["tools"])


def _wrong(server: McpServer, what: str) -> ConfigurationError:
    return ConfigurationError(f"MCP server {server.label!r} {what}")


def main() -> None:
    """The process: reads a server from stdin, and writes what it has found to stdout."""
    end_with_parent()
    server = cast("McpServer", pickle.loads(sys.stdin.buffer.read()))
    answer = sys.stdout.buffer
    # What anything here prints is no answer.
    sys.stdout = sys.stderr
    try:
        import mcp  # noqa: F401  # pyright: ignore[reportUnusedImport]
    except ImportError as error:
        told: dict[str, Any] = {"missing": str(error)}
    else:
        with guarded(f"mcp listing {new_request_id()}", ()):
            told = asyncio.run(_ask(server))
    answer.write(json.dumps(told).encode())
    answer.flush()


async def _ask(server: McpServer) -> dict[str, Any]:
    from palaver.tools.mcp_session import McpSession, ServerFailed

    session = McpSession(server, server.folder(None))
    try:
        await session.start()
        tools = await session.list_tools()
    except ServerFailed as failed:
        return {"problem": str(failed)}
    finally:
        await session.end()
    return {
        "tools": [
            {
                "name": each.name,
                "description": each.description or each.title or "",
                "input_schema": each.input_schema,
                "repeatable": bool(
                    each.annotations and (each.annotations.read_only_hint or each.annotations.idempotent_hint)
                ),
            }
            for each in tools
        ]
    }
