"""A conversation in a process, its own or light, and the methods of its handle.

All of a process run in one event loop, which is why the core needs no locks.

Layer: actors; Ray through handles alone.
"""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Mapping, Sequence
from contextlib import aclosing
from typing import Any, TypeAlias, Unpack, cast

from palaver.actors.approvals import ApprovalRequest
from palaver.actors.budget import Budget
from palaver.actors.context import Compaction
from palaver.actors.conversation import Conversation
from palaver.actors.errors import BudgetExceeded, ConvoClosed, UnknownConvo
from palaver.actors.feed import ConvoEvent
from palaver.actors.items import All, Item, ItemResult, as_items, check_concurrency
from palaver.actors.kin import Activity, Branch
from palaver.actors.mapping import AT_ONCE, LightWork
from palaver.actors.options import SubConvoOptions
from palaver.actors.relatives import Remote
from palaver.actors.remote_methods import remote_map, remote_run, remote_stream, remotely
from palaver.actors.replies import reply
from palaver.actors.report import CancelReport, StoppedCall
from palaver.actors.result import RunResult
from palaver.actors.settings import Settings
from palaver.actors.sub_convos import Seat, SubConvos
from palaver.actors.typed_output import OUTPUT_RETRIES
from palaver.actors.usage import CumulativeUsage
from palaver.actors.workers import SharedWork, Stock, Taken
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Content, Message, ToolResult
from palaver.providers.provider import Response
from palaver.tools.task import AnyPacked


class Household:
    """The conversations of one process that are light. `start` starts an actor, with a process of its own."""

    def __init__(self, start: Callable[..., ConvoHandle]) -> None:
        self.start = start
        self.lights: dict[str, Resident] = {}

    def move_in(self, seat: Seat) -> None:
        """Take in a light conversation."""
        self.lights[seat.core.id] = Resident(seat, self)

    def move_out(self, convo_id: str) -> None:
        """One has closed."""
        self.lights.pop(convo_id, None)

    def light(self, convo_id: str) -> Resident:
        """A light conversation by its id. Raises ConvoClosed when it has ended."""
        found = self.lights.get(convo_id)
        if found is None:
            raise ConvoClosed(convo_id)
        return found


class Resident:
    """A conversation in this process, and the methods of its handle, each called through `.remote(...)`."""

    def __init__(self, seat: Seat, household: Household) -> None:
        self._core: Conversation = seat.core
        self._handle: ConvoHandle = seat.handle
        self._household = household
        self._sub_convos = SubConvos(seat, household)
        self._stocks: dict[int, Stock] = {}
        self._stock_numbers = itertools.count()

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
    async def message_under_way(self) -> Message | None:
        """The message that was sent, or waits to be, and is not answered yet; None when there is none."""
        return self._core.exchanges.message

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
                return await self._household.light(path[0])._found(path[1:])
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
        return (await self._sub_convos.start([options]))[0]

    @remotely
    async def sub_convos(
        self, options: Sequence[SubConvoOptions], *, at_most: int | None = None
    ) -> list[ConvoHandle]:
        """Start several sub-conversations, or none. See `sub_convo`.

        Raises TooManySubConvos when more than `at_most` would be open then: of all that are, or if these
        are started within a tool call, of those that running calls of the same tool have started.
        """
        return await self._sub_convos.start(options, at_most=at_most)

    @remotely
    async def light_sub_convo(self, **options: Unpack[SubConvoOptions]) -> ConvoHandle:
        """Start a sub-conversation that shares this one's process: it costs some kilobytes, and no start.

        All else is as with `sub_convo`, but for `actor_options`, which it cannot have, its listener, which is
        this one's own, and its end: with `close`, or with this one, whoever holds handles. What brings this
        process down takes it along.
        """
        return (await self._sub_convos.start([options], light=True))[0]

    @remotely
    async def sub_convo_with_history(self, **options: Unpack[SubConvoOptions]) -> ConvoHandle:
        """Start a sub-conversation that also has a copy of the messages so far. See `sub_convo`."""
        return (await self._sub_convos.start([options], self._core.transcript.history))[0]

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
        sub-conversation, the budget for each item on its own; `output_type` is as in `run`.

        With `workers` so many sub-conversations with processes of their own, to which `actor_options` apply,
        take the items as they have room for them, so that more than one CPU, or node, has part in the work;
        `concurrency` is of all together. A worker that dies leaves a result that says so for each item
        that it had begun; the others take the rest, and another worker takes its place.

        When this conversation is cancelled, closed, or over its budget, the items that are left get a result
        that says so. Who stops listening stops the work. Raises ConfigurationError.
        """
        check_concurrency(concurrency)
        work = as_items(items)
        concurrency = min(concurrency, len(work) or 1)
        asked = {"output_type": output_type, "output_retries": output_retries}
        settings, tools = await self._sub_convos.prepared(options)
        within_call = options.get("within_call")
        if workers:
            own: SubConvoOptions = {
                "actor_options": options.get("actor_options"),
                "within_call": within_call,
            }
            batches = self._mapped_by_workers(work, workers, concurrency, own, (settings, tools, asked))
        else:
            if options.get("actor_options"):
                raise ConfigurationError("light sub-conversations have no actors; actor_options need workers")
            begin = self._sub_convos.for_items(settings, tools, within_call)
            batches = LightWork(self._core, begin, asked).batches(All(work), concurrency)
        async with aclosing(batches):
            async for batch in batches:
                yield batch

    async def _mapped_by_workers(
        self,
        items: Sequence[Item],
        workers: int,
        concurrency: int,
        own: SubConvoOptions,
        of_items: tuple[Settings, Sequence[AnyPacked], Mapping[str, Any]],
    ) -> AsyncGenerator[tuple[ItemResult, ...]]:
        if workers < 1:
            raise ConfigurationError(f"workers is {workers}; use 0 for none, or 1 or more")
        workers = min(workers, concurrency)
        number, stock = next(self._stock_numbers), Stock(items, workers)

        async def start(labels: Sequence[str]) -> list[ConvoHandle]:
            return await self._sub_convos.start([{**own, "label": label} for label in labels])

        def work(worker: ConvoHandle, at_once: int) -> Any:
            return cast("Any", worker).work_off.remote(self._handle, number, at_once, *of_items)

        self._stocks[number] = stock
        try:
            shared = SharedWork(self._core, stock, start, work).batches(workers, concurrency)
            async with aclosing(shared) as batches:
                async for batch in batches:
                    yield batch
        finally:
            del self._stocks[number]

    # Called by relatives

    async def work_off(
        self,
        giver: ConvoHandle,
        stock: int,
        concurrency: int,
        settings: Settings,
        tools: Sequence[AnyPacked],
        asked: Mapping[str, Any],
    ) -> AsyncGenerator[tuple[ItemResult, ...]]:
        """Run items that `giver`, the parent, hands out, in light sub-conversations."""

        async def take(number: int, wanted: int) -> tuple[Item, ...]:
            return await reply(giver.hand_out.remote(stock, self._core.id, number, wanted))

        work = LightWork(self._core, self._sub_convos.for_items(settings, tools), asked)
        async with aclosing(work.batches(Taken(take, concurrency), concurrency)) as batches:
            async for batch in batches:
                yield batch

    @remotely
    async def hand_out(self, stock: int, worker: str, number: int, wanted: int) -> tuple[Item, ...]:
        """Items for a worker; see `palaver.actors.workers.Stock`."""
        return await self._stocks[stock].take(worker, number, wanted) if stock in self._stocks else ()

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


ConvoHandle: TypeAlias = Resident
"""What `Convo.remote` gives: a Ray actor handle, or that of a light conversation, with these methods."""
