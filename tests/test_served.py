"""What servers say of their models."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from wire_fakes import KEY, FakeServer, ok

from palaver.providers import AuthenticationFailed, BadResponse, ServedModel, TransportFailed, served_models

SLOT = {"default_generation_settings": {"n_ctx": 4096}, "modalities": {"vision": True, "audio": False}}


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        # types/model_info.py of anthropic 2.12
        (
            {"id": "claude-x", "type": "model", "max_input_tokens": 1_000_000, "max_tokens": 128_000,
             "capabilities": {"image_input": {"supported": True}, "pdf_input": {"supported": False},
                              "thinking": {"supported": True, "types": {}},
                              "structured_outputs": {"supported": True}}},
            ServedModel(id="claude-x", context_window=1_000_000, max_output_tokens=128_000,
                        abilities=("images", "schema", "thinking")),
        ),
        ({"id": "q", "owned_by": "vllm", "max_model_len": 32768}, ServedModel(id="q", context_window=32768)),
        ({"id": "o", "context_length": 8192, "supported_parameters": ["tools", "reasoning"],
          "architecture": {"input_modalities": ["text", "image"]}},
         ServedModel(id="o", context_window=8192, abilities=("images", "thinking", "tools"))),
        ({"id": "g", "context_window": 131072, "max_completion_tokens": 65536},
         ServedModel(id="g", context_window=131072, max_output_tokens=65536)),
        ({"id": "m", "max_context_length": 32000,
          "capabilities": {"function_calling": True, "vision": False}},
         ServedModel(id="m", context_window=32000, abilities=("tools",))),
        ({"id": "gpt", "object": "model", "created": 1, "owned_by": "system"}, ServedModel(id="gpt")),
    ],
)  # fmt: skip
async def test_each_servers_words_are_read(told: dict[str, Any], expected: ServedModel) -> None:
    for body in ({"object": "list", "data": [told]}, [told]):  # Together sends the list alone
        answer = httpx.Response(200, json=body)
        assert await served_models("http://x.test/v1", transport=FakeServer(answer)) == (expected,)


async def test_llama_cpp_tells_the_window_that_it_was_started_with() -> None:
    listed = {"data": [{"id": "m", "owned_by": "llamacpp", "meta": {"n_ctx_train": 131072}}]}
    server = FakeServer(ok(listed), ok(SLOT))
    (model,) = await served_models("http://x.test:8080/v1", transport=server)
    assert model == ServedModel(id="m", context_window=4096, abilities=("images",))
    assert [str(request.url) for request in server.requests] == [
        "http://x.test:8080/v1/models",
        "http://x.test:8080/props",
    ]
    server = FakeServer(ok(listed), httpx.Response(501, text="no props"))
    (model,) = await served_models("http://x.test:8080/v1", transport=server)
    assert model.context_window == 131072


async def test_the_key_goes_where_the_api_wants_it_and_nowhere_else() -> None:
    answer = ok({"data": [{"id": "m"}]})
    server = FakeServer(answer)
    await served_models("http://x.test", api_key=KEY, api="anthropic", transport=server)
    (asked,) = server.requests
    assert str(asked.url) == "http://x.test/v1/models?limit=1000"
    assert asked.headers["x-api-key"] == KEY
    assert "anthropic-version" in asked.headers
    server = FakeServer(answer)
    await served_models("http://x.test/v1", api_key=KEY, transport=server)
    assert server.requests[0].headers["authorization"] == f"Bearer {KEY}"
    server = FakeServer(answer)
    await served_models("http://x.test/v1", transport=server)
    assert "authorization" not in server.requests[0].headers


async def test_a_server_that_does_not_tell_is_an_error_without_the_key() -> None:
    refused = httpx.Response(401, json={"error": {"message": f"bad key {KEY}"}})
    with pytest.raises(AuthenticationFailed) as caught:
        await served_models("http://x.test/v1", api_key=KEY, transport=FakeServer(refused))
    assert KEY not in str(caught.value)
    for odd in ("<html>", "{}", '{"data": [{}]}', "[" * 100_000):
        with pytest.raises(BadResponse, match="answered /v1/models with no list of models"):
            await served_models("http://x.test/v1", transport=FakeServer(httpx.Response(200, text=odd)))

    def gone(_: httpx.Request) -> httpx.Response:
        raise httpx.ConnectError("refused")

    with pytest.raises(TransportFailed, match="did not tell its models: refused") as lost:
        await served_models("http://x.test/v1", api_key=KEY, transport=httpx.MockTransport(gone))
    assert lost.value.__context__ is None
