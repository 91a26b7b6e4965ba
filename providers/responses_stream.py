"""The stream of OpenAI's Responses, put together to the answer that comes without streaming.

Its last event holds the whole answer; what comes before matters when that never comes.

Layer: providers; pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palaver.providers.prices import Price
from palaver.providers.responses_answer import usage_from_wire
from palaver.providers.stream import Delta, TextDelta, ThinkingDelta, ToolInputDelta, UsageSoFar
from palaver.providers.untyped import as_count, as_dict, as_list, as_text

_ENDS = frozenset({"response.completed", "response.incomplete", "response.failed"})
_THOUGHTS = frozenset({"response.reasoning_summary_text.delta", "response.reasoning_text.delta"})
_TEXTS = frozenset({"response.output_text.delta", "response.refusal.delta"})


class ResponsesAssembler:
    """Puts one stream together. Implements `palaver.providers.stream.Assembler`."""

    def __init__(self, price: Price | None) -> None:
        self._price = price
        self._answer: dict[str, Any] = {}
        self._items: dict[int, dict[str, Any]] = {}
        """Items by their place: whole ones, and those that have begun."""
        self._pieces: dict[int, list[str]] = {}
        """What has come of the texts and arguments of those that have begun."""
        self._calls: dict[int, int] = {}
        """Items that are tool calls, and their positions among these."""
        self.complete = False

    def feed(self, event: str, data: Mapping[str, Any]) -> list[Delta]:
        """Take one event; the parts in it."""
        kind = as_text(data.get("type")) or event
        index, piece = as_count(data.get("output_index")), as_text(data.get("delta"))
        if kind in _ENDS:
            return self._end(as_dict(data.get("response")))
        if kind == "response.created":
            self._answer = as_dict(data.get("response"))
        elif kind == "response.output_item.added":
            return self._begin(index, as_dict(data.get("item")))
        elif kind == "response.output_item.done":
            self._items[index] = as_dict(data.get("item"))
            self._pieces.pop(index, None)
        elif kind in _TEXTS:
            self._pieces.setdefault(index, []).append(piece)
            return [TextDelta(text=piece)] if piece else []
        elif kind in _THOUGHTS:
            return [ThinkingDelta(text=piece)] if piece else []
        elif kind == "response.function_call_arguments.delta" and index in self._calls:
            self._pieces.setdefault(index, []).append(piece)
            name = as_text(self._items[index].get("name"))
            return [ToolInputDelta(position=self._calls[index], name=name, text=piece)]
        return []

    def answer(self) -> dict[str, Any]:
        """What has come so far, as the API would have sent it without streaming."""
        if self.complete:
            return self._answer
        items = [self._so_far(index, item) for index, item in sorted(self._items.items())]
        return {**self._answer, "status": "incomplete", "output": items}

    def _begin(self, index: int, item: dict[str, Any]) -> list[Delta]:
        self._items[index] = item
        if item.get("type") != "function_call":
            return []
        position = self._calls[index] = len(self._calls)
        return [ToolInputDelta(position=position, name=as_text(item.get("name")), text="")]

    def _end(self, answer: dict[str, Any]) -> list[Delta]:
        if not as_list(answer.get("output")) and self._items:
            answer = {**answer, "output": [item for _, item in sorted(self._items.items())]}
        self._answer = answer
        self.complete = True
        usage = answer.get("usage")
        if not usage:
            return []
        price = self._price
        if price is not None:
            price = price.served_at(as_text(answer.get("service_tier")))
        return [UsageSoFar(usage=usage_from_wire(usage, price))]

    def _so_far(self, index: int, item: dict[str, Any]) -> dict[str, Any]:
        if index not in self._pieces:
            return item
        text = "".join(self._pieces[index])
        if index in self._calls:
            return {**item, "arguments": text}
        return {**item, "content": [{"type": "output_text", "text": text}]}
