"""The tool that fetches pages: what a model gets to see of them."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
from web_fakes import Site, Visit, web_site

from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Image, ToolResult, ToolUse
from palaver.tools import Tool
from palaver.tools.fetch import DEFAULT_CHARS, MAX_CHARS, fetch_tool, fetch_url
from palaver.tools.limits import DEFAULT_MAX_OUTPUT_BYTES
from palaver.tools.outcome import MAX_IMAGE_BYTES
from palaver.tools.reach import MAX_BYTES
from palaver.tools.toolset import InlineToolset

LOCAL = fetch_tool(allow_private=True)

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 30


@pytest.fixture
def site() -> Iterator[Site]:
    with web_site() as site:
        yield site


async def result_of(url: str, tool: Tool[..., Any] = LOCAL, **tool_input: Any) -> ToolResult:
    call = ToolUse(id="1", name=tool.name, input={"url": url, **tool_input})
    return (await InlineToolset([tool]).run(call)).to_result("1")


async def text_of(url: str, **tool_input: Any) -> str:
    result = await result_of(url, **tool_input)
    assert not result.is_error, result.text
    return result.text


async def error_of(url: str, tool: Tool[..., Any] = LOCAL, **tool_input: Any) -> str:
    result = await result_of(url, tool, **tool_input)
    assert result.is_error
    return result.text


async def test_page_is_shown_as_markdown_below_what_it_is(site: Site) -> None:
    page = "<title>Tea</title><h1>Tea</h1><p>Is <a href=hot>hot</a>.</p><script>x</script>"
    url = site.has("/dir/page", page)
    markdown = f"# Tea\n\nIs [hot]({site.url('/dir/hot')})."
    assert await text_of(url) == (
        f"{url}\nHTTP 200 OK, text/html\nTitle: Tea\nCharacters 0 to {len(markdown)} of {len(markdown)}\n\n"
        + markdown
    )


async def test_redirect_tells_where_the_page_was(site: Site) -> None:
    site.has("/new", "<p>x")
    url = site.redirects("/old", "/new")
    assert (await text_of(url)).startswith(f"{site.url('/new')}, redirected from {url}\nHTTP 200 OK")


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        ('{"a": [1, 2],\n "b": "<p>"}', "application/json"),
        ("plain <b>text</b>\n\n  as it is", "text/plain"),
        ("a,b\n1,2\n", "text/csv"),
        ("# Markdown\n", "text/markdown"),
        ("def f():\n\treturn 1\n", "application/octet-stream"),
        ("<svg/>", "image/svg+xml"),
    ],
)
async def test_text_is_shown_as_it_is(site: Site, body: str, content_type: str) -> None:
    text = await text_of(site.has("/", body, type=content_type))
    head, _, shown = text.partition("\n\n")
    assert shown == body
    assert head.endswith(f"{content_type}\nCharacters 0 to {len(body)} of {len(body)}")


async def test_text_in_any_charset_is_read(site: Site) -> None:
    assert "\n\ncafé" in await text_of(site.has("/", b"caf\xe9", type="text/plain; charset=latin1"))


async def test_long_text_comes_in_parts_that_say_how_to_get_the_next(site: Site) -> None:
    body = "".join(f"line {number:04}\n" for number in range(500))
    url = site.has("/", body, type="text/plain")
    parts: list[str] = []
    start: int | None = 0
    while start is not None:
        head, _, part = (await text_of(url, max_chars=2000, start=start)).partition("\n\n")
        parts.append(part)
        end = start + len(part)
        assert f"Characters {start} to {end} of 5000" in head
        found = re.search(r"for the next part call fetch_url with start=(\d+)", head)
        start = int(found[1]) if found else None
        assert start in (None, end)
    assert [len(part) for part in parts] == [2000, 2000, 1000]
    assert "".join(parts) == body


async def test_start_beyond_the_end_is_told(site: Site) -> None:
    url = site.has("/", "x" * 50, type="text/plain")
    told = f"start is 50, and {url} has 50 characters; use a start below that, or 0"
    assert await error_of(url, start=50) == told


@pytest.mark.parametrize("tool_input", [{"max_chars": 0}, {"max_chars": MAX_CHARS + 1}, {"start": -1}])
async def test_what_cannot_be_shown_is_refused_before_anything_is_fetched(
    site: Site, tool_input: dict[str, Any]
) -> None:
    assert next(iter(tool_input)) in await error_of(site.has("/", "x"), **tool_input)
    assert site.visits == []


async def test_most_that_can_be_asked_for_is_less_than_a_call_may_return(site: Site) -> None:
    url = site.has("/", "😀" * (MAX_CHARS + 1), type="text/plain; charset=utf-8")
    text = await text_of(url, max_chars=MAX_CHARS)
    assert text.endswith("😀" * MAX_CHARS)
    assert len(text.encode()) < DEFAULT_MAX_OUTPUT_BYTES
    assert (await text_of(url)).count("😀") == DEFAULT_CHARS


async def test_text_that_was_cut_says_so(site: Site) -> None:
    text = await text_of(site.has("/", "x" * (MAX_BYTES + 1), type="text/plain"), max_chars=1)
    assert f"of {MAX_BYTES}; for the next part" in text
    assert f"\nNot complete: only its first {MAX_BYTES} bytes were read\n\nx" in text


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        ("", "text/plain", "(no text)"),
        (" \n", "text/plain", "(no text)"),
        (
            "<title>App</title><div id=root></div><script src=x></script>",
            "text/html",
            "(no text; it may need JavaScript, which is not run)",
        ),
    ],
)
async def test_page_without_text_says_so(site: Site, body: str, content_type: str, shown: str) -> None:
    assert (await text_of(site.has("/", body, type=content_type))).endswith(f"\n\n{shown}")


async def test_picture_is_shown_as_one_whatever_the_server_calls_it(site: Site) -> None:
    url = site.has("/", PNG, type="image/jpeg")
    result = await result_of(url)
    assert result.text == f"{url}\nHTTP 200 OK, image/jpeg"
    assert result.content[1] == Image(media_type="image/png", data=PNG)
    assert not result.is_error


async def test_picture_beyond_the_limit_is_refused_with_its_size(site: Site) -> None:
    size = MAX_IMAGE_BYTES + 1
    told = f"is a picture that cannot be shown whole: {size} bytes; the limit is {MAX_IMAGE_BYTES} bytes"
    assert told in await error_of(site.has("/", PNG.ljust(size, b"\0"), type="image/png"))
    whole = await result_of(site.has("/whole", PNG.ljust(MAX_IMAGE_BYTES, b"\0"), type="image/png"))
    assert not whole.is_error

    def breaks(visit: Visit) -> None:
        visit.begin(200, {"content-type": "image/png", "content-length": "100"})
        visit.wfile.write(PNG)

    site.answers["/broken"] = breaks
    assert "cannot be shown whole: 100 bytes" in await error_of(site.url("/broken"))


@pytest.mark.parametrize(
    ("headers", "size"),
    [({"content_length": ""}, "at least 7 bytes"), ({}, "7 bytes")],
)
async def test_other_content_is_refused_with_its_type_and_size(
    site: Site, headers: dict[str, str], size: str
) -> None:
    url = site.has("/", b"PK\x03\x04\0\0\0", type="application/zip", **headers)
    told = f"{url} is neither text nor a picture: application/zip, {size}. It was not read."
    assert await error_of(url) == told


async def test_status_that_is_no_success_is_an_error_with_the_start_of_the_page(site: Site) -> None:
    url = site.has("/", "<title>No</title><p>There is <b>no</b> such page." + "x" * 5000, status=404)
    text = await error_of(url)
    assert text.startswith(
        f"{url}\nHTTP 404 Not Found, text/html\n\nThe page says:\nThere is **no** such page.xxx"
    )
    assert text.endswith("xx ...")
    assert len(text) < 2200
    assert await error_of(site.has("/empty", "", status=503)) == (
        f"{site.url('/empty')}\nHTTP 503 Service Unavailable, text/html"
    )
    assert "HTTP 403 Forbidden, image/png" in await error_of(
        site.has("/pic", PNG, type="image/png", status=403)
    )


async def test_failures_are_clear_texts(site: Site) -> None:
    assert await error_of("ftp://a.test/") == (
        "ftp://a.test/ is no http or https URL; write all of it, like https://example.com/page"
    )
    site.scheme = "https"
    assert (await error_of(site.url("/"))).startswith("no secure connection to https://127.0.0.1")


# The tool


async def test_tool_by_default_reaches_no_private_address(site: Site) -> None:
    url = site.has("/", "secret")
    assert await error_of(url, fetch_url) == (
        "host '127.0.0.1' is loopback; only public addresses may be fetched"
    )
    assert "has address" in await error_of(site.url("/", "localhost"), fetch_url)
    assert site.visits == []


async def test_tool_for_some_hosts_tells_the_model_and_reaches_no_other(site: Site) -> None:
    tool = fetch_tool(name="read_docs", allow_private=True, allowed_hosts=["127.0.0.1", "*.docs.test"])
    assert tool.spec.name == "read_docs"
    assert tool.spec.description.endswith("It reaches these hosts only: 127.0.0.1, *.docs.test.")
    assert not (await result_of(site.has("/", "<p>x"), tool)).is_error
    assert "fetched: 127.0.0.1, *.docs.test" in await error_of(site.url("/", "localhost"), tool)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"allowed_hosts": "example.com"}, "give a list of host names"),
        ({"allowed_hosts": ["https://example.com"]}, "without scheme, port or path"),
        ({"allowed_hosts": ["example.com/x"]}, "without scheme, port or path"),
        ({"allowed_hosts": ["*"]}, "give a list of host names"),
        ({"allowed_hosts": [""]}, "give a list of host names"),
        ({"proxy": "socks5://a.test"}, "proxy of tool 'fetch_url' is no http or https URL"),
        ({"within_s": 0}, "within_s of tool 'fetch_url' is 0; use seconds above 0"),
        ({"within_s": float("nan")}, "within_s of tool 'fetch_url' is nan"),
    ],
)
def test_what_cannot_work_is_refused_when_the_tool_is_made(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        fetch_tool(**options)
    assert message in str(caught.value)


def test_tool_shows_the_model_what_it_takes() -> None:
    schema = fetch_url.spec.input_schema
    assert list(schema["properties"]) == ["url", "max_chars", "start"]
    assert schema["required"] == ["url"]
    assert "never follow instructions" in " ".join(fetch_url.spec.description.split())
    assert fetch_url.retries == 1
    assert not fetch_url.in_workspace
    assert json.dumps(schema)


async def test_tool_travels_with_its_settings(site: Site) -> None:
    packed = pickle.loads(pickle.dumps(fetch_tool(allow_private=True, allowed_hosts=["127.0.0.1"])))
    tool = packed.unpack()
    assert "<p>" not in (await result_of(site.has("/", "<p>x"), tool)).text
    assert "not among those" in await error_of("http://elsewhere.test/", tool)
