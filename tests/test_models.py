from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from wire_fakes import KEY

import palaver.providers
from palaver.providers import (
    Anthropic,
    ConfigurationError,
    LlamaCPP,
    Message,
    MissingKey,
    OpenAI,
    OpenAIResponses,
    Price,
    Provider,
    Request,
    Scripted,
    UnknownModel,
    default_provider,
    known_models,
    provider_for,
)
from palaver.providers.local import Local

FREE: dict[str, Any] = {"price": Price.free()}
VARIABLES = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "GEMINI_API_KEY", "TOGETHER_API_KEY", "FIREWORKS_API_KEY")


@pytest.fixture(autouse=True)
def no_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)


@pytest.mark.parametrize(
    ("name", "kind", "who", "model"),
    [
        ("gpt4.1", OpenAI, "openai", "gpt-4.1-2025-04-14"),
        ("gemini-flash-2.5", OpenAI, "gemini", "gemini-2.5-flash"),
        ("gemini-pro-2.5", OpenAI, "gemini", "gemini-2.5-pro"),
        ("together-deepseek-v3", OpenAI, "together", "deepseek-ai/DeepSeek-V3"),
        ("together-llama4-maverick", OpenAI, "together", "meta-llama/Llama-4-Maverick-17B-128E-Instruct-FP8"),
        ("together-llama3-70b", OpenAI, "together", "meta-llama/Llama-3.3-70B-Instruct-Turbo"),
        ("together-mistral-small", OpenAI, "together", "mistralai/Mistral-Small-24B-Instruct-2501"),
        ("fireworks-deepseek-v3", OpenAI, "fireworks", "accounts/fireworks/models/deepseek-v3-0324"),
        ("claude-3.5-sonnet", Anthropic, "anthropic", "claude-3-5-sonnet-20241022"),
        ("claude-3.5-haiku", Anthropic, "anthropic", "claude-3-5-haiku-20241022"),
        ("claude-3.7-sonnet", Anthropic, "anthropic", "claude-3-7-sonnet-20250219"),
        ("claude-sonnet-5.5", Anthropic, "anthropic", "claude-sonnet-5-5"),
        ("claude-opus-9", Anthropic, "anthropic", "claude-opus-9"),
        ("anthropic/claude-opus-9", Anthropic, "anthropic", "claude-opus-9"),
        ("gpt-6-sol", OpenAIResponses, "openai", "gpt-6-sol"),
        ("gpt6.1-sol", OpenAIResponses, "openai", "gpt-6.1-sol"),
        ("gpt-4.1", OpenAI, "openai", "gpt-4.1"),
        ("o3-mini", OpenAI, "openai", "o3-mini"),
        ("gemini-3.8-flash", OpenAI, "gemini", "gemini-3.8-flash"),
        ("together/org/model-x", OpenAI, "together", "org/model-x"),
        ("openrouter/anthropic/claude-x", OpenAI, "openrouter", "anthropic/claude-x"),
    ],
)
def test_name_becomes_a_provider(name: str, kind: type, who: str, model: str) -> None:
    provider = provider_for(name, api_key=KEY, **FREE)
    assert type(provider) is kind
    assert isinstance(provider, Provider)
    assert (provider.name, provider.model) == (who, model)


def test_llama_cpp_needs_no_key_and_its_url_can_be_changed() -> None:
    assert repr(provider_for("llama.cpp")) == "LlamaCPP(model='llama.cpp', host='localhost:8080')"
    elsewhere = provider_for("llama.cpp", base_url="http://gpu7:9000/v1")
    assert isinstance(elsewhere, LlamaCPP)
    assert elsewhere.price == Price.free()
    assert elsewhere.name == "gpu7:9000"


@pytest.mark.parametrize(
    ("name", "url", "kind", "model"),
    [
        ("qwen3", "http://gpu7:8000/v1", OpenAI, "qwen3"),
        ("claude-x", "http://litellm:4000/v1", OpenAI, "claude-x"),
        ("anthropic/claude-x", "http://proxy:4000", Anthropic, "claude-x"),
        ("anthropic/claude-x", "https://openrouter.ai/api/v1", OpenAI, "anthropic/claude-x"),
        ("claude-sonnet-5.5", "http://proxy:4000", Anthropic, "claude-sonnet-5-5"),
        ("gpt4.1", "http://proxy:4000/v1", OpenAI, "gpt-4.1-2025-04-14"),
    ],
)
def test_any_model_works_at_any_base_url(name: str, url: str, kind: type, model: str) -> None:
    provider = provider_for(name, base_url=url, api_key=KEY, **FREE)
    assert type(provider) is kind
    assert provider.model == model
    assert url.split("/")[2] in repr(provider)


def test_server_of_ones_own_needs_no_key() -> None:
    assert provider_for("qwen3", base_url="http://gpu7:8000/v1", **FREE).name == "gpu7:8000"


def test_local_models_are_named_with_and_without_a_file() -> None:
    assert isinstance(provider_for("local"), Local)
    assert isinstance(provider_for("local:/models/some.gguf"), Local)
    with pytest.raises(ConfigurationError, match="takes neither base_url, api_key nor api"):
        provider_for("local", base_url="http://x/v1")


def test_a_url_may_be_the_name_with_the_model_beside_it() -> None:
    provider = provider_for("http://gpu7:8000/v1", model="qwen3", **FREE)
    assert (type(provider), provider.model, provider.name) == (OpenAI, "qwen3", "gpu7:8000")
    assert (
        type(provider_for("https://api.openai.com/v1", model="gpt-6-sol", api_key=KEY, **FREE))
        is OpenAIResponses
    )
    spoken = provider_for("http://gpu7:8000", model="m", api="anthropic", api_key=KEY, **FREE)
    assert type(spoken) is Anthropic
    assert type(provider_for("gpt-6-sol", api="chat", api_key=KEY, **FREE)) is OpenAI
    assert type(provider_for("gpt-4.1", api="responses", api_key=KEY, **FREE)) is OpenAIResponses
    with pytest.raises(
        ConfigurationError, match=r"pass its id as model=.*palaver models --base-url http://gpu7"
    ):
        provider_for("http://gpu7:8000/v1")
    with pytest.raises(ConfigurationError, match="goes with a URL as the name, and 'qwen3' is none"):
        provider_for("qwen3", model="m")
    with pytest.raises(ConfigurationError, match="leave them out where Anthropic's API is spoken"):
        provider_for("claude-sonnet-5-5", api_key=KEY, server="vllm")


@pytest.mark.parametrize("window", [0, -1, True, "8k", 1.5])
def test_a_window_that_is_none_is_refused(window: Any) -> None:
    for make in (OpenAI, Anthropic):
        with pytest.raises(ConfigurationError, match="context_window is"):
            make("m", api_key=KEY, context_window=window, **FREE)
    with pytest.raises(ConfigurationError, match="context_window is"):
        Scripted((), context_window=window)


def test_windows_are_those_of_the_list_unless_given() -> None:
    listed = provider_for("claude-sonnet-5.5", api_key=KEY)
    assert isinstance(listed, Anthropic)
    assert listed.context_window == 1_000_000
    given = provider_for("gpt4.1", api_key=KEY, context_window=5_000)
    assert isinstance(given, OpenAI)
    assert given.context_window == 5_000
    assert Local(context_tokens=512).context_window == 512
    assert OpenAI("m", base_url="http://127.0.0.1:1/v1").context_window is None


async def test_scripted_replies_come_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text('["hello"]')
    provider = provider_for(f"scripted:{tmp_path / 's.json'}", cost_usd=1)
    assert isinstance(provider, Scripted)
    assert (await provider.generate(Request(messages=(Message.user("a"),)))).usage.cost_usd == 1


@pytest.mark.parametrize(("name", "near"), [("gtp4.1", "gpt4.1"), ("together-llama3", "together-llama3-70b")])
def test_unknown_name_is_answered_with_near_ones_and_the_way_out(name: str, near: str) -> None:
    with pytest.raises(UnknownModel, match=f"did you mean .*{near!r}") as caught:
        provider_for(name)
    assert "base_url=" in str(caught.value)
    assert "llama.cpp" in str(caught.value)


@pytest.mark.parametrize("name", ["", "zzzzzz", "scripted", "scripted:", "local:", "nobody/x"])
def test_name_that_is_like_none_is_unknown(name: str) -> None:
    with pytest.raises(UnknownModel, match="pass base_url="):
        provider_for(name)


def test_missing_key_names_the_variable_of_the_service() -> None:
    with pytest.raises(MissingKey, match="set GEMINI_API_KEY"):
        provider_for("gemini-pro-2.5")


@pytest.mark.parametrize(
    ("variable", "who"),
    list(zip(VARIABLES, ["anthropic", "openai", "gemini", "together", "fireworks"], strict=True)),
)
def test_default_provider_is_the_first_whose_key_is_set(
    variable: str, who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for later in VARIABLES[VARIABLES.index(variable) :]:
        monkeypatch.setenv(later, KEY)
    assert default_provider().name == who


def test_default_provider_without_any_key_is_a_local_model() -> None:
    assert isinstance(default_provider(), Local)


def test_known_models_say_where_they_are_and_whether_they_can_be_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    rows = {row.name: row for row in known_models()}
    gpt, gemini = rows["gpt4.1"], rows["gemini-pro-2.5"]
    assert (gpt.endpoint, gpt.key_variable, gpt.has_key) == (
        "https://api.openai.com/v1",
        "OPENAI_API_KEY",
        False,
    )
    assert gpt.price is not None
    assert gpt.price.usd_per_million_tokens.input == 2
    assert gemini.has_key
    assert gemini.model == "gemini-2.5-pro"
    assert rows["llama.cpp"].has_key
    assert rows["llama.cpp"].price == Price.free()
    assert rows["local"].key_variable is None
    assert all(row.price is None for row in known_models(with_prices=False))


def test_every_known_model_makes_a_provider_and_current_ones_have_a_price() -> None:
    without_price: set[str] = set()
    for row in known_models():
        if row.key_variable is not None:
            assert provider_for(row.name, api_key=KEY).model == row.model
        if row.price is None:
            without_price.add(row.name)
    # Retired before genai-prices 0.2.3 was made.
    assert without_price == {"together-deepseek-v3", "together-mistral-small"}


def test_public_names_are_pinned_and_secrets_are_not_among_them() -> None:
    names = palaver.providers.__all__
    assert sorted(names) == sorted(set(names))
    assert all(hasattr(palaver.providers, name) for name in names)
    assert "Secret" not in names
    assert {"Anthropic", "OpenAI", "LlamaCPP", "Scripted", "Price", "RetryPolicy", "provider_for"} <= set(
        names
    )


def test_importing_and_building_imports_nothing_heavy() -> None:
    script = (
        "import sys, palaver.providers as p; p.LlamaCPP(); p.known_models(with_prices=False); "
        "heavy = {'httpx', 'tenacity', 'genai_prices', 'ray', 'anyio', 'palaver.providers.local'}; "
        "sys.exit(str(heavy & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True)
    assert done.stderr.strip() == ""
