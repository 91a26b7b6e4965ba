"""The transcript: one result per call in call order, and what was sent is kept as it was sent."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from palaver.actors.errors import NothingToSend, UnknownToolCall
from palaver.actors.transcript import NOT_EXECUTED, Transcript, TranscriptEvent
from palaver.providers.messages import Image, Message, Text, ToolResult, ToolUse
from palaver.providers.provider import Response


def calls(*ids: str) -> Response:
    return Response(message=Message.assistant(*(ToolUse(id=each, name="t") for each in ids)))


def result(id: str, text: str = "ok") -> ToolResult:
    return ToolResult(tool_use_id=id, content=(Text(text=text),))


def with_open_calls(*ids: str) -> Transcript:
    transcript = Transcript("abc-defg")
    transcript.keep_exchange(Message.user("go"), calls(*ids))
    return transcript


def test_missing_results_are_inserted_once_per_call_in_call_order() -> None:
    message = with_open_calls("a", "b", "c").completed(Message.user("go on"))
    assert [each.tool_use_id for each in message.tool_results] == ["a", "b", "c"]
    assert {each.text for each in message.tool_results} == {NOT_EXECUTED}
    assert all(each.is_error for each in message.tool_results)


def test_given_results_are_put_in_call_order_before_any_text() -> None:
    message = with_open_calls("a", "b").completed(Message.user("text", result("b"), result("a")))
    assert [each.type for each in message.content] == ["tool_result", "tool_result", "text"]
    assert [each.tool_use_id for each in message.tool_results] == ["a", "b"]


def test_only_the_calls_without_a_result_are_answered_as_not_executed() -> None:
    message = with_open_calls("a", "b").completed(Message.user(result("b", "done")))
    assert [each.text for each in message.tool_results] == [NOT_EXECUTED, "done"]


def test_a_kept_result_answers_its_call_when_the_message_does_not() -> None:
    transcript = with_open_calls("a", "b")
    transcript.keep_result(result("b", "was run"))
    assert [each.text for each in transcript.completed(Message.user("hm")).tool_results] == [
        NOT_EXECUTED,
        "was run",
    ]


def test_a_result_in_the_message_wins_over_a_kept_one() -> None:
    transcript = with_open_calls("a")
    transcript.keep_result(result("a", "kept"))
    assert transcript.completed(Message.user(result("a", "given"))).tool_results[0].text == "given"


def test_kept_results_are_forgotten_once_sent() -> None:
    transcript = with_open_calls("a")
    transcript.keep_result(result("a"))
    transcript.keep_exchange(transcript.completed(Message.user("x")), calls("a"))
    assert transcript.kept_results == ()


def test_a_result_of_a_call_that_is_not_open_is_not_kept() -> None:
    transcript = with_open_calls("a")
    transcript.keep_result(result("elsewhere"))
    assert transcript.kept_results == ()


def test_a_result_for_no_open_call_is_refused_with_the_open_ones_named() -> None:
    with pytest.raises(UnknownToolCall, match=r"no open tool call 'x'; open: \['a', 'b'\]"):
        with_open_calls("a", "b").completed(Message.user(result("x")))


def test_a_second_result_for_a_call_is_refused() -> None:
    with pytest.raises(UnknownToolCall, match="no unanswered tool call 'a'"):
        with_open_calls("a").completed(Message.user(result("a"), result("a")))


def test_an_empty_message_is_refused_unless_it_answers_calls() -> None:
    with pytest.raises(NothingToSend, match="abc-defg"):
        Transcript("abc-defg").completed(Message.user())
    assert with_open_calls("a").completed(Message.user()).tool_results


def test_empty_messages_are_left_out_of_requests_but_stay_in_the_transcript() -> None:
    transcript = Transcript("abc-defg")
    transcript.keep_exchange(Message.user("hi"), Response(message=Message.assistant()))
    assert [each.role for each in transcript.messages] == ["user", "assistant"]
    assert [each.text for each in transcript.request_messages(Message.user("more"))] == ["hi", "more"]


def test_building_a_request_changes_nothing() -> None:
    transcript = with_open_calls("a")
    before = transcript.messages
    message = Message.user("x", Image(media_type="image/png", data=b"1"))
    transcript.request_messages(transcript.completed(message))
    assert transcript.messages == before
    assert len(message.content) == 2


def test_replaying_the_events_gives_the_same_transcript() -> None:
    events: list[TranscriptEvent] = []
    transcript = Transcript("abc-defg", on_event=events.append)
    transcript.keep_exchange(Message.user("go"), calls("a", "b"))
    transcript.keep_result(result("b"))
    replayed = Transcript("abc-defg")
    for event in events:
        replayed.apply(TranscriptEvent.model_validate_json(event.model_dump_json()))
    assert (replayed.messages, replayed.kept_results) == (transcript.messages, transcript.kept_results)
    assert [event.seq for event in events] == [1, 2]


def test_a_gap_in_the_events_is_refused() -> None:
    with pytest.raises(ValueError, match="event 3 does not follow event 0"):
        Transcript("abc-defg").apply(
            TranscriptEvent.model_validate(
                {"seq": 3, "change": {"type": "result_kept", "result": result("a")}}
            )
        )


@given(st.lists(st.sampled_from("abcdef"), unique=True), st.data())
def test_every_open_call_gets_exactly_one_result_whatever_is_given(
    open_ids: list[str], data: st.DataObject
) -> None:
    transcript = with_open_calls(*open_ids)
    for kept in data.draw(st.lists(st.sampled_from(open_ids or ["z"]))):
        transcript.keep_result(result(kept))
    given_ids = data.draw(st.lists(st.sampled_from(open_ids), unique=True)) if open_ids else []
    message = transcript.completed(Message.user("text", *(result(each) for each in given_ids)))
    assert [each.tool_use_id for each in message.tool_results] == open_ids
