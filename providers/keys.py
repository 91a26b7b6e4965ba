"""Where an API key comes from.

Layer: providers; imports `errors` and `secret`.
"""

from __future__ import annotations

import os

from palaver.providers.errors import ConfigurationError, MissingKey
from palaver.providers.secret import Secret


def key_is_set(variable: str) -> bool:
    """Whether the environment variable holds a key. An empty one counts as not set."""
    return bool(os.environ.get(variable, "").strip())


def find_key(api_key: str | Secret | None, variable: str | None, provider: str) -> Secret | None:
    """The key to send: `api_key`, else what the environment variable holds now.

    None when neither is given: the provider needs no key. White space around a key, such as the
    newline of the file it was read from, is dropped.

    Raises MissingKey when `variable` is not set, and ConfigurationError for a key that no HTTP
    header can carry.
    """
    if api_key is None and variable is None:
        return None
    if api_key is not None:
        source = "api_key"
        text = (api_key.reveal() if isinstance(api_key, Secret) else api_key).strip()
    else:
        source = str(variable)
        text = os.environ.get(source, "").strip()
    if not text:
        ways = "pass api_key=..." if variable is None else f"set {variable} or pass api_key=..."
        raise MissingKey(f"provider {provider!r} needs an API key and has none; {ways}")
    if not (text.isascii() and text.isprintable() and " " not in text):
        # The HTTP library would refuse it too, in a message that shows the key.
        raise ConfigurationError(
            f"the API key for provider {provider!r} (from {source}) has characters that no HTTP header "
            "can carry; copy the key again"
        )
    return Secret(text)
