"""Which code a callable runs: a plain function, a method, a functools.partial, or an object with `__call__`.

Layer: tools; no Ray.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import partial
from types import MethodType
from typing import Any, cast, get_type_hints

from palaver.tools.errors import ToolDefinitionError

AnyFunction = Callable[..., Any]


def code_of(function: AnyFunction) -> AnyFunction:
    """The function that runs when `function` is called."""
    function = _without_partial(function)
    if isinstance(function, MethodType):
        return function.__func__
    if inspect.isroutine(function) or hasattr(function, "__wrapped__"):
        return function
    return type(function).__call__


def name_of(function: AnyFunction) -> str:
    """The name to call it by, unless another is given."""
    function = _without_partial(function)
    return str(getattr(function, "__name__", type(function).__name__))


def docstring_of(function: AnyFunction) -> str:
    """What is written on it: for an object, on its `__call__` or else on its class."""
    function = _without_partial(function)
    code = code_of(function)
    if code is function or isinstance(function, MethodType):
        return inspect.getdoc(function) or ""
    return inspect.cleandoc(code.__doc__ or type(function).__doc__ or "")


def is_async(function: AnyFunction) -> bool:
    """Whether calling it gives a coroutine."""
    return inspect.iscoroutinefunction(code_of(function))


def parameters_of(tool_name: str, function: AnyFunction) -> list[inspect.Parameter]:
    """What a caller passes to it, less the keywords a functools.partial has filled already."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError) as error:
        raise ToolDefinitionError(
            f"the parameters of tool {tool_name!r} cannot be found out ({error}); wrap it in a function"
        ) from error
    filled = cast("partial[Any]", function).keywords if isinstance(function, partial) else {}
    return [each for each in signature.parameters.values() if each.name not in filled]


def hints_of(tool_name: str, function: AnyFunction) -> Mapping[str, Any]:
    """Its annotations, resolved.

    They are kept resolved on the function too: pickled by value it takes along only the names that its
    code uses, which those in annotations kept as strings are not.
    """
    code = code_of(function)
    try:
        hints = get_type_hints(code, include_extras=True)
    except Exception as error:  # an annotation is code, which can raise anything
        raise ToolDefinitionError(
            f"tool {tool_name!r} has an annotation that cannot be resolved: {error}. Import or define that "
            "name at the top of the tool's module, outside of TYPE_CHECKING."
        ) from error
    if inspect.isfunction(code):
        code.__annotations__ = dict(hints)
    return hints


def check_callable(function: object) -> None:
    """Raise ToolDefinitionError for what looks like a function by mistake."""
    if isinstance(function, type):
        problem = f"is the class {function.__qualname__}; make tools of an instance's methods"
    elif not callable(function):
        problem = f"is a {type(function).__name__} ({function!r:.80}), which cannot be called"
    else:
        return
    raise ToolDefinitionError(f"a tool is made of a function, and this {problem}; a name goes in name=...")


def _without_partial(function: Any) -> AnyFunction:
    while isinstance(function, partial | staticmethod):
        wrapper = cast("Any", function)
        function = wrapper.func if isinstance(function, partial) else wrapper.__func__
    return function
