"""Tools by the names that a person gives on the command line: built-in ones, and `module:name`.

Layer: actors, command line; no Ray.
"""

from __future__ import annotations

import importlib
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any, cast

from palaver.providers.errors import ConfigurationError, PalaverError
from palaver.tools.builtin import CATALOGUE, builtin_tools, unknown_name
from palaver.tools.mcp import McpTool, mcp_tools
from palaver.tools.tool import Tool, check_names


def load_tools(specs: Iterable[str]) -> tuple[Tool[..., Any], ...]:
    """The tools of the names of built-in ones, and of `module:name`, where name is a Tool or a list of Tools.

    Each of `specs` may hold several, with commas between them. Raises ConfigurationError.
    """
    names = [name.strip() for spec in specs for name in spec.split(",")]
    tools: list[Tool[..., Any]] = []
    for name in names:
        if ":" in name:
            tools += _load(name)
        elif name in CATALOGUE:
            # Groups of the catalogue share tools.
            tools += [each for each in builtin_tools(name) if each not in tools]
        elif name:
            raise ConfigurationError(
                f"--tools {name!r}: {unknown_name(name)}. For a tool of your own write module:name, like "
                "my_tools:search"
            )
        else:
            raise ConfigurationError(
                "--tools has an empty name in it; write names with a comma between two, like bash,files"
            )
    check_names(tools)
    return tuple(tools)


def load_attribute(option: str, spec: str) -> object:
    """What `module:name` stands for, told as an `option`. Raises ConfigurationError."""
    module_name, _, attribute = spec.partition(":")
    if not module_name or not attribute.isidentifier() or module_name.startswith("."):
        raise ConfigurationError(f"{option} {spec!r} is not of the form module:name, like my_tools:search")
    if module_name.endswith(".py") or "/" in module_name:
        raise ConfigurationError(
            f"{option} {spec!r} names a file; name the module, like {Path(module_name).stem}:{attribute}, "
            "and run where it can be imported from"
        )
    if os.getcwd() not in sys.path:
        # Where Ray's workers look, too.
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except PalaverError as error:  # a tool that cannot be made
        raise ConfigurationError(f"{option} {spec!r}: {error}") from error
    except (Exception, SystemExit) as error:
        if (
            isinstance(error, ModuleNotFoundError)
            and error.name
            and (module_name + ".").startswith(error.name + ".")
        ):
            raise ConfigurationError(
                f"{option} {spec!r}: there is no module {error.name!r}, neither installed nor in "
                f"{os.getcwd()}"
            ) from None
        raise ConfigurationError(
            f"{option} {spec!r}: importing module {module_name!r} failed with {type(error).__name__}: {error}"
        ) from error
    if not hasattr(module, attribute):
        raise ConfigurationError(
            f"{option} {spec!r}: module {module_name!r} has no {attribute!r}{_there(module)}"
        )
    return cast("object", getattr(module, attribute))


def _there(module: object) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, Tool)]
    return f"; its tools: {names}" if names else ""


def _load(spec: str) -> list[Tool[..., Any]]:
    value = load_attribute("--tools", spec)
    found: list[object] = (
        list(cast("Iterable[object]", value)) if isinstance(value, list | tuple) else [value]
    )
    tools = [cast("Tool[..., Any]", each) for each in found if isinstance(each, Tool)]
    if not found or len(tools) < len(found):
        wrong = next((type(each).__name__ for each in found if not isinstance(each, Tool)), "empty list")
        module = sys.modules[spec.partition(":")[0]]
        raise ConfigurationError(
            f"--tools {spec!r} is no tool, and no list of tools (found: {wrong}); make a function a "
            f"tool with @tool of palaver.tools{_there(module)}"
        )
    return tools


def load_mcp(specs: Iterable[str]) -> tuple[McpTool, ...]:
    """The tools of MCP servers, each by a URL or a command as in a shell. Raises ConfigurationError."""
    tools: list[McpTool] = []
    for spec in specs:
        if spec.startswith(("http://", "https://")):
            tools += mcp_tools(url=spec)
            continue
        try:
            command = shlex.split(spec)
        except ValueError as error:
            raise ConfigurationError(f"--mcp {spec!r} is no command: {error}") from None
        if not command:
            raise ConfigurationError("--mcp is empty; write a command in quotes, or a URL")
        tools += mcp_tools(command)
    return tuple(tools)
