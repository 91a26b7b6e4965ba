"""What a conversation is started with.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from palaver.actors.budget import Budget
from palaver.providers.errors import ConfigurationError
from palaver.tools.limits import ToolLimits


def check_budget(budget: object) -> None:
    """Raise ConfigurationError for what is no Budget."""
    if not isinstance(budget, Budget):
        raise ConfigurationError(f"budget is a {type(budget).__name__}; pass a Budget(...)")


@dataclass(frozen=True, slots=True)
class Settings:
    """What a conversation is started with, beside its provider, tools and place in the tree."""

    system_prompt: str = ""
    budget: Budget = Budget()
    prompt_caching: bool = True
    tool_use_only: bool = False
    max_tokens: int | None = None
    tool_limits: ToolLimits = ToolLimits()
    tell_budget_from: float | None = None
    compact_from: float | None = None
    label: str = ""

    def __post_init__(self) -> None:
        system_prompt, budget = cast("object", self.system_prompt), cast("object", self.budget)
        if not isinstance(system_prompt, str):
            raise ConfigurationError(
                f"system_prompt is a {type(system_prompt).__name__}; it has to be text (str)"
            )
        check_budget(budget)
        if self.max_tokens is not None and self.max_tokens < 1:
            raise ConfigurationError(
                f"max_tokens is {self.max_tokens}; use 1 or more, or None for the default"
            )
        part = cast("object", self.tell_budget_from)
        if part is not None and (not isinstance(part, int | float) or not 0 <= part <= 1):
            raise ConfigurationError(
                f"tell_budget_from is {part!r}; use a part of a limit, 0 to 1, or None to tell nothing"
            )
        share = cast("object", self.compact_from)
        if share is not None and (not isinstance(share, int | float) or not 0 < share <= 1):
            raise ConfigurationError(
                f"compact_from is {share!r}; use a part of the context window, above 0 and at most 1, or "
                "None to compact when asked alone"
            )
        self.tool_limits.check("tool_limits")

    def check_tools(self, has_tools: bool) -> None:
        """Raise ConfigurationError when a tool has to be used and there is none."""
        if self.tool_use_only and not has_tools:
            raise ConfigurationError("tool_use_only needs at least one tool; pass tools=[...]")
