"""`Convo`: a conversation as a Ray actor. A thin shell; what it does is in `conversation`.

All methods run in one event loop, which is why the core needs no locks: Ray gives each concurrency
group a thread and a loop of its own, so there are none here. Instead the limit on calls at once is out
of reach, so that no number of children waiting for an answer keeps a `cancel` from getting through.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Collection, Coroutine, Iterable, Mapping, Sequence
from contextlib import suppress
from typing import (
    Any,
    Concatenate,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypedDict,
    TypeVar,
    Unpack,
    cast,
    overload,
)

import ray
import ray.actor
from ray.exceptions import RayActorError

from palaver.actors.approvals import ApprovalRequest, Approved, Denied
from palaver.actors.budget import Budget
from palaver.actors.conversation import Conversation
from palaver.actors.endings import to_the_end
from palaver.actors.errors import BudgetExceeded, ConvoClosed
from palaver.actors.ids import new_convo_id
from palaver.actors.kin import Branch
from palaver.actors.ledger import CumulativeUsage, Entry
from palaver.actors.listener import Listener
from palaver.actors.replies import reply
from palaver.actors.report import CancelReport, StoppedCall
from palaver.actors.result import RunResult
from palaver.actors.settings import Settings
from palaver.actors.typed_output import OUTPUT_RETRIES
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Content, Message, ToolResult
from palaver.providers.provider import Provider, Response
from palaver.tools.limits import ToolLimits
from palaver.tools.mcp import McpTool
from palaver.tools.task import AnyPacked, PackedTool, RayToolset, pack
from palaver.tools.tool import Tool, check_names
from palaver.tools.workspace import Workspace

P = ParamSpec("P")
R = TypeVar("R")

_CALLS_AT_ONCE = 1_000_000
"""Ray's default for async actors is 1,000; calls beyond it queue, control calls too."""

_LINGER_S = 1.0
"""How long a closed conversation still answers, with ConvoClosed, before its process ends."""

_WITHDRAWN_WITHIN_S = 2.0
"""How long a cancel may wait for the root to take back a request for approval."""

AnyTool: TypeAlias = Tool[..., Any] | AnyPacked


class SubConvoOptions(TypedDict, total=False):
    """What a sub-conversation may be given; each as in `Convo.remote`. `actor_options` are Ray's.

    A str in `tools` is the name of one of the calling conversation's own tools. `budget_share` (above 0, at
    most 1) is instead of `budget`: that part of what is left, when the sub-conversation is started, of the
    calling conversation's limits and of all above it, the tightest of each. What has no limit there has
    none here, and `Budget.share` says how it is rounded.

    A sub-conversation with `within_call`, the id of a tool call under way, is closed when that call ends,
    however it ends: for tools that start sub-conversations.
    """

    system_prompt: str
    tools: Sequence[AnyTool | str]
    budget: Budget | None
    budget_share: float | None
    tool_use_only: bool
    max_tokens: int | None
    label: str
    within_call: str | None
    actor_options: Mapping[str, Any] | None


class RemoteMethod(Protocol[P, R]):
    """A method of an actor: called as `handle.method.remote(...)`, which gives an ObjectRef at once."""

    def remote(self, *args: P.args, **kwargs: P.kwargs) -> ray.ObjectRef[R]:
        """Call the method. `await` the reference, or `ray.get` it, for the result."""
        ...

    def options(self, **ray_options: Any) -> RemoteMethod[P, R]:
        """The same method with Ray's options for a call."""
        ...


def _remotely(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, R]]) -> RemoteMethod[P, R]:
    """Tell type checkers how a method looks from outside the actor. Changes nothing else."""
    return cast("RemoteMethod[P, R]", method)


class RemoteRun(Protocol):
    """`ConvoActor.run` seen from outside: the result's `output` is of the type that was asked for."""

    @overload
    def remote(self, text: str, *contents: Content) -> ray.ObjectRef[RunResult]: ...

    @overload
    def remote(
        self, text: str, *contents: Content, output_type: type[R], output_retries: int = OUTPUT_RETRIES
    ) -> ray.ObjectRef[RunResult[R]]: ...

    @overload
    def remote(
        self, text: str, *contents: Content, output_type: Any, output_retries: int = OUTPUT_RETRIES
    ) -> ray.ObjectRef[RunResult[Any]]: ...

    def remote(
        self, text: str, *contents: Content, output_type: Any = None, output_retries: int = OUTPUT_RETRIES
    ) -> ray.ObjectRef[RunResult[Any]]:
        """Call the method. `await` the reference, or `ray.get` it, for the result."""
        ...

    def options(self, **ray_options: Any) -> RemoteRun:
        """The same method with Ray's options for a call."""
        ...


def _remote_run(method: Callable[..., Coroutine[Any, Any, RunResult[Any]]]) -> RemoteRun:
    """As `_remotely`, for `run`, whose result depends on an argument."""
    return cast("RemoteRun", method)


class ConvoActor:
    """The actor behind a `Convo` handle. Every method is called through `.remote(...)`."""

    def __init__(
        self,
        provider: Provider,
        tools: Sequence[AnyPacked],
        settings: Settings,
        listener: Listener | None = None,
        *,
        id: str | None = None,
        ancestors: _Ancestors | None = None,
        messages: Sequence[Message] = (),
        workspace: Workspace | None = None,
    ) -> None:
        id = id or new_convo_id()
        self._handle = cast("ConvoHandle", cast("Any", ray.get_runtime_context()).current_actor)
        self._ancestors = ancestors or _Ancestors()
        self._weakening: set[asyncio.Task[None]] = set()
        self._workspace = workspace
        self._toolset = RayToolset(
            tools,
            (*self._ancestors.lineage, id),
            self._handle,
            workspace=workspace,
            limits=settings.tool_limits,
        )
        self._core = Conversation(
            provider,
            self._toolset,
            settings,
            id=id,
            parent=ancestors,
            parent_id=ancestors.parent_id if ancestors else None,
            depth=len(ancestors) if ancestors else 0,
            messages=messages,
            listener=listener,
        )

    def __repr__(self) -> str:
        # Ray asks for it even when __init__ has failed.
        if not hasattr(self, "_core"):
            return "Convo"
        label = self._core.info.label
        return f"Convo({self._core.id}{f' {label!r}' if label else ''})"

    @_remotely
    async def id(self) -> str:
        """The conversation's id: `abc-defg`."""
        return self._core.id

    @_remotely
    async def depth(self) -> int:
        """How many conversations are above this one; 0 for a root."""
        return self._core.depth

    @_remotely
    async def tool_names(self) -> tuple[str, ...]:
        """The names of the conversation's tools."""
        return tuple(each.name for each in self._core.toolset.specs)

    @_remotely
    async def messages(self) -> tuple[Message, ...]:
        """All messages that were sent and answered, oldest first."""
        return self._core.transcript.messages

    @_remotely
    async def send_user_text_message(self, text: str, *contents: Content) -> Response:
        """Send a text, with contents before it (usually tool results). See `send_message`."""
        return await self._core.send_user_text_message(text, *contents)

    @_remotely
    async def send_message(self, message: Message) -> Response:
        """Send a message and return the answer. Both are kept only when the request succeeds.

        Tool calls that the message leaves unanswered are answered "not executed; retry possible".
        Raises BudgetExceeded before anything is sent, ProviderError, ConvoBusy, ConvoClosed,
        ConvoCancelled, NothingToSend, or UnknownToolCall for a result that answers no open call.
        """
        return await self._core.send_message(message)

    @_remote_run
    async def run(
        self, text: str, *contents: Content, output_type: Any = None, output_retries: int = OUTPUT_RETRIES
    ) -> RunResult[Any]:
        """Send, call the tools, send their results, until the model ends its turn or a limit stops it.

        An empty `text` goes on where an earlier run stopped, with the tool results it left. A limit and
        a cancel are results; what failed is raised, as in `send_message`. In each case everything done
        so far stays in the conversation.

        With `output_type`, a pydantic model or any type that pydantic's TypeAdapter takes, the answer has
        to be of that type, and is the result's `output`. One that does not fit is sent back with what is
        wrong with it, up to `output_retries` times; then the run stops as "invalid_output", and `detail`
        has the last fault. Raises ConfigurationError for a type without a JSON schema.
        """
        if output_type is None:
            return await self._core.run(text, *contents)
        return await self._core.run(text, *contents, output_type=output_type, output_retries=output_retries)

    @_remotely
    async def tool_result_contents(self, response: Response) -> list[ToolResult]:
        """Run all tool calls of a response at once; their results, in the order of the calls.

        Empty when there are none, or when the response was cut at max_tokens, which may have cut a
        call's input. A call whose tool raised DoNotRespond has no result. Raises ConvoBusy, ConvoClosed,
        ConvoCancelled.
        """
        return await self._core.tool_result_contents(response)

    @_remotely
    async def tool_result_cancel_contents(self, response: Response) -> list[ToolResult]:
        """A result for each tool call of a response that says the user cancelled it; nothing is run."""
        return await self._core.tool_result_cancel_contents(response)

    @_remotely
    async def cancel_tool_use(self, tool_use_id: str, cause: str) -> StoppedCall:
        """Stop one running tool call; its result is an error with the cause.

        Returns when nothing of the call is left on any node, and the sub-conversations that were started
        within it are closed. Raises UnknownToolCall, which names those
        that are running.
        """
        return await self._core.cancel_tool_use(tool_use_id, cause)

    @_remotely
    async def pending_approvals(self) -> tuple[ApprovalRequest, ...]:
        """The tool calls, of this conversation and all below it, that wait for a yes; oldest first."""
        return await self._core.approvals.pending()

    @_remotely
    async def until_approval_needed(
        self, seen: Collection[str] = (), *, timeout_s: float | None = None
    ) -> tuple[ApprovalRequest, ...]:
        """Wait until tool calls, here or below, need a yes that the caller does not know of; those.

        `seen` are the ids of the requests it knows, so that none is missed between two calls. After
        `timeout_s` seconds the answer is empty; None waits for ever. Raises ConvoClosed.
        """
        return await self._core.approvals.until_needed(seen, timeout_s=timeout_s)

    @_remotely
    async def approve(
        self, tool_use_id: str, *, convo_id: str | None = None, input: Mapping[str, Any] | None = None
    ) -> None:
        """Let a tool call that waits for a yes run, here or below.

        `input` (a JSON object) is what it runs with instead of the model's; it is checked against the
        tool's schema as any, and the model reads in the result that it was edited. `convo_id` says whose
        call it is, where several conversations have one of that id. Raises UnknownToolCall, which names
        those that wait, AmbiguousToolCall, ConfigurationError for an input that is no JSON object.
        """
        await self._core.approvals.approve(tool_use_id, convo_id=convo_id, input=input)

    @_remotely
    async def deny(self, tool_use_id: str, reason: str, *, convo_id: str | None = None) -> None:
        """Let a tool call that waits for a yes not run, here or below.

        Its result, an error, tells the model so, with the reason, which may be empty. `convo_id` and errors
        are as in `approve`.
        """
        await self._core.approvals.deny(tool_use_id, reason, convo_id=convo_id)

    @_remotely
    async def cancel(self, cause: str) -> CancelReport:
        """Stop the request in flight, every running tool, and the same in all sub-conversations.

        Returns when all of them are fenced: none sends a request any more, and nothing of their tool
        calls is left on any node. The report tells what was stopped. The conversation can go on
        afterwards: every tool call that was stopped has its result.
        """
        return await self._core.cancel(cause)

    @_remotely
    async def until_cancelled(self) -> str:
        """Wait for the next `cancel` or `close` of this conversation; its cause. Raises ConvoClosed."""
        return await self._core.until_cancelled()

    @_remotely
    async def close(self) -> None:
        """End this conversation and all below it. Their processes end within about a second.

        Until then calls raise ConvoClosed; afterwards Ray's own ActorDiedError.
        """
        try:
            await self._core.close()
        finally:
            self._handle._leave.remote()  # pyright: ignore[reportPrivateUsage]

    @_remotely
    async def _leave(self) -> None:
        await asyncio.sleep(_LINGER_S)
        ray.actor.exit_actor()

    @_remotely
    async def cumulative_usage(self) -> CumulativeUsage:
        """Usage of this conversation and all below it; `tool_uses` counts over the whole tree."""
        return await self._core.cumulative_usage()

    @_remotely
    async def over_budget(self) -> BudgetExceeded | None:
        """The budget that this conversation, or an ancestor, has used up; None while there is none."""
        return await self._core.over_budget()

    @_remotely
    async def reset_budget(self, budget: Budget) -> None:
        """Set new limits, counted from what was used so far."""
        self._core.reset_budget(budget)

    @_remotely
    async def tree(self) -> Branch:
        """This conversation and all below it: who, state, usage, budget. Ended ones are included."""
        return await self._core.tree()

    @_remotely
    async def sub_convo(self, **options: Unpack[SubConvoOptions]) -> ConvoHandle:
        """Start a sub-conversation: an actor that is this one's child.

        It has this one's provider, prompt caching, listener, workspace and tool limits; no messages, tools
        or budget but the ones given here. What it spends counts here too, and this one's budget holds for
        it. It ends with `close`, with this conversation, or when its last handle is dropped. Raises
        ConvoClosed, ConvoCancelled, ConfigurationError, UnknownToolCall, and BudgetExceeded when a share is
        asked for of a budget that is used up.
        """
        return (await self._start_children([options]))[0]

    @_remotely
    async def sub_convos(
        self, options: Sequence[SubConvoOptions], *, at_most: int | None = None
    ) -> list[ConvoHandle]:
        """Start several sub-conversations, or none. See `sub_convo`.

        Raises TooManySubConvos when more than `at_most` would be open then: of all that are, or if these
        are started within a tool call, of those that running calls of the same tool have started.
        """
        return await self._start_children(options, at_most=at_most)

    @_remotely
    async def sub_convo_with_history(self, **options: Unpack[SubConvoOptions]) -> ConvoHandle:
        """Start a sub-conversation that also has a copy of the messages so far. See `sub_convo`."""
        return (await self._start_children([options], self._core.transcript.messages))[0]

    async def _start_children(
        self,
        options_of_each: Sequence[SubConvoOptions],
        messages: Sequence[Message] = (),
        at_most: int | None = None,
    ) -> list[ConvoHandle]:
        prepared = [await self._prepared(options) for options in options_of_each]
        # Nothing is awaited from here on: all are started or none, and nobody else's in between.
        for within_call in dict.fromkeys(each.get("within_call") for each in options_of_each):
            self._core.refuse_if_ending(within_call)
            if at_most is not None:
                self._core.refuse_too_many(len(options_of_each), at_most, within_call)
        return [
            self._start_child(options, settings, tools, messages)
            for options, (settings, tools) in zip(options_of_each, prepared, strict=True)
        ]

    async def _prepared(self, options: SubConvoOptions) -> tuple[Settings, list[AnyPacked]]:
        """What a sub-conversation is started with. Everything that can be refused is refused here."""
        _check_options(options)
        share = options.get("budget_share")
        given = options.get("budget") or Budget()
        settings = Settings(
            system_prompt=options.get("system_prompt", ""),
            budget=given if share is None else await self._core.budget_share(share),
            prompt_caching=self._core.settings.prompt_caching,
            tool_use_only=options.get("tool_use_only", False),
            max_tokens=options.get("max_tokens"),
            label=options.get("label", ""),
            tool_limits=self._core.settings.tool_limits,
        )
        tools = [self._own_tool(each) if isinstance(each, str) else each for each in options.get("tools", ())]
        return settings, _packed(tools, settings, self._workspace)

    def _own_tool(self, name: str) -> AnyTool:
        """The tool of this conversation that is passed on by its name."""
        own = self._toolset.tools
        if name not in own:
            raise ConfigurationError(
                f"conversation {self._core.id} has no tool {name!r} to pass on; available: {sorted(own)}"
            )
        return own[name]

    def _start_child(
        self,
        options: SubConvoOptions,
        settings: Settings,
        tools: Sequence[AnyPacked],
        messages: Sequence[Message],
    ) -> ConvoHandle:
        child_id = new_convo_id()
        handle = _start(
            self._core.provider,
            tools,
            settings,
            self._core.listener,
            options.get("actor_options") or {},
            id=child_id,
            ancestors=self._ancestors.and_below(_Remote(self._core.id, self._handle)),
            messages=messages,
            workspace=self._workspace,
        )
        child = _Remote(child_id, handle, settings.label)
        self._core.adopt(child_id, child, options.get("within_call"))
        weakening = asyncio.create_task(child.weaken())
        self._weakening.add(weakening)
        weakening.add_done_callback(self._weakening.discard)
        return handle

    # Called by sub-conversations

    @_remotely
    async def own_handle(self) -> ConvoHandle:
        """A handle that does not keep this conversation alive."""
        return self._handle

    @_remotely
    async def record_here(self, entry: Entry) -> None:
        """Count an entry in this ledger alone; a repeat counts once."""
        self._core.ledger.record(entry)

    @_remotely
    async def over_own_budget(self) -> BudgetExceeded | None:
        """This conversation's own budget, when it is used up; ancestors are not asked."""
        return self._core.over_own_budget()

    @_remotely
    async def own_budget_left(self) -> Budget:
        """What is left of this conversation's own limits; ancestors are not asked."""
        return self._core.own_budget_left()

    @_remotely
    async def tool_uses_here(self) -> Mapping[str, int]:
        """Calls by tool name, here and below."""
        return self._core.ledger.tool_uses

    @_remotely
    async def child_closed(self, last: Branch) -> None:
        """A child has closed; `last` is how it stood."""
        await self._core.child_closed(last)

    @_remotely
    async def decision_on(self, request: ApprovalRequest, asker: ConvoHandle) -> Approved | Denied:
        """Wait, at the root, for the decision on a call of `asker`. Withdrawn when that is gone."""
        watch = asyncio.create_task(self._withdraw_when_settled(request.id, _Remote(request.convo_id, asker)))
        try:
            return await self._core.desk.decision_on(request)
        finally:
            watch.cancel()

    async def _withdraw_when_settled(self, request_id: str, asker: _Remote) -> None:
        # An actor whose caller is gone is not told of that; a caller is told when an actor is.
        with suppress(ConvoClosed):
            await asker.until_settled(request_id)
        await self._core.desk.withdraw(request_id)

    @_remotely
    async def until_settled(self, request_id: str) -> None:
        """Wait until a request for approval of this conversation's own has ended."""
        await self._core.approvals.until_settled(request_id)

    @_remotely
    async def withdraw(self, request_id: str) -> None:
        """Take back a request for approval that nobody waits for any more."""
        await self._core.desk.withdraw(request_id)

    @_remotely
    async def decide(self, request_id: str, decision: Approved | Denied) -> bool:
        """Answer a request for approval; False when it has its answer, or is no more."""
        return await self._core.desk.decide(request_id, decision)


ConvoHandle: TypeAlias = ConvoActor
"""What `Convo.remote` gives: a Ray actor handle whose methods are those of ConvoActor."""


class _Remote:
    """A relative that is another actor. Ray's exceptions end here."""

    def __init__(self, id: str, handle: ConvoHandle, label: str = "") -> None:
        self.id = id
        self.label = label
        self._handle = handle

    def kill(self) -> None:
        cast("Any", ray).kill(self._handle)

    async def weaken(self) -> None:
        """Once the actor runs, hold it no longer: it is to end when nobody else holds it."""
        try:
            self._handle = await self._handle.own_handle.remote()
        except RayActorError:
            return

    async def record_here(self, entry: Entry) -> None:
        await self._ask(self._handle.record_here.remote(entry))

    async def over_own_budget(self) -> BudgetExceeded | None:
        return await self._ask(self._handle.over_own_budget.remote())

    async def own_budget_left(self) -> Budget:
        return await self._ask(self._handle.own_budget_left.remote())

    async def tool_uses_here(self) -> Mapping[str, int]:
        return await self._ask(self._handle.tool_uses_here.remote())

    async def child_closed(self, last: Branch) -> None:
        await self._ask(self._handle.child_closed.remote(last))

    async def until_settled(self, request_id: str) -> None:
        await self._ask(self._handle.until_settled.remote(request_id))

    # A root as the desk of its tree

    async def decision_on(self, request: ApprovalRequest) -> Approved | Denied:
        asker = cast("ConvoHandle", cast("Any", ray.get_runtime_context()).current_actor)
        try:
            return await self._ask(self._handle.decision_on.remote(request, asker))
        except asyncio.CancelledError:
            # The root's own wait goes on; a cancel is not to end before the request is gone.
            await to_the_end(self._withdrawn(request.id))
            raise

    async def _withdrawn(self, request_id: str) -> None:
        with suppress(ConvoClosed, TimeoutError):
            async with asyncio.timeout(_WITHDRAWN_WITHIN_S):
                await self.withdraw(request_id)

    async def withdraw(self, request_id: str) -> None:
        await self._ask(self._handle.withdraw.remote(request_id))

    async def pending(self) -> tuple[ApprovalRequest, ...]:
        return await self._ask(self._handle.pending_approvals.remote())

    async def decide(self, request_id: str, decision: Approved | Denied) -> bool:
        return await self._ask(self._handle.decide.remote(request_id, decision))

    async def until_asked(self, seen: Collection[str], timeout_s: float) -> tuple[ApprovalRequest, ...]:
        asking = self._handle.until_approval_needed.remote(tuple(seen), timeout_s=timeout_s)
        return await self._ask(asking)

    # A child

    async def cancel(self, cause: str) -> CancelReport:
        return await self._ask(self._handle.cancel.remote(cause))

    async def close(self) -> None:
        await self._ask(self._handle.close.remote())

    async def tree(self) -> Branch:
        return await self._ask(self._handle.tree.remote())

    async def _ask(self, ref: ray.ObjectRef[R]) -> R:
        return await reply(ref, self.id)


class _Ancestors:
    """The parent of a conversation, with all of its own: asked at once, so that depth costs no time."""

    def __init__(self, nearest_first: tuple[_Remote, ...] = ()) -> None:
        self._nearest_first = nearest_first

    def __len__(self) -> int:
        return len(self._nearest_first)

    @property
    def parent_id(self) -> str:
        return self._nearest_first[0].id

    @property
    def lineage(self) -> tuple[str, ...]:
        return tuple(each.id for each in reversed(self._nearest_first))

    @property
    def desk(self) -> _Remote:
        return self._nearest_first[-1]

    def and_below(self, parent: _Remote) -> _Ancestors:
        """The ancestors of a child of `parent`, whose own these are."""
        return _Ancestors((parent, *self._nearest_first))

    async def record(self, entry: Entry) -> None:
        await asyncio.gather(*(each.record_here(entry) for each in self._nearest_first))

    async def over_budget(self) -> BudgetExceeded | None:
        over = await asyncio.gather(*(each.over_own_budget() for each in self._nearest_first))
        return next((each for each in over if each is not None), None)

    async def budget_left(self) -> Budget:
        return Budget.tightest(
            await asyncio.gather(*(each.own_budget_left() for each in self._nearest_first))
        )

    async def tree_tool_uses(self) -> Mapping[str, int]:
        return await self._nearest_first[-1].tool_uses_here()

    async def child_closed(self, last: Branch) -> None:
        await self._nearest_first[0].child_closed(last)


_actor_class = cast("Any", ray).remote(
    num_cpus=0, max_restarts=0, max_task_retries=0, max_concurrency=_CALLS_AT_ONCE
)(ConvoActor)


def _start(
    provider: Provider,
    tools: Sequence[AnyPacked],
    settings: Settings,
    listener: Listener | None,
    ray_options: Mapping[str, Any],
    *,
    workspace: Workspace | None,
    **place: Any,
) -> ConvoHandle:
    """Start the actor."""
    actor_class = _actor_class.options(**ray_options) if ray_options else _actor_class
    return cast(
        "ConvoHandle", actor_class.remote(provider, tools, settings, listener, workspace=workspace, **place)
    )


def _packed(tools: Iterable[AnyTool], settings: Settings, workspace: Workspace | None) -> list[AnyPacked]:
    """The tools as they travel. What is wrong with them is refused here, before there is a process."""
    packed = [pack(each) for each in _checked(tools)]
    check_names(packed)
    settings.check_tools(bool(packed))
    homeless = [each.spec.name for each in packed if each.in_workspace]
    if homeless and workspace is None:
        raise ConfigurationError(
            f"tools {homeless} work in a workspace, and the conversation has none; pass workspace=a folder"
        )
    return packed


def _check_options(options: SubConvoOptions) -> None:
    unknown = sorted(options.keys() - SubConvoOptions.__annotations__.keys())
    if unknown:
        raise ConfigurationError(
            f"a sub-conversation has no option {', '.join(unknown)}; there are: "
            f"{', '.join(SubConvoOptions.__annotations__)}"
        )
    if options.get("budget") is not None and options.get("budget_share") is not None:
        raise ConfigurationError(
            "a sub-conversation got both budget and budget_share; pass its limits, or its part of what is "
            "left, not both"
        )


def _workspace(given: str | os.PathLike[str] | Workspace | None) -> Workspace | None:
    if given is None or isinstance(given, Workspace):
        return given
    path = os.path.realpath(given)
    if not os.path.isdir(path):
        raise ConfigurationError(f"workspace {os.fspath(given)!r} is no folder; make it first")
    cast("Any", ray)._private.auto_init_hook.auto_init_ray()
    return Workspace(path=path, node_id=cast("Any", ray.get_runtime_context()).get_node_id())


def _checked(tools: Iterable[AnyTool]) -> Iterable[AnyTool]:
    for each in tools:
        if not isinstance(cast("object", each), Tool | PackedTool | McpTool):
            raise ConfigurationError(
                f"{each!r} is no tool; make it one with @tool, or get some with mcp_tools"
            )
        yield each


class ConvoClass:
    """Starts conversations: `Convo.remote(...)`, or with Ray's options `Convo.options(...).remote(...)`."""

    def __init__(self, ray_options: Mapping[str, Any] | None = None) -> None:
        self._ray_options = dict(ray_options or {})

    def options(self, **ray_options: Any) -> ConvoClass:
        """The same, with Ray's options for the actor: `name`, `resources`, `num_cpus`, ..."""
        return ConvoClass({**self._ray_options, **ray_options})

    def remote(
        self,
        provider: Provider,
        *,
        system_prompt: str = "",
        tools: Sequence[AnyTool] = (),
        budget: Budget | None = None,
        prompt_caching: bool = True,
        tool_use_only: bool = False,
        max_tokens: int | None = None,
        tool_limits: ToolLimits | None = None,
        workspace: str | os.PathLike[str] | Workspace | None = None,
        listener: Listener | None = None,
        label: str = "",
    ) -> ConvoHandle:
        """Start a root conversation: a Ray actor, in a process of its own.

        `budget` None is no limit. `tool_use_only` makes the model call a tool in every response.
        `max_tokens` bounds one answer; None is the provider's default. `tool_limits` hold for tools that
        set none themselves, here and below. `workspace` is the folder that tools of this tree work in, on
        the node where this is called, unless a `Workspace` says otherwise. `label` is shown in trees. The
        conversation ends with `close`, or when the last handle is dropped. Raises ConfigurationError,
        before anything is started, for what cannot work.
        """
        settings = Settings(
            system_prompt=system_prompt,
            budget=budget or Budget(),
            prompt_caching=prompt_caching,
            tool_use_only=tool_use_only,
            max_tokens=max_tokens,
            tool_limits=tool_limits or ToolLimits(),
            label=label,
        )
        if not isinstance(cast("object", provider), Provider):
            raise ConfigurationError(
                f"provider is a {type(provider).__name__}; pass one of palaver.providers, such as "
                "Anthropic(), OpenAI(...), Local(), or provider_for('model name')"
            )
        place = _workspace(workspace)
        packed = _packed(tools, settings, place)
        return _start(provider, packed, settings, listener, self._ray_options, workspace=place)


Convo = ConvoClass()
