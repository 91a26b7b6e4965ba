"""From a function's signature and docstring to the JSON schema of a tool's input, and its check.

Layer: tools; no Ray.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import UnionType
from typing import Annotated, Any, Optional, Protocol, Union, cast, get_args, get_origin

from docstring_parser import ParseError, parse
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo
from pydantic.json_schema import GenerateJsonSchema

from palaver.tools.call import ToolCallInfo
from palaver.tools.errors import ToolDefinitionError, ToolInputInvalid
from palaver.tools.function import docstring_of, hints_of, parameters_of

_MAX_PROBLEMS = 10
"""How many faults of one input the model is told at once."""

_VALUES = frozenset({"default", "const", "enum", "examples"})
"""Keys of a schema under which stand values, and not schemas."""


class Signature(Protocol):
    """What a tool takes: its schema for the model, and the check of an input against it."""

    description: str
    input_schema: dict[str, Any]

    def bind(self, tool_input: Mapping[str, Any], info: ToolCallInfo) -> dict[str, Any]:
        """The keyword arguments for a call. Raises ToolInputInvalid, which tells the model what is wrong."""
        ...


class FunctionSignature:
    """The signature of a Python function: types and defaults from its parameters, descriptions from
    its docstring (Google, NumPy, ReST or Epydoc style) or a `Field(description=...)` in an annotation.

    Parameters annotated ToolCallInfo, which get the call's info, are not part of the schema, nor those
    that a functools.partial has filled. Raises ToolDefinitionError for parameters a model cannot fill:
    positional-only, `*args`, `**kwargs`, no annotation, or a type that has no JSON schema.
    """

    def __init__(self, tool_name: str, function: Callable[..., Any]) -> None:
        self._tool_name = tool_name
        self.description, described = _docs(function)
        hints = hints_of(tool_name, function)
        parameters = parameters_of(tool_name, function)
        self._info_parameters = _info_parameters(parameters, hints)
        fields: dict[str, Any] = {}
        for parameter in parameters:
            _check_parameter(tool_name, parameter, hints)
            if parameter.name not in self._info_parameters:
                hint, description = hints[parameter.name], described.get(parameter.name)
                fields[parameter.name] = _field(parameter, hint, description)
        self._names = {name: f"arg_{name}" for name in fields}
        self._model, self.input_schema = _model(tool_name, fields, self._names)

    def bind(self, tool_input: Mapping[str, Any], info: ToolCallInfo) -> dict[str, Any]:
        """The keyword arguments for a call. Raises ToolInputInvalid, which tells the model what is wrong."""
        try:
            checked = self._model.model_validate(dict(tool_input))
        except ValidationError as error:
            raise _invalid(self._tool_name, _problems(error, self._names)) from error
        arguments = {name: getattr(checked, field) for name, field in self._names.items()}
        return arguments | dict.fromkeys(self._info_parameters, info)


class JsonSignature:
    """A JSON schema written by hand, for a function that takes the input's properties as keywords.

    Raises ToolDefinitionError when it is no valid schema of an object, or has a property that the
    function does not take.
    """

    def __init__(self, tool_name: str, function: Callable[..., Any], input_schema: Mapping[str, Any]) -> None:
        from jsonschema import Draft202012Validator, SchemaError
        from jsonschema.validators import validator_for
        from referencing import Registry

        self._tool_name = tool_name
        self.description, _ = _docs(function)
        self.input_schema = _plain_json(tool_name, input_schema)
        validator = validator_for(self.input_schema, Draft202012Validator)
        try:
            validator.check_schema(self.input_schema)
        except SchemaError as error:
            raise ToolDefinitionError(
                f"the input schema of tool {tool_name!r} is no valid JSON schema: {error.message}"
            ) from error
        # A registry of its own: the default one fetches from the network what a schema refers to.
        self._validator = validator(self.input_schema, registry=Registry())
        parameters = parameters_of(tool_name, function)
        self._info_parameters = _info_parameters(parameters, hints_of(tool_name, function))
        self._parameters = inspect.Signature(parameters)
        taken = dict.fromkeys([*self.input_schema.get("properties", {}), *self._info_parameters])
        try:
            self._parameters.bind_partial(**taken)
        except TypeError as error:
            raise ToolDefinitionError(
                f"the function of tool {tool_name!r} does not fit its input schema: {error}"
            ) from error

    def bind(self, tool_input: Mapping[str, Any], info: ToolCallInfo) -> dict[str, Any]:
        """The keyword arguments for a call. Raises ToolInputInvalid, which tells the model what is wrong."""
        problems = [
            f"{_place(error.absolute_path)}: {_clip(error.message, 200)}"
            for error in self._validator.iter_errors(dict(tool_input))
        ]
        arguments = dict(tool_input) | dict.fromkeys(self._info_parameters, info)
        if not problems:
            try:
                self._parameters.bind(**arguments)
            except TypeError as error:
                problems.append(str(error))
        if problems:
            raise _invalid(self._tool_name, problems)
        return arguments


def _docs(function: Callable[..., Any]) -> tuple[str, dict[str, str | None]]:
    """The docstring's description, and those of the parameters."""
    text = docstring_of(function)
    try:
        docstring = parse(text)
    except ParseError:
        return text, {}
    parts = (docstring.short_description, docstring.long_description)
    description = "\n\n".join(part for part in parts if part)
    return description, {param.arg_name: param.description for param in docstring.params}


def _info_parameters(parameters: Iterable[inspect.Parameter], hints: Mapping[str, Any]) -> list[str]:
    return [each.name for each in parameters if _is_info(hints.get(each.name))]


def _is_info(hint: Any) -> bool:
    """Whether it is ToolCallInfo, ToolCallInfo | None, or one of these in an Annotated."""
    if get_origin(hint) in (Annotated, Union, UnionType):
        return any(_is_info(part) for part in get_args(hint))
    return hint is ToolCallInfo


def _check_parameter(tool_name: str, parameter: inspect.Parameter, hints: Mapping[str, Any]) -> None:
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise ToolDefinitionError(
            f"tool {tool_name!r} has a {parameter.kind.description} parameter {str(parameter)!r}, which a "
            "model cannot fill; use parameters with names"
        )
    if parameter.name not in hints:
        advice = "annotate it, so that the model is told what to pass and its input can be checked"
        if parameter.name in ("self", "cls"):
            advice = "if this is a method, make the tool of the bound one: tool(instance.method)"
        raise ToolDefinitionError(f"parameter {parameter.name!r} of tool {tool_name!r} has no type; {advice}")


def _field(parameter: inspect.Parameter, hint: Any, description: str | None) -> tuple[Any, FieldInfo]:
    given: dict[str, Any] = {"alias": parameter.name}
    if isinstance(parameter.default, FieldInfo):
        hint = Annotated[hint, parameter.default]
    elif parameter.default is not parameter.empty:
        given["default"] = parameter.default
        if parameter.default is None and get_origin(hint) is not Annotated:
            # `limit: int = None` is often written. The model, which sees that default, may pass it.
            hint = Optional[hint]  # noqa: UP045 - `|` takes no forward references
    if description and FieldInfo.from_annotation(hint).description is None:
        given["description"] = description
    return hint, Field(**given)


class _Schema(GenerateJsonSchema):
    ignored_warning_kinds = frozenset({"skipped-choice", "non-serializable-default"})  # pyright: ignore[reportAssignmentType]


def _model(
    tool_name: str, fields: Mapping[str, tuple[Any, FieldInfo]], names: Mapping[str, str]
) -> tuple[type[BaseModel], dict[str, Any]]:
    # The prefix lets a parameter have any name, also one that pydantic keeps for itself.
    prefixed: dict[str, Any] = {names[name]: field for name, field in fields.items()}
    try:
        model = create_model(tool_name, __config__=ConfigDict(extra="forbid"), **prefixed)
        return model, _without_titles(model.model_json_schema(schema_generator=_Schema))
    except Exception as error:  # the types are the user's code, which can raise anything
        raise ToolDefinitionError(
            f"tool {tool_name!r} has a parameter whose type has no JSON schema: {why_no_schema(error)}"
        ) from error


def schema_of(adapter: TypeAdapter[Any]) -> dict[str, Any]:
    """The JSON schema of what a type takes, less the titles pydantic makes up.

    Raises what pydantic, or the type's own code, raises; `why_no_schema` puts it in words.
    """
    return _without_titles(adapter.json_schema(schema_generator=_Schema))


def why_no_schema(error: Exception) -> str:
    """Why a type has no JSON schema, without pydantic's advice to those who write models."""
    reason = error.message if isinstance(error, PydanticUserError) else str(error)
    return reason.partition(". ")[0].partition("\n")[0].rstrip(".")


def problems_in(error: ValidationError) -> str:
    """What is wrong with a value, in words for the model that made it."""
    return "; ".join(_first_of(_problems(error)))


def _plain_json(tool_name: str, schema: object) -> dict[str, Any]:
    """A copy of a schema in nothing but JSON's types, which nobody can change from outside."""
    try:
        plain: object = json.loads(json.dumps(schema, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ToolDefinitionError(f"the input schema of tool {tool_name!r} is no JSON: {error}") from error
    if not isinstance(plain, dict) or cast("dict[str, Any]", plain).get("type") != "object":
        raise ToolDefinitionError(
            f"the input schema of tool {tool_name!r} is {_short(cast('object', plain))}; a tool's input is a "
            'JSON object, so its schema needs "type": "object"'
        )
    return cast("dict[str, Any]", plain)


def _without_titles(schema: Any, *, names: bool = False) -> Any:
    """The schema less the titles pydantic makes up, which cost tokens and say nothing.

    `names` is true where the keys are property names, among which "title" is one like any other.
    """
    if isinstance(schema, list):
        return [_without_titles(item) for item in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    return {
        key: value
        if key in _VALUES and not names
        else _without_titles(value, names=not names and key in ("properties", "$defs"))
        for key, value in cast("dict[str, Any]", schema).items()
        if names or key != "title"
    }


def _problems(error: ValidationError, names: Collection[str] = ()) -> list[str]:
    return [_problem(detail, names) for detail in error.errors(include_url=False)]


def _problem(detail: Mapping[str, Any], names: Collection[str]) -> str:
    place = _place(detail["loc"])
    match detail["type"]:
        case "missing":
            return f"{place}: {detail['msg']}"
        case "extra_forbidden" if len(detail["loc"]) == 1 and names:
            return f"{place}: no such parameter; there are {list(names)}"
        case "extra_forbidden":
            return f"{place}: not allowed here"
        case _:
            return f"{place}: {_clip(detail['msg'], 200)} (got {_short(detail['input'])})"


def _invalid(tool_name: str, problems: Sequence[str]) -> ToolInputInvalid:
    return ToolInputInvalid(
        tool_name,
        f"invalid input for tool {tool_name!r}; it was not called. {'; '.join(_first_of(problems))}. "
        "Correct the input and call it again.",
    )


def _first_of(problems: Sequence[str]) -> list[str]:
    shown = list(problems[:_MAX_PROBLEMS])
    if len(problems) > len(shown):
        shown.append(f"and {len(problems) - len(shown)} more")
    return shown


def _place(steps: Iterable[object]) -> str:
    return _clip(".".join(str(step) for step in steps), 200) or "input"


def _short(value: object) -> str:
    return _clip(repr(value), 80)


def _clip(text: str, limit: int) -> str:
    return text if len(text) <= limit else text[: limit - 1] + "…"
