"""A secret that does not show: not in repr, str, logs, JSON, nor in the bytes of its pickle.

Layer: providers; stdlib alone.
"""

from __future__ import annotations

import hmac
import secrets


class Secret:
    """Holds an API key. `reveal()` is the one way to read it.

    A pickle carries the key XORed with a random pad that travels beside it, so that a printed or
    logged pickle shows nothing to read or to search for. That is no encryption: whoever can load
    the pickle has the key.
    """

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value

    def reveal(self) -> str:
        """The key itself. Pass it straight to where it is sent; do not keep or format it."""
        return self._value

    def __repr__(self) -> str:
        return "Secret('***')"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Secret):
            return NotImplemented
        return hmac.compare_digest(self._value.encode(), other._value.encode())

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> tuple[object, ...]:
        plain = self._value.encode()
        pad = secrets.token_bytes(len(plain))
        return _unmask, (pad, _xor(plain, pad))


def _unmask(pad: bytes, masked: bytes) -> Secret:
    return Secret(_xor(masked, pad).decode())


def _xor(left: bytes, right: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(left, right, strict=True))
