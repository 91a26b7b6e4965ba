from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

import palaver.tools
from palaver.providers.errors import ConfigurationError, PalaverError
from palaver.tools import DoNotRespond, ToolDefinitionError, ToolError


def below(kind: type[BaseException]) -> Iterator[type[BaseException]]:
    for child in kind.__subclasses__():
        if child.__module__.startswith("palaver.tools"):
            yield child
        yield from below(child)


ERRORS = sorted(set(below(Exception)), key=lambda kind: kind.__name__)


def test_the_walk_finds_every_error_that_is_exported() -> None:
    exported = {
        value
        for value in vars(palaver.tools).values()
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert exported <= set(ERRORS)
    assert len(exported) > 10


@pytest.mark.parametrize("kind", ERRORS)
def test_every_error_survives_pickle_with_all_it_knows(kind: type[Exception]) -> None:
    error = kind("search", "it broke") if issubclass(kind, ToolError) else kind("it broke")
    error.add_note("a note")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert (str(copy), vars(copy)) == ("it broke", vars(error))


def test_what_the_user_did_wrong_is_told_apart_from_what_a_call_met() -> None:
    assert issubclass(ToolDefinitionError, ConfigurationError)
    assert issubclass(ToolError, PalaverError)
    assert not issubclass(ToolDefinitionError, ToolError)
    assert not issubclass(DoNotRespond, PalaverError)
