"""What a downloaded body is, and its text."""

from __future__ import annotations

import codecs
import time

import pytest

from palaver.tools.media import ContentType, Kind, decoded, image_type, kind_of, page_text

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("", ("", "")),
        ("text/html", ("text/html", "")),
        ("Text/HTML; Charset=UTF-8", ("text/html", "utf-8")),
        ('text/plain; format=flowed; charset="iso-8859-2"', ("text/plain", "iso-8859-2")),
        ("text/plain;charset", ("text/plain", "")),
        (";;;", ("", "")),
    ],
)
def test_content_type_is_read_as_far_as_it_can_be(header: str, expected: tuple[str, str]) -> None:
    assert ContentType.from_header(header) == expected


@pytest.mark.parametrize(
    ("media_type", "head", "kind"),
    [
        ("text/html", b"<p>", Kind.PAGE),
        ("application/xhtml+xml", b"<p>", Kind.PAGE),
        ("text/plain", b"<html>", Kind.TEXT),
        ("text/markdown", b"# x", Kind.TEXT),
        ("application/json", b"{}", Kind.TEXT),
        ("application/problem+json", b"{}", Kind.TEXT),
        ("application/atom+xml", b"<feed>", Kind.TEXT),
        ("image/svg+xml", b"<svg>", Kind.TEXT),
        ("application/javascript", b"f()", Kind.TEXT),
        ("application/x-yaml", b"a: b", Kind.TEXT),
        ("", b"plain", Kind.TEXT),
        ("", b"", Kind.TEXT),
        ("", b"\xef\xbb\xbf \n<!DOCTYPE html><p>", Kind.PAGE),
        ("", b"<HTML>", Kind.PAGE),
        ("application/octet-stream", b"def f():\n\treturn 1\n", Kind.TEXT),
        ("application/octet-stream", "cut é".encode()[:-1], Kind.TEXT),
        ("application/octet-stream", b"\x7fELF\x02\x01\0\0", Kind.BINARY),
        ("application/pdf", b"%PDF-1.7\n%\xb5\xb5\xb5\xb5", Kind.BINARY),
        ("application/zip", b"PK\x03\x04", Kind.BINARY),
        ("video/mp4", b"\0\0\0 ftyp", Kind.BINARY),
        ("image/png", PNG, Kind.IMAGE),
        ("image/jpeg", PNG, Kind.IMAGE),
        ("text/html", PNG, Kind.IMAGE),
        ("", b"GIF89a\x01\0\x01\0", Kind.IMAGE),
        ("image/png", b"\0no picture", Kind.BINARY),
        ("image/x-icon", b"\0\0\x01\0", Kind.BINARY),
    ],
)
def test_what_a_body_is_follows_from_its_type_and_its_beginning(
    media_type: str, head: bytes, kind: Kind
) -> None:
    assert kind_of(ContentType(media_type, ""), head) is kind


@pytest.mark.parametrize(
    ("head", "media_type"),
    [
        (PNG, "image/png"),
        (b"\xff\xd8\xff\xe0", "image/jpeg"),
        (b"GIF87a", "image/gif"),
        (b"RIFF\x10\0\0\0WEBPVP8 ", "image/webp"),
        (b"RIFF\x10\0\0\0WAVEfmt ", None),
        (b"BM", None),
        (b"", None),
    ],
)
def test_a_picture_is_what_begins_like_one(head: bytes, media_type: str | None) -> None:
    assert image_type(head) == media_type


@pytest.mark.parametrize(
    ("body", "charset", "text"),
    [
        ("é漢".encode(), "", "é漢"),
        ("é漢".encode(), "utf8", "é漢"),
        (b"caf\xe9 \x80", "", "café €"),
        (b"caf\xe9 \x80", "iso-8859-1", "café €"),
        (b"caf\xe9 \x80", "us-ascii", "café €"),
        (b"\xb1", "iso-8859-2", "ą"),
        ("漢字".encode("shift_jis"), "shift_jis", "漢字"),
        (b"<meta charset=windows-1251>\xe9", "", "<meta charset=windows-1251>й"),
        (b"<meta http-equiv=x content='text/html; charset=koi8-r'>\xca", "", None),
        (b"<?xml encoding='iso-8859-2'?>\xb1", "", "<?xml encoding='iso-8859-2'?>ą"),
        ("<meta charset=utf-16>é".encode(), "", "<meta charset=utf-16>é"),
        (b"<meta charset=windows-1251>\xc3\xa9", "utf-8", "<meta charset=windows-1251>é"),
        (codecs.BOM_UTF8 + "é".encode(), "iso-8859-1", "é"),
        ("é".encode("utf-16"), "utf-8", "é"),
        (codecs.BOM_UTF16_BE + "é".encode("utf-16-be"), "", "é"),
        ("é".encode(), "no-such-charset", "é"),
        ("é".encode(), "idna", "é"),
        ("é".encode(), "unicode_escape", "é"),
        ("é".encode(), "base64", "é"),
        ("é".encode(), "a\0b", "é"),
        ("cut é".encode()[:-1], "", "cut "),
        (b"\xff", "utf-8", "\ufffd"),
        (b"", "", ""),
    ],
)  # fmt: skip
def test_charset_is_that_of_the_mark_the_header_the_page_or_the_usual_one(
    body: bytes, charset: str, text: str | None
) -> None:
    read = decoded(body, ContentType("text/html", charset))
    assert read == text if text is not None else read.endswith("й")


PAGE = """<!DOCTYPE html><html><head><title>
 Tea &amp; <b>cake</b></title><style>p {}</style><script>var x = "<p>no</p>"</script>
<base href="/sub/"></head>
<body><nav><a href="/home">Home</a></nav><form><header><h1>Head</h1></header>
<p>Some <b>bold</b> text, <a href="more?x=1">more</a> and <code>code()</code> &lt;tag&gt;.<p hidden>unseen</p>
<img src="data:image/png;base64,AAAA" alt="a dot"><img src="pic.png" alt="a pic">
<ul><li>one<li>two<ol><li>three</ol></ul>
<table><tr><th>a<th>b<tr><td>1<td>2</table><pre><code class="language-py">def f():
    return 1</code></pre></form></body></html>"""


def test_page_becomes_markdown_with_whole_addresses_and_nothing_unseen() -> None:
    page = page_text(PAGE, "https://example.com/dir/page")
    assert page.title == "Tea & <b>cake</b>"
    assert page.missing == ""
    for part in (
        "[Home](https://example.com/home)",
        "# Head",
        "Some **bold** text, [more](https://example.com/sub/more?x=1) and `code()` <tag>.",
        "a dot",
        "![a pic](https://example.com/sub/pic.png)",
        "- one\n- two\n",
        "1. three",
        "| a | b |\n| --- | --- |\n| 1 | 2 |",
        "```py\ndef f():\n    return 1\n```",
    ):
        assert part in page.text
    for part in ("unseen", "var x", "p {}", "base64", "<script", "Tea"):
        assert part not in page.text


@pytest.mark.parametrize(
    ("source", "title"),
    [
        ("<p>none", ""),
        ("<TITLE lang=en>İ x</TITLE >", "İ x"),
        ("<title>never closed", ""),
        ("<title", ""),
        ("<titles>x</titles>", ""),
        ("<title>" + "a" * 1000 + "</title>", "a" * 300),
    ],
)
def test_title_is_that_of_the_page(source: str, title: str) -> None:
    assert page_text(source, "https://example.com/").title == title


def test_page_that_is_nested_too_deep_says_that_something_is_missing() -> None:
    page = page_text("<p>start</p>" + "<b>x" * 3000, "https://example.com/")
    assert page.text.startswith("start")
    assert "depth limit of 1024" in page.missing


@pytest.mark.parametrize(
    "part",
    ["<div>", "<b>", "<table><tr><td>", "<!--", "<", "<a x=1 ", "<title>", "<title ", "&", "<![CDATA["],
)
def test_page_made_to_take_for_ever_does_not(part: str) -> None:
    source = part * (1_000_000 // len(part))
    began = time.monotonic()
    page_text(source, "https://example.com/")
    assert time.monotonic() - began < 20  # about 0.5 s; what is quadratic takes hours
