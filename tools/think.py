"""The tool `think`: a place for a model to think, in the middle of its calls.

Layer: tools; no Ray.
"""

from __future__ import annotations

from palaver.tools.tool import tool


@tool(retries=1)
def think(thought: str) -> str:
    """Think something through before you go on.

    For instance what the last results mean, whether a plan does what was asked, or which of several ways
    to go. It finds out nothing new and changes nothing.

    Args:
        thought: What you think.
    """
    del thought  # it stands in the call, which the conversation keeps
    return "Noted. Go on."
