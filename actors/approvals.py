"""Approvals: tool calls that wait for somebody's yes, and the answers they get.

The requests of a whole tree wait at one desk, at its root, so that one place shows them all. It owns the
invariant that every request ends exactly once: with a decision, or withdrawn when nobody waits for it.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Collection, Mapping, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Protocol, TypeAlias, cast

from pydantic import Field

from palaver.actors.errors import AmbiguousToolCall, ConvoClosed, UnknownToolCall
from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import ToolUse, Value
from palaver.providers.provider import new_request_id

LOOK_AGAIN_S = 30.0
"""A wait for requests that goes through another process is begun anew this often, so that one whose
caller is gone does not stay there for ever."""


class ApprovalRequest(Value):
    """A tool call that waits for a yes.

    `id` is the request's own (a ULID); `tool_use_id` is unique within conversation `convo_id` alone.
    `lineage` are the ids of the conversations from the root down to that one. `asked_at` is in UTC.
    """

    id: str
    convo_id: str
    convo_label: str
    lineage: tuple[str, ...]
    tool_use_id: str
    tool_name: str
    input: dict[str, Any]
    asked_at: datetime

    @property
    def depth(self) -> int:
        """How many conversations are above the one that asks; 0 for a root."""
        return len(self.lineage) - 1


class Approved(Value):
    """Yes. `input` replaces the one of the model; None leaves it."""

    type: Literal["approved"] = "approved"
    input: dict[str, Any] | None = None


class Denied(Value):
    """No. The model gets to read the reason, which may be empty."""

    type: Literal["denied"] = "denied"
    reason: str = ""


Decision: TypeAlias = Annotated[Approved | Denied, Field(discriminator="type")]


class Desk(Protocol):
    """Where the requests of a whole tree wait."""

    async def decision_on(self, request: ApprovalRequest) -> Approved | Denied:
        """Wait for the decision. When cancelled, the request is withdrawn. Raises ConvoClosed."""
        ...

    async def withdraw(self, request_id: str) -> None:
        """Take a request back that nobody waits for any more; harmless when there is none."""
        ...

    async def pending(self) -> tuple[ApprovalRequest, ...]:
        """All requests without a decision, oldest first. Raises ConvoClosed."""
        ...

    async def decide(self, request_id: str, decision: Approved | Denied) -> bool:
        """Answer a request; False when it has its answer, or is no more. Raises ConvoClosed."""
        ...

    async def until_asked(self, seen: Collection[str], timeout_s: float) -> tuple[ApprovalRequest, ...]:
        """Wait for requests whose ids are not in `seen`; none after `timeout_s`. Raises ConvoClosed."""
        ...


class RootDesk:
    """The desk of a tree, in the process of its root."""

    def __init__(self, convo_id: str) -> None:
        self._convo_id = convo_id
        self._pending: dict[str, tuple[ApprovalRequest, asyncio.Future[Approved | Denied]]] = {}
        self._changed = asyncio.Event()
        self._closed = False

    async def decision_on(self, request: ApprovalRequest) -> Approved | Denied:
        """Wait for the decision. When cancelled, the request is withdrawn. Raises ConvoClosed."""
        self._refuse_if_closed()
        decision: asyncio.Future[Approved | Denied] = asyncio.get_running_loop().create_future()
        self._pending[request.id] = request, decision
        self._tell()
        try:
            return await decision
        finally:
            self._pending.pop(request.id, None)

    async def withdraw(self, request_id: str) -> None:
        """Take a request back that nobody waits for any more; harmless when there is none."""
        await self.decide(request_id, Denied(reason="nobody waits for it any more"))

    async def pending(self) -> tuple[ApprovalRequest, ...]:
        """All requests without a decision, oldest first. Raises ConvoClosed."""
        self._refuse_if_closed()
        return tuple(request for request, _ in self._pending.values())

    async def decide(self, request_id: str, decision: Approved | Denied) -> bool:
        """Answer a request; False when it has its answer, or is no more."""
        # At once, so that it is answered but once.
        _, waiting = self._pending.pop(request_id, (None, None))
        if waiting is None or waiting.done():
            return False
        waiting.set_result(decision)
        return True

    async def until_asked(self, seen: Collection[str], timeout_s: float) -> tuple[ApprovalRequest, ...]:
        """Wait for requests whose ids are not in `seen`; none after `timeout_s`. Raises ConvoClosed."""
        known = frozenset(seen)
        try:
            async with asyncio.timeout(timeout_s):
                while True:
                    changed = self._changed
                    if asked := tuple(each for each in await self.pending() if each.id not in known):
                        return asked
                    await changed.wait()
        except TimeoutError:
            return ()

    def close(self) -> None:
        """Take no more requests, and tell so those that wait for one."""
        self._closed = True
        for id in list(self._pending):
            _, waiting = self._pending.pop(id)
            if not waiting.done():
                waiting.set_exception(ConvoClosed(self._convo_id))
        self._tell()

    def _refuse_if_closed(self) -> None:
        if self._closed:
            raise ConvoClosed(self._convo_id)

    def _tell(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()


class Approvals:
    """The approvals of one conversation: those its calls wait for, and those of all below it to be given.

    `above` are the ids of the conversations above it, the root first; `desk` is the root's, None for a
    root.
    """

    def __init__(self, convo_id: str, label: str, above: Sequence[str], desk: Desk | None) -> None:
        self._convo_id = convo_id
        self._label = label
        self.lineage = (*above, convo_id)
        self._own_desk = RootDesk(convo_id) if desk is None else None
        self.desk: Desk = self._own_desk or cast("Desk", desk)
        self._asking: dict[str, tuple[ApprovalRequest, asyncio.Event]] = {}

    # Asking

    @property
    def asking(self) -> tuple[str, ...]:
        """The names of the tools that this conversation asks for, one per call that waits."""
        return tuple(request.tool_name for request, _ in self._asking.values())

    def request(self, call: ToolUse) -> ApprovalRequest:
        """The request for a call of this conversation."""
        return ApprovalRequest(
            id=new_request_id(),
            convo_id=self._convo_id,
            convo_label=self._label,
            lineage=self.lineage,
            tool_use_id=call.id,
            tool_name=call.name,
            input=call.input,
            asked_at=datetime.now(UTC),
        )

    async def decision_on(self, request: ApprovalRequest) -> Approved | Denied:
        """Wait for the decision. When cancelled, the request is withdrawn. No for a root that is gone."""
        settled = asyncio.Event()
        self._asking[request.id] = request, settled
        try:
            return await self.desk.decision_on(request)
        except ConvoClosed as error:
            return Denied(reason=f"nobody could be asked: {error}")
        finally:
            del self._asking[request.id]
            settled.set()

    async def until_settled(self, request_id: str) -> None:
        """Wait until a request of this conversation has ended; at once when there is none."""
        if (asking := self._asking.get(request_id)) is not None:
            await asking[1].wait()

    # Answering

    async def pending(self) -> tuple[ApprovalRequest, ...]:
        """The requests of this conversation and all below it, oldest first. Raises ConvoClosed."""
        return self._here_and_below(await self.desk.pending())

    async def approve(
        self, tool_use_id: str, *, convo_id: str | None = None, input: Mapping[str, Any] | None = None
    ) -> None:
        """Let a call run, with the input given instead of the model's where one is given.

        Such an input is checked against the tool's schema, as any. `convo_id` says whose call it is, where
        several have one of that id. Raises UnknownToolCall, which names those that wait, AmbiguousToolCall,
        ConvoClosed, and ConfigurationError for an input that is no JSON object.
        """
        await self._decide(tool_use_id, convo_id, Approved(input=None if input is None else _checked(input)))

    async def deny(self, tool_use_id: str, reason: str, *, convo_id: str | None = None) -> None:
        """Let a call not run; the model reads the reason, which may be empty. Raises as `approve`."""
        await self._decide(tool_use_id, convo_id, Denied(reason=reason))

    async def until_needed(
        self, seen: Collection[str] = (), *, timeout_s: float | None = None
    ) -> tuple[ApprovalRequest, ...]:
        """Wait until there are requests, here or below, that the caller does not know; those.

        `seen` are the ids of the requests it knows. After `timeout_s` seconds there are none; None waits
        for ever. Raises ConvoClosed.
        """
        loop = asyncio.get_running_loop()
        known = set(seen)
        ends_at = None if timeout_s is None else loop.time() + timeout_s
        while True:
            left_s = LOOK_AGAIN_S if ends_at is None else ends_at - loop.time()
            asked = await self.desk.until_asked(known, max(0.0, min(left_s, LOOK_AGAIN_S)))
            needed = self._here_and_below(asked)
            if needed or (ends_at is not None and loop.time() >= ends_at):
                return needed
            known.update(each.id for each in asked)

    async def _decide(self, tool_use_id: str, convo_id: str | None, decision: Approved | Denied) -> None:
        pending = await self.pending()
        meant = [
            each
            for each in pending
            if tool_use_id in (each.tool_use_id, each.id) and convo_id in (None, each.convo_id)
        ]
        if len(meant) > 1:
            raise AmbiguousToolCall(tool_use_id, [each.convo_id for each in meant])
        if not meant or not await self.desk.decide(meant[0].id, decision):
            known = [f"{each.tool_use_id} of {each.convo_id}" for each in pending if each not in meant]
            raise UnknownToolCall(convo_id or self._convo_id, tool_use_id, "waiting", known)

    def _here_and_below(self, requests: Sequence[ApprovalRequest]) -> tuple[ApprovalRequest, ...]:
        return tuple(each for each in requests if self._convo_id in each.lineage)

    def close(self) -> None:
        """Take no more requests, where this is the root."""
        if self._own_desk is not None:
            self._own_desk.close()


def denial(tool_name: str, reason: str) -> str:
    """What the model reads of a call that was denied."""
    told = f"The reason given: {reason.strip()}" if reason.strip() else "No reason was given."
    return (
        f"tool {tool_name!r} needs approval, and this call was denied; it has not run. "
        f"Do not repeat it as it was. {told}"
    )


def edit_note(input: Mapping[str, Any]) -> str:
    """What the model reads before the result of a call whose input was edited."""
    return f"[The call was approved with an edited input, and ran with: {as_json(input)}]"


def as_json(input: Mapping[str, Any], *, indent: int | None = None) -> str:
    """An input as JSON that has a UTF-8."""
    text = json.dumps(dict(input), ensure_ascii=False, indent=indent)
    try:
        text.encode()
    except UnicodeEncodeError:
        # Half characters have none, but JSON can spell them in ASCII.
        return json.dumps(dict(input), indent=indent)
    return text


def _checked(input: Mapping[str, Any]) -> dict[str, Any]:
    """An input as plain JSON. Raises ConfigurationError."""
    if not isinstance(cast("object", input), Mapping):
        raise ConfigurationError(f"an edited input is a {type(input).__name__}; pass a dict")
    try:
        return json.loads(json.dumps(dict(input), allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"an edited input has to be JSON: {error}") from error
