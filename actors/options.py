"""What conversations are given, and the refusal of what cannot work before there is a process.

Layer: actors; no Ray of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias, TypedDict, cast

from palaver.actors.budget import Budget
from palaver.actors.errors import UnknownPrice
from palaver.actors.settings import Settings
from palaver.providers.capabilities import context_window
from palaver.providers.errors import ConfigurationError
from palaver.providers.provider import Provider, Request
from palaver.providers.worst_case import BoundsCost
from palaver.tools.mcp import McpTool
from palaver.tools.task import AnyPacked, PackedTool, pack
from palaver.tools.tool import Tool, check_names
from palaver.tools.workspace import Workspace

AnyTool: TypeAlias = Tool[..., Any] | AnyPacked


class SubConvoOptions(TypedDict, total=False):
    """What a sub-conversation may be given; each as in `Convo.remote`. `actor_options` are Ray's; one
    after the other goes to another node ("SPREAD"), unless they have another `scheduling_strategy`.

    A str in `tools` is the name of one of the calling conversation's own tools. `budget_share` (above 0, at
    most 1) is instead of `budget`: that part of what is left, when the sub-conversation is started, of the
    calling conversation's limits and of all above it, the tightest of each. What has no limit there has
    none here, and `Budget.share` says how it is rounded.

    A sub-conversation with `within_call`, the id of a tool call under way, is closed when that call ends,
    however it ends: for tools that start sub-conversations.
    """

    system_prompt: str
    tools: Sequence[AnyTool | str]
    budget: Budget | None
    budget_share: float | None
    tool_use_only: bool
    max_tokens: int | None
    label: str
    within_call: str | None
    actor_options: Mapping[str, Any] | None


def packed_tools(
    tools: Iterable[AnyTool], settings: Settings, workspace: Workspace | None
) -> list[AnyPacked]:
    """The tools as they travel. What is wrong with them is refused here, before there is a process."""
    packed = [pack(each) for each in _checked(tools)]
    check_names(packed)
    settings.check_tools(bool(packed))
    homeless = [each.spec.name for each in packed if each.in_workspace]
    if homeless and workspace is None:
        raise ConfigurationError(
            f"tools {homeless} work in a workspace, and the conversation has none; pass workspace=a folder"
        )
    return packed


def check_price(provider: Provider, budget: Budget) -> None:
    """Raise UnknownPrice for a limit of dollars on a model whose price nobody knows."""
    if budget.max_dollars is None or budget.advisory:
        return
    empty = Request(messages=())
    if not isinstance(provider, BoundsCost) or provider.worst_case(empty).input_usd is None:
        raise UnknownPrice(provider.model)


def check_window(provider: Provider, compact_from: float | None) -> None:
    """Raise ConfigurationError for a part of a context window that nobody knows."""
    if compact_from is not None and context_window(provider) is None:
        raise ConfigurationError(
            f"compact_from is {compact_from:g}, and the context window of model {provider.model!r} "
            "is not known; give the provider its size in tokens (context_window=..., --context-window), or "
            "leave it out"
        )


def check_known(what: str, given: Iterable[str], options: type) -> None:
    """Raise ConfigurationError for names that are none of the TypedDict `options`, those of a `what`."""
    known = options.__annotations__
    if unknown := sorted(set(given) - known.keys()):
        raise ConfigurationError(
            f"a {what} has no option {', '.join(unknown)}; there are: {', '.join(known)}"
        )


def check_options(options: SubConvoOptions) -> None:
    check_known("sub-conversation", options, SubConvoOptions)
    if options.get("budget") is not None and options.get("budget_share") is not None:
        raise ConfigurationError(
            "a sub-conversation got both budget and budget_share; pass its limits, or its part of what is "
            "left, not both"
        )


def _checked(tools: Iterable[AnyTool]) -> Iterable[AnyTool]:
    for each in tools:
        if not isinstance(cast("object", each), Tool | PackedTool | McpTool):
            raise ConfigurationError(
                f"{each!r} is no tool; make it one with @tool, or get some with mcp_tools"
            )
        yield each
