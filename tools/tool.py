"""`@tool`: from a Python function to something a model can call.

Layer: tools; no Ray. A Tool is described by plain values; the function itself travels packed, so that
a process which only passes a tool on never imports what the tool needs.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property
from typing import Any, Generic, Literal, ParamSpec, Protocol, TypeAlias, TypeVar, cast, overload

from pydantic import Field, NonNegativeFloat, NonNegativeInt, ValidationError

from palaver.providers.messages import Value
from palaver.providers.provider import ToolSpec
from palaver.tools.errors import ToolDefinitionError
from palaver.tools.function import check_callable, is_async, name_of
from palaver.tools.limits import ToolLimits
from palaver.tools.schema import FunctionSignature, JsonSignature, Signature

P = ParamSpec("P")
R = TypeVar("R")

NeedsApproval: TypeAlias = bool | Callable[[dict[str, Any]], bool]
"""Whether a call waits for a yes: always, never, or what a function says of its input."""

Approval: TypeAlias = Literal["always", "maybe", "never"]
"""What can be said of a tool's calls before there is an input: "maybe" depends on it."""

# What both wire formats take: OpenAI's limit (64) is the narrower one.
_NAME = re.compile(r"[a-zA-Z0-9_-]{1,64}")


class Resources(Value):
    """What a tool call asks of Ray's scheduler.

    A call holds no CPU unless it asks for one, so that any number of calls that only wait can run at
    once. `memory` is bytes. `resources` are custom resources, `label_selector` node labels, both as in
    Ray's `options`.
    """

    num_cpus: NonNegativeFloat = 0
    num_gpus: NonNegativeFloat = 0
    memory: NonNegativeInt = 0
    resources: dict[str, float] = Field(default_factory=dict)
    label_selector: dict[str, str] = Field(default_factory=dict)


class Tool(Generic[P, R]):
    """A function that a model can call. Calling the Tool itself calls the function directly.

    Its arguments, which are its attributes too, are as in `tool`.
    """

    def __init__(
        self,
        function: Callable[P, R],
        *,
        name: str | None = None,
        description: str | None = None,
        input_schema: Mapping[str, Any] | None = None,
        resources: Resources | None = None,
        limits: ToolLimits | None = None,
        retries: int = 0,
        needs_approval: NeedsApproval = False,
        in_workspace: bool = False,
    ) -> None:
        check_callable(function)
        if isinstance(function, Tool):
            raise ToolDefinitionError(f"{function!r} is a tool already; make another of its `.function`")
        name = name_of(function) if name is None else name
        if not _NAME.fullmatch(name):
            raise ToolDefinitionError(
                f"tool name {name!r} is not allowed; use 1 to 64 letters, digits, '_' and '-' "
                "(pass name=... for a function without a name of its own)"
            )
        limits = limits or ToolLimits()
        limits.check(f"tool {name!r}")
        if retries < 0:
            raise ToolDefinitionError(f"retries of tool {name!r} is {retries}; use 0 or more")
        if not isinstance(needs_approval, bool) and (
            not callable(needs_approval) or is_async(needs_approval)
        ):
            raise ToolDefinitionError(
                f"needs_approval of tool {name!r} is {needs_approval!r:.80}; use True, False, or a plain "
                "function of the input (a dict) that returns one of them"
            )
        self._function = function
        self._hand_written_schema = input_schema
        self.resources = resources or Resources()
        self.limits = limits
        self.retries = retries
        self.needs_approval = needs_approval
        self.in_workspace = in_workspace
        signature = self._make_signature(name)
        self.spec = ToolSpec(
            name=name,
            description=signature.description if description is None else description,
            input_schema=signature.input_schema,
        )

    @property
    def name(self) -> str:
        """The name the model calls it by."""
        return self.spec.name

    @property
    def function(self) -> Callable[P, R]:
        """The function itself."""
        return self._function

    @property
    def is_async(self) -> bool:
        """Whether the function is a coroutine function, or calls one by its `__call__`."""
        return is_async(self._function)

    @cached_property
    def signature(self) -> Signature:
        """The check of an input against what the function takes."""
        return self._make_signature(self.name)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the function directly, in this process, without any check."""
        return self._function(*args, **kwargs)

    def __reduce__(self) -> tuple[object, ...]:
        # A pickled tool arrives packed: see palaver.tools.task, which alone knows how Ray pickles code.
        from palaver.tools.task import reduce_tool

        return reduce_tool(cast("Any", self))

    def __getstate__(self) -> dict[str, Any]:
        # Not the signature: it is made again where a call is checked, and nowhere else.
        return {key: value for key, value in vars(self).items() if key != "signature"}

    def __repr__(self) -> str:
        return f"Tool({self.name!r})"

    def _make_signature(self, name: str) -> Signature:
        if self._hand_written_schema is not None:
            return JsonSignature(name, self._function, self._hand_written_schema)
        return FunctionSignature(name, self._function)


@overload
def tool(function: Callable[P, R], /) -> Tool[P, R]: ...


@overload
def tool(
    *,
    name: str | None = None,
    description: str | None = None,
    input_schema: Mapping[str, Any] | None = None,
    num_cpus: float = 0,
    num_gpus: float = 0,
    memory: int = 0,
    resources: Mapping[str, float] | None = None,
    label_selector: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    max_output_bytes: int | None = None,
    max_per_node: int | None = None,
    retries: int = 0,
    needs_approval: NeedsApproval = False,
    in_workspace: bool = False,
) -> Callable[[Callable[P, R]], Tool[P, R]]: ...


def tool(
    function: Callable[..., Any] | None = None,
    /,
    *,
    name: str | None = None,
    description: str | None = None,
    input_schema: Mapping[str, Any] | None = None,
    num_cpus: float = 0,
    num_gpus: float = 0,
    memory: int = 0,
    resources: Mapping[str, float] | None = None,
    label_selector: Mapping[str, str] | None = None,
    timeout_s: float | None = None,
    max_output_bytes: int | None = None,
    max_per_node: int | None = None,
    retries: int = 0,
    needs_approval: NeedsApproval = False,
    in_workspace: bool = False,
) -> Any:
    """Make a plain or async function into a Tool.

    The name, the description and the schema of the input come from the function's name, docstring and
    annotations, unless they are given. With `input_schema` (JSON schema of an object) the function gets
    the input's properties as keywords, checked against that schema. A parameter annotated
    `ToolCallInfo` gets the call's info and is not shown to the model.

    `num_cpus`, `num_gpus`, `memory` (bytes), `resources` and `label_selector` are what each call asks
    of Ray; nothing by default, so that calls which only wait never queue. `timeout_s` (seconds),
    `max_output_bytes` and `max_per_node` are limits, as in `ToolLimits`.

    `retries` is how many times more a call is made when the process that ran it, or its node, died: 0
    unless the tool says that a call may safely happen twice. `needs_approval` is whether a call waits for
    somebody's yes; a function is asked with each call's input (a dict, checked against the schema) before
    the call, and one that raises counts as True. `in_workspace` is for tools that work with files: their
    calls run on the node that has the conversation's workspace, and a conversation without a workspace
    cannot have them.

    Raises ToolDefinitionError when the function cannot be made into a tool.
    """

    try:
        asked = Resources(
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            memory=memory,
            resources=dict(resources or {}),
            label_selector=dict(label_selector or {}),
        )
    except ValidationError as error:
        problems = "; ".join(
            f"{'.'.join(map(str, each['loc']))}: {each['msg']} (got {each['input']!r})"
            for each in error.errors()
        )
        raise ToolDefinitionError(f"a tool cannot ask for such resources: {problems}") from error

    limits = ToolLimits(timeout_s=timeout_s, max_output_bytes=max_output_bytes, max_per_node=max_per_node)

    def make(function: Callable[..., Any]) -> Tool[..., Any]:
        return Tool(
            function,
            name=name,
            description=description,
            input_schema=input_schema,
            resources=asked,
            limits=limits,
            retries=retries,
            needs_approval=needs_approval,
            in_workspace=in_workspace,
        )

    return make if function is None else make(function)


def approval_of(tool: Tool[..., Any]) -> Approval:
    """Whether calls of a tool need a yes."""
    match tool.needs_approval:
        case True:
            return "always"
        case False:
            return "never"
        case _:
            return "maybe"


class HasSpec(Protocol):
    """Anything that a model sees as a tool."""

    @property
    def spec(self) -> ToolSpec:
        """The tool as the model sees it."""
        ...


def check_names(tools: Iterable[HasSpec]) -> None:
    """Raise ToolDefinitionError when two tools have the same name."""
    counts = Counter(each.spec.name for each in tools)
    twice = sorted(name for name, count in counts.items() if count > 1)
    if twice:
        raise ToolDefinitionError(
            f"tool name used more than once: {', '.join(map(repr, twice))}; a model tells tools apart by "
            "name, so rename one with @tool(name=...), or a server's with mcp_tools(..., name=...)"
        )
