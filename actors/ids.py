"""Conversation ids: seven Crockford base-32 characters as `abc-defg`.

Layer: actors, core; no Ray.
"""

from __future__ import annotations

import secrets

# Crockford's alphabet leaves out i, l, o and u (https://www.crockford.com/base32.html).
_ALPHABET = "0123456789abcdefghjkmnpqrstvwxyz"


def new_convo_id() -> str:
    """A fresh random id, 35 bits: enough to tell the conversations of one swarm apart."""
    characters = "".join(secrets.choice(_ALPHABET) for _ in range(7))
    return f"{characters[:3]}-{characters[3:]}"
