"""Server-sent events."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from palaver.providers.sse import ServerSentEvent, SseParser

NAMES = st.text(st.characters(codec="utf-8", exclude_characters="\r\n\ufeff"), max_size=8).map(
    lambda name: name.removeprefix(" ")
)
DATA = st.text(st.characters(codec="utf-8", exclude_characters="\r\ufeff"), max_size=30)


def events_in(stream: bytes, cuts: list[int] | None = None) -> list[tuple[str, str]]:
    """All events of a stream that comes in chunks cut at these places."""
    parser = SseParser()
    places = sorted({min(cut, len(stream)) for cut in cuts or []})
    chunks = [stream[a:b] for a, b in zip([0, *places], [*places, len(stream)], strict=True)]
    events = [event for chunk in chunks for event in parser.feed(chunk)]
    last = parser.end()
    return [(event.name, event.data) for event in [*events, *([] if last is None else [last])]]


def test_event_has_its_name_and_its_lines_of_data() -> None:
    assert events_in(b"event: delta\ndata: one\ndata:two\n\n") == [("delta", "one\ntwo")]


def test_event_without_a_name_has_an_empty_one() -> None:
    assert events_in(b"event: a\ndata: 1\n\ndata: 2\n\n") == [("a", "1"), ("", "2")]


def test_comments_ids_and_unknown_fields_are_passed_over() -> None:
    # OpenRouter sends comments while it waits (mistral-vibe#774).
    stream = b": OPENROUTER PROCESSING\n\nid: 7\nretry: 10\nwhat\ndata: 1\n\n:\n\n"
    assert events_in(stream) == [("", "1")]


def test_event_without_data_is_none() -> None:
    assert events_in(b"event: ping\n\ndata: 1\n\n") == [("", "1")]


def test_lines_end_in_any_of_three_ways() -> None:
    assert events_in(b"\xef\xbb\xbfdata: 1\r\n\r\ndata: 2\r\rdata: 3\n\n") == [
        ("", "1"),
        ("", "2"),
        ("", "3"),
    ]


def test_event_that_the_end_cuts_off_is_handed_out() -> None:
    assert events_in(b"data: 1\n\ndata: 2") == [("", "1"), ("", "2")]


def test_long_line_in_many_chunks_takes_time_in_proportion() -> None:
    parser = SseParser()
    for _ in range(20_000):
        assert list(parser.feed(b"data: " if not parser._rest else b"x" * 50)) == []
    [event] = parser.feed(b"\n\n")
    assert event == ServerSentEvent("", "x" * 50 * 19_999)


@given(
    st.lists(st.tuples(NAMES, DATA), max_size=5),
    st.lists(st.integers(0, 300), max_size=12),
    st.sampled_from(["\n", "\r\n", "\r"]),
)
def test_events_are_the_same_however_their_bytes_are_cut(
    events: list[tuple[str, str]], cuts: list[int], line_end: str
) -> None:
    lines = [
        line
        for name, data in events
        for line in (f"event: {name}", *(f"data: {each}" for each in data.split("\n")), "")
    ]
    stream = "".join(line + line_end for line in lines).encode()
    assert events_in(stream, cuts) == events
