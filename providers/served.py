"""What a server says of the models it serves: their ids, context windows and abilities.

Facts: `types/model_info.py` of `anthropic` 2.12; the lists of vLLM (`max_model_len`), llama.cpp (`meta`, and
`/props` for the window that it was started with), OpenRouter and Together (`context_length`), Groq
(`context_window`), Mistral (`max_context_length`, `capabilities`) and LM Studio (`max_context_length`), as
their documentation has them, November 2026. OpenAI's own list has ids alone.

Layer: providers.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any
from urllib.parse import urlsplit

from palaver.providers.anthropic import API_VERSION
from palaver.providers.connection import load_httpx, proxies
from palaver.providers.errors import BadResponse, TransportFailed
from palaver.providers.http_errors import Peer, error_from_status
from palaver.providers.keys import find_key
from palaver.providers.messages import Value
from palaver.providers.models_file import Api
from palaver.providers.profiles import server_name
from palaver.providers.secret import Secret
from palaver.providers.untyped import as_count, as_dict, as_list, as_text, json_in

_WINDOWS = ("max_input_tokens", "max_model_len", "context_length", "context_window", "max_context_length")
_ABILITIES: Mapping[str, str] = {
    # Anthropic's names and Mistral's
    "image_input": "images",
    "vision": "images",
    "pdf_input": "PDF",
    "structured_outputs": "schema",
    "thinking": "thinking",
    "function_calling": "tools",
    "reasoning": "thinking",
    # OpenRouter's
    "tools": "tools",
    "image": "images",
}


class ServedModel(Value):
    """One model, as its server describes it. None, and an ability that is not there, are not told."""

    id: str
    context_window: int | None = None
    max_output_tokens: int | None = None
    abilities: tuple[str, ...] = ()
    """Of "images", "PDF", "schema", "thinking", "tools"."""


async def served_models(
    base_url: str,
    *,
    api_key: str | Secret | None = None,
    api: Api = "chat",
    timeout_s: float = 10.0,
    transport: Any = None,
) -> tuple[ServedModel, ...]:
    """Ask a server for its models. `base_url` and `api_key` as for the provider that speaks `api`.

    Nothing is charged for it anywhere. Raises ProviderError when the server does not answer, or with
    something else.
    """
    load_httpx()
    import httpx

    name = server_name(base_url)
    key = find_key(api_key, None, name)
    peer = Peer(name, "its models", key)
    root = base_url.rstrip("/")
    url = f"{root}/v1/models?limit=1000" if api == "anthropic" else f"{root}/models"
    failure, status, text, props = "", 0, "", ""
    async with httpx.AsyncClient(
        headers=_headers(api, key), timeout=timeout_s, transport=transport, mounts=proxies()
    ) as client:
        try:
            answer = await client.get(url)
            status, text = answer.status_code, answer.text
            if '"llamacpp"' in text:
                props = (await client.get(f"{root.removesuffix('/v1')}/props")).text
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            failure = peer.shown(str(error)) or type(error).__name__
    if failure:
        # Outside of the handler: what httpx raises holds the request, and that the key.
        raise TransportFailed(f"{name} did not tell its models: {failure}; check the URL", name)
    if not 200 <= status < 300:
        raise error_from_status(status, {}, text, peer, datetime.now(UTC))
    told, about = json_in(text), as_dict(json_in(props))
    listed = as_list(as_dict(told).get("data")) or as_list(told)  # Together sends the list alone
    models = [_model(as_dict(each), about) for each in listed if as_text(as_dict(each).get("id"))]
    if not models:
        raise BadResponse(
            f"{name} answered {urlsplit(url).path} with no list of models: {peer.shown(text)}; check that "
            "base_url leads to the API",
            name,
            status,
        )
    return tuple(models)


def _headers(api: Api, key: Secret | None) -> dict[str, str]:
    if api == "anthropic":
        return {"anthropic-version": API_VERSION, **({} if key is None else {"x-api-key": key.reveal()})}
    return {} if key is None else {"authorization": f"Bearer {key.reveal()}"}


def _model(told: Mapping[str, Any], props: Mapping[str, Any]) -> ServedModel:
    # llama.cpp: what a slot was given, else what the model was trained for.
    meta = as_dict(told.get("meta"))
    window = as_count(as_dict(props.get("default_generation_settings")).get("n_ctx"))
    window = window or next((as_count(told[name]) for name in _WINDOWS if as_count(told.get(name))), 0)
    able = {name for name, given in as_dict(told.get("capabilities")).items() if _is_true(given)}
    able |= {name for name, given in as_dict(props.get("modalities")).items() if _is_true(given)}
    able |= set(map(as_text, as_list(told.get("supported_parameters"))))
    able |= set(map(as_text, as_list(as_dict(told.get("architecture")).get("input_modalities"))))
    return ServedModel(
        id=as_text(told.get("id")),
        context_window=window or as_count(meta.get("n_ctx_train")) or None,
        max_output_tokens=as_count(told.get("max_tokens"))
        or as_count(told.get("max_completion_tokens"))
        or None,
        abilities=tuple(sorted({_ABILITIES[name] for name in able if name in _ABILITIES})),
    )


def _is_true(given: object) -> bool:
    return given is True or as_dict(given).get("supported") is True
