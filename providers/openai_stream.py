"""The stream of chat completions, put together to the answer that comes without streaming.

Facts: the official SDK (`openai` 3.54 on PyPI) and the quirk table of PROVIDERS.md, November 2026. An
answer is at its end with a `finish_reason` or with "[DONE]"; servers leave out the one or the other.

Layer: providers; pure, no I/O.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from palaver.providers.openai_answer import usage_from_wire
from palaver.providers.prices import Price
from palaver.providers.stream import END, Delta, TextDelta, ThinkingDelta, ToolInputDelta, UsageSoFar
from palaver.providers.untyped import as_dict, as_list, as_text, json_in, list_in, object_in

_OF_CHOICE = frozenset({"delta", "message", "index"})
_TEXTS = frozenset({"content", "reasoning_content", "reasoning", "refusal"})
_SHOWN_AS_THINKING = ("reasoning_content", "reasoning")
_TEXTS_OF_DETAILS = frozenset({"text", "summary", "data"})


class OpenAIAssembler:
    """Puts one stream together. Implements `palaver.providers.stream.Assembler`."""

    def __init__(self, price: Price | None) -> None:
        self._price = price
        self._answer: dict[str, Any] = {}
        self._choice: dict[str, Any] = {}
        self._message: dict[str, Any] = {}
        self._texts: dict[str, list[str]] = {}
        self._parts: list[Any] = []
        """Content that is a list of parts (Mistral)."""
        self._details: list[dict[str, Any]] = []
        self._calls: list[_Call] = []
        self._old_call: _Call | None = None
        self.complete = False

    def feed(self, event: str, data: Mapping[str, Any]) -> list[Delta]:
        """Take one event; the parts in it. "[DONE]" comes as the event's name, with no data."""
        if event == END:
            self.complete = True
            return []
        deltas: list[Delta] = []
        # Groq's usage has a place of its own.
        usage = data.get("usage") or as_dict(data.get("x_groq")).get("usage")
        if usage:
            # It may come with each chunk, each time for all so far: the last one holds, never a sum.
            self._answer["usage"] = usage
        self._answer |= {
            key: value for key, value in data.items() if key not in ("choices", "usage") and value is not None
        }
        for choice in map(as_dict, as_list(data.get("choices"))):
            deltas += self._take(choice)
        if usage:
            price = self._price
            if price is not None:
                price = price.served_at(as_text(self._answer.get("service_tier")))
            deltas.append(UsageSoFar(usage=usage_from_wire(usage, price)))
        return deltas

    def answer(self) -> dict[str, Any]:
        """What has come so far, as the server would have sent it without streaming."""
        if not self._choice and not self._message and not self._texts and not self._calls:
            return self._answer
        message = {**self._message, **{field: "".join(pieces) for field, pieces in self._texts.items()}}
        if self._parts:
            text = [{"type": "text", "text": message["content"]}] if message.get("content") else []
            message["content"] = [*self._parts, *text]
        if self._details:
            message["reasoning_details"] = self._details
        if self._calls:
            message["tool_calls"] = [call.whole() for call in self._calls]
        if self._old_call is not None:
            message["function_call"] = self._old_call.whole()["function"]
        return {**self._answer, "choices": [{**self._choice, "message": message}]}

    def _take(self, choice: dict[str, Any]) -> list[Delta]:
        if choice.get("finish_reason"):
            self.complete = True
        self._choice |= {
            key: value for key, value in choice.items() if key not in _OF_CHOICE and value is not None
        }
        # Some send a whole message in one chunk.
        delta = as_dict(choice.get("delta")) or as_dict(choice.get("message"))
        deltas: list[Delta] = []
        for field, value in delta.items():
            if field in _TEXTS and isinstance(value, str):
                self._texts.setdefault(field, []).append(value)
            elif field == "content" and (parts := list_in(value)) is not None:
                deltas += self._take_parts(parts)
            elif field == "reasoning_details":
                self._take_details(as_list(value))
            elif field == "tool_calls":
                pieces = enumerate(map(as_dict, as_list(value)))
                deltas += [self._take_call(piece, position) for position, piece in pieces]
            elif field == "function_call" and value:
                self._old_call = self._old_call or _Call()
                self._old_call.add({"function": value})
                text = self._old_call.added
                deltas.append(ToolInputDelta(position=0, name=self._old_call.name, text=text))
            elif value is not None:
                self._message[field] = value
        thinking = next((text for each in _SHOWN_AS_THINKING if (text := as_text(delta.get(each)))), "")
        if thinking:
            deltas.append(ThinkingDelta(text=thinking))
        if text := as_text(delta.get("content")) or as_text(delta.get("refusal")):
            deltas.append(TextDelta(text=text))
        return deltas

    def _take_parts(self, parts: list[Any]) -> list[Delta]:
        deltas: list[Delta] = []
        for part in map(as_dict, parts):
            self._parts.append(part)
            if text := as_text(part.get("text")):
                deltas.append(TextDelta(text=text))
            thoughts = (as_text(as_dict(thought).get("text")) for thought in as_list(part.get("thinking")))
            deltas += [ThinkingDelta(text=thought) for thought in thoughts if thought]
        return deltas

    def _take_details(self, details: list[Any]) -> None:
        """OpenRouter's reasoning: pieces of one detail have the same type and index, and go back as one."""
        for piece in map(as_dict, details):
            last = self._details[-1] if self._details else {}
            if not last or any(last.get(key) != piece.get(key) for key in ("type", "index")):
                self._details.append(dict(piece))
                continue
            for field, value in piece.items():
                if field in _TEXTS_OF_DETAILS and isinstance(value, str):
                    last[field] = as_text(last.get(field)) + value
                elif value is not None:
                    last[field] = value

    def _take_call(self, piece: dict[str, Any], position: int) -> Delta:
        call = self._call_of(piece, position)
        call.add(piece)
        return ToolInputDelta(position=self._calls.index(call), name=call.name, text=call.added)

    def _call_of(self, piece: dict[str, Any], position: int) -> _Call:
        """The call that a piece goes on with, or a new one: by its index, else its id, else its place
        (ollama#7881, openai-python#3246). An index that comes with another id is another call.
        """
        index, id = piece.get("index"), as_text(piece.get("id"))
        begins = bool(as_text(as_dict(piece.get("function")).get("name")))
        known: _Call | None
        if isinstance(index, int):
            known = next((call for call in reversed(self._calls) if call.index == index), None)
            if known is not None and id and known.id and id != known.id:
                known = None
        elif id:
            known = next((call for call in self._calls if call.id == id), None)
        else:
            known = self._calls[-1] if position == 0 and self._calls else None
            if position and len(self._calls) > position:
                known = self._calls[position]
        if known is not None and begins and not id and known.is_whole:
            known = None
        if known is None:
            known = _Call(index if isinstance(index, int) else None)
            self._calls.append(known)
        return known


class _Call:
    """One tool call that comes in pieces."""

    def __init__(self, index: int | None = None) -> None:
        self.index = index
        self.id = ""
        self.name = ""
        self.added = ""
        """What the last piece added to the arguments."""
        self._fields: dict[str, Any] = {}
        self._arguments: list[str] = []
        self._given: dict[str, Any] | None = None

    def add(self, piece: Mapping[str, Any]) -> None:
        """Take one piece."""
        self.id = self.id or as_text(piece.get("id"))
        self._fields |= {
            key: value
            for key, value in piece.items()
            if key not in ("index", "function") and value not in (None, "")
        }
        function = as_dict(piece.get("function"))
        name, arguments = as_text(function.get("name")), function.get("arguments")
        if name != self.name:  # some repeat it with each piece
            self.name += name
        self.added = as_text(arguments)
        if self.added:
            self._arguments.append(self.added)
        elif (given := object_in(arguments)) is not None:
            # llama.cpp#20198
            self._given = {**(self._given or {}), **given}
            self.added = json.dumps(given)

    @property
    def is_whole(self) -> bool:
        """Whether its arguments are a whole JSON object."""
        return self._given is not None or object_in(json_in("".join(self._arguments))) is not None

    def whole(self) -> dict[str, Any]:
        """The call as it comes without streaming."""
        arguments = self._given if self._given is not None else "".join(self._arguments)
        fields = {"type": "function", **self._fields}
        return {**fields, "function": {"name": self.name, "arguments": arguments}}
