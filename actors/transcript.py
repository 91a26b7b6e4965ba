"""The transcript: the messages of a conversation, and the results of its open tool calls.

It owns two invariants. Every tool call is answered by exactly one result, in the order of the calls,
in the message after it: providers refuse a history in which that is not so. And what was sent is kept
exactly as it was sent: newer models refuse a history that was edited.

It changes by numbered events alone, so that whoever replays the events has the transcript.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from typing import Annotated, Literal, TypeAlias

from pydantic import Field

from palaver.actors.errors import NothingToSend, UnknownToolCall
from palaver.providers.messages import Message, Text, ToolResult, ToolUse, Value
from palaver.providers.provider import Response

NOT_EXECUTED = "not executed; retry possible"
"""The result of a call that nobody answered."""


class Exchanged(Value):
    """A message was sent and answered; where there is none, the last answer, which had paused, went on."""

    type: Literal["exchanged"] = "exchanged"
    message: Message | None
    response: Response


class Compacted(Value):
    """All messages were replaced by what the next one begins with."""

    type: Literal["compacted"] = "compacted"
    preface: str


class ResultKept(Value):
    """A tool call got its result, which has not been sent yet."""

    type: Literal["result_kept"] = "result_kept"
    result: ToolResult


class TranscriptEvent(Value):
    """One change of a transcript. `seq` counts from 1 without gaps."""

    seq: int
    change: Annotated[Exchanged | Compacted | ResultKept, Field(discriminator="type")]


_Change: TypeAlias = Exchanged | Compacted | ResultKept


class Transcript:
    """The messages so far. `on_event` sees every change after it was made."""

    def __init__(
        self,
        convo_id: str,
        messages: Iterable[Message] = (),
        on_event: Callable[[TranscriptEvent], None] | None = None,
    ) -> None:
        self.seq: int = 0
        self._convo_id = convo_id
        self._on_event = on_event
        self._messages = list(messages)
        self._results: dict[str, ToolResult] = {}
        self._former: list[tuple[Message, ...]] = []
        self._preface: Text | None = None

    @property
    def messages(self) -> tuple[Message, ...]:
        """All messages that were sent and answered, oldest first; after a compaction those since then."""
        return tuple(self._messages)

    @property
    def former(self) -> tuple[tuple[Message, ...], ...]:
        """The messages that each compaction replaced, oldest first."""
        return tuple(self._former)

    @property
    def history(self) -> tuple[Message, ...]:
        """What a copy of the conversation begins with: its messages, or the preface that none has yet."""
        return self.messages if self._preface is None else (Message(role="user", content=(self._preface,)),)

    def since(self, former: int, messages: int) -> tuple[Message, ...]:
        """The messages that were added after there were so many former parts, and so many messages."""
        parts = [*self._former[former:], self.messages]
        return tuple(message for part in (parts[0][messages:], *parts[1:]) for message in part)

    @property
    def open_calls(self) -> tuple[ToolUse, ...]:
        """The tool calls of the last message, which the next message has to answer."""
        if not self._messages or self._messages[-1].role != "assistant":
            return ()
        return self._messages[-1].tool_uses

    @property
    def kept_results(self) -> tuple[ToolResult, ...]:
        """Results of open calls that have not been sent yet, in the order of the calls."""
        return tuple(self._results[call.id] for call in self.open_calls if call.id in self._results)

    def keep_result(self, result: ToolResult) -> None:
        """Keep the result of an open call until the next message carries it; a later one replaces it.

        The result of a call that is not open any more is dropped: the model has its answer already.
        """
        if any(call.id == result.tool_use_id for call in self.open_calls):
            self._change(ResultKept(result=result))

    def keep_exchange(self, message: Message | None, response: Response) -> None:
        """Keep a message as it was sent, and its answer; None: the last answer goes on with this one."""
        self._change(Exchanged(message=message, response=response))

    def compact(self, preface: str) -> None:
        """Begin anew: the next message starts with `preface`, which stands for all so far."""
        self._change(Compacted(preface=preface))

    def completed(self, message: Message) -> Message:
        """The message as it has to be sent: every open call answered once, results first, text last.

        A call without a result in `message` gets the one that was kept for it, else NOT_EXECUTED.
        Raises UnknownToolCall for a result of no open call or a second one of the same call, and
        NothingToSend when there is nothing in the message and no call to answer.
        """
        calls = self.open_calls
        given = {result.tool_use_id: result for result in message.tool_results}
        counts = Counter(result.tool_use_id for result in message.tool_results)
        open_ids = [call.id for call in calls]
        for tool_use_id, count in counts.items():
            if tool_use_id not in open_ids or count > 1:
                state = "open" if count == 1 else "unanswered"
                raise UnknownToolCall(self._convo_id, tool_use_id, state, open_ids)
        results = [given.get(id_) or self._results.get(id_) or _not_executed(id_) for id_ in open_ids]
        others = [part for part in message.content if not isinstance(part, ToolResult)]
        if self._preface is not None:
            others.insert(0, self._preface)
        if not results and not others:
            raise NothingToSend(self._convo_id)
        return Message(role=message.role, content=(*results, *others))

    def request_messages(self, message: Message) -> tuple[Message, ...]:
        """The messages of a request that sends `message`, which is `completed` already.

        Empty messages are left out: providers refuse them, though models produce them.
        """
        return (*(kept for kept in self._messages if kept.content), message)

    def apply(self, event: TranscriptEvent) -> None:
        """Make the change an event describes. Raises ValueError when events are missing before it."""
        if event.seq != self.seq + 1:
            raise ValueError(f"transcript event {event.seq} does not follow event {self.seq}")
        self.seq = event.seq
        match event.change:
            case Exchanged(message=message, response=response):
                if message is None:
                    paused = self._messages.pop()
                    content = (*paused.content, *response.message.content)
                    self._messages.append(paused.model_copy(update={"content": content}))
                else:
                    self._messages += [message, response.message]
                    self._results.clear()
                    self._preface = None
            case Compacted(preface=preface):
                self._former.append(self.messages)
                self._messages.clear()
                self._results.clear()
                self._preface = Text(text=preface)
            case ResultKept(result=result):
                self._results[result.tool_use_id] = result

    def _change(self, change: _Change) -> None:
        event = TranscriptEvent(seq=self.seq + 1, change=change)
        self.apply(event)
        if self._on_event is not None:
            self._on_event(event)


def _not_executed(tool_use_id: str) -> ToolResult:
    return ToolResult(tool_use_id=tool_use_id, content=(Text(text=NOT_EXECUTED),), is_error=True)
