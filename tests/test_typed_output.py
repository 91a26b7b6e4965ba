"""Answers of a type: what the model is asked, what is taken for its answer, and what comes back."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import pickle
import sys
import types
from collections.abc import Sequence
from datetime import date
from typing import Any, Literal, assert_type

import pytest
from kinds import Kind
from pydantic import BaseModel, Field
from typing_extensions import TypedDict

from palaver.actors import Budget, RunResult, reply
from palaver.actors.conversation import Conversation
from palaver.actors.settings import Settings
from palaver.actors.typed_output import ACCEPTED, ANSWER_TOOL, OutputInvalid, OutputType
from palaver.providers.errors import ConfigurationError
from palaver.providers.local import Local
from palaver.providers.messages import Message, ToolUse
from palaver.providers.provider import (
    OutputBy,
    OutputSchema,
    Provider,
    Request,
    Response,
    StopReason,
    TakesOutputSchema,
    ToolChoice,
)
from palaver.providers.scripted import Reply, Scripted
from palaver.tools import DoNotRespond, Tool, tool
from palaver.tools.toolset import InlineToolset


class Pet(BaseModel):
    """An animal."""

    name: str
    legs: int = Field(ge=0, le=8)


@dataclasses.dataclass
class Point:
    x: int
    y: int = 0


class Movie(TypedDict):
    title: str
    year: int


class Node(BaseModel):
    value: int
    children: list[Node] = []


REX = '{"name": "Rex", "legs": 4}'
NO_LEGS = '{"name": "Rex"}'


@tool
async def echo(text: str) -> str:
    """Give the text back."""
    return text


@tool
def done() -> None:
    """Want no answer."""
    raise DoNotRespond


def final(call_id: str = "a1", /, **input: Any) -> ToolUse:
    return ToolUse(id=call_id, name=ANSWER_TOOL, input=input)


def rex(call_id: str = "a1") -> ToolUse:
    return final(call_id, name="Rex", legs=4)


def convo(
    *replies: Reply, by: OutputBy = "tool", tools: Sequence[Tool[..., Any]] = (), **settings: Any
) -> Conversation:
    return Conversation(Scripted(replies, output_by=by), InlineToolset(tools), Settings(**settings))


def requests_of(conversation: Conversation) -> list[Request]:
    provider = conversation.provider
    assert isinstance(provider, Scripted)
    return provider.requests


# Answers that fit


@pytest.mark.parametrize(("by", "given"), [("tool", rex()), ("schema", REX)])
async def test_an_answer_that_fits_is_the_output(by: OutputBy, given: Reply) -> None:
    result = await convo(given, by=by).run("Which pet?", output_type=Pet)
    assert_type(result, RunResult[Pet])
    assert result.output == Pet(name="Rex", legs=4)
    assert (result.stop, result.detail, result.responses) == ("end_turn", None, 1)
    assert result.finished


async def test_a_run_without_a_type_has_no_output_and_asks_for_none() -> None:
    conversation = convo(REX, by="schema")
    result = await conversation.run("Which pet?")
    assert_type(result, RunResult[None])
    assert result.output is None
    assert requests_of(conversation)[0].output_schema is None
    assert requests_of(conversation)[0].tools == ()


async def test_by_schema_every_request_carries_the_schema_and_no_tool_more() -> None:
    look = ToolUse(id="t1", name="echo", input={"text": "x"})
    conversation = convo(look, REX, by="schema", tools=[echo])
    await conversation.run("Which pet?", output_type=Pet)
    schema = OutputSchema(
        name="Pet",
        json_schema={
            "description": "An animal.",
            "properties": {
                "name": {"type": "string"},
                "legs": {"maximum": 8, "minimum": 0, "type": "integer"},
            },
            "required": ["name", "legs"],
            "type": "object",
        },
    )
    assert [each.output_schema for each in requests_of(conversation)] == [schema] * 2
    assert [[spec.name for spec in each.tools] for each in requests_of(conversation)] == [["echo"]] * 2
    assert [each.tool_choice for each in requests_of(conversation)] == [None, None]


async def test_by_tool_the_answer_is_demanded_at_once_where_there_is_nothing_else_to_call() -> None:
    conversation = convo(rex())
    await conversation.run("Which pet?", output_type=Pet)
    (request,) = requests_of(conversation)
    (spec,) = request.tools
    assert spec.input_schema == OutputType(Pet).json_schema
    assert request.tool_choice == ToolChoice(type="tool", name=ANSWER_TOOL, parallel=False)
    assert request.output_schema is None


async def test_by_tool_the_model_may_call_others_first() -> None:
    look = ToolUse(id="t1", name="echo", input={"text": "four legs"})
    conversation = convo(look, rex(), tools=[echo])
    result = await conversation.run("Which pet?", output_type=Pet)
    assert result.output == Pet(name="Rex", legs=4)
    assert [[spec.name for spec in each.tools] for each in requests_of(conversation)] == [
        ["echo", ANSWER_TOOL]
    ] * 2
    assert [each.tool_choice for each in requests_of(conversation)] == [None, None]
    assert result.usage.tool_uses == {"echo": 1}


async def test_text_that_fits_is_taken_by_tool_too() -> None:
    result = await convo(f"Here it is:\n```json\n{REX}\n```", by="tool").run("Which?", output_type=Pet)
    assert (result.output, result.responses) == (Pet(name="Rex", legs=4), 1)


async def test_an_answer_at_a_stop_sequence_is_one() -> None:
    given = Response(message=Message.assistant(REX), stop_reason=StopReason.STOP_SEQUENCE)
    result = await convo(given, by="schema").run("Which pet?", output_type=Pet)
    assert (result.stop, result.output) == ("stop_sequence", Pet(name="Rex", legs=4))


async def test_a_conversation_that_must_call_tools_answers_by_tool() -> None:
    conversation = convo(rex(), by="schema", tools=[echo], tool_use_only=True)
    result = await conversation.run("Which pet?", output_type=Pet)
    assert result.output == Pet(name="Rex", legs=4)
    assert requests_of(conversation)[0].tool_choice == ToolChoice(type="any")


# Answers that do not fit


async def test_by_tool_a_wrong_answer_is_an_error_result_and_asked_for_again() -> None:
    conversation = convo(final("a1", name="Rex"), rex("a2"), tools=[echo])
    result = await conversation.run("Which pet?", output_type=Pet)
    assert (result.output, result.responses) == (Pet(name="Rex", legs=4), 2)
    (told,) = requests_of(conversation)[1].messages[-1].tool_results
    assert (told.tool_use_id, told.is_error) == ("a1", True)
    assert told.text == (
        "The answer was not accepted: legs: Field required. Correct it and call final_answer again."
    )


async def test_by_schema_a_wrong_answer_is_asked_for_again_in_a_message() -> None:
    conversation = convo('{"name": "Rex", "legs": 9}', REX, by="schema")
    result = await conversation.run("Which pet?", output_type=Pet)
    assert (result.output, result.responses) == (Pet(name="Rex", legs=4), 2)
    assert requests_of(conversation)[1].messages[-1] == Message.user(
        "The answer was not accepted: legs: Input should be less than or equal to 8 (got 9). Answer again, "
        "corrected, with nothing but the JSON object."
    )


async def test_by_tool_text_is_answered_with_a_demand_to_call_it() -> None:
    conversation = convo("It is Rex.", rex(), tools=[echo])
    result = await conversation.run("Which pet?", output_type=Pet)
    assert result.output == Pet(name="Rex", legs=4)
    first, second = requests_of(conversation)
    assert first.tool_choice is None
    assert second.tool_choice == ToolChoice(type="tool", name=ANSWER_TOOL, parallel=False)
    assert "by calling the tool final_answer" in second.messages[-1].text


@pytest.mark.parametrize(
    ("by", "given", "last"),
    [
        ("tool", final(name="Rex"), "final_answer: legs: Field required"),
        ("tool", "Rex!", "did not call final_answer, and of its text: it is no JSON object"),
        ("schema", NO_LEGS, "the text: legs: Field required"),
        ("schema", "", "the text: it is no JSON object"),
        (
            "tool",
            ToolUse(id="a", name=ANSWER_TOOL, malformed_input="{oops"),
            "final_answer: its input was no JSON object",
        ),
    ],
)
@pytest.mark.parametrize("retries", [0, 2])
async def test_a_model_that_never_fits_is_asked_so_many_times(
    by: OutputBy, given: Reply, last: str, retries: int
) -> None:
    conversation = convo(*[given] * 9, by=by)
    result = await conversation.run("Which pet?", output_type=Pet, output_retries=retries)
    assert (result.stop, result.output, result.finished) == ("invalid_output", None, False)
    assert result.responses == retries + 1 == result.usage.responses
    assert result.detail is not None
    assert result.detail.startswith("the answer does not fit Pet: ")
    assert last in result.detail
    assert len(conversation.transcript.messages) == 2 * (retries + 1)


async def test_an_answer_beside_other_calls_is_refused_while_they_run() -> None:
    look = ToolUse(id="t1", name="echo", input={"text": "four legs"})
    conversation = convo([rex("a1"), look], rex("a2"), tools=[echo])
    result = await conversation.run("Which pet?", output_type=Pet)
    assert (result.output, result.responses) == (Pet(name="Rex", legs=4), 2)
    refused, looked = requests_of(conversation)[1].messages[-1].tool_results
    assert (refused.tool_use_id, refused.is_error) == ("a1", True)
    assert "call it alone, after their results" in refused.text
    assert (looked.tool_use_id, looked.text) == ("t1", "four legs")


async def test_answers_beside_other_calls_are_bounded_too_and_the_others_have_run() -> None:
    look = ToolUse(id="t1", name="echo", input={"text": "four legs"})
    conversation = convo([rex(), look], "next", tools=[echo])
    result = await conversation.run("Which pet?", output_type=Pet, output_retries=0)
    assert (result.stop, result.output) == ("invalid_output", None)
    await conversation.send_user_text_message("Go on.")
    assert [each.is_error for each in requests_of(conversation)[-1].messages[-1].tool_results] == [
        True,
        False,
    ]


async def test_two_answers_at_once_are_none() -> None:
    conversation = convo([rex("a1"), rex("a2")], rex("a3"))
    result = await conversation.run("Which pet?", output_type=Pet)
    assert (result.output, result.responses) == (Pet(name="Rex", legs=4), 2)
    assert len(requests_of(conversation)[1].messages[-1].tool_results) == 2


# Ends without an answer


@pytest.mark.parametrize("by", ["tool", "schema"])
@pytest.mark.parametrize("reason", [StopReason.MAX_TOKENS, StopReason.REFUSAL, StopReason.CONTEXT_FULL])
async def test_what_was_cut_short_is_no_answer_however_it_reads(by: OutputBy, reason: StopReason) -> None:
    given = Response(message=Message.assistant(REX), stop_reason=reason)
    result = await convo(given, by=by).run("Which pet?", output_type=Pet)
    assert (result.stop, result.output, result.responses) == (reason.value, None, 1)


async def test_a_call_of_the_answer_that_was_cut_is_not_read() -> None:
    given = Response(message=Message.assistant(rex()), stop_reason=StopReason.MAX_TOKENS)
    result = await convo(given).run("Which pet?", output_type=Pet)
    assert (result.stop, result.output) == ("max_tokens", None)


async def test_tools_that_want_no_answer_still_end_a_run() -> None:
    given = ToolUse(id="t1", name="done")
    result = await convo(given, tools=[done]).run("Which pet?", output_type=Pet)
    assert (result.stop, result.output) == ("no_response", None)


async def test_the_budget_holds_for_each_try_and_the_fault_is_told_later() -> None:
    conversation = convo(final("a1", name="Rex"), rex("a2"), budget=Budget(max_responses=1))
    result = await conversation.run("Which pet?", output_type=Pet)
    assert (result.stop, result.output, result.responses) == ("budget", None, 1)
    await conversation.reset_budget(Budget(max_responses=1))
    result = await conversation.run("", output_type=Pet)
    assert result.output == Pet(name="Rex", legs=4)
    (told,) = requests_of(conversation)[1].messages[-1].tool_results
    assert "legs: Field required" in told.text


async def test_a_cancel_in_the_middle_ends_the_run_without_an_answer() -> None:
    asked = asyncio.Event()

    class Slow(Scripted):
        async def generate(self, request: Request) -> Response:
            response = await super().generate(request)
            if len(self.requests) == 2:
                asked.set()
                await asyncio.Event().wait()
            return response

    conversation = Conversation(Slow([final("a1", name="Rex"), rex("a2"), rex("a3")]), InlineToolset([]))
    running = asyncio.create_task(conversation.run("Which pet?", output_type=Pet))
    await asked.wait()
    await conversation.cancel("enough")
    result = await running
    assert (result.stop, result.detail, result.output) == ("cancelled", "enough", None)
    again = await conversation.run("And now?", output_type=Pet)
    assert again.output == Pet(name="Rex", legs=4)


# What stays


async def test_a_conversation_goes_on_after_an_answer_by_tool() -> None:
    conversation = convo(rex(), "You are welcome.")
    await conversation.run("Which pet?", output_type=Pet)
    result = await conversation.run("Thanks.")
    assert (result.stop, result.text) == ("end_turn", "You are welcome.")
    last = requests_of(conversation)[-1]
    (accepted,) = last.messages[-1].tool_results
    assert (accepted.tool_use_id, accepted.text, accepted.is_error) == ("a1", ACCEPTED, False)
    assert last.messages[-1].text == "Thanks."
    assert (last.tools, last.tool_choice, last.output_schema) == ((), None, None)


async def test_runs_of_one_conversation_may_have_different_types() -> None:
    conversation = convo(REX, "fine", '{"answer": [1]}', by="schema")
    assert (await conversation.run("Which pet?", output_type=Pet)).output == Pet(name="Rex", legs=4)
    assert (await conversation.run("How is it?")).text == "fine"
    assert (await conversation.run("Numbers?", output_type=list[int])).output == [1]


async def test_the_answers_tool_makes_way_for_a_tool_of_that_name() -> None:
    @tool(name=ANSWER_TOOL)
    async def mine() -> str:
        """The user's own."""
        return "ran"

    numbered = ToolUse(id="a1", name="final_answer_2", input={"name": "Rex", "legs": 4})
    conversation = convo(final("t1"), numbered, tools=[mine])
    result = await conversation.run("Which pet?", output_type=Pet)
    assert result.output == Pet(name="Rex", legs=4)
    assert requests_of(conversation)[1].messages[-1].tool_results[0].text == "ran"


# Types


@pytest.mark.parametrize(
    ("output_type", "given", "output"),
    [
        (Point, '{"x": 3}', Point(3)),
        (Movie, '{"title": "Alien", "year": 1979}', {"title": "Alien", "year": 1979}),
        (list[int], '{"answer": [1, 2]}', [1, 2]),
        (int, '{"answer": 7}', 7),
        (date, '{"answer": "2026-11-01"}', date(2026, 11, 1)),
        (tuple[int, str], '{"answer": [1, "a"]}', (1, "a")),
        (Literal["red", "blue"], '{"answer": "red"}', "red"),
        (int | None, '{"answer": null}', None),
        (Pet | Point, '{"answer": {"x": 1, "y": 2}}', Point(1, 2)),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (
            Node,
            '{"answer": {"value": 1, "children": [{"value": 2}]}}',
            Node(value=1, children=[Node(value=2)]),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("by", ["tool", "schema"])
async def test_any_type_with_a_schema_may_be_asked_for(
    by: OutputBy, output_type: Any, given: str, output: object
) -> None:
    conversation = convo(given, by=by)
    result = await conversation.run("?", output_type=output_type)
    assert (result.stop, result.output) == ("end_turn", output)
    assert (await convo(final(**json.loads(given))).run("?", output_type=output_type)).output == output


async def test_a_wrapped_answer_has_nothing_beside_it() -> None:
    with pytest.raises(OutputInvalid, match=r"^more: not allowed here$"):
        OutputType(list[int]).read('{"answer": [1], "more": 2}')


def test_text_that_is_no_unicode_is_no_answer() -> None:
    with pytest.raises(OutputInvalid, match="no JSON object"):
        OutputType(Pet).read("\ud800")


@pytest.mark.parametrize(
    "not_a_type", [5, "Nowhere", lambda: 1, asyncio.Event], ids=["number", "name", "function", "class"]
)
async def test_what_has_no_schema_is_refused_before_anything_is_sent(not_a_type: Any) -> None:
    conversation = convo(REX)
    with pytest.raises(ConfigurationError, match=r"has no JSON schema: .*Pass a pydantic model"):
        await conversation.run("?", output_type=not_a_type)
    with pytest.raises(ConfigurationError, match="output_retries is -1; use 0 or more"):
        await conversation.run("?", output_type=Pet, output_retries=-1)
    assert requests_of(conversation) == []
    assert (await conversation.run("Still fine?")).text == REX


def test_a_result_pickles_with_its_output() -> None:
    result = asyncio.run(convo(REX, by="schema").run("?", output_type=Pet))
    assert pickle.loads(pickle.dumps(result)) == result
    assert '"output":{"name":"Rex","legs":4}' in result.model_dump_json()


# Providers


class Plain:
    """A provider as users wrote them before there were output types."""

    name = "plain"
    model = "plain-1"

    async def generate(self, request: Request) -> Response:
        assert request.output_schema is None
        return Response(message=Message.assistant(rex()))

    async def aclose(self) -> None:
        return None


async def test_a_provider_that_knows_nothing_of_schemas_is_asked_by_tool() -> None:
    provider = Plain()
    assert isinstance(provider, Provider)
    assert not isinstance(provider, TakesOutputSchema)
    result = await Conversation(provider, InlineToolset([])).run("?", output_type=Pet)
    assert result.output == Pet(name="Rex", legs=4)


# On Ray


async def test_types_travel_to_the_conversation_and_values_back(
    kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Dog(BaseModel):
        """Of this function alone: no process could import it."""

        name: str
        mother: Pet | None = None

    def script(request: Request) -> Reply:
        if request.tools:
            return final(name="Rex", legs=4)
        return f'{{"name": "Fido", "mother": {REX}}}'

    by_schema = await kind.convo(Scripted(script, output_by="schema"))
    by_tool = await kind.convo(Scripted(script))
    result = await by_schema.run.remote("Which dog?", output_type=Dog)
    assert_type(result, RunResult[Dog])
    assert isinstance(result.output, Dog)
    assert result.output == Dog(name="Fido", mother=Pet(name="Rex", legs=4))
    assert (await by_tool.run.remote("Which pet?", output_type=Pet)).output == Pet(name="Rex", legs=4)
    assert (await by_tool.run.remote("Which dog?", output_type=Dog, output_retries=0)).output == Dog(
        name="Rex"
    )
    OfMain = type("OfMain", (Dog,), {"__module__": "__main__"})  # noqa: N806
    assert isinstance((await by_schema.run.remote("?", output_type=OfMain)).output, OfMain)
    never = await by_schema.run.remote("Number?", output_type=int, output_retries=1)
    assert (never.stop, never.responses, never.output) == ("invalid_output", 2, None)

    nowhere = types.ModuleType("only_in_the_driver")
    Pet2 = type("Pet2", (Pet,), {"__module__": nowhere.__name__})  # noqa: N806
    nowhere.__dict__["Pet2"] = Pet2
    monkeypatch.setitem(sys.modules, nowhere.__name__, nowhere)
    with pytest.raises(ConfigurationError, match=r"'only_in_the_driver'\. A type's module"):
        await reply(by_tool.run.remote("?", output_type=Pet2))
    with pytest.raises(ConfigurationError, match="output_type 5 has no JSON schema"):
        await by_tool.run.remote("?", output_type=5)
    await asyncio.gather(by_schema.close.remote(), by_tool.close.remote())


# On a real model


@pytest.mark.local
async def test_a_small_model_held_to_a_schema_always_gives_an_answer_of_the_type() -> None:
    class Animal(BaseModel):
        kind: Literal["cat", "dog", "fish"]
        legs: int = Field(ge=0, le=8)
        tame: bool

    local = Local(context_tokens=1024)
    with local.hold():
        for prompt in ("Tell me about a dog.", "Write a poem.", "What is 2 + 2? Only the number.", "{"):
            result = await Conversation(local, InlineToolset([])).run(prompt, output_type=Animal)
            assert (result.stop, result.responses) == ("end_turn", 1), result
            assert isinstance(result.output, Animal)
        await local.aclose()
