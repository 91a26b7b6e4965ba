"""The stream of the Messages API, put together to the answer that comes without streaming.

Facts: the official SDK (`anthropic` 2.12, `accumulate_event`), November 2026. A stream ends with
`message_stop`; unknown events and unknown fields of deltas are kept or passed over, never refused.

Layer: providers; pure, no I/O.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from palaver.providers.anthropic_cost import usage_from_wire
from palaver.providers.prices import Price
from palaver.providers.stream import Delta, TextDelta, ThinkingDelta, ToolInputDelta, UsageSoFar
from palaver.providers.untyped import as_count, as_dict, as_list, as_text, json_in


class AnthropicAssembler:
    """Puts one stream together. Implements `palaver.providers.stream.Assembler`."""

    def __init__(self, price: Price | None) -> None:
        self._price = price
        self._answer: dict[str, Any] = {}
        self._blocks: dict[int, dict[str, Any]] = {}
        self._pieces: dict[int, dict[str, list[str]]] = {}
        """The texts of each block's fields that come in pieces; of `input` its JSON."""
        self._calls: dict[int, int] = {}
        """Blocks that are tool calls, and their positions among these."""
        self.complete = False

    def feed(self, event: str, data: Mapping[str, Any]) -> list[Delta]:
        """Take one event; the parts in it."""
        match data.get("type") or event:
            case "message_start":
                self._answer = {**as_dict(data.get("message")), "content": []}
                return self._usage_so_far()
            case "content_block_start":
                return self._begin(as_count(data.get("index")), as_dict(data.get("content_block")))
            case "content_block_delta":
                return self._add(as_count(data.get("index")), as_dict(data.get("delta")))
            case "message_delta":
                # Counts are of the whole answer so far; what is left out stays as it was.
                usage = {key: value for key, value in as_dict(data.get("usage")).items() if value is not None}
                self._answer["usage"] = {**as_dict(self._answer.get("usage")), **usage}
                self._answer |= {
                    key: value for key, value in as_dict(data.get("delta")).items() if value is not None
                }
                return self._usage_so_far()
            case "message_stop":
                self.complete = True
            case _:
                pass
        return []

    def answer(self) -> dict[str, Any]:
        """What has come so far, as the API would have sent it without streaming.

        An input that is no JSON stays a text.
        """
        content: list[dict[str, Any]] = []
        for index, block in sorted(self._blocks.items()):
            texts = {field: "".join(pieces) for field, pieces in self._pieces.get(index, {}).items()}
            whole = dict(block)
            if "input" in texts:
                given = texts.pop("input")
                if given:
                    whole["input"] = decoded if (decoded := json_in(given)) is not None else given
            content.append(whole | texts)
        return {**self._answer, "content": content}

    def _begin(self, index: int, block: dict[str, Any]) -> list[Delta]:
        self._blocks[index] = dict(block)
        pieces = self._pieces[index] = {}
        for field in ("text", "thinking", "signature"):
            if isinstance(block.get(field), str):
                pieces[field] = [block[field]]
        if block.get("type") == "tool_use":
            position = self._calls[index] = len(self._calls)
            return [ToolInputDelta(position=position, name=as_text(block.get("name")), text="")]
        return _shown(block)

    def _add(self, index: int, delta: dict[str, Any]) -> list[Delta]:
        block, pieces = self._blocks.setdefault(index, {}), self._pieces.setdefault(index, {})
        if delta.get("type") == "citations_delta":
            block["citations"] = [*as_list(block.get("citations")), delta.get("citation")]
            return []
        for field, piece in delta.items():
            if field != "type" and isinstance(piece, str):
                pieces.setdefault("input" if field == "partial_json" else field, []).append(piece)
            elif field != "type" and piece is not None:
                block[field] = piece
        given = as_text(delta.get("partial_json"))
        if given and index in self._calls:
            return [ToolInputDelta(position=self._calls[index], name=as_text(block.get("name")), text=given)]
        return _shown(delta)

    def _usage_so_far(self) -> list[Delta]:
        usage = self._answer.get("usage")
        return [UsageSoFar(usage=usage_from_wire(usage, self._price))] if usage else []


def _shown(fields: Mapping[str, Any]) -> list[Delta]:
    if text := as_text(fields.get("text")):
        return [TextDelta(text=text)]
    if thinking := as_text(fields.get("thinking")):
        return [ThinkingDelta(text=thinking)]
    return []
