"""`Convo`: a conversation as a Ray actor. A thin shell; what it does is in `conversation`.

All methods run in one event loop, which is why the core needs no locks: Ray gives each concurrency
group a thread and a loop of its own, so there are none here. Instead the limit on calls at once is out
of reach, so that no number of children waiting for an answer keeps a `cancel` from getting through.

Layer: actors; one of the modules that know Ray.
"""

from __future__ import annotations

import asyncio
import os
import resource
from collections import defaultdict
from collections.abc import AsyncGenerator, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, TypeAlias, Unpack, cast

import ray
import ray.actor

from palaver.actors.approvals import ApprovalRequest, Approved, Denied, Desk
from palaver.actors.batches import Batches
from palaver.actors.budget import Budget
from palaver.actors.children import CHILD_ENDS_WITHIN_S
from palaver.actors.context import Compaction
from palaver.actors.conversation import Conversation
from palaver.actors.endings import to_the_end
from palaver.actors.entries import AccountOpened
from palaver.actors.errors import BudgetExceeded, ConvoClosed, UnknownConvo
from palaver.actors.feed import ConvoEvent
from palaver.actors.ids import new_convo_id
from palaver.actors.items import Item, ItemResult, as_items, check_concurrency, failed
from palaver.actors.kin import Activity, Branch
from palaver.actors.light import light_handle
from palaver.actors.listener import Listener
from palaver.actors.mapping import AT_ONCE, LightWork
from palaver.actors.options import (
    AnyTool,
    SubConvoOptions,
    check_options,
    check_price,
    check_window,
    packed_tools,
)
from palaver.actors.rate_gate import GateClient
from palaver.actors.relatives import Ancestors, Remote
from palaver.actors.remote_methods import remote_map, remote_run, remote_stream, remotely
from palaver.actors.replies import reply
from palaver.actors.report import CancelReport, StoppedCall
from palaver.actors.result import RunResult
from palaver.actors.settings import Settings
from palaver.actors.treasury import RootTreasury, Statement, Treasury
from palaver.actors.typed_output import OUTPUT_RETRIES
from palaver.actors.usage import CumulativeUsage
from palaver.providers.errors import ConfigurationError, PalaverError
from palaver.providers.messages import Content, Message, ToolResult
from palaver.providers.provider import Provider, Response
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


class Resident:
    """A conversation in this process, and the methods of its handle; each is called through `.remote(...)`.

    `ancestors` are those of the actor that lives here, or has it live here; None for a root. `lights` are the
    light conversations of this process, by their ids.
    """

    def __init__(
        self,
        core: Conversation,
        handle: ConvoHandle,
        toolset: RayToolset,
        ancestors: Ancestors,
        workspace: Workspace | None,
        lights: dict[str, Resident],
    ) -> None:
        self._core = core
        self._handle = handle
        self._toolset = toolset
        self._ancestors = ancestors
        self._workspace = workspace
        self._lights = lights
        self._weakening: set[asyncio.Task[None]] = set()

    def __repr__(self) -> str:
        # Ray asks for it even when __init__ has failed.
        if not hasattr(self, "_core"):
            return "Convo"
        label = self._core.info.label
        return f"Convo({self._core.id}{f' {label!r}' if label else ''})"

    @remotely
    async def id(self) -> str:
        """The conversation's id: `abc-defg`."""
        return self._core.id

    @remotely
    async def depth(self) -> int:
        """How many conversations are above this one; 0 for a root."""
        return self._core.depth

    @remotely
    async def tool_names(self) -> tuple[str, ...]:
        """The names of the conversation's tools."""
        return tuple(each.name for each in self._core.toolset.specs)

    @remotely
    async def messages(self) -> tuple[Message, ...]:
        """All messages that were sent and answered, oldest first."""
        return self._core.transcript.messages

    @remotely
    async def former_messages(self) -> tuple[tuple[Message, ...], ...]:
        """The messages that each compaction replaced by a summary, oldest first."""
        return self._core.transcript.former

    @remotely
    async def context_left(self) -> int | None:
        """How many tokens of the model's context window the messages so far leave to what comes, answers too.

        By what the provider counted for the last request, and four bytes a token for what it has not seen.
        0 when they take all of it; None when nobody knows the window.
        """
        return await self._core.context_left()

    @remotely
    async def compact(self, instructions: str = "") -> Compaction:
        """Replace all messages by a summary that the model writes of them, and go on from that.

        History that was sent is never edited: what follows is a new conversation for the provider. Here it
        stays the same one, with its id, tools, sub-conversations, usage and budgets, so that every handle
        holds. The next message begins with the summary; `former_messages` has what it stands for, the request
        for it included. Open tool calls that nobody answered count as not executed. `instructions` say what
        else the summary has to hold.

        Raises what `send_message` raises, and CompactionFailed when there is nothing to summarise or the
        model gives no summary; then the messages stand.
        """
        return await self._core.compact(instructions)

    @remotely
    async def send_user_text_message(self, text: str, *contents: Content) -> Response:
        """Send a text, with contents before it (usually tool results). See `send_message`."""
        return await self._core.send_user_text_message(text, *contents)

    @remotely
    async def send_message(self, message: Message) -> Response:
        """Send a message and return the answer. Both are kept only when the request succeeds.

        Tool calls that the message leaves unanswered are answered "not executed; retry possible".
        Raises BudgetExceeded before anything is sent, ProviderError, ConvoBusy, ConvoClosed,
        ConvoCancelled, NothingToSend, or UnknownToolCall for a result that answers no open call.
        """
        return await self._core.send_message(message)

    @remote_run
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

    @remote_stream
    async def stream(
        self, text: str, *contents: Content, output_type: Any = None, output_retries: int = OUTPUT_RETRIES
    ) -> AsyncGenerator[tuple[ConvoEvent, ...]]:
        """Do the same as `run`, and tell what happens meanwhile, through Ray's streaming generator.

        `async for event in events(convo.stream.remote("...")):`, where `events` is in `palaver.actors`. The
        events are TextDelta, ThinkingDelta, ToolInputDelta and UsageSoFar of `palaver.providers`, Responded,
        ToolStarted and ToolEnded, and at the end a RunEnded with what `run` would have returned; they come
        in batches, BATCHED_S apart. Raises what `run` raises, and StreamBroken for an answer that broke off
        after parts of it were handed out. Who stops listening stops the run.
        """
        batches = self._core.stream(text, *contents, output_type=output_type, output_retries=output_retries)
        async with aclosing(batches):
            async for batch in batches:
                yield batch

    @remotely
    async def tool_result_contents(self, response: Response) -> list[ToolResult]:
        """Run all tool calls of a response at once; their results, in the order of the calls.

        Empty when there are none, or when the response was cut at max_tokens, which may have cut a
        call's input. A call whose tool raised DoNotRespond has no result. Raises ConvoBusy, ConvoClosed,
        ConvoCancelled.
        """
        return await self._core.tool_result_contents(response)

    @remotely
    async def tool_result_cancel_contents(self, response: Response) -> list[ToolResult]:
        """A result for each tool call of a response that says the user cancelled it; nothing is run."""
        return await self._core.tool_result_cancel_contents(response)

    @remotely
    async def cancel_tool_use(self, tool_use_id: str, cause: str) -> StoppedCall:
        """Stop one running tool call; its result is an error with the cause.

        Returns when nothing of the call is left on any node, and the sub-conversations that were started
        within it are closed. Raises UnknownToolCall, which names those
        that are running.
        """
        return await self._core.cancel_tool_use(tool_use_id, cause)

    @remotely
    async def pending_approvals(self) -> tuple[ApprovalRequest, ...]:
        """The tool calls, of this conversation and all below it, that wait for a yes; oldest first."""
        return await self._core.approvals.pending()

    @remotely
    async def until_approval_needed(
        self, seen: Collection[str] = (), *, timeout_s: float | None = None
    ) -> tuple[ApprovalRequest, ...]:
        """Wait until tool calls, here or below, need a yes that the caller does not know of; those.

        `seen` are the ids of the requests it knows, so that none is missed between two calls. After
        `timeout_s` seconds the answer is empty; None waits for ever. Raises ConvoClosed.
        """
        return await self._core.approvals.until_needed(seen, timeout_s=timeout_s)

    @remotely
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

    @remotely
    async def deny(self, tool_use_id: str, reason: str, *, convo_id: str | None = None) -> None:
        """Let a tool call that waits for a yes not run, here or below.

        Its result, an error, tells the model so, with the reason, which may be empty. `convo_id` and errors
        are as in `approve`.
        """
        await self._core.approvals.deny(tool_use_id, reason, convo_id=convo_id)

    @remotely
    async def cancel(self, cause: str) -> CancelReport:
        """Stop the request in flight, every running tool, and the same in all sub-conversations.

        Returns when all of them are fenced: none sends a request any more, and nothing of their tool
        calls is left on any node. The report tells what was stopped. The conversation can go on
        afterwards: every tool call that was stopped has its result.
        """
        return await self._core.cancel(cause)

    @remotely
    async def until_cancelled(self) -> str:
        """Wait for the next `cancel` or `close` of this conversation; its cause. Raises ConvoClosed."""
        return await self._core.until_cancelled()

    @remotely
    async def close(self) -> None:
        """End this conversation and all below it. Their processes end within about a second.

        Until then calls raise ConvoClosed; afterwards Ray's own ActorDiedError.
        """
        await self._core.close()

    @remotely
    async def cumulative_usage(self) -> CumulativeUsage:
        """Usage of this conversation and all below it; `tool_uses` counts over the whole tree."""
        return await self._core.cumulative_usage()

    @remotely
    async def usage_of(self, convo_id: str) -> CumulativeUsage:
        """What one below this conversation, ended or not, has used with all below it. Raises UnknownConvo."""
        return await self._core.treasury.usage(convo_id)

    @remotely
    async def over_budget(self) -> BudgetExceeded | None:
        """The budget that this conversation, or an ancestor, has used up; None while there is none."""
        return await self._core.over_budget()

    @remotely
    async def reset_budget(self, budget: Budget) -> None:
        """Set new limits, counted from what was used so far."""
        await self._core.reset_budget(budget)

    @remotely
    async def budget_left(self) -> Budget:
        """What is left of this conversation's limits and of all above it, the tightest of each.

        What is reserved for requests under way is not left.
        """
        return await self._core.budget_left()

    @remotely
    async def fund(self, convo_id: str, budget: Budget) -> Budget:
        """Raise the limits of this conversation, or of one below it, by those of `budget`; the new limits.

        What waited for its budget goes on. Raises UnknownConvo, ConvoClosed, and ConfigurationError for a
        limit that there is not.
        """
        return await self._core.fund(convo_id, budget)

    @remotely
    async def tree(self, *, ended: bool = True) -> Branch:
        """This conversation and all below it: who, state, usage, budget. `ended` ones are included or not.

        The sums are of all in either case.
        """
        return await self._core.tree(ended=ended)

    @remotely
    async def find(self, convo_id: str) -> ConvoHandle:
        """A handle of this conversation or of one below it, by its id, as `tree` shows it.

        It does not keep that one alive. Raises UnknownConvo, ConvoClosed for one that has ended.
        """
        path = await self._core.treasury.lineage(convo_id)
        if self._core.id not in path:
            raise UnknownConvo(convo_id, self._core.id)
        return await self._found(tuple(reversed(path[: path.index(self._core.id)])))

    async def _found(self, path: tuple[str, ...]) -> ConvoHandle:
        if not path:
            return self._handle
        match self._core.child(path[0]):
            case Remote() as child:
                return await reply(child.handle.below.remote(path[1:]), path[0])
            case Conversation():
                return await self._lights[path[0]]._found(path[1:])
            case _:
                raise ConvoClosed(path[-1])

    @remotely
    async def sub_convo(self, **options: Unpack[SubConvoOptions]) -> ConvoHandle:
        """Start a sub-conversation: an actor that is this one's child.

        It has this one's provider, prompt caching, listener, workspace and tool limits; no messages, tools
        or budget but the ones given here. What it spends counts here too, and this one's budget holds for
        it. It ends with `close`, with this conversation, or when its last handle is dropped. Raises
        ConvoClosed, ConvoCancelled, ConfigurationError, UnknownToolCall, and BudgetExceeded when a share is
        asked for of a budget that is used up.
        """
        return (await self._start_children([options]))[0]

    @remotely
    async def sub_convos(
        self, options: Sequence[SubConvoOptions], *, at_most: int | None = None
    ) -> list[ConvoHandle]:
        """Start several sub-conversations, or none. See `sub_convo`.

        Raises TooManySubConvos when more than `at_most` would be open then: of all that are, or if these
        are started within a tool call, of those that running calls of the same tool have started.
        """
        return await self._start_children(options, at_most=at_most)

    @remotely
    async def light_sub_convo(self, **options: Unpack[SubConvoOptions]) -> ConvoHandle:
        """Start a sub-conversation that shares this one's process: it costs some kilobytes, and no start.

        All else is as with `sub_convo`, but for `actor_options`, which it cannot have, its listener, which is
        this one's own, and its end: with `close`, or with this one, whoever holds handles. What brings this
        process down takes it along.
        """
        return (await self._start_children([options], light=True))[0]

    @remotely
    async def sub_convo_with_history(self, **options: Unpack[SubConvoOptions]) -> ConvoHandle:
        """Start a sub-conversation that also has a copy of the messages so far. See `sub_convo`."""
        return (await self._start_children([options], self._core.transcript.history))[0]

    @remote_map
    async def map(
        self,
        items: Iterable[Item | str],
        *,
        concurrency: int = AT_ONCE,
        workers: int = 0,
        output_type: Any = None,
        output_retries: int = OUTPUT_RETRIES,
        **options: Unpack[SubConvoOptions],
    ) -> AsyncGenerator[tuple[ItemResult, ...]]:
        """Run each item (a text, or an Item with a label) in a light sub-conversation, `concurrency` at once.

        `async for result in results(convo.map.remote(items)):`, where `results` is in `palaver.actors`. There
        is one result per item, whatever happens, in the order in which they come. `options` are those of a
        sub-conversation, the budget for each item on its own; `output_type` is as in `run`. With `workers`
        the items are shared out among so many sub-conversations with processes of their own, to which
        `actor_options` apply, so that more than one CPU, or node, has part in the work; `concurrency` is of
        all together. A worker that dies leaves the items that it had not finished a result that says so.

        When this conversation is cancelled, closed, or over its budget, the items that are left get a result
        that says so. Who stops listening stops the work. Raises ConfigurationError.
        """
        check_concurrency(concurrency)
        work = as_items(items)
        if workers:
            batches = self._mapped_by_workers(
                work, workers, concurrency, options, output_type=output_type, output_retries=output_retries
            )
        else:
            if options.get("actor_options"):
                raise ConfigurationError("light sub-conversations have no actors; actor_options need workers")
            settings, tools = await self._prepared(options)
            within_call = options.get("within_call")

            async def begin(item: Item) -> Conversation:
                child_id = new_convo_id()
                own = replace(settings, label=item.label)
                self._core.refuse_if_ending(within_call)
                await self._core.treasury.open([self._account_of(child_id, own)])
                light = self._begin_light(child_id, own, tools)
                try:
                    self._core.adopt(child_id, light._core, within_call)
                except PalaverError:
                    await light._core.close()
                    raise
                return light._core

            async def ask(child: Conversation, item: Item) -> RunResult[Any]:
                return await child.run(item.prompt, output_type=output_type, output_retries=output_retries)

            batches = LightWork(self._core, begin, ask).batches(work, concurrency)
        async with aclosing(batches):
            async for batch in batches:
                yield batch

    async def _mapped_by_workers(
        self,
        items: Sequence[Item],
        workers: int,
        concurrency: int,
        options: SubConvoOptions,
        **asked: Any,
    ) -> AsyncGenerator[tuple[ItemResult, ...]]:
        if workers < 1:
            raise ConfigurationError(f"workers is {workers}; use 0 for none, or 1 or more")
        workers = min(workers, len(items), concurrency) or 1
        own: SubConvoOptions = {"actor_options": options.get("actor_options")}
        own["within_call"] = options.get("within_call")
        started: list[SubConvoOptions] = [{**own, "label": f"worker {n + 1}"} for n in range(workers)]
        of_items = {name: each for name, each in options.items() if name not in own}
        come: Batches[tuple[ItemResult, ...]] = Batches()

        async def follow(worker: ConvoHandle, share: Sequence[Item], at_once: int) -> None:
            left: defaultdict[str, list[Item]] = defaultdict(list)
            for item in share:
                left[item.label].append(item)
            told: set[str | None] = set()
            worker_id = ""
            try:
                worker_id = await reply(worker.id.remote())
                mapped = worker.map.remote(share, concurrency=at_once, **asked, **cast("Any", of_items))
                async for ref in mapped:
                    batch = await reply(ref)
                    for result in batch:
                        left[result.label].pop()
                        told.add(result.convo_id)
                    come.put(batch)
            except PalaverError as error:
                begun = await self._begun_at(worker_id, told)
                lost = [item for each in left.values() for item in each]
                come.put(tuple(_lost(item, error, begun) for item in lost))
            finally:
                await to_the_end(_closed(worker))

        async def work() -> None:
            handles = await self._start_children(started)
            shares = [items[n::workers] for n in range(workers)]
            at_once = [concurrency // workers + (n < concurrency % workers) for n in range(workers)]
            await asyncio.gather(*map(follow, handles, shares, at_once))

        async with aclosing(come.while_at(work())) as all_batches:
            async for batches in all_batches:
                for batch in batches:
                    yield batch

    async def _begun_at(self, worker_id: str, told: Collection[str | None]) -> dict[str, list[Statement]]:
        """The accounts, by label, of what a worker that is gone had begun and not told the end of."""
        begun: dict[str, list[Statement]] = {}
        if worker_id:
            for each in await self._core.treasury.statements(worker_id):
                if each.parent_id == worker_id and each.convo_id not in told:
                    begun.setdefault(each.label, []).append(each)
        return begun

    def _account_of(self, child_id: str, settings: Settings) -> AccountOpened:
        return AccountOpened(
            convo_id=child_id,
            parent_id=self._core.id,
            label=settings.label,
            model=self._core.provider.model,
            budget=settings.budget,
            at=datetime.now(UTC),
        )

    async def _start_children(
        self,
        options_of_each: Sequence[SubConvoOptions],
        messages: Sequence[Message] = (),
        at_most: int | None = None,
        light: bool = False,
    ) -> list[ConvoHandle]:
        prepared = [await self._prepared(options) for options in options_of_each]
        if light and any(options.get("actor_options") for options in options_of_each):
            raise ConfigurationError("a light sub-conversation has no actor; leave actor_options out")
        accounts = [self._account_of(new_convo_id(), settings) for settings, _ in prepared]
        self._refuse_children(options_of_each, at_most)
        await self._core.treasury.open(accounts)
        try:
            # Nothing is awaited from here on: all are started or none, and nobody else's in between.
            self._refuse_children(options_of_each, at_most)
        except PalaverError:
            for each in accounts:
                await self._core.treasury.close(each.convo_id)
            raise
        start = self._start_light if light else self._start_child
        return [
            start(account.convo_id, options, settings, tools, messages)
            for account, options, (settings, tools) in zip(accounts, options_of_each, prepared, strict=True)
        ]

    def _refuse_children(self, options_of_each: Sequence[SubConvoOptions], at_most: int | None) -> None:
        for within_call in dict.fromkeys(each.get("within_call") for each in options_of_each):
            self._core.refuse_if_ending(within_call)
            if at_most is not None:
                self._core.refuse_too_many(len(options_of_each), at_most, within_call)

    async def _prepared(self, options: SubConvoOptions) -> tuple[Settings, list[AnyPacked]]:
        """What a sub-conversation is started with. Everything that can be refused is refused here."""
        check_options(options)
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
            tell_budget_from=self._core.settings.tell_budget_from,
            compact_from=self._core.settings.compact_from,
        )
        tools = [self._own_tool(each) if isinstance(each, str) else each for each in options.get("tools", ())]
        return settings, packed_tools(tools, settings, self._workspace)

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
        child_id: str,
        options: SubConvoOptions,
        settings: Settings,
        tools: Sequence[AnyPacked],
        messages: Sequence[Message],
    ) -> ConvoHandle:
        handle = _start(
            self._core.provider,
            tools,
            settings,
            self._core.listener,
            # On another node one after the other: the loss of one then takes few.
            {"scheduling_strategy": "SPREAD", **(options.get("actor_options") or {})},
            id=child_id,
            ancestors=self._ancestors.and_below(Remote(self._core.id, self._handle)),
            messages=messages,
            workspace=self._workspace,
        )
        child = Remote(child_id, handle, settings.label)
        self._core.adopt(child_id, child, options.get("within_call"))
        weakening = asyncio.create_task(child.weaken())
        self._weakening.add(weakening)
        weakening.add_done_callback(self._weakening.discard)
        return handle

    def _start_light(
        self,
        child_id: str,
        options: SubConvoOptions,
        settings: Settings,
        tools: Sequence[AnyPacked],
        messages: Sequence[Message],
    ) -> ConvoHandle:
        light = self._begin_light(child_id, settings, tools, messages)
        self._core.adopt(child_id, light._core, options.get("within_call"))
        return light._handle

    def _begin_light(
        self, child_id: str, settings: Settings, tools: Sequence[AnyPacked], messages: Sequence[Message] = ()
    ) -> Resident:
        ancestors = self._ancestors.and_below(Remote(self._core.id, self._handle))
        handle = cast("ConvoHandle", light_handle(self._handle, child_id))
        toolset = RayToolset(
            tools,
            (*ancestors.lineage, child_id),
            handle,
            workspace=self._workspace,
            limits=settings.tool_limits,
        )
        parent = _Housing(self._core, self._lights)
        core = self._core.beside(toolset, settings, id=child_id, parent=parent, messages=messages)
        light = Resident(core, handle, toolset, ancestors, self._workspace, self._lights)
        self._lights[child_id] = light
        return light

    # Called by relatives

    @remotely
    async def below(self, path: tuple[str, ...]) -> ConvoHandle:
        """A handle of the one that these ids lead to, each a child of the one before it."""
        return await self._found(path)

    @remotely
    async def own_handle(self) -> ConvoHandle:
        """A handle that does not keep this conversation alive."""
        return self._handle

    @remotely
    async def activity(self) -> Activity:
        """What this conversation and those below it are doing."""
        return await self._core.activity()

    @remotely
    async def child_closed(self, convo_id: str) -> None:
        """A child has closed."""
        await self._core.child_closed(convo_id)


class _Housing:
    """The parent of a light conversation, whose place in the process is free when it has closed."""

    def __init__(self, core: Conversation, lights: dict[str, Resident]) -> None:
        self._core = core
        self._lights = lights

    @property
    def lineage(self) -> tuple[str, ...]:
        return self._core.lineage

    @property
    def desk(self) -> Desk:
        return self._core.desk

    @property
    def treasury(self) -> Treasury:
        return self._core.treasury

    async def child_closed(self, convo_id: str) -> None:
        self._lights.pop(convo_id, None)
        await self._core.child_closed(convo_id)


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
        super().__init__(core, handle, toolset, above, workspace, {})
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
            self._handle._leave.remote()  # pyright: ignore[reportPrivateUsage]

    @remotely
    async def _leave(self) -> None:
        await asyncio.sleep(_LINGER_S)
        ray.actor.exit_actor()

    # Light conversations

    @remotely
    async def at(self, convo_id: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a light conversation of this process. Raises ConvoClosed when it has ended."""
        return await getattr(self._light(convo_id), method)(*args, **kwargs)

    async def stream_at(
        self, convo_id: str, method: str, *args: Any, **kwargs: Any
    ) -> AsyncGenerator[tuple[Any, ...]]:
        """Call a method of a light conversation that tells what happens meanwhile, in batches."""
        async with aclosing(getattr(self._light(convo_id), method)(*args, **kwargs)) as batches:
            async for batch in batches:
                yield batch

    def _light(self, convo_id: str) -> Resident:
        light = self._lights.get(convo_id)
        if light is None:
            raise ConvoClosed(convo_id)
        return light

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
    async def at_treasury(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of this root's treasury (`palaver.actors.treasury.Treasury`)."""
        return await getattr(self._treasury, method)(*args, **kwargs)

    @remotely
    async def until_request_ended(self, request_id: str) -> None:
        """Wait until a request of this conversation is neither under way nor about to be."""
        for each in (self, *self._lights.values()):
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
        for each in (self, *self._lights.values()):
            await each._core.approvals.until_settled(request_id)

    @remotely
    async def withdraw(self, request_id: str) -> None:
        """Take back a request for approval that nobody waits for any more."""
        await self._core.desk.withdraw(request_id)

    @remotely
    async def decide(self, request_id: str, decision: Approved | Denied) -> bool:
        """Answer a request for approval; False when it has its answer, or is no more."""
        return await self._core.desk.decide(request_id, decision)


ConvoHandle: TypeAlias = ConvoActor
"""What `Convo.remote` gives: a Ray actor handle whose methods are those of ConvoActor."""


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


def _lost(item: Item, error: PalaverError, begun: dict[str, list[Statement]]) -> ItemResult:
    """The result of an item whose process is gone, with what it had used."""
    account = begun[item.label].pop() if begun.get(item.label) else None
    if account is None:
        return failed(item, error, "not started: ")
    return failed(item, error, convo_id=account.convo_id, usage=account.usage)


def _allow_open_files() -> None:
    """As many connections at once as the machine allows: a process may begin with room for 1,024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def _closed(convo: ConvoHandle) -> None:
    with suppress(PalaverError, TimeoutError):
        async with asyncio.timeout(CHILD_ENDS_WITHIN_S):
            await reply(convo.close.remote())


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
