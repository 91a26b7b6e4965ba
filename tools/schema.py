"""From a function's signature and docstring to the JSON schema of a tool's input, and its check.

Layer: tools; no Ray.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, Protocol, get_type_hints

from docstring_parser import Docstring, parse
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from pydantic.errors import PydanticUserError
from pydantic.fields import FieldInfo

from palaver.tools.call import ToolCallInfo
from palaver.tools.errors import ToolDefinitionError, ToolInputInvalid


class Signature(Protocol):
    """What a tool takes: its schema for the model, and the check of an input against it."""

    description: str
    input_schema: dict[str, Any]

    def bind(self, tool_input: Mapping[str, Any], info: ToolCallInfo) -> dict[str, Any]:
        """The keyword arguments for a call. Raises ToolInputInvalid, which tells the model what is wrong."""
        ...


class FunctionSignature:
    """The signature of a Python function: types and defaults from its parameters, descriptions from
    its docstring (Google, NumPy, ReST or Epydoc style).

    A parameter annotated ToolCallInfo is not part of the schema; it gets the call's info. Raises
    ToolDefinitionError for parameters a model cannot fill: positional-only, `*args`, `**kwargs`, no
    annotation, or a type that has no JSON schema.
    """

    def __init__(self, tool_name: str, function: Callable[..., Any]) -> None:
        self._tool_name = tool_name
        docstring = parse(inspect.getdoc(function) or "")
        self.description = _description(docstring)
        hints = _hints(tool_name, function)
        described = {param.arg_name: param.description for param in docstring.params}
        self._info_parameters: list[str] = []
        fields: dict[str, Any] = {}
        for parameter in inspect.signature(function).parameters.values():
            if hints.get(parameter.name) is ToolCallInfo:
                self._info_parameters.append(parameter.name)
            else:
                fields[parameter.name] = _field(tool_name, parameter, hints, described.get(parameter.name))
        self._model = _model(tool_name, fields)
        self._names = {name: f"arg_{name}" for name in fields}
        self.input_schema = _schema(tool_name, self._model)

    def bind(self, tool_input: Mapping[str, Any], info: ToolCallInfo) -> dict[str, Any]:
        """The keyword arguments for a call. Raises ToolInputInvalid, which tells the model what is wrong."""
        try:
            checked = self._model.model_validate(dict(tool_input))
        except ValidationError as error:
            raise ToolInputInvalid(self._tool_name, _explain(self._tool_name, error)) from error
        arguments = {name: getattr(checked, field) for name, field in self._names.items()}
        return arguments | dict.fromkeys(self._info_parameters, info)


class JsonSignature:
    """A JSON schema written by hand, for a function that takes the input's properties as keywords.

    Raises ToolDefinitionError when it is no valid schema of an object.
    """

    def __init__(self, tool_name: str, function: Callable[..., Any], input_schema: Mapping[str, Any]) -> None:
        from jsonschema import SchemaError
        from jsonschema.validators import validator_for

        self._tool_name = tool_name
        self.description = _description(parse(inspect.getdoc(function) or ""))
        self.input_schema = dict(input_schema)
        if self.input_schema.get("type") != "object":
            raise ToolDefinitionError(
                f"the input schema of tool {tool_name!r} has type {self.input_schema.get('type')!r}; a "
                "tool's input is a JSON object, so its schema needs type 'object'"
            )
        validator = validator_for(self.input_schema)
        try:
            validator.check_schema(self.input_schema)
        except SchemaError as error:
            raise ToolDefinitionError(
                f"the input schema of tool {tool_name!r} is no valid JSON schema: {error.message}"
            ) from error
        self._validator = validator(self.input_schema)
        self._info_parameters = [
            name for name, hint in _hints(tool_name, function).items() if hint is ToolCallInfo
        ]

    def bind(self, tool_input: Mapping[str, Any], info: ToolCallInfo) -> dict[str, Any]:
        """The keyword arguments for a call. Raises ToolInputInvalid, which tells the model what is wrong."""
        problems = [
            f"{'.'.join(str(step) for step in error.absolute_path) or 'input'}: {error.message}"
            for error in self._validator.iter_errors(dict(tool_input))
        ]
        if problems:
            raise ToolInputInvalid(self._tool_name, _complaint(self._tool_name, problems))
        return dict(tool_input) | dict.fromkeys(self._info_parameters, info)


def _description(docstring: Docstring) -> str:
    parts = (docstring.short_description, docstring.long_description)
    return "\n\n".join(part for part in parts if part)


def _hints(tool_name: str, function: Callable[..., Any]) -> dict[str, Any]:
    """The function's annotations, resolved.

    They are kept resolved on the function too: pickled by value it takes along only the names that its
    code uses, which those in annotations kept as strings are not.
    """
    try:
        hints = get_type_hints(function, include_extras=True)
        if inspect.isfunction(function):
            function.__annotations__ = dict(hints)
        return hints
    except NameError as error:
        raise ToolDefinitionError(
            f"tool {tool_name!r} has an annotation that cannot be resolved: {error}. Import that name at "
            "the top of the tool's module, outside of TYPE_CHECKING."
        ) from error


def _field(
    tool_name: str, parameter: inspect.Parameter, hints: Mapping[str, Any], description: str | None
) -> tuple[Any, FieldInfo]:
    if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
        raise ToolDefinitionError(
            f"tool {tool_name!r} has a {parameter.kind.description} parameter {str(parameter)!r}, which a "
            "model cannot fill; use parameters with names"
        )
    if parameter.name not in hints:
        raise ToolDefinitionError(
            f"parameter {parameter.name!r} of tool {tool_name!r} has no type; annotate it, so that the "
            "model is told what to pass and its input can be checked"
        )
    default = ... if parameter.default is parameter.empty else parameter.default
    return hints[parameter.name], Field(default, alias=parameter.name, description=description)


def _model(tool_name: str, fields: Mapping[str, tuple[Any, FieldInfo]]) -> type[BaseModel]:
    # The prefix lets a parameter have any name, also one that pydantic keeps for itself.
    prefixed: dict[str, Any] = {f"arg_{name}": field for name, field in fields.items()}
    config = ConfigDict(extra="forbid", arbitrary_types_allowed=False)
    try:
        return create_model(tool_name, __config__=config, **prefixed)
    except PydanticUserError as error:
        raise ToolDefinitionError(
            f"tool {tool_name!r} has a parameter whose type has no JSON schema: {error.message}"
        ) from error


def _schema(tool_name: str, model: type[BaseModel]) -> dict[str, Any]:
    try:
        schema = model.model_json_schema(by_alias=True)
    except PydanticUserError as error:
        raise ToolDefinitionError(
            f"tool {tool_name!r} has a parameter whose type has no JSON schema: {error.message}"
        ) from error
    return _without_titles(schema)


def _without_titles(schema: Any, *, names: bool = False) -> Any:
    """The schema less the titles pydantic makes up, which cost tokens and say nothing.

    `names` is true where the keys are property names, among which "title" is one like any other.
    """
    if isinstance(schema, list):
        return [_without_titles(item) for item in schema]  # pyright: ignore[reportUnknownVariableType]
    if not isinstance(schema, dict):
        return schema
    return {
        key: _without_titles(value, names=not names and key in ("properties", "$defs"))
        for key, value in schema.items()  # pyright: ignore[reportUnknownVariableType]
        if names or key != "title"
    }


def _explain(tool_name: str, error: ValidationError) -> str:
    problems = [
        f"{'.'.join(str(step) for step in detail['loc']) or 'input'}: {detail['msg']}"
        + ("" if detail["type"] in ("missing", "extra_forbidden") else f" (got {_short(detail['input'])})")
        for detail in error.errors(include_url=False)
    ]
    return _complaint(tool_name, problems)


def _complaint(tool_name: str, problems: list[str]) -> str:
    return (
        f"invalid input for tool {tool_name!r}; it was not called. "
        + "; ".join(problems)
        + ". Correct the input and call it again."
    )


def _short(value: object, limit: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= limit else text[: limit - 1] + "…"
