"""Errors of conversations; they carry on the tree of `palaver.providers.errors`.

    PalaverError
      ConfigurationError
        UnknownPrice      a dollar limit, and a model whose price nobody knows
      BudgetExceeded      a limit of this conversation or of an ancestor is reached, or would be passed
      ConvoCancelled      the call was stopped by `cancel`
      ConvoClosed         the conversation is closed, or its process is gone
        ConvoUnreachable  nobody knows: its process does not answer for the moment
      ConvoBusy           another call of this conversation has not returned yet
      TooManySubConvos    more sub-conversations at once than the caller allows
      UnknownConvo        no conversation with that id, here or below
      UnknownToolCall     no tool call with that id is running, open, or waiting for approval
      AmbiguousToolCall   several conversations have a waiting tool call with that id
      NothingToSend       a message without content
      CompactionFailed    there is nothing to summarise, or the model gave no summary

Layer: actors, core; no Ray.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Literal, NamedTuple, TypeAlias

from palaver.providers.errors import ConfigurationError, PalaverError

LimitName: TypeAlias = Literal[
    "max_dollars",
    "max_wall_time",
    "max_responses",
    "max_total_tokens",
    "max_tool_calls",
    "max_sub_convos",
    "max_depth",
]

_NO_REQUESTS: frozenset[LimitName] = frozenset({"max_tool_calls", "max_sub_convos", "max_depth"})


def _usd(amount: Decimal) -> str:
    """Exact, less zeros that tell nothing: $0.10 for 0.100000."""
    whole, point, cents = f"{amount:f}".partition(".")
    return f"${whole}{point}{cents[:2]}{cents[2:].rstrip('0')}"


class Breach(NamedTuple):
    """One limit that is reached, or that what was asked for would pass.

    Dollars are USD, wall time is seconds, the rest are counts. `actual` is what is spent for good; None is an
    unknown cost. `reserved` is kept for requests under way. `asked` is the least that would have been of
    use; 0 when nothing was asked for, and the limit is reached.
    """

    limit_name: LimitName
    limit: Decimal
    actual: Decimal | None
    reserved: Decimal = Decimal()
    asked: Decimal = Decimal()

    def __str__(self) -> str:
        match self.limit_name:
            case "max_dollars":
                if self.actual is None:
                    limit = _usd(self.limit)
                    return f"an unknown amount spent (a model without a price), max_dollars is {limit}"
                return self._told(f"{_usd(self.actual)} spent", _usd, "for the request")
            case "max_wall_time":
                return f"{self.actual:.0f} s elapsed, max_wall_time is {self.limit:f} s"
            case "max_responses":
                return self._told(f"{self.actual} responses received", str, "asked for")
            case "max_total_tokens":
                return self._told(f"{self.actual} tokens used", str, "for the request")
            case "max_tool_calls":
                return self._told(f"{self.actual} tool calls made", str, "asked for")
            case "max_sub_convos":
                return self._told(f"{self.actual} sub-conversations started", str, "asked for")
            case "max_depth":
                return f"{self.asked} levels below it asked for, max_depth is {self.limit}"

    def _told(self, spent: str, told_as: Callable[[Decimal], str], what_for: str) -> str:
        told = spent
        if self.reserved:
            told += f", {told_as(self.reserved)} reserved for requests under way"
        if self.asked:
            told += f", at least {told_as(self.asked)} more {what_for}"
        return f"{told}, {self.limit_name} is {told_as(self.limit)}"


class BudgetExceeded(PalaverError):
    """A limit of conversation `convo_id` is reached, or would be passed by what was asked for.

    `breaches`: money first, then time, responses, tokens, tool calls, sub-conversations, depth.
    """

    def __init__(self, convo_id: str, breaches: Sequence[Breach]) -> None:
        super().__init__(convo_id, tuple(breaches))
        self.convo_id = convo_id
        self.breaches = tuple(breaches)

    @property
    def stops_requests(self) -> bool:
        """Whether no request can be sent; tool calls or sub-conversations alone may be used up."""
        return any(breach.limit_name not in _NO_REQUESTS for breach in self.breaches)

    @property
    def reason(self) -> str:
        """Which limits, without what to do about it."""
        reached = "; ".join(str(breach) for breach in self.breaches)
        return f"conversation {self.convo_id} is over its budget: {reached}"

    def __str__(self) -> str:
        return f"{self.reason}. fund() raises limits, reset_budget() sets new ones."


class UnknownPrice(ConfigurationError):
    """Nobody knows what `model` costs, and conversation `convo_id` may spend only so many dollars.

    `convo_id` is empty for one that was to be started.
    """

    def __init__(self, model: str, convo_id: str = "") -> None:
        super().__init__(model, convo_id)
        self.model = model
        self.convo_id = convo_id

    def __str__(self) -> str:
        whose = f"conversation {self.convo_id}" if self.convo_id else "the conversation"
        return (
            f"the price of model {self.model!r} is not known, so the max_dollars of {whose} "
            "cannot be kept; nothing was sent. Give the provider a price "
            "(price=Price.per_million_tokens(input, output), --price), or limit max_total_tokens or "
            "max_responses instead, or make the budget advisory"
        )


class ConvoIdTaken(PalaverError):
    """Another conversation of the tree has the id that one was to get. It gets another one."""

    def __init__(self, convo_id: str) -> None:
        super().__init__(convo_id)
        self.convo_id = convo_id

    def __str__(self) -> str:
        return f"another conversation of the tree is called {self.convo_id}; give this one another id"


class UnknownConvo(PalaverError):
    """There is no conversation `convo_id` at or below `asked`."""

    def __init__(self, convo_id: str, asked: str) -> None:
        super().__init__(convo_id, asked)
        self.convo_id = convo_id
        self.asked = asked

    def __str__(self) -> str:
        return f"there is no conversation {self.convo_id!r} at or below {self.asked}; tree() lists them"


class ConvoCancelled(PalaverError):
    """The call was stopped because conversation `convo_id` was cancelled."""

    def __init__(self, convo_id: str, cause: str) -> None:
        super().__init__(convo_id, cause)
        self.convo_id = convo_id
        self.cause = cause

    def __str__(self) -> str:
        return f"conversation {self.convo_id} was cancelled: {self.cause}"


class ConvoClosed(PalaverError):
    """Conversation `convo_id` takes no more calls: it was closed, or its process is gone."""

    def __init__(self, convo_id: str, reason: str = "it was closed") -> None:
        super().__init__(convo_id, reason)
        self.convo_id = convo_id
        self.reason = reason

    def __str__(self) -> str:
        return f"conversation {self.convo_id} takes no more calls: {self.reason}. Start another one."


class ConvoUnreachable(ConvoClosed):
    """Conversation `convo_id` could not be reached; its process may still run. Asking again may help."""

    def __str__(self) -> str:
        return f"conversation {self.convo_id} could not be reached: {self.reason}. Ask again, or kill it."


class ConvoBusy(PalaverError):
    """Conversation `convo_id` is in the middle of `doing`; a second call would tear its transcript."""

    def __init__(self, convo_id: str, doing: str) -> None:
        super().__init__(convo_id, doing)
        self.convo_id = convo_id
        self.doing = doing

    def __str__(self) -> str:
        return (
            f"conversation {self.convo_id} is busy with {self.doing}. Await that call first, cancel() it, "
            "or use a sub-conversation for work side by side."
        )


class UnknownToolCall(PalaverError):
    """No tool call `tool_use_id` of conversation `convo_id`; `known` are those there are."""

    def __init__(self, convo_id: str, tool_use_id: str, state: str, known: Sequence[str]) -> None:
        super().__init__(convo_id, tool_use_id, state, tuple(known))
        self.convo_id = convo_id
        self.tool_use_id = tool_use_id
        self.state = state
        self.known = tuple(known)

    def __str__(self) -> str:
        return (
            f"conversation {self.convo_id} has no {self.state} tool call {self.tool_use_id!r}; "
            f"{self.state}: {list(self.known)}"
        )


class TooManySubConvos(PalaverError):
    """`asked` sub-conversations more of `convo_id` would be more than `at_most`; `running` are there."""

    def __init__(self, convo_id: str, asked: int, running: int, at_most: int) -> None:
        super().__init__(convo_id, asked, running, at_most)
        self.convo_id = convo_id
        self.asked = asked
        self.running = running
        self.at_most = at_most

    def __str__(self) -> str:
        return (
            f"{self.asked} sub-conversations were asked for; at most {self.at_most} of conversation "
            f"{self.convo_id} may run at once, and {self.running} do. Ask for fewer, or wait until some "
            "have ended."
        )


class AmbiguousToolCall(PalaverError):
    """Tool calls `tool_use_id` of several conversations, `convo_ids`, wait for approval."""

    def __init__(self, tool_use_id: str, convo_ids: Sequence[str]) -> None:
        super().__init__(tool_use_id, tuple(convo_ids))
        self.tool_use_id = tool_use_id
        self.convo_ids = tuple(convo_ids)

    def __str__(self) -> str:
        return (
            f"tool call {self.tool_use_id!r} waits for approval in {len(self.convo_ids)} conversations, "
            f"{list(self.convo_ids)}; say which with convo_id=..."
        )


class NothingToSend(PalaverError):
    """A message without text, contents or tool results was to be sent by conversation `convo_id`."""

    def __init__(self, convo_id: str) -> None:
        super().__init__(convo_id)
        self.convo_id = convo_id

    def __str__(self) -> str:
        return f"nothing to send in conversation {self.convo_id}: pass a text or contents"


class CompactionFailed(PalaverError):
    """The messages of conversation `convo_id` could not be replaced by a summary; they stand as they were."""

    def __init__(self, convo_id: str, why: str) -> None:
        super().__init__(convo_id, why)
        self.convo_id = convo_id
        self.why = why

    def __str__(self) -> str:
        return f"conversation {self.convo_id} could not be compacted, and stands as it was: {self.why}"
