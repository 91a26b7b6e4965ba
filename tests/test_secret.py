from __future__ import annotations

import copy
import json
import logging
import pickle

import pytest

from palaver.providers import ConfigurationError, MissingKey
from palaver.providers.keys import find_key, key_is_set
from palaver.providers.secret import Secret

KEY = "sk-ant-0123456789"


def test_secret_shows_in_neither_repr_str_format_nor_log(caplog: pytest.LogCaptureFixture) -> None:
    secret = Secret(KEY)
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("key %s %r", secret, {"key": secret})
    assert KEY not in f"{secret!r} {secret!s} {secret} {[secret]} {caplog.text}"


def test_secret_is_revealed_only_on_demand() -> None:
    assert Secret(KEY).reveal() == KEY


def test_secret_survives_pickle_without_its_bytes_showing() -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        data = pickle.dumps(Secret(KEY), protocol)
        assert KEY.encode() not in data
        assert pickle.loads(data) == Secret(KEY)


def test_secret_with_characters_beyond_ascii_survives_pickle() -> None:
    assert pickle.loads(pickle.dumps(Secret("schlüssel ✓"))).reveal() == "schlüssel ✓"


def test_secret_copies_compare_and_hash_by_value() -> None:
    assert copy.deepcopy(Secret(KEY)) == Secret(KEY) != Secret("other")
    assert len({Secret(KEY), Secret(KEY)}) == 1
    assert Secret(KEY) != KEY


def test_secret_does_not_dump_to_json() -> None:
    with pytest.raises(TypeError):
        json.dumps(Secret(KEY))


def test_key_argument_wins_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", "from-env")
    assert find_key("given", "A_KEY", "p") == Secret("given")
    assert find_key(Secret("given"), "A_KEY", "p") == Secret("given")
    assert find_key(None, "A_KEY", "p") == Secret("from-env")


def test_white_space_around_a_key_is_dropped() -> None:
    assert find_key(f" {KEY}\n", None, "p") == Secret(KEY)


def test_empty_variable_counts_as_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("A_KEY", " ")
    assert not key_is_set("A_KEY")
    with pytest.raises(MissingKey, match="set A_KEY or pass api_key"):
        find_key(None, "A_KEY", "p")


def test_no_key_and_no_variable_means_no_key_is_needed() -> None:
    assert find_key(None, None, "p") is None


@pytest.mark.parametrize("key", ["sk-abc\nx-evil: 1", "sk-äöü123", "sk-a b"])
def test_key_that_no_header_can_carry_is_refused_without_being_shown(key: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        find_key(key, "A_KEY", "p")
    assert key[:5] not in str(caught.value)
