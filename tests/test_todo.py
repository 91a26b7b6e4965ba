"""The model's list of what it has to do."""

from __future__ import annotations

from typing import Any

import pytest

from palaver.providers.messages import ToolUse
from palaver.tools.errors import ToolInputInvalid
from palaver.tools.outcome import Outcome
from palaver.tools.todo import MAX_ITEM_CHARS, MAX_ITEMS, STATE_KEY, todo
from palaver.tools.toolset import InlineToolset


class Model:
    """Calls the tool as a model does, in one conversation."""

    def __init__(self) -> None:
        self._tools = InlineToolset([todo])

    async def calls(self, **tool_input: Any) -> Outcome:
        return await self._tools.run(ToolUse(id="1", name="todo", input=tool_input))

    async def sees(self, **tool_input: Any) -> str:
        outcome = await self.calls(**tool_input)
        assert outcome.error is None
        return outcome.to_result("1").text


PLAN = [
    {"text": "read", "status": "done"},
    {"text": "write", "status": "in_progress"},
    {"text": "check"},
    {"text": "send", "status": "pending"},
]

SHOWN = "4 tasks: 1 done, 1 in progress, 2 pending\n1. [x] read\n2. [>] write\n3. [ ] check\n4. [ ] send"


async def test_the_list_is_shown_with_counts_and_kept_for_later_calls() -> None:
    model = Model()
    assert await model.sees() == "The list is empty."
    assert await model.sees(items=PLAN) == SHOWN
    assert await model.sees() == SHOWN
    assert await model.sees(items=None) == SHOWN


async def test_each_call_replaces_the_whole_list_and_an_empty_one_clears_it() -> None:
    model = Model()
    await model.sees(items=PLAN)
    assert await model.sees(items=[{"text": "rest"}]) == "1 task: 1 pending\n1. [ ] rest"
    outcome = await model.calls(items=[])
    assert outcome.state == {STATE_KEY: None}
    assert await model.sees() == "The list is empty."


async def test_the_list_is_kept_as_plain_values_and_only_looking_changes_nothing() -> None:
    model = Model()
    outcome = await model.calls(items=PLAN[:2])
    assert outcome.state == {STATE_KEY: PLAN[:2]}
    assert (await model.calls()).state == {}


async def test_text_is_kept_in_one_line() -> None:
    assert await Model().sees(items=[{"text": " a\n  b\tc "}]) == "1 task: 1 pending\n1. [ ] a b c"


@pytest.mark.parametrize(
    ("items", "message"),
    [
        (
            [{"text": "a", "status": "in_progress"}, {"text": "b"}, {"text": "c", "status": "in_progress"}],
            "items 1, 3 are in_progress; at most one may be",
        ),
        ([{"text": "a"}, {"text": " \n"}], "item 2 has no text"),
        ([{"text": ""}], "items.0.text: String should have at least 1 character"),
        ([{"text": "a" * (MAX_ITEM_CHARS + 1)}], "at most 300 characters"),
        ([{"text": "a"}] * (MAX_ITEMS + 1), "at most 50 items"),
        ([{"text": "a", "status": "finished"}], "'pending', 'in_progress' or 'done'"),
        ([{"text": "a", "priority": 1}], "items.0.priority: not allowed here"),
        (["a"], "items.0: "),
    ],
)
async def test_what_is_no_list_is_refused_and_the_list_stays_as_it_was(items: Any, message: str) -> None:
    model = Model()
    await model.sees(items=PLAN)
    outcome = await model.calls(items=items)
    assert isinstance(outcome.error, ToolInputInvalid)
    assert message in str(outcome.error)
    assert await model.sees() == SHOWN


async def test_a_list_at_its_limits_is_taken() -> None:
    items = [{"text": f"{number}".ljust(MAX_ITEM_CHARS, "x")} for number in range(MAX_ITEMS)]
    assert (await Model().sees(items=items)).startswith("50 tasks: 50 pending\n1. [ ] 0xxx")
