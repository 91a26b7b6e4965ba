"""`Convo`: a conversation as a Ray actor. A thin shell; what it does is in `conversation`.

Ray gives each concurrency group a thread and an event loop of its own, and what is in `resident` has one
loop alone. So there are no groups, and the limit on calls at once is out of reach: no number of children
waiting for an answer keeps a `cancel` from getting through.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, cast

import ray
import ray.actor

from palaver.actors.approvals import ApprovalRequest, Approved, Denied
from palaver.actors.budget import Budget
from palaver.actors.conversation import Conversation
from palaver.actors.errors import ConvoClosed
from palaver.actors.ids import new_convo_id
from palaver.actors.listener import Listener
from palaver.actors.options import (
    AnyTool,
    check_price,
    check_window,
    packed_tools,
)
from palaver.actors.rate_gate import GateClient
from palaver.actors.relatives import Ancestors, Remote
from palaver.actors.remote_methods import remotely
from palaver.actors.remote_treasury import Answer, Call, answers_to
from palaver.actors.resident import ConvoHandle, Household, Resident
from palaver.actors.settings import Settings
from palaver.actors.sub_convos import Seat
from palaver.actors.treasury import RootTreasury
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Message
from palaver.providers.provider import Provider
from palaver.providers.rate_limits import TakesGate
from palaver.tools.limits import ToolLimits
from palaver.tools.task import AnyPacked, RayToolset
from palaver.tools.workspace import Workspace

_CALLS_AT_ONCE = 1_000_000
"""Ray's default for async actors is 1,000; calls beyond it queue, control calls too."""

NAMESPACE = "palaver"
ROOT_NAME = "convo "
"""What the name of a root's actor begins with, in that namespace; its id follows."""

_LINGER_S = 1.0
"""How long a closed conversation still answers, with ConvoClosed, before its process ends."""


class ConvoActor(Resident):
    """The actor behind a `Convo` handle: a conversation with a process of its own, and its light ones."""

    def __init__(
        self,
        provider: Provider,
        tools: Sequence[AnyPacked],
        settings: Settings,
        listener: Listener | None = None,
        *,
        id: str | None = None,
        ancestors: Ancestors | None = None,
        messages: Sequence[Message] = (),
        workspace: Workspace | None = None,
    ) -> None:
        _allow_open_files()
        id = id or new_convo_id()
        context = cast("Any", ray.get_runtime_context())
        handle = cast("ConvoHandle", context.current_actor)
        above = ancestors or Ancestors()
        toolset = RayToolset(
            tools, (*above.lineage, id), handle, workspace=workspace, limits=settings.tool_limits
        )
        core = Conversation(
            provider,
            toolset,
            settings,
            id=id,
            parent=ancestors,
            parent_id=ancestors.parent_id if ancestors else None,
            depth=len(above),
            messages=messages,
            listener=listener,
        )
        super().__init__(Seat(core, handle, toolset, above, workspace), Household(_start))
        self._gate: GateClient | None = None
        if isinstance(provider, TakesGate):
            self._gate = GateClient(id, (*above.lineage, id)[0], handle)
            provider.through(self._gate)
        if ancestors is None:
            self._treasury.introduce(id, Remote(id, handle), context.get_node_id())

    @remotely
    async def close(self) -> None:
        """End this conversation and all below it. Their processes end within about a second.

        Until then calls raise ConvoClosed; afterwards Ray's own ActorDiedError.
        """
        try:
            await self._core.close()
        finally:
            cast("Any", self._handle)._leave.remote()

    @remotely
    async def _leave(self) -> None:
        await asyncio.sleep(_LINGER_S)
        ray.actor.exit_actor()

    # Light conversations

    @remotely
    async def at(self, convo_id: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a light conversation of this process. Raises ConvoClosed when it has ended."""
        return await getattr(self._household.light(convo_id), method)(*args, **kwargs)

    async def stream_at(
        self, convo_id: str, method: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Call a method of a light conversation that tells what happens meanwhile, in batches."""
        async with aclosing(getattr(self._household.light(convo_id), method)(*args, **kwargs)) as batches:
            async for batch in batches:
                yield batch

    # Called by sub-conversations, and by the rate gate

    @remotely
    async def is_sending(self, ticket: str) -> bool:
        """Whether a request of this conversation is at the rate gate, or under way, with that ticket."""
        return self._gate is not None and ticket in self._gate.sending

    @remotely
    async def introduce(self, convo_id: str, convo: ConvoHandle, node_id: str) -> None:
        """A conversation below this root says who it is, before its first request."""
        self._treasury.introduce(convo_id, Remote(convo_id, convo), node_id)

    @remotely
    async def at_treasury(self, calls: Sequence[Call]) -> list[Answer | None]:
        """Call methods of this root's treasury; what waits there is let go (`answers_to`)."""
        return await answers_to(calls, self._treasury)

    @remotely
    async def waited_at_treasury(self, call: Call) -> Any:
        """Call a method of this root's treasury, and wait for it."""
        return await call.made_at(self._treasury)

    @remotely
    async def until_request_ended(self, request_id: str) -> None:
        """Wait until a request of this conversation is neither under way nor about to be."""
        for each in (self, *self._household.lights.values()):
            await each._core.exchanges.until_request_ended(request_id)

    @property
    def _treasury(self) -> RootTreasury:
        assert isinstance(self._core.treasury, RootTreasury), "asked at a conversation that is no root"
        return self._core.treasury

    @remotely
    async def decision_on(self, request: ApprovalRequest, asker: ConvoHandle) -> Approved | Denied:
        """Wait, at the root, for the decision on a call of `asker`. Withdrawn when that is gone."""
        watch = asyncio.create_task(self._withdraw_when_settled(request.id, Remote(request.convo_id, asker)))
        try:
            return await self._core.desk.decision_on(request)
        finally:
            watch.cancel()

    async def _withdraw_when_settled(self, request_id: str, asker: Remote) -> None:
        # An actor whose caller is gone is not told of that; a caller is told when an actor is.
        with suppress(ConvoClosed):
            await asker.until_settled(request_id)
        await self._core.desk.withdraw(request_id)

    @remotely
    async def until_settled(self, request_id: str) -> None:
        """Wait until a request for approval of this conversation's own has ended."""
        for each in (self, *self._household.lights.values()):
            await each._core.approvals.until_settled(request_id)

    @remotely
    async def withdraw(self, request_id: str) -> None:
        """Take back a request for approval that nobody waits for any more."""
        await self._core.desk.withdraw(request_id)

    @remotely
    async def decide(self, request_id: str, decision: Approved | Denied) -> bool:
        """Answer a request for approval; False when it has its answer, or is no more."""
        return await self._core.desk.decide(request_id, decision)


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


def _allow_open_files() -> None:
    """As many connections at once as the machine allows: a process may begin with room for 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _workspace(given: str | os.PathLike[str] | Workspace | None) -> Workspace | None:
    if given is None or isinstance(given, Workspace):
        return given
    path = os.path.realpath(given)
    if not os.path.isdir(path):
        raise ConfigurationError(f"workspace {os.fspath(given)!r} is no folder; make it first")
    if not ray.is_initialized():
        cast("Any", ray).init()
    return Workspace(path=path, node_id=cast("Any", ray.get_runtime_context()).get_node_id())


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
        tell_budget_from: float | None = None,
        compact_from: float | None = None,
        label: str = "",
    ) -> ConvoHandle:
        """Start a root conversation: a Ray actor, in a process of its own.

        `budget` None is no limit. `tool_use_only` makes the model call a tool in every response; a run
        tells one that did not, and stops as "invalid_output" when that does not help.
        `max_tokens` bounds one answer; None is the provider's default. `tool_limits` hold for tools that
        set none themselves, here and below. `workspace` is the folder that tools of this tree work in, on
        the node where this is called, unless a `Workspace` says otherwise. From `tell_budget_from` (0 to 1)
        of a limit on, each message tells the model what is left, here and below; None tells nothing. Before a
        request that would take `compact_from` (above 0, at most 1) of the context window, or that is refused
        as too long, all messages are replaced by a summary, as `compact` does it, here and below; None leaves
        them.
        `label` is shown in trees. The conversation ends with `close`, or when the last handle is dropped.
        Raises ConfigurationError, before anything is started, for what cannot work.
        """
        settings = Settings(
            system_prompt=system_prompt,
            budget=budget or Budget(),
            prompt_caching=prompt_caching,
            tool_use_only=tool_use_only,
            max_tokens=max_tokens,
            tool_limits=tool_limits or ToolLimits(),
            tell_budget_from=tell_budget_from,
            compact_from=compact_from,
            label=label,
        )
        if not isinstance(cast("object", provider), Provider):
            raise ConfigurationError(
                f"provider is a {type(provider).__name__}; pass one of palaver.providers, such as "
                "Anthropic(), OpenAI(...), Local(), or provider_for('model name')"
            )
        check_price(provider, settings.budget)
        check_window(provider, compact_from)
        place = _workspace(workspace)
        packed = packed_tools(tools, settings, place)
        convo_id = new_convo_id()
        # By which `palaver ps` finds it from another process.
        ray_options = {"name": f"{ROOT_NAME}{convo_id}", "namespace": NAMESPACE, **self._ray_options}
        if "name" in self._ray_options and "namespace" not in self._ray_options:
            del ray_options["namespace"]
        return _start(provider, packed, settings, listener, ray_options, workspace=place, id=convo_id)


Convo = ConvoClass()
