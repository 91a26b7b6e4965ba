from __future__ import annotations

import pickle
from collections.abc import Iterator
from typing import TypeVar

import pytest

import palaver.providers  # every module that defines an error is imported by it
from palaver.providers import (
    AnswerLost,
    BadResponse,
    ConfigurationError,
    IncompleteAnswer,
    MalformedCall,
    Overloaded,
    PalaverError,
    ProviderError,
    RateLimited,
    TransportFailed,
    Usage,
)

Kind = TypeVar("Kind", bound=PalaverError)


def descendants(kind: type[Kind]) -> Iterator[type[Kind]]:
    yield kind
    for child in kind.__subclasses__():
        if child.__module__.startswith("palaver.providers"):
            yield from descendants(child)


PROVIDER_ERRORS = sorted(descendants(ProviderError), key=lambda kind: kind.__name__)
OTHER_ERRORS = sorted(set(descendants(PalaverError)) - set(PROVIDER_ERRORS), key=lambda kind: kind.__name__)


@pytest.mark.parametrize("kind", PROVIDER_ERRORS)
def test_provider_error_survives_pickle_with_all_it_knows(kind: type[ProviderError]) -> None:
    error = kind("what", "anthropic", 429, "req_1", 2.5, Usage(output_tokens=3))
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is kind
    assert vars(copy) == vars(error)
    assert str(copy) == "what (request id req_1)"
    assert pickle.loads(pickle.dumps(kind("alone"))).usage is None


@pytest.mark.parametrize("kind", OTHER_ERRORS)
def test_other_error_survives_pickle(kind: type[PalaverError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what")))
    assert type(copy) is kind
    assert str(copy) == "what"


def test_the_walk_finds_the_whole_tree() -> None:
    names = {kind.__name__ for kind in [*PROVIDER_ERRORS, *OTHER_ERRORS]}
    assert {"ContextTooLong", "AnswerLost", "MalformedCall", "ScriptEnded", "UnknownModel"} <= names


def test_only_what_passes_is_retryable() -> None:
    retryable = {kind for kind in PROVIDER_ERRORS if kind.retryable}
    assert retryable == {RateLimited, Overloaded, TransportFailed, MalformedCall, IncompleteAnswer}
    assert issubclass(AnswerLost, TransportFailed)
    assert issubclass(MalformedCall, BadResponse)


def test_every_error_of_the_package_is_a_palaver_error_and_exported() -> None:
    exported = {
        value
        for value in (getattr(palaver.providers, name) for name in palaver.providers.__all__)
        if isinstance(value, type) and issubclass(value, BaseException)
    }
    assert {PalaverError, ConfigurationError, *PROVIDER_ERRORS} <= exported
