"""The user's models.yaml: what it adds, and each fault with its line and what to do."""

from __future__ import annotations

from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest
from wire_fakes import KEY, FakeServer, ok

from palaver.providers import (
    Anthropic,
    ConfigurationError,
    Message,
    MissingKey,
    OpenAI,
    OpenAIResponses,
    Price,
    Request,
    known_models,
    provider_for,
)
from palaver.providers.models_file import own_models

GOOD = """\
models:
  qwen:
    base_url: http://gpu7:8000/v1
    model: Qwen/Qwen3-32B
    server: vllm
    context_window: 32768
    max_tokens: 2000
    timeout_s: 12.5
    requests_per_minute: 60
    price: {input: 0.10, output: 0.40, cache_read: 0.025}
    headers: {X-Team: research}
    profile: {stream_usage: false}
  claude-at-work:
    api: anthropic
    model: claude-sonnet-5-5
    base_url: https://proxy.corp/anthropic
    key_variable: CORP_LLM_KEY
  gpt4.1: {model: gpt-4.1-mini, price: {input: 0, output: 0}}
  local-claude: {api: anthropic, base_url: "http://127.0.0.1:8080", price: {input: 0, output: 0}}
  thinker: {api: responses, base_url: "http://127.0.0.1:8080/v1", model: m}
"""


@pytest.fixture(autouse=True)
def no_file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("PALAVER_MODELS", raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "settings"))
    for variable in ("CORP_LLM_KEY", "ANTHROPIC_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def file(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    path = tmp_path / "mine.yaml"
    path.write_text(GOOD)
    monkeypatch.setenv("PALAVER_MODELS", str(path))
    return path


def test_without_a_file_there_are_no_own_models() -> None:
    assert own_models() == {}


def test_the_file_in_the_folder_of_settings_is_read_and_none_in_the_current_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "models.yaml").write_text(GOOD)
    monkeypatch.chdir(tmp_path)
    assert own_models() == {}
    (tmp_path / "settings" / "palaver").mkdir(parents=True)
    (tmp_path / "settings" / "palaver" / "models.yaml").write_text(
        "models: {mine: {price: {input: 1, output: 2}}}"
    )
    assert list(own_models()) == ["mine"]


@pytest.mark.usefixtures("file")
async def test_a_model_of_the_file_is_made_as_it_says() -> None:
    server = FakeServer(ok({"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}))
    provider = provider_for("qwen", transport=server)
    assert isinstance(provider, OpenAI)
    assert repr(provider) == "OpenAI(model='Qwen/Qwen3-32B', host='gpu7:8000')"
    assert provider.price == Price.per_million_tokens("0.10", "0.40", cache_read_usd="0.025")
    assert (provider.context_window, provider.max_tokens) == (32768, 2000)
    assert provider.rate_limits is not None
    assert provider.rate_limits.requests_per_minute == 60
    assert (provider.profile.forced_choice, provider.profile.stream_usage) == ("named", False)
    await provider.generate(Request(messages=(Message.user("a"),)))
    assert server.requests[0].headers["x-team"] == "research"
    assert "authorization" not in server.requests[0].headers


@pytest.mark.usefixtures("file")
def test_the_key_is_the_one_of_the_named_variable_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with pytest.raises(MissingKey, match="CORP_LLM_KEY"):
        provider_for("claude-at-work")
    monkeypatch.setenv("CORP_LLM_KEY", "corp-key")
    provider = provider_for("claude-at-work", price=Price.free())
    assert type(provider) is Anthropic
    assert repr(provider) == "Anthropic(model='claude-sonnet-5-5', host='proxy.corp')"
    # A server of one's own without a variable gets no key that was made for another.
    local: Any = provider_for("local-claude")
    assert isinstance(local, Anthropic)
    key: Any = local._endpoint.peer.key
    assert key.reveal() == "none"
    assert type(provider_for("thinker", price=Price.free())) is OpenAIResponses


@pytest.mark.usefixtures("file")
def test_a_name_of_the_file_goes_before_palavers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    assert provider_for("gpt4.1").model == "gpt-4.1-mini"
    rows = {row.name: row for row in known_models()}
    assert rows["gpt4.1"].model == "gpt-4.1-mini"
    assert rows["gpt4.1"].price == Price.free()
    assert rows["gpt4.1"].context_window == 1_000_000
    assert (rows["qwen"].endpoint, rows["qwen"].has_key, rows["qwen"].context_window) == (
        "http://gpu7:8000/v1",
        True,
        32768,
    )
    assert rows["qwen"].abilities == ("schema without tools", "forced calls", "one call at a time")
    assert (rows["claude-at-work"].key_variable, rows["claude-at-work"].has_key) == ("CORP_LLM_KEY", False)
    assert rows["thinker"].api == "responses"


@pytest.mark.usefixtures("file")
def test_an_unknown_name_is_told_of_the_own_ones_too() -> None:
    with pytest.raises(ConfigurationError, match="did you mean 'claude-at-work'"):
        provider_for("claudeatwork-x")


A = "models:\n  a:\n    "


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("", ": is empty"),
        ("models: [", ":1: is no YAML:"),
        ("models:\n  a: {b: c\n", "is no YAML:"),
        ("modles: {}", ":1: modles: there is no such field; did you mean 'models'?"),
        ("other: 1\nmodels: {}", ":1: other: there is no such field; there are: models"),
        ("models: {a: {}}\nmodels: {b: {}}", ":2: 'models' stands here a second time"),
        ("models:\n  a: {}\n  a: {}\n", ":3: 'a' stands here a second time"),
        (A + "modle: x\n", ":3: models.a.modle: there is no such field; did you mean 'model'?"),
        (A + "price:\n      input: 1\n", ":3: models.a.price: 'output' is missing"),
        (A + "price: {input: -1, output: 1}\n", ":3: models.a.price.input: Input should be greater"),
        (A + "price: {in: 1, output: 1}\n", "there is no such field; there are: input, output,"),
        (A + "context_window: many\n", ":3: models.a.context_window: Input should be a valid int"),
        (A + "context_window: 0\n", ":3: models.a.context_window: Input should be greater than 0 (it"),
        (A + "base_url: gpu7\n", ":3: models.a.base_url: it has to be an http(s) URL"),
        (A + "base_url: http://u:hunter2@x/v1\n", "may hold a key; use key_variable"),
        (A + "api: soap\n", ":3: models.a.api: Input should be 'chat', 'resp"),
        (A + "server: vlm\n", ":3: models.a.server: there is no such kind of server; did you"),
        (A + "profile: {usage: 1}\n", ":3: models.a.profile: there is no flag 'usage'"),
        (A + "profile: {stream_usage: perhaps}\n", ":3: models.a.profile"),
        (A + "headers:\n      Authorization: Bearer hunter2\n", "'Authorization' holds a key; name its var"),
        (A + "key_variable: sk-hunter2\n", ":3: models.a.key_variable: it has to be the name of an"),
        (A + "key_variable: AKIAHUNTER2HUNTER2HUNTER2HUNTER2HUNTER2\n", "the name of an environment"),
        (A + "api_key: hunter2\n", ":2: models.a: 'api_key': a key never stands in a file; name its"),
        ("models: 5", ":1: models: fields have to stand here"),
        ("5", ":1: the file: fields have to stand here: models"),
        ("models:\n  'http://x': {}\n", "is no name of a model"),
        ("models:\n  ? [a]\n  : {}\n", ":2: a name has to be a plain word"),
    ],
)  # fmt: skip
def test_a_fault_is_told_with_its_line_and_no_secret(file: Path, text: str, fault: str) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        own_models()
    assert str(caught.value).startswith(str(file))
    assert fault in str(caught.value)
    assert "hunter2" not in str(caught.value).lower()


def test_several_faults_are_told_at_once(file: Path) -> None:
    file.write_text("models:\n" + "".join(f"  m{n}:\n    max_tokens: 0\n" for n in range(7)))
    with pytest.raises(ConfigurationError) as caught:
        own_models()
    lines = str(caught.value).splitlines()
    assert len(lines) == 6
    assert lines[1].startswith(f"{file}:5: models.m1.max_tokens")
    assert lines[-1] == "and 2 more"


def test_a_named_file_that_cannot_be_read_is_an_error(file: Path) -> None:
    file.unlink()
    with pytest.raises(ConfigurationError, match="cannot be read: No such file"):
        own_models()
    file.write_bytes(b"models: {a: {model: \xff}}")
    with pytest.raises(ConfigurationError, match="no UTF-8 text"):
        own_models()


def test_money_is_what_was_written(file: Path) -> None:
    file.write_text("models: {a: {price: {input: 0.1, output: 1e-3}}}")
    price = own_models()["a"].price
    assert price is not None
    assert (price.input, price.output) == (Decimal("0.1"), Decimal("0.001"))
