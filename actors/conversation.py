"""The conversation itself: sends, calls tools, keeps the transcript, and answers for what it spends.

It owns the invariant that one call at a time writes the transcript: a second `send` or `run` is refused,
because a message between a tool call and its result would tear it.

Layer: actors, core; no Ray. Provider, tools, parent and clock are passed in.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Coroutine, Iterable
from typing import Any, TypeVar, overload

from palaver.actors.approvals import Approvals, Desk
from palaver.actors.budget import Budget
from palaver.actors.children import Children
from palaver.actors.context import ASK, PREFACE, Compaction, asking, taken_tokens
from palaver.actors.entries import AccountOpened
from palaver.actors.errors import (
    BudgetExceeded,
    CompactionFailed,
    ConvoBusy,
    ConvoCancelled,
    ConvoClosed,
    ConvoIdTaken,
    UnknownToolCall,
)
from palaver.actors.exchanges import Exchanges
from palaver.actors.feed import ConvoEvent, Feed, RunEnded
from palaver.actors.ids import new_convo_id
from palaver.actors.kin import Activity, Branch, Child, Parent, State, branch_of
from palaver.actors.ledger import Ledger
from palaver.actors.listener import ConvoInfo, GuardedListener, Listener, NoopListener
from palaver.actors.report import CancelReport, StoppedCall, StoppedConvo
from palaver.actors.result import RunResult, RunStop, stop_of
from palaver.actors.settings import Settings, check_budget
from palaver.actors.tool_calls import ToolCalls
from palaver.actors.transcript import Transcript
from palaver.actors.treasury import RootTreasury, Treasury
from palaver.actors.typed_output import OUTPUT_RETRIES, OutputType, TypedOutput
from palaver.actors.usage import CumulativeUsage
from palaver.providers.capabilities import context_window
from palaver.providers.errors import ContextTooLong
from palaver.providers.messages import Content, Message, Text, ToolResult, ToolUse
from palaver.providers.provider import Provider, Request, Response, StartsAnew, StopReason, ToolChoice
from palaver.providers.retry import Clock
from palaver.tools.toolset import Toolset

T = TypeVar("T")

_log = logging.getLogger(__name__)


TOOL_USE_RETRIES = 2
"""How often a model that has to call a tool, and did not, is told so in a run."""

PARENT_ANSWERS_WITHIN_S = 10.0
"""How long a parent may take to hear that a child has closed."""


class Conversation:
    """One conversation with a model. Its methods are those of `palaver.actors.Convo`; what approves or
    denies tool calls is in `approvals`."""

    def __init__(
        self,
        provider: Provider,
        toolset: Toolset,
        settings: Settings | None = None,
        *,
        id: str | None = None,
        parent: Parent | None = None,
        parent_id: str | None = None,
        depth: int = 0,
        messages: Iterable[Message] = (),
        listener: Listener | None = None,
        owns_provider: bool = True,
        clock: Clock | None = None,
    ) -> None:
        settings = settings or Settings()
        settings.check_tools(bool(toolset.specs))
        self.id = id or new_convo_id()
        self.provider = provider
        self.toolset = toolset
        self.settings = settings
        self.listener: Listener = listener or NoopListener()
        self.info = ConvoInfo(id=self.id, parent_id=parent_id, depth=depth, label=settings.label)
        self.transcript = Transcript(self.id, messages)
        self._parent = parent
        self._clock = clock or Clock()
        self.treasury: Treasury = parent.treasury if parent is not None else self._own_treasury()
        """Where what the whole tree spends is granted and counted; the root's."""
        self._told = GuardedListener(self.listener, self.info)
        self.approvals = Approvals(
            self.id,
            settings.label,
            parent.lineage if parent is not None else (),
            parent.desk if parent is not None else None,
        )
        self._children = Children(self.id, toolset, self.treasury)
        self.tool_calls = ToolCalls(
            self.id,
            toolset,
            self.transcript,
            self._told,
            self.approvals,
            self.treasury,
            self._children.close_those_of,
        )
        self.exchanges = Exchanges(self.id, provider, self.transcript, self._told, self.treasury, self._clock)
        self._owns_provider = owns_provider
        self._doing: str | None = None
        self._operations: set[asyncio.Task[Any]] = set()
        self._cause: str | None = None
        self._cancelling: asyncio.Task[CancelReport] | None = None
        self._closing: asyncio.Task[None] | None = None

    @property
    def label(self) -> str:
        """What it is called in trees."""
        return self.info.label

    is_starting = False
    """In this process it is there at once."""

    @property
    def depth(self) -> int:
        """How many conversations are above this one; 0 for a root."""
        return self.info.depth

    @property
    def lineage(self) -> tuple[str, ...]:
        """The ids of the conversations from the root down to this one."""
        return self.approvals.lineage

    @property
    def desk(self) -> Desk:
        """The root's desk, where tool calls of the whole tree wait for approval."""
        return self.approvals.desk

    # Sending

    async def send_user_text_message(self, text: str, *contents: Content) -> Response:
        """Send a text, with contents before it (usually tool results). See `send_message`."""
        return await self.send_message(_user_message(text, contents))

    async def send_message(self, message: Message) -> Response:
        """Send a message and return the answer. Both are kept only when the request succeeds.

        Tool calls that the message leaves unanswered are answered "not executed; retry possible".
        Raises BudgetExceeded before anything is sent, ProviderError, ConvoBusy, ConvoClosed,
        ConvoCancelled, NothingToSend, or UnknownToolCall for a result that answers no open call.
        """
        return await self._exclusively("a request", self._send(message))

    @overload
    async def run(self, text: str, *contents: Content) -> RunResult: ...

    @overload
    async def run(
        self, text: str, *contents: Content, output_type: type[T], output_retries: int = OUTPUT_RETRIES
    ) -> RunResult[T]: ...

    @overload
    async def run(
        self, text: str, *contents: Content, output_type: Any, output_retries: int = OUTPUT_RETRIES
    ) -> RunResult[Any]: ...

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
        return await self._exclusively("a run", self._prepared(text, contents, output_type, output_retries))

    async def stream(
        self, text: str, *contents: Content, output_type: Any = None, output_retries: int = OUTPUT_RETRIES
    ) -> AsyncGenerator[tuple[ConvoEvent, ...]]:
        """Do the same as `run`, and tell what happens meanwhile: events in batches, the last a RunEnded.

        Raises what `run` raises, and StreamBroken for an answer that broke off. Closing the generator stops
        the run; so does cancelling who iterates.
        """
        work = self._prepared(text, contents, output_type, output_retries)
        feed = Feed()

        async def run() -> None:
            self._told.feed = feed
            try:
                feed.put(RunEnded(result=await work))
            finally:
                self._told.feed = None

        running = asyncio.create_task(self._exclusively("a run", run()))
        running.add_done_callback(lambda _: feed.end())
        try:
            async for batch in feed.batches():
                yield batch
            await running
        finally:
            running.cancel()
            await asyncio.wait({running})
            work.close()  # in case it was never begun

    def _prepared(
        self, text: str, contents: Iterable[Content], output_type: Any, output_retries: int
    ) -> Coroutine[Any, Any, RunResult[Any]]:
        """A run that has not begun. Raises ConfigurationError for a type without a JSON schema."""
        typed: TypedOutput | None = None
        if output_type is not None:
            typed = TypedOutput(
                OutputType(output_type),
                self.provider,
                self.toolset.specs,
                must_call_tools=self.settings.tool_use_only,
                retries=output_retries,
            )
        return self._run(_user_message(text, contents), typed)

    async def _send(self, message: Message, typed: TypedOutput | None = None) -> Response:
        message = self.transcript.completed(message)
        if self.settings.tell_budget_from is not None:
            left = await self.treasury.notice(self.id, self.settings.tell_budget_from)
            if left:
                message = Message(role=message.role, content=(*message.content, Text(text=left)))
        request = self._request(message, typed)
        if self.settings.compact_from is None or not self.transcript.messages:
            return await self.exchanges.send(request, message)
        if not self._is_full(request, self.settings.compact_from):
            try:
                return await self.exchanges.send(request, message)
            except ContextTooLong:
                pass  # which is told before anything is charged
        await self._compact(message, "", typed)
        others = tuple(part for part in message.content if not isinstance(part, ToolResult))
        message = self.transcript.completed(Message(role="user", content=others))
        return await self.exchanges.send(self._request(message, typed), message)

    def _request(self, message: Message, typed: TypedOutput | None = None) -> Request:
        request = Request(
            messages=self.transcript.request_messages(message),
            system=self.settings.system_prompt,
            tools=tuple(self.toolset.specs),
            tool_choice=ToolChoice(type="any") if self.settings.tool_use_only else None,
            max_tokens=self.settings.max_tokens,
            prompt_caching=self.settings.prompt_caching,
        )
        return request if typed is None else typed.asked_in(request)

    # The context window

    async def context_left(self) -> int | None:
        """How many tokens of the model's context window the messages so far leave to what comes, answers too.

        By what the provider counted for the last request, and four bytes a token for what it has not seen.
        0 when they take all of it; None when nobody knows the window.
        """
        window = context_window(self.provider)
        if window is None:
            return None
        kept = Message(role="user", content=self.transcript.kept_results)
        return max(0, window - self._taken(self._request(kept)))

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
        message = Message(role="user", content=self.transcript.kept_results)
        return await self._exclusively("a compaction", self._compact(message, instructions))

    async def _compact(
        self, message: Message, instructions: str, typed: TypedOutput | None = None
    ) -> Compaction:
        """Compact what `message` would have gone on; of that the results of calls are part of the summary."""
        replaced = len(self.transcript.messages)
        if not replaced:
            raise CompactionFailed(self.id, "it has no messages yet")
        before = self._request(Message(role="user"), typed)
        window = context_window(self.provider)
        room = None if window is None else window - self._taken(before)
        some = Message(role="user", content=(*message.tool_results, Text(text=ASK)))
        results = self.transcript.completed(some).tool_results
        message = Message(role="user", content=asking(results, instructions, room))
        request = self._request(message, typed)
        # The tools stay, or the provider's cache of all before would be of no use.
        choice = ToolChoice(type="none") if request.tools else None
        request = request.model_copy(update={"tool_choice": choice, "output_schema": None})
        feed, self._told.feed = self._told.feed, None
        try:
            response = await self.exchanges.send(request, message)
        finally:
            self._told.feed = feed
        summary = response.message.text.strip()
        if not summary or response.stop_reason is StopReason.REFUSAL:
            raise CompactionFailed(self.id, f"the model gave no summary ({response.stop_reason})")
        self.transcript.compact(PREFACE.format(summary=summary))
        self.exchanges.forget_counts()
        compaction = Compaction(
            number=len(self.transcript.former),
            summary=summary,
            messages=replaced,
            request_id=response.request_id,
            usage=response.usage,
        )
        await self._told.on_compaction(compaction)
        return compaction

    def _is_full(self, request: Request, compact_from: float) -> bool:
        window = context_window(self.provider)
        return window is not None and self._taken(request) >= window * compact_from

    def _taken(self, request: Request) -> int:
        return taken_tokens(request, self.exchanges.counted(request))

    async def _run(self, message: Message, typed: TypedOutput | None) -> RunResult[Any]:
        first, before = True, (len(self.transcript.former), len(self.transcript.messages))
        stop: RunStop
        detail: str | None = None
        output: Any = None
        without_call = 0
        try:
            while True:
                response = await self._send(message, typed)
                calls = response.message.tool_uses
                reading = None if typed is None else typed.read(response)
                if reading is not None:
                    calls = reading.tool_calls
                elif not calls or response.stop_reason is StopReason.MAX_TOKENS:
                    stop, detail = stop_of(response, first=first), response.stop_detail or None
                    if not (self.settings.tool_use_only and stop == "end_turn"):
                        break
                    # Not every model can be made to call a tool, and not every one that can be does.
                    if without_call == TOOL_USE_RETRIES:
                        stop = "invalid_output"
                        detail = f"the model answered {without_call + 1} times without calling a tool"
                        break
                    without_call += 1
                    message = Message.user("Go on by calling a tool, and not with text alone.")
                    continue
                first = False
                contents: list[Content] = [*await self._call_tools(calls)]
                if reading is not None:
                    for result in reading.results:
                        self.transcript.keep_result(result)
                    contents += (*reading.results, *reading.contents)
                    if reading.stop is not None:
                        stop, detail, output = reading.stop, reading.detail, reading.output
                        break
                if calls and self.tool_calls.refused is not None:
                    raise self.tool_calls.refused
                if not contents:
                    stop = "no_response"
                    break
                message = Message(role="user", content=tuple(contents))
        except BudgetExceeded as over:
            stop, detail = "budget", over.reason
            if (failed := self.exchanges.failed_try) is not None:
                detail += f"; the last try before that failed: {failed}"
        except (asyncio.CancelledError, ConvoCancelled):
            if self._cause is None:
                raise
            stop, detail = "cancelled", self._cause
        answers = [each for each in self.transcript.since(*before) if each.role == "assistant"]
        last = answers[-1] if answers else None
        return RunResult(
            convo_id=self.id,
            stop=stop,
            text=last.text if last else "",
            message=last,
            responses=len(answers),
            usage=await self.cumulative_usage(),
            detail=detail,
            output=output,
        )

    async def _exclusively(self, doing: str, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` as the one call that may write the transcript, once a cancel under way has ended."""
        try:
            while self._cancelling is not None and self._closing is None:
                await asyncio.shield(self._cancelling)
            if self._closing is not None:
                raise ConvoClosed(self.id)
            if self._doing is not None:
                raise ConvoBusy(self.id, self._doing)
        except BaseException:
            work.close()
            raise
        self._doing = doing
        try:
            return await self._stoppably(work)
        finally:
            self._doing = None

    async def _stoppably(self, work: Coroutine[Any, Any, T]) -> T:
        """Do `work` as an operation that `cancel` stops, and whose end it waits for."""

        async def operation() -> T:
            try:
                return await work
            except asyncio.CancelledError:
                if self._cause is None:
                    raise
                raise ConvoCancelled(self.id, self._cause) from None

        task = asyncio.create_task(operation())
        self._operations.add(task)
        try:
            return await task
        finally:
            self._operations.discard(task)

    # Tools

    async def tool_result_contents(self, response: Response) -> list[ToolResult]:
        """Run all tool calls of a response at once; their results, in the order of the calls.

        Empty when there are none, or when the response was cut at max_tokens, which may have cut a
        call's input. A call whose tool raised DoNotRespond has no result. Raises ConvoBusy, ConvoClosed,
        ConvoCancelled.
        """
        calls = response.message.tool_uses
        if response.stop_reason is StopReason.MAX_TOKENS:
            calls = ()
        return await self._exclusively("its tool calls", self._call_tools(calls))

    async def tool_result_cancel_contents(self, response: Response) -> list[ToolResult]:
        """A result for each tool call of a response that says the user cancelled it; nothing is run."""
        return await self.tool_calls.refuse(response.message.tool_uses)

    async def cancel_tool_use(self, tool_use_id: str, cause: str) -> StoppedCall:
        """Stop one running tool call; its result is an error with the cause.

        Returns when nothing of the call is left on any node, and the sub-conversations that were started
        within it are closed. Raises UnknownToolCall, which names those
        that are running.
        """
        return await self.tool_calls.stop(tool_use_id, cause)

    async def _call_tools(self, calls: Iterable[ToolUse]) -> list[ToolResult]:
        results = await self.tool_calls.run(calls)
        if self._cause is not None:
            raise ConvoCancelled(self.id, self._cause)
        return results

    # Usage and budget

    async def cumulative_usage(self) -> CumulativeUsage:
        """Usage of this conversation and all below it; `tool_uses` counts over the whole tree."""
        return await self.treasury.usage(self.id)

    async def over_budget(self) -> BudgetExceeded | None:
        """The budget that this conversation, or an ancestor, has used up; None while there is none."""
        return await self.treasury.over_budget(self.id)

    async def budget_left(self) -> Budget:
        """What is left of this conversation's limits and of all above it, the tightest of each.

        What is reserved for requests under way is not left.
        """
        return await self.treasury.left(self.id)

    async def budget_share(self, part: float) -> Budget:
        """That part (above 0, at most 1) of what is left to this conversation, for a sub-conversation.

        Raises BudgetExceeded when nothing is left, ConfigurationError for a part that is none.
        """
        over = await self.over_budget()
        if over is not None and over.stops_requests:
            raise over
        return (await self.budget_left()).share(part)

    async def reset_budget(self, budget: Budget) -> None:
        """Set new limits, counted from what was used so far."""
        check_budget(budget)
        await self.treasury.reset_budget(self.id, budget)

    async def fund(self, convo_id: str, budget: Budget) -> Budget:
        """Raise the limits of this conversation, or of one below it, by those of `budget`; the new limits.

        What waited for its budget goes on. Raises UnknownConvo, ConvoClosed, and ConfigurationError for a
        limit that there is not.
        """
        check_budget(budget)
        return await self.treasury.fund(convo_id, budget, asked_by=self.id)

    def _own_treasury(self) -> RootTreasury:
        ledger = Ledger(self._clock)
        ledger.open([self._account(None)])
        return RootTreasury(ledger)

    def _account(self, parent_id: str | None) -> AccountOpened:
        return AccountOpened(
            convo_id=self.id,
            parent_id=parent_id,
            label=self.settings.label,
            model=self.provider.model,
            budget=self.settings.budget,
            at=self._clock.now(),
        )

    # The tree

    async def sub_conversation(
        self, toolset: Toolset, settings: Settings | None = None, *, messages: Iterable[Message] = ()
    ) -> Conversation:
        """A sub-conversation in this process, with this one's provider and listener.

        Raises BudgetExceeded when there may be no more of them, ConvoClosed, ConvoCancelled.
        """
        messages = tuple(messages)
        while True:
            self.refuse_if_ending()
            child = self.beside(toolset, settings, messages=messages)
            try:
                await self.treasury.open([child._account(self.id)])
            except ConvoIdTaken:
                continue
            self.adopt(child.id, child)
            return child

    def beside(
        self,
        toolset: Toolset,
        settings: Settings | None = None,
        *,
        id: str | None = None,
        parent: Parent | None = None,
        messages: Iterable[Message] = (),
    ) -> Conversation:
        """A sub-conversation in this process that is not begun: without an account, and not adopted.

        `parent` is what it takes for its parent; None for this one.
        """
        provider = self.provider
        return Conversation(
            provider.anew() if isinstance(provider, StartsAnew) else provider,
            toolset,
            settings,
            id=id,
            parent=parent or self,
            parent_id=self.id,
            depth=self.depth + 1,
            messages=messages,
            listener=self.listener,
            owns_provider=False,
            clock=self._clock,
        )

    def adopt(self, child_id: str, child: Child, within_call: str | None = None) -> None:
        """Take on a sub-conversation, so that it is cancelled, closed and shown with this one.

        One that was started within a tool call is closed when the call ends. Raises ConvoClosed,
        ConvoCancelled, UnknownToolCall.
        """
        self.refuse_if_ending(within_call)
        self._children.add(child_id, child, within_call)

    def refuse_if_ending(self, within_call: str | None = None) -> None:
        """Raise ConvoClosed, ConvoCancelled, or UnknownToolCall when nothing new may be started."""
        if self._closing is not None:
            raise ConvoClosed(self.id)
        if self._cause is not None:
            raise ConvoCancelled(self.id, self._cause)
        if within_call is not None and within_call not in self.tool_calls.running:
            raise UnknownToolCall(self.id, within_call, "running", list(self.tool_calls.running))

    def refuse_too_many(self, asked: int, at_most: int, within_call: str | None) -> None:
        """Raise TooManySubConvos when with `asked` more there would be more than `at_most` open ones.

        With `within_call` those count that running calls of the same tool have started, else all.
        """
        calls: list[str] | None = None
        if within_call is not None:
            tools = self.tool_calls.running
            calls = [id for id, name in tools.items() if name == tools[within_call]]
        self._children.refuse_too_many(asked, at_most, calls)

    async def child_closed(self, convo_id: str) -> None:
        """A child has closed."""
        self._children.closed(convo_id)

    async def tree(self, *, ended: bool = True) -> Branch:
        """This conversation and all below it: who, state, usage, budget. `ended` ones are included or not.

        The sums are of all in either case.
        """
        activity = await self.activity()  # which also finds out who is lost
        return branch_of(await self.treasury.statements(self.id, ended=ended), activity)

    def child(self, convo_id: str) -> Child | None:
        """The sub-conversation of that id, one step below; None when none is open."""
        return self._children.get(convo_id)

    async def activity(self) -> Activity:
        """What this conversation and those below it are doing."""
        return Activity(
            id=self.id,
            state=self._state(),
            running_tools=(*self.tool_calls.running.values(), *self.toolset.jobs.values()),
            waiting_tools=self.approvals.asking,
            busy_s=self._busy_s(),
            children=await self._children.activities(),
        )

    def _busy_s(self) -> float | None:
        """For how long its request, or the oldest of its tool calls, has been under way."""
        began = [each for each in (self.exchanges.began_s, self.tool_calls.began_s) if each is not None]
        return time.monotonic() - min(began) if began else None

    def _state(self) -> State:
        if self._closing is not None:
            return State.CLOSED
        if self.approvals.asking:
            return State.WAITING
        if self.tool_calls.running:
            return State.RUNNING_TOOLS
        if self.exchanges.is_held:
            return State.HELD
        return State.REQUESTING if self.exchanges.request_id else State.IDLE

    def kill(self) -> None:
        """End at once what a process would end with; in this one there is nothing to kill."""

    # The end

    async def cancel(self, cause: str) -> CancelReport:
        """Stop the request in flight, every running tool, and the same in all sub-conversations.

        Returns when all of them are fenced: none sends a request any more, and nothing of their tool
        calls is left on any node. The conversation can go on afterwards: every tool call that was stopped
        has its result. A cancel while another is under way waits for the same end.
        """
        if self._cancelling is None:
            self._cancelling = asyncio.create_task(self._cancel(cause))
        return await asyncio.shield(self._cancelling)

    async def _cancel(self, cause: str) -> CancelReport:
        self._cause, began = cause, time.monotonic()
        try:
            request_id = self.exchanges.request_id
            calls = asyncio.create_task(self.tool_calls.stop_all(cause))
            # Those that come later wait until this has ended.
            operations = set(self._operations)
            for operation in operations:
                operation.cancel()
            below, fenced = await self._children.cancel(cause)
            if operations:
                await asyncio.wait(operations)
            # A call that ended just before it was stopped may have left something in the background.
            stopped = (*await calls, *await self.tool_calls.stop_all(cause))
            own = StoppedConvo(
                id=self.id,
                label=self.label,
                took_s=time.monotonic() - began,
                request_id=request_id,
                tool_calls=stopped,
                processes=fenced.processes,
                problem=fenced.problem,
            )
            return CancelReport(
                cause=cause,
                took_s=time.monotonic() - began,
                conversations=(own, *below),
            )
        finally:
            self._cause = self._cancelling = None

    async def until_cancelled(self) -> str:
        """Wait for the next `cancel` or `close` of this conversation; its cause. Raises ConvoClosed."""
        try:
            self.refuse_if_ending()
            await self._stoppably(asyncio.Event().wait())
        except ConvoCancelled as cancelled:
            return cancelled.cause
        raise AssertionError("nothing sets that event")

    async def close(self) -> None:
        """End this conversation and all below it: cancel what runs, and take no more calls."""
        if self._closing is None:
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        if self._operations or self.tool_calls.running or self._cancelling or len(self._children):
            await self.cancel("the conversation was closed")
            await self._children.close()
        self.approvals.close()
        try:
            await self.toolset.aclose()
            if self._owns_provider:
                await self.provider.aclose()
        except Exception:
            _log.exception("conversation %s: what it held could not be given back", self.id)
        try:
            async with asyncio.timeout(PARENT_ANSWERS_WITHIN_S):
                await self.treasury.close(self.id)
                if self._parent is not None:
                    await self._parent.child_closed(self.id)
        except (ConvoClosed, TimeoutError):
            pass  # they are ending themselves


def _user_message(text: str, contents: Iterable[Content]) -> Message:
    return Message(role="user", content=(*contents, *((Text(text=text),) if text.strip() else ())))
