"""What a downloaded body is - a page, a text, a picture or neither - and its text.

Nothing here trusts what a server says of its own answer: a picture is what begins like one.

Layer: tools; no Ray. html_to_markdown is imported when there is a page to turn into text.
"""

from __future__ import annotations

import codecs
import html
import re
from enum import StrEnum
from typing import NamedTuple

from palaver.providers.messages import ImageMediaType

HEAD_BYTES = 1024
"""How much of a body is looked at to tell what it is: as far as browsers look for a page's charset (WHATWG
HTML, "prescan a byte stream", November 2026)."""


class Kind(StrEnum):
    """What a body is to a model."""

    PAGE = "page"
    TEXT = "text"
    IMAGE = "image"
    BINARY = "binary"


class ContentType(NamedTuple):
    """A content-type header: `media_type` in lower case and empty when there is none; `charset` likewise."""

    media_type: str
    charset: str

    @classmethod
    def from_header(cls, value: str) -> ContentType:
        """Read the header; what cannot be read is left empty."""
        media_type, *parameters = value.split(";")
        named = (each.partition("=") for each in parameters)
        charset = next((what for name, _, what in named if name.strip().lower() == "charset"), "")
        return cls(media_type.strip().lower(), charset.strip().strip("\"'").lower())


_TEXTS = re.compile(
    r"text/.+|.+[+/](json|xml|yaml|x-yaml|toml|javascript|ecmascript|x-javascript|ndjson|x-ndjson|sql|x-sh|"
    r"graphql|x-httpd-php|x-latex|x-tex|x-subrip|x-www-form-urlencoded)"
)

_PAGES = ("text/html", "application/xhtml+xml")

_IMAGE_STARTS: tuple[tuple[bytes, ImageMediaType], ...] = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
)

_CHARSETS = re.compile(
    r"ascii|utf-(8|8-sig|16|16-le|16-be)|cp\d+|iso8859-\d+|koi8-[rtu]|mac-\w+|tis-620|kz1048|ptcp154|"
    r"gb2312|gbk|gb18030|hz|big5|big5hkscs|euc_\w+|johab|shift_jis\w*|iso2022_\w+"
)
"""Those of Python's codecs that are charsets. The others, like `idna`, are none and can take very long."""

_BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

_CHARSET_WITHIN = re.compile(
    rb"""<(?:meta|\?xml)\b[^>]{0,400}?(?:charset|encoding)\s*=\s*["']?([\w.:-]+)""", re.I
)


def image_type(head: bytes) -> ImageMediaType | None:
    """The type of the picture that begins with `head`; None when it is none that models take."""
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "image/webp"
    return next((media_type for start, media_type in _IMAGE_STARTS if head.startswith(start)), None)


def kind_of(content_type: ContentType, head: bytes) -> Kind:
    """What a body is, by what the server says and how it begins (HEAD_BYTES of it, or all)."""
    if image_type(head) is not None:
        return Kind.IMAGE
    if content_type.media_type in _PAGES:
        return Kind.PAGE
    if _TEXTS.fullmatch(content_type.media_type):
        return Kind.TEXT
    if not _looks_like_text(head):
        return Kind.BINARY
    if content_type.media_type:
        return Kind.TEXT
    begin = head.removeprefix(codecs.BOM_UTF8).lstrip()[:15].lower()
    return Kind.PAGE if begin.startswith((b"<!doctype html", b"<html")) else Kind.TEXT


def _looks_like_text(head: bytes) -> bool:
    """Whether it is UTF-8 without the control characters that no text has, cut anywhere."""
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(head)
    except UnicodeDecodeError:
        return False
    return not any(character < " " and character not in "\t\n\v\f\r\x1b" for character in text)


def decoded(body: bytes, content_type: ContentType) -> str:
    """The body as text. The charset is that of its byte order mark, else of the header, else the one that it
    names itself, else UTF-8, and Windows-1252 where it is none. What does not fit becomes U+FFFD.
    """
    for mark, codec in _BYTE_ORDER_MARKS:
        if body.startswith(mark):
            return body.decode(codec, "replace")
    codec = _codec(content_type.charset)
    if codec is None and (within := _CHARSET_WITHIN.search(body[:HEAD_BYTES])):
        codec = _codec(within[1].decode("ascii", "replace"))
        if codec is not None and codec.startswith("utf-16"):
            codec = "utf-8"  # it could not have been read otherwise
    if codec is not None:
        return body.decode(codec, "replace")
    try:
        # As far as it goes: a body may be cut within a character.
        return codecs.getincrementaldecoder("utf-8")().decode(body)
    except UnicodeDecodeError:
        return body.decode("cp1252", "replace")


def _codec(label: str) -> str | None:
    """The name of Python's codec for a charset; None for what is none, or not known."""
    try:
        name = codecs.lookup(label).name if label else ""
    except (LookupError, ValueError):
        return None
    # On the web that is a name of Windows-1252 (WHATWG Encoding, November 2026).
    if name in ("iso8859-1", "ascii"):
        return "cp1252"
    return name if _CHARSETS.fullmatch(name) else None


_TITLE_BEGINS = re.compile(r"<title\b", re.I | re.A)
_TITLE_ENDS = re.compile(r"</title\b", re.I | re.A)
_TITLE_CHARS = 300


class PageText(NamedTuple):
    """A page as text: its title, empty when it has none; its Markdown; what is missing, if anything is."""

    title: str
    text: str
    missing: str = ""


def page_text(source: str, url: str) -> PageText:
    """The text of an HTML page at `url`, with whole addresses in its links."""
    from html_to_markdown import ConversionOptions, PreprocessingOptions, convert

    options = ConversionOptions(
        base_url=url,
        # Whole pages are within <form> or <header>, and a model finds its way by the navigation.
        preprocessing=PreprocessingOptions(enabled=False),
        extract_metadata=False,
        autolinks=False,
        inline_data_media="alt_text_only",
    )
    result = convert(source, options)
    missing = "; ".join(each.message for each in result.warnings)
    return PageText(_title(source), (result.content or "").strip(), missing)


def _title(source: str) -> str:
    # Step by step: one expression for all of it takes for ever on pages that are made for that.
    start = _TITLE_BEGINS.search(source)
    opened = source.find(">", start.end()) if start else -1
    end = _TITLE_ENDS.search(source, opened) if opened >= 0 else None
    return " ".join(html.unescape(source[opened + 1 : end.start()]).split())[:_TITLE_CHARS] if end else ""
