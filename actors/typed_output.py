"""The answer of a run as a value of a type: how it is asked for, checked, and asked for again.

By schema, the provider holds the text of the answer to the type's JSON schema, and the text is read. By
tool, the model gives the answer as the input of a tool that only a typed run has: it is never run, and
its call is answered here. Which of them, the provider says; both end in the same check.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError, create_model

from palaver.actors.result import RunStop
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Content, Text, ToolResult, ToolUse
from palaver.providers.provider import (
    OutputBy,
    OutputSchema,
    Provider,
    Request,
    Response,
    StopReason,
    TakesOutputSchema,
    ToolChoice,
    ToolSpec,
)
from palaver.tools.schema import problems_in, schema_of, why_no_schema

OUTPUT_RETRIES = 2
"""How often an answer that does not fit is asked for again, unless told otherwise."""

ANSWER_TOOL = "final_answer"
ACCEPTED = "The answer was accepted."
"""The result of the call that gave the answer."""

_CUT_SHORT = (StopReason.MAX_TOKENS, StopReason.REFUSAL, StopReason.PAUSE, StopReason.CONTEXT_FULL)
"""What a model wrote before it was stopped is no answer, however it reads."""

_FENCED = re.compile(r"```[a-zA-Z]*\s*\n(.*?)```", re.DOTALL)


class OutputType:
    """A type that an answer has to be of, and its JSON schema. Any that pydantic's TypeAdapter takes.

    A type whose JSON is no object travels as the property `answer` of one, because providers take no
    schema of anything else. Raises ConfigurationError for a type without a JSON schema.
    """

    def __init__(self, type: Any) -> None:
        self.name = _name_of(type)
        try:
            if inspect.isroutine(type):
                raise TypeError("it is a function, and not a type")
            adapter = TypeAdapter[Any](type)
            schema = schema_of(adapter)
            self._is_wrapped = schema.get("type") != "object"
            if self._is_wrapped:
                wrapper: type[BaseModel] = create_model(
                    self.name, __config__=ConfigDict(extra="forbid"), answer=(type, ...)
                )
                adapter = TypeAdapter[Any](wrapper)
                schema = schema_of(adapter)
        except Exception as error:  # the type is the user's code, which can raise anything
            raise ConfigurationError(
                f"output_type {type!r} has no JSON schema: {why_no_schema(error)}. Pass a pydantic model, a "
                "dataclass, a TypedDict, or a type made of plain ones, such as list[int]"
            ) from error
        self._adapter = adapter
        self.json_schema = schema

    def read(self, text: str) -> Any:
        """The value in a JSON text, alone or in a code fence. Raises OutputInvalid."""
        whole = text.strip()
        fenced = _FENCED.findall(whole)
        if not whole.startswith(("{", "[")) and len(fenced) == 1:
            whole = str(fenced[0]).strip()
        try:
            value = self._adapter.validate_json(whole.encode(errors="replace"))
        except ValidationError as error:
            first = error.errors()[0]
            if first["type"] == "json_invalid":
                at = first["msg"].removeprefix("Invalid JSON: ")
                raise OutputInvalid(f"it is no JSON object ({at})") from error
            raise OutputInvalid(problems_in(error)) from error
        return value.answer if self._is_wrapped else value


class OutputInvalid(Exception):
    """An answer that is not of the type; the message tells the model what is wrong."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a response that gives an answer, right or wrong, asks of the conversation.

    Run `tool_calls`, keep `results`, which answer the other calls; then send all results with `contents`,
    unless there is a `stop`: with the `output`, or with the `detail` of what was wrong.
    """

    tool_calls: tuple[ToolUse, ...] = ()
    results: tuple[ToolResult, ...] = ()
    contents: tuple[Content, ...] = ()
    stop: RunStop | None = None
    output: Any = None
    detail: str | None = None


class TypedOutput:
    """The answer of one run: asked for with every request, read from every response.

    An answer may be wrong `retries` times before the run stops. By tool, the answer has to be called
    alone: beside other calls it was given without knowing their results, and is refused while they run.
    Text that fits is taken for the answer too; other text is answered with a demand to call the tool.
    """

    def __init__(
        self,
        type: OutputType,
        provider: Provider,
        tools: Sequence[ToolSpec],
        *,
        must_call_tools: bool = False,
        retries: int = OUTPUT_RETRIES,
    ) -> None:
        if retries < 0:
            raise ConfigurationError(f"output_retries is {retries}; use 0 or more")
        self._type = type
        self._schema = OutputSchema(name=type.name, json_schema=type.json_schema)
        self._retries_left = retries
        self._has_tools = bool(tools)
        self._tool = ToolSpec(
            name=_free_name(tools),
            description=(
                "Gives your final answer. Call it once you have all you need for that, with no other call "
                "beside it. Only this call ends the task; an answer in plain text does not count."
            ),
            input_schema=type.json_schema,
        )
        self._is_demanded = not tools
        self.by: OutputBy = "tool"
        # A model that has to call a tool every time never writes a text.
        if not must_call_tools and isinstance(provider, TakesOutputSchema):
            self.by = provider.output_by(self._schema, has_tools=self._has_tools)

    def asked_in(self, request: Request) -> Request:
        """The request with what makes the model give its answer in the type."""
        if self.by == "schema":
            return request.model_copy(update={"output_schema": self._schema})
        choice = request.tool_choice
        if self._is_demanded:
            # Providers whose models cannot be forced ask for it with "auto".
            choice = ToolChoice(type="tool", name=self._tool.name, parallel=False)
        return request.model_copy(update={"tools": (*request.tools, self._tool), "tool_choice": choice})

    def read(self, response: Response) -> Reading | None:
        """What to do about a response; None when it gives no answer, but calls tools or was cut short."""
        calls = response.message.tool_uses
        answers = [call for call in calls if self.by == "tool" and call.name == self._tool.name]
        if response.stop_reason is StopReason.MAX_TOKENS:
            return None
        if answers:
            others = tuple(call for call in calls if call not in answers)
            return self._of_calls(answers, others)
        if calls or response.stop_reason in _CUT_SHORT:
            return None
        return self._of_text(response)

    def _of_calls(self, answers: Sequence[ToolUse], others: tuple[ToolUse, ...]) -> Reading:
        try:
            if len(answers) > 1 or others:
                raise OutputInvalid("it came beside other calls; call it alone, after their results")
            output = self._type.read(_json_of(answers[0]))
        except OutputInvalid as invalid:
            told = f"The answer was not accepted: {invalid}. Correct it and call {self._tool.name} again."
            results = tuple(_result(call, told, is_error=True) for call in answers)
            return self._refused(f"{self._tool.name}: {invalid}", Reading(others, results))
        return Reading(results=(_result(answers[0], ACCEPTED),), stop="end_turn", output=output)

    def _of_text(self, response: Response) -> Reading:
        text = response.message.text
        try:
            output = self._type.read(text)
        except OutputInvalid as invalid:
            if self.by == "tool":
                self._is_demanded = True
                problem = f"the model did not call {self._tool.name}, and of its text: {invalid}"
                told = f"Give your final answer by calling the tool {self._tool.name}, not as text."
            else:
                problem = f"the text: {invalid}"
                told = (
                    f"The answer was not accepted: {invalid}. Answer again, corrected, with nothing but the "
                    "JSON object."
                )
            return self._refused(problem, Reading(contents=(Text(text=told),)))
        at_sequence = response.stop_reason is StopReason.STOP_SEQUENCE
        return Reading(stop="stop_sequence" if at_sequence else "end_turn", output=output)

    def _refused(self, problem: str, reading: Reading) -> Reading:
        """The reading of an answer that does not fit: the end of the run, once there are no retries left."""
        self._retries_left -= 1
        if self._retries_left >= 0:
            return reading
        detail = f"the answer does not fit {self._type.name}: {problem}"
        return replace(reading, stop="invalid_output", detail=detail)


def _json_of(call: ToolUse) -> str:
    """The input as JSON, which a type may read otherwise than Python values: dates, tuples, strict models."""
    if call.malformed_input is not None:
        raise OutputInvalid("its input was no JSON object")
    return json.dumps(call.input)


def _result(call: ToolUse, text: str, *, is_error: bool = False) -> ToolResult:
    return ToolResult(tool_use_id=call.id, content=(Text(text=text),), is_error=is_error)


def _free_name(tools: Sequence[ToolSpec]) -> str:
    """The name of the answer's tool; numbered where the user's tools have that name already."""
    taken = {each.name for each in tools}
    names = [ANSWER_TOOL, *(f"{ANSWER_TOOL}_{number}" for number in range(2, len(taken) + 2))]
    return next(name for name in names if name not in taken)


def _name_of(type: Any) -> str:
    """The type's name in the letters that providers allow: `Page[int]` is `Page_int`."""
    name = getattr(type, "__name__", "")
    return re.sub(r"[^a-zA-Z0-9_-]+", "_", name).strip("_")[:64] or "answer"
