"""A real MCP server over stdio whose one tool does not end by itself; what it does is as in `stuck`."""

from __future__ import annotations

import asyncio
import os
import subprocess

from mcp.server.mcpserver import MCPServer
from stuck import FOREVER_S, note

server = MCPServer("stuck", log_level="ERROR")


@server.tool()
async def calls_mcp(notes: str) -> str:
    """Wait beside a subprocess, which ends with the call."""
    process = subprocess.Popen(["sleep", str(FOREVER_S)], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    note(notes, "child", process.pid)
    note(notes, "server", os.getpid())
    note(notes, "worker", os.getppid())
    try:
        await asyncio.sleep(FOREVER_S)
    finally:
        process.kill()
        process.wait()
    return "woke up"


if __name__ == "__main__":
    server.run()
