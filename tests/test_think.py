"""The tool that is a place to think."""

from __future__ import annotations

from palaver.providers.messages import ToolUse
from palaver.tools.think import think
from palaver.tools.toolset import InlineToolset


async def test_a_thought_is_noted_and_changes_nothing() -> None:
    outcome = await InlineToolset([think]).run(ToolUse(id="1", name="think", input={"thought": "2 + 2 is 4"}))
    assert outcome.to_result("1").text == "Noted. Go on."
    assert (outcome.error, outcome.state, outcome.jobs) == (None, {}, ())


async def test_a_call_without_a_thought_says_what_it_needs() -> None:
    outcome = await InlineToolset([think]).run(ToolUse(id="1", name="think", input={}))
    assert "thought: Field required" in str(outcome.error)
