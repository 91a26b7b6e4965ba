"""Ids of tool calls: unique inside palaver, whatever a server sends, and translated on the way out.

The invariant: `ToolUse.id` is unique among all calls of a conversation. Some servers send no id
(vercel/ai#7834), some count anew in each turn (vllm#50295), some need their own back (vllm#32768),
and Mistral takes nine letters and digits only (opencode#1680).

Layer: providers; imports the neutral types alone.
"""

from __future__ import annotations

import hashlib
import re
import string
from collections.abc import Iterable

from palaver.providers.messages import Message
from palaver.providers.provider import Request

_ALPHABET = string.digits + string.ascii_letters
_LENGTH = 9
"""The one length that every server takes: Mistral's (opencode#1680, November 2026)."""


class CallIds:
    """Gives the calls of one response ids that no call of its request has.

    Ids are derived from the request's id and the call's place, so that reading an answer twice gives
    the same message.
    """

    def __init__(self, request: Request) -> None:
        self._seed = request.id
        self._minted = 0
        self._in_response: set[str] = set()
        self._taken: set[str] = set()
        for message in request.messages:
            for call in message.tool_uses:
                self._taken.update((call.id, call.wire_id or call.id))

    def assign(self, wire_id: str) -> tuple[str, str | None]:
        """The call's id inside palaver, and its wire id where that one differs."""
        if not wire_id or wire_id in self._in_response:
            # Two calls of one answer under one id cannot be told apart: the server must take ours.
            return self._mint(), None
        self._in_response.add(wire_id)
        if wire_id in self._taken:
            return self._mint(), wire_id
        self._taken.add(wire_id)
        return wire_id, None

    def _mint(self) -> str:
        while True:
            self._minted += 1
            candidate = short_id(f"{self._seed}/{self._minted}")
            if candidate not in self._taken:
                self._taken.add(candidate)
                return candidate


def short_id(text: str) -> str:
    """Nine letters and digits that follow from `text`, always the same ones."""
    number = int.from_bytes(hashlib.sha256(text.encode()).digest()[:8])
    digits: list[str] = []
    for _ in range(_LENGTH):
        number, digit = divmod(number, len(_ALPHABET))
        digits.append(_ALPHABET[digit])
    return "".join(digits)


class WireIds:
    """Translates palaver's ids into those that one server takes.

    A server gets its own ids back. Any other id that does not match `pattern` is rewritten, the same
    way each time.
    """

    def __init__(self, messages: Iterable[Message], origin: str, pattern: str) -> None:
        self._pattern = re.compile(pattern)
        self._own = {
            call.id: call.wire_id
            for message in messages
            for call in message.tool_uses
            if call.wire_id and call.origin == origin
        }

    def __getitem__(self, tool_use_id: str) -> str:
        wire_id = self._own.get(tool_use_id, tool_use_id)
        return wire_id if self._pattern.fullmatch(wire_id) else short_id(wire_id)
