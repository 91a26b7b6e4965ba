"""The tool `todo`: a model's list of what it has to do, kept between its calls.

The list is in the conversation's state under STATE_KEY, as JSON: `[{"text": ..., "status": ...}, ...]`.

Layer: tools; no Ray.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal, TypeAlias

from pydantic import Field, TypeAdapter

from palaver.providers.messages import Value
from palaver.tools.call import ToolCallInfo
from palaver.tools.errors import ToolInputInvalid
from palaver.tools.tool import tool

STATE_KEY = "todo.items"

MAX_ITEMS = 50
"""More is no plan any more; and every call sends, and every result shows, the whole list."""

MAX_ITEM_CHARS = 300


Status: TypeAlias = Literal["pending", "in_progress", "done"]
"""How far a task is."""

_MARKS: dict[Status, str] = {"done": "[x]", "in_progress": "[>]", "pending": "[ ]"}


class Task(Value):
    """One thing to do, in one line."""

    text: Annotated[str, Field(min_length=1, max_length=MAX_ITEM_CHARS, description="What is to be done.")]
    status: Status = "pending"


_TASKS: TypeAdapter[list[Task]] = TypeAdapter(list[Task], config={"defer_build": True})


# A call that came to nothing may happen again: it puts the same list in the same place.
@tool(retries=1)
def todo(info: ToolCallInfo, items: Annotated[list[Task], Field(max_length=MAX_ITEMS)] | None = None) -> str:
    """Keep the list of what you have to do.

    Use it for work of three steps or more, and when you are given several things at once; not for what is
    done in one step.

    Write the list before you begin. Mark a task in_progress when you begin it, one at a time, and done as
    soon as it is done, not before. Add what turns out to be needed. Each call replaces the whole list, so
    give all of it, with what is done; without items it shows the list.

    Args:
        items: The whole list, in the order of work. An empty one clears it; leave it out to see the list.
    """
    if items is None:
        return _shown(_TASKS.validate_python(info.state.get(STATE_KEY, [])))
    tasks = [task.model_copy(update={"text": " ".join(task.text.split())}) for task in items]
    blank = [number for number, task in enumerate(tasks, 1) if not task.text]
    if blank:
        raise ToolInputInvalid(
            info.tool_name, f"item {blank[0]} has no text; say what is to be done. The list is as it was."
        )
    at_work = [number for number, task in enumerate(tasks, 1) if task.status == "in_progress"]
    if len(at_work) > 1:
        raise ToolInputInvalid(
            info.tool_name,
            f"items {', '.join(map(str, at_work))} are in_progress; at most one may be. Keep the one you "
            "work on now, and make the others pending, or done where they are. The list is as it was.",
        )
    if tasks:
        info.state[STATE_KEY] = [task.model_dump(mode="json") for task in tasks]
    else:
        info.state.pop(STATE_KEY, None)
    return _shown(tasks)


def _shown(tasks: Sequence[Task]) -> str:
    """The list with its counts, for the model to read."""
    if not tasks:
        return "The list is empty."
    counts = [
        f"{count} {status.replace('_', ' ')}"
        for status in _MARKS
        if (count := sum(task.status == status for task in tasks))
    ]
    many = "1 task" if len(tasks) == 1 else f"{len(tasks)} tasks"
    lines = [f"{number}. {_MARKS[task.status]} {task.text}" for number, task in enumerate(tasks, 1)]
    return "\n".join([f"{many}: {', '.join(counts)}", *lines])
