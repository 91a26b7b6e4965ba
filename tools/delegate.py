"""`delegate`: the model hands tasks to sub-conversations, several at once, and reads what comes of them.

The delegates are started within the call, so the conversation closes them when the call ends, however
that is. This module only waits for them, and holds no CPU while it does.

Layer: tools; no Ray. A conversation is known by its handle alone, and its answers by what they hold.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

from palaver.providers.errors import PalaverError
from palaver.providers.messages import Text
from palaver.tools.call import ToolCallInfo
from palaver.tools.errors import ToolDefinitionError, ToolError, ToolInputInvalid
from palaver.tools.limits import ToolLimits
from palaver.tools.tool import Tool

DEFAULT_MAX_OUTPUT_BYTES = 200_000
"""About 50,000 tokens for the answers of one call together: a quarter of a common context window."""

SYSTEM_PROMPT = (
    "You do one task for another agent, which has told you all that you know of it. Nobody can answer "
    "questions. Your last message is all that the other agent gets to see: put the whole result into it, "
    "and say what you could not do."
)
"""What a delegate is told beside its task."""

_MAX_LABEL_CHARS = 60


class DelegatedTask(BaseModel):
    """A task for one delegate."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    task: str = Field(
        min_length=1,
        description="Complete instructions. The delegate knows nothing else: neither this conversation nor "
        "the other tasks.",
    )
    label: str = Field(default="", description="A few words that tell this task from the others.")
    tools: list[str] | None = Field(
        default=None,
        description="Names of your own tools that the delegate gets; [] for none. All of them when left out.",
    )
    budget_share: float | None = Field(
        default=None,
        gt=0,
        le=1,
        description="The part of what is left of your budget that the delegate may spend, such as 0.25. "
        "All of it when left out.",
    )

    @property
    def shown_as(self) -> str:
        """What it is called in trees and in the result: the label, or else how the task begins."""
        words = " ".join((self.label or self.task).split())
        return words if len(words) <= _MAX_LABEL_CHARS else words[: _MAX_LABEL_CHARS - 1] + "…"


def delegate_tool(
    *,
    name: str = "delegate",
    max_depth: int = 3,
    max_fan_out: int = 8,
    system_prompt: str = SYSTEM_PROMPT,
    max_output_bytes: int = DEFAULT_MAX_OUTPUT_BYTES,
    timeout_s: float = math.inf,
) -> Tool[..., Any]:
    """A tool with which a model starts sub-conversations of its own and gets their answers.

    `max_depth` is how deep a delegate may be in the tree, whose root is at 0. `max_fan_out` is how many
    delegates of one conversation may run at once, in one call and over all its calls of this tool. What
    goes beyond is refused with a text for the model; nothing is started then. The two bound a tree at
    `max_fan_out ** max_depth` delegates at its lowest level, each with a process of its own, so a budget
    should bound it further.

    `system_prompt` is that of the delegates; `max_output_bytes` of UTF-8 are for all answers of a call
    together, of which each has an equal part and is cut in its middle beyond it. `timeout_s` is for a
    whole call; there is none unless given, whatever `tool_limits` say, since delegates take as long as
    their work and a call that times out loses it.

    Raises ToolDefinitionError for a depth or a fan-out below 1.
    """
    for limit_name, limit in (("max_depth", max_depth), ("max_fan_out", max_fan_out)):
        if limit < 1:
            raise ToolDefinitionError(f"{limit_name} of tool {name!r} is {limit}; use 1 or more")
    return Tool(
        _Delegate(max_depth, max_fan_out, system_prompt, max_output_bytes),
        name=name,
        description=(
            "Hand tasks to delegates: agents like you, each with a context of its own, which work at the "
            "same time. Use it for parts of your work that do not depend on each other, or whose details "
            f"you need not see. Waits for all, and returns what each answered. At most {max_fan_out} tasks "
            f"at once; delegates can delegate too, {max_depth} levels deep. What they spend is part of "
            "your budget, and they work on the same files as you."
        ),
        limits=ToolLimits(timeout_s=timeout_s, max_output_bytes=max_output_bytes),
    )


@dataclass(frozen=True)
class _Delegate:
    """What the tool calls."""

    max_depth: int
    max_fan_out: int
    system_prompt: str
    max_output_bytes: int

    async def __call__(
        self,
        tasks: Annotated[
            list[DelegatedTask], Field(min_length=1, description="One delegate is started for each.")
        ],
        info: ToolCallInfo,
    ) -> list[Text]:
        """Run each task in a sub-conversation; one content for each, in their order.

        Raises ToolError for what is refused, and when every delegate failed.
        """
        # Late, because only a process that runs tools needs Ray.
        from palaver.tools.task import reply

        convo, tool_name = info.convo, info.tool_name
        if convo is None:
            raise ToolError(
                tool_name,
                "no delegate was started: this conversation runs inside another program and cannot have "
                "any (only a palaver.actors.Convo can). Do the tasks yourself.",
            )
        if len(tasks) > self.max_fan_out:
            raise ToolError(
                tool_name,
                f"no delegate was started: {len(tasks)} tasks were given, and at most {self.max_fan_out} "
                "delegates may run at once. Put small tasks together, or call again with the rest after "
                "these.",
            )
        depth, own_tools = await asyncio.gather(
            reply(convo.depth.remote(), tool_name), reply(convo.tool_names.remote(), tool_name)
        )
        if depth >= self.max_depth:
            raise ToolError(
                tool_name,
                f"no delegate was started: this conversation is at depth {depth}, and delegates may be at "
                f"depth {self.max_depth} at most (the root is at 0). Do the tasks yourself.",
            )
        # The lowest delegates could not use this tool.
        inherited = [each for each in own_tools if each != tool_name or depth + 1 < self.max_depth]
        _check_tools(tasks, own_tools, tool_name)
        options = [
            {
                "system_prompt": self.system_prompt,
                "tools": inherited if each.tools is None else each.tools,
                "budget_share": each.budget_share,
                "label": each.shown_as,
                "within_call": info.tool_use_id,
            }
            for each in tasks
        ]
        try:
            delegates = await reply(convo.sub_convos.remote(options, at_most=self.max_fan_out), tool_name)
        except PalaverError as error:
            raise ToolError(tool_name, f"no delegate was started: {error}") from error
        runs = [_run(each, task, tool_name) for each, task in zip(delegates, tasks, strict=True)]
        ended = await asyncio.gather(*runs)
        share = self.max_output_bytes // len(ended)
        texts = [_cut(each.told(number, len(ended)), share) for number, each in enumerate(ended, 1)]
        if all(each.failed for each in ended):
            raise ToolError(tool_name, "\n\n".join(["every delegate failed", *texts]))
        return [Text(text=text) for text in texts]


def _check_tools(tasks: Sequence[DelegatedTask], own_tools: Sequence[str], tool_name: str) -> None:
    problems = [
        f"tasks.{index}.tools: you have no tool {name!r}"
        for index, each in enumerate(tasks)
        for name in each.tools or ()
        if name not in own_tools
    ]
    if problems:
        raise ToolInputInvalid(
            tool_name,
            f"no delegate was started: {'; '.join(problems)}. Your tools: {', '.join(own_tools)}. Correct "
            "the names and call again.",
        )


@dataclass(frozen=True, slots=True)
class _Ended:
    """How a delegate ended. `usage` is None when it could not tell any more."""

    label: str
    how: str
    text: str
    usage: Any
    failed: bool = False

    def told(self, number: int, of: int) -> str:
        """That as the model reads it: a line of facts, and the answer."""
        return f"[{number} of {of}] {self.label}: {self.how}; {_used(self.usage)}\n{self.text}".rstrip()


def _used(usage: Any) -> str:
    if usage is None:
        return "used: unknown"
    cost = usage.total_cost_usd
    return f"used: {usage.responses} responses, {'unknown cost' if cost is None else f'${cost:f}'}"


async def _run(convo: Any, task: DelegatedTask, tool_name: str) -> _Ended:
    """Run a task to its end, whichever it is. What fails is told, and harms no other."""
    from palaver.tools.task import reply

    label = task.shown_as
    try:
        result = await reply(convo.run.remote(task.task), tool_name)
    except Exception as error:
        usage = None
        with suppress(Exception):
            usage = await reply(convo.cumulative_usage.remote(), tool_name)
        ended = _Ended(label, "error", f"{type(error).__name__}: {error}", usage, failed=True)
    else:
        how = result.stop if result.finished else f"stopped before it had finished ({result.stop})"
        how += f": {result.detail}" if result.detail else ""
        ended = _Ended(label, how, result.text, result.usage)
    with suppress(Exception):  # then the conversation closes it when this call ends
        await reply(convo.close.remote(), tool_name)
    return ended


def _cut(text: str, max_bytes: int) -> str:
    """The text, or its start and its end."""
    data = text.encode(errors="replace")
    if len(data) <= max_bytes:
        return text
    half = max(0, max_bytes - len(f"\n[{len(data)} bytes left out]\n")) // 2
    start, end = data[:half], data[len(data) - half :]
    note = f"\n[{len(data) - 2 * half} bytes left out]\n"
    return start.decode(errors="ignore") + note + end.decode(errors="ignore")


delegate = delegate_tool()
"""`delegate_tool()` with its defaults."""
