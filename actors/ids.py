"""Conversation ids: seven Crockford base-32 characters as `abc-defg`.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import secrets

# Crockford's alphabet leaves out i, l, o and u (https://www.crockford.com/base32.html).
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_convo_id() -> str:
    """A fresh random id of 35 bits. Of 100,000 in one tree two are the same in one tree out of seven, so the
    ledger refuses one that is taken (`ConvoIdTaken`)."""
    bits = secrets.randbits(35)
    characters = "".join(_ALPHABET[bits >> shift & 31] for shift in range(0, 35, 5))
    return f"{characters[:3]}-{characters[3:]}"
