"""A real MCP server for the tests of MCP, made with the protocol's own SDK. A program, over stdio or HTTP.

mcp_program.py                       over stdio
mcp_program.py http KEY              over HTTP on loopback, for who sends `Authorization: Bearer KEY`;
                                     its first line is the port
mcp_program.py pages                 over stdio, listing 5 tools on 3 pages
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import mcp_types as types
import uvicorn
from mcp.server import Server
from mcp.server.mcpserver import Image, MCPServer
from mcp.server.mcpserver.exceptions import ToolError
from mcp.server.stdio import stdio_server
from starlette.types import ASGIApp, Receive, Scope, Send

server = MCPServer("program", log_level="ERROR")
READ_ONLY = types.ToolAnnotations(read_only_hint=True)
PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c49444154789c63f8cfc000000301010018"
    "dd8db00000000049454e44ae426082"
)


@server.tool(annotations=READ_ONLY)
def whoami() -> str:
    """Tell this server's process and folder."""
    return f"{os.getpid()} {os.getcwd()}"


@server.tool(structured_output=False)
def picture() -> list[Any]:
    """Answer with a text and an image."""
    return ["a pixel", Image(data=PNG, format="png")]


@server.tool()
def fails(text: str) -> str:
    """Answer with an error."""
    raise ToolError(text)


@server.tool()
def variable(name: str) -> str:
    """Tell a variable of the environment."""
    return os.environ.get(name, "not set")


@server.tool(name="dotted.name/of a tool")
def dotted() -> str:
    """Have a name that models cannot call."""
    return "called"


@server.tool()
async def waits(folder: str, name: str) -> str:
    """Wait until a file `go-NAME` is there, and note how that ends."""
    at = Path(folder)
    (at / f"began-{name}").touch()
    try:
        while not (at / f"go-{name}").exists():
            await asyncio.sleep(0.02)
    except asyncio.CancelledError:
        (at / f"cancelled-{name}").touch()
        raise
    return f"{name} went"


@server.tool()
def starts_daemon() -> str:
    """Start a process that leaves the session and the family; its id."""
    code = "import os, time\nif os.fork(): os._exit(0)\nos.setsid()\n"
    code += "print(os.getpid(), flush=True)\ntime.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as started:
        assert started.stdout is not None
        return started.stdout.readline().decode().strip()


def _die(folder: str, last_words: str) -> str:
    times = Path(folder) / "deaths"
    with times.open("a") as file:
        file.write("x")
    print(last_words, file=sys.stderr, flush=True)
    os._exit(7)


@server.tool()
def dies(folder: str, last_words: str) -> str:
    """Die, and count that in a file."""
    return _die(folder, last_words)


@server.tool(annotations=READ_ONLY)
def dies_once(folder: str) -> str:
    """Die in the first call, and answer in the second."""
    return _die(folder, "not yet") if not (Path(folder) / "deaths").exists() else "alive"


class OnlyFor:
    """Answers 401 to who has not the key."""

    def __init__(self, app: ASGIApp, key: str) -> None:
        self._app = app
        self._expected = f"Bearer {key}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and dict(scope["headers"]).get(b"authorization") != self._expected:
            await send({"type": "http.response.start", "status": 401, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            return
        await self._app(scope, receive, send)


def over_http(key: str) -> None:
    """Serve on a free port of loopback, until stdin is closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        config = uvicorn.Config(OnlyFor(server.streamable_http_app(), key), log_level="critical")
        print(listener.getsockname()[1], flush=True)
        uvicorn.Server(config).run(sockets=[listener])


async def in_pages() -> None:
    """List the tools t0 to t4, two on a page."""

    async def list_tools(_context: Any, params: types.PaginatedRequestParams | None) -> types.ListToolsResult:
        first = int(params.cursor) if params and params.cursor else 0
        page = [
            types.Tool(name=f"t{n}", input_schema={"type": "object"}) for n in range(first, min(first + 2, 5))
        ]
        return types.ListToolsResult(tools=page, next_cursor=str(first + 2) if first + 2 < 5 else None)

    paged = Server("pages", on_list_tools=list_tools)
    async with stdio_server() as (read, write):
        await paged.run(read, write, paged.create_initialization_options())


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["http", key]:
            over_http(key)
        case ["pages"]:
            anyio.run(in_pages)
        case _:
            server.run()
