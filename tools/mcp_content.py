"""What an MCP server answers to a call, as what a model gets to see.

Layer: tools; no Ray. Imports the protocol's types.
"""

from __future__ import annotations

import base64
import binascii
import json
from typing import cast, get_args

import mcp_types as types

from palaver.providers.messages import Image, ImageMediaType, Text

_IMAGES = frozenset(get_args(ImageMediaType))
_NOTHING = "(the tool answered without content)"


def content_of(result: types.CallToolResult) -> list[Text | Image]:
    """Text and images as they are, what a model cannot take as a line that says what was left out.

    Structured content counts only where there is no other: servers repeat it there as text.
    """
    parts: list[Text | Image] = [_part(each) for each in result.content]
    if not parts and result.structured_content is not None:
        parts = [Text(text=json.dumps(result.structured_content, ensure_ascii=False))]
    if not parts:
        parts = [Text(text=_NOTHING)]
    return parts


def error_of(result: types.CallToolResult) -> str:
    """The text of a result that is an error."""
    parts = content_of(result)
    images = sum(isinstance(each, Image) for each in parts)
    lines = [each.text for each in parts if isinstance(each, Text)]
    return "\n".join([*lines, *([f"[{images} images left out]"] if images else [])])


def _part(block: types.ContentBlock) -> Text | Image:
    match block:
        case types.TextContent():
            return Text(text=block.text)
        case types.ImageContent():
            return _image(block.data, block.mime_type, "an image")
        case types.AudioContent():
            return _left_out("audio", block.mime_type, block.data)
        case types.ResourceLink():
            about = "".join(f": {each}" for each in (block.description,) if each)
            kind = f" ({block.mime_type})" if block.mime_type else ""
            return Text(text=f"[resource {block.name!r}{kind} at {block.uri}{about}]")
        case types.EmbeddedResource(resource=resource):
            if isinstance(resource, types.TextResourceContents):
                return Text(text=resource.text)
            return _image(resource.blob, resource.mime_type or "unknown type", f"resource {resource.uri}")


def _image(data: str, media_type: str, what: str) -> Text | Image:
    if media_type not in _IMAGES:
        return _left_out(what, media_type, data)
    try:
        return Image(
            media_type=cast("ImageMediaType", media_type), data=base64.b64decode(data, validate=True)
        )
    except binascii.Error:
        return Text(text=f"[{what} of {media_type} left out: it is no base64]")


def _left_out(what: str, media_type: str, data: str) -> Text:
    return Text(
        text=f"[{what} of {media_type}, about {len(data) * 3 // 4} bytes, left out: no model takes it here]"
    )
