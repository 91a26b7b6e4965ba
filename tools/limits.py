"""How much a tool call may take of time, text and places.

Layer: tools; no Ray.
"""

from __future__ import annotations

import math
from typing import Self

from palaver.providers.messages import Value
from palaver.tools.errors import ToolDefinitionError

DEFAULT_MAX_OUTPUT_BYTES = 1_000_000
"""About 250,000 tokens: more text than that fits no model's context window with anything beside it."""


class ToolLimits(Value):
    """Limits of each call of a tool. What is None is decided elsewhere: by the conversation's own
    `tool_limits`, and where those are silent too, there is none (but for the output: 1,000,000 bytes).

    `timeout_s`: seconds from the start of the call; `math.inf` for no limit, whatever the conversation
    says. `max_output_bytes`: UTF-8 of all text a call returns. `max_per_node`: how many calls of this
    tool run at once on a node, whoever makes them (Linux); a call beyond it waits for one to end, and
    its timeout counts from then. Raises ToolDefinitionError for limits that are none.
    """

    timeout_s: float | None = None
    max_output_bytes: int | None = None
    max_per_node: int | None = None

    def check(self, whose: str) -> None:
        """Raise ToolDefinitionError for a limit that is none; `whose` names who sets it."""
        if self.timeout_s is not None and (math.isnan(self.timeout_s) or self.timeout_s <= 0):
            raise ToolDefinitionError(
                f"timeout_s of {whose} is {self.timeout_s}; use seconds above 0, or math.inf for no limit"
            )
        for name in ("max_output_bytes", "max_per_node"):
            limit = getattr(self, name)
            if limit is not None and limit < 1:
                raise ToolDefinitionError(f"{name} of {whose} is {limit}; use 1 or more")

    def or_else(self, default: ToolLimits) -> Self:
        """These limits, and where they are silent those of `default`."""
        own = {name: value for name, value in self if value is not None}
        return self.model_copy(update={**dict(default), **own})

    @property
    def seconds(self) -> float | None:
        """The timeout; None for no limit."""
        return None if self.timeout_s == math.inf else self.timeout_s

    @property
    def output_bytes(self) -> int:
        """How much text a call may return."""
        return self.max_output_bytes or DEFAULT_MAX_OUTPUT_BYTES
