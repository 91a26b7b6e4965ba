from __future__ import annotations

import pickle
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from palaver.providers import Image, Message, Opaque, Text, Thinking, ToolResult, ToolUse

FULL = Message.assistant(
    "hello",
    Image(media_type="image/png", data=b"\x89PNG\x00\xff"),
    Thinking(text="hm", origin="anthropic", raw={"type": "thinking", "signature": "=="}),
    Opaque(origin="anthropic", raw={"type": "server_tool_use", "nested": [1, {"a": None}]}),
    ToolUse(id="t1", name="bash", input={"cmd": "ls"}, wire_id="w1", origin="x", extra={"e": {"s": "1"}}),
    ToolUse(id="t2", name="bash", malformed_input="{oops"),
    ToolResult(
        tool_use_id="t1",
        content=(Text(text="out"), Image(media_type="image/gif", data=b"gif")),
        is_error=True,
        started_at=datetime(2026, 11, 1, tzinfo=UTC),
        ended_at=datetime(2026, 11, 2, tzinfo=UTC),
    ),
)

json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)
json_objects = st.dictionaries(st.text(max_size=3), json_values, max_size=3)
texts = st.builds(Text, text=st.text())
images = st.builds(
    Image,
    media_type=st.sampled_from(["image/png", "image/jpeg", "image/gif", "image/webp"]),
    data=st.binary(max_size=20),
)
contents = st.one_of(
    texts,
    images,
    st.builds(Thinking, text=st.text(), origin=st.text(), raw=json_objects),
    st.builds(Opaque, origin=st.text(), raw=json_objects),
    st.builds(
        ToolUse,
        id=st.text(),
        name=st.text(),
        input=json_objects,
        malformed_input=st.none() | st.text(),
        wire_id=st.none() | st.text(),
        origin=st.text(),
        extra=json_objects,
    ),
    st.builds(
        ToolResult,
        tool_use_id=st.text(),
        content=st.lists(texts | images, max_size=2).map(tuple),
        is_error=st.booleans(),
    ),
)
messages = st.builds(
    Message, role=st.sampled_from(["user", "assistant"]), content=st.lists(contents, max_size=4).map(tuple)
)


def test_message_survives_pickle() -> None:
    assert pickle.loads(pickle.dumps(FULL)) == FULL


def test_message_survives_json_bytes_and_times_included() -> None:
    assert Message.model_validate_json(FULL.model_dump_json()) == FULL


@settings(derandomize=True, max_examples=30, deadline=None, database=None)
@given(messages)
def test_any_message_survives_pickle_and_json(message: Message) -> None:
    assert pickle.loads(pickle.dumps(message)) == message
    assert Message.model_validate_json(message.model_dump_json()) == message


def test_messages_are_frozen_and_refuse_unknown_fields() -> None:
    with pytest.raises(ValidationError):
        FULL.role = "user"  # pyright: ignore[reportAttributeAccessIssue]
    with pytest.raises(ValidationError):
        Text.model_validate({"type": "text", "text": "a", "more": 1})


def test_text_tool_uses_and_results_are_found_in_order() -> None:
    assert FULL.text == "hello"
    assert [call.id for call in FULL.tool_uses] == ["t1", "t2"]
    assert [result.text for result in FULL.tool_results] == ["out"]


def test_image_is_read_from_a_file_by_its_suffix(tmp_path: Path) -> None:
    (tmp_path / "a.JPEG").write_bytes(b"jpeg")
    assert Image.from_path(tmp_path / "a.JPEG") == Image(media_type="image/jpeg", data=b"jpeg")
    with pytest.raises(ValueError, match=r"suffix '\.bmp'; use one of \.png"):
        Image.from_path(tmp_path / "a.bmp")


def test_image_data_and_raw_blocks_do_not_show_in_repr() -> None:
    assert "PNG" not in repr(FULL)
    assert "signature" not in repr(FULL)
