"""Exchanges with servers in files: recorded without keys, and replayed.

A file holds its source, the base URL (its host alone is kept of a real one) and model, and by name the
requests with their answers in order.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import httpx

FOLDER = Path(__file__).parent / "recordings"

_KEPT_HEADERS = ("content-type", "retry-after", "request-id", "x-request-id")
KEY = re.compile(
    # OpenAI, Anthropic, OpenRouter, DeepSeek; xAI; Groq; Fireworks; Google; Perplexity; Hugging Face; JWT
    r"\b(?:sk-|xai-|gsk_|fw_|AIza|pplx-|hf_|eyJ)[A-Za-z0-9_.-]{8,}|bearer\s+[A-Za-z0-9_.-]{8,}",
    re.IGNORECASE,
)
"""What a key looks like."""


class Recorder(httpx.AsyncBaseTransport):
    """Passes requests on to `transport` and keeps what was said, without `key` wherever it stands."""

    def __init__(self, transport: httpx.AsyncBaseTransport, key: str) -> None:
        self.exchanges: list[dict[str, Any]] = []
        self._transport = transport
        self._key = key

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self._transport.handle_async_request(request)
        body = await response.aread()
        said = {
            "request": {
                "method": request.method,
                "path": request.url.path,
                "body": json.loads(await request.aread() or b"null"),
            },
            "response": {
                "status": response.status_code,
                "headers": {
                    name: response.headers[name] for name in _KEPT_HEADERS if name in response.headers
                },
                **_as_written(body.decode()),
            },
        }
        self.exchanges.append(json.loads(KEY.sub("***", json.dumps(said).replace(self._key, "***"))))
        headers = {
            k: v for k, v in response.headers.items() if k not in ("content-length", "content-encoding")
        }
        return httpx.Response(response.status_code, headers=headers, content=body)

    async def aclose(self) -> None:
        await self._transport.aclose()


class Replayer(httpx.AsyncBaseTransport):
    """Answers as recorded, and fails when something else is asked."""

    def __init__(self, exchanges: list[dict[str, Any]]) -> None:
        self.left = list(exchanges)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        assert self.left, f"nothing is recorded for another {request.method} {request.url.path}"
        exchange = self.left.pop(0)
        asked = {
            "method": request.method,
            "path": request.url.path,
            "body": json.loads(await request.aread() or b"null"),
        }
        assert asked == exchange["request"]
        answer = exchange["response"]
        content = "".join(answer["lines"]) if "lines" in answer else json.dumps(answer["body"])
        return httpx.Response(answer["status"], headers=answer["headers"], content=content.encode())


def _as_written(body: str) -> dict[str, Any]:
    """A body that reads well in a file: JSON, or the lines of a stream."""
    try:
        return {"body": json.loads(body)}
    except ValueError:
        return {"lines": body.splitlines(keepends=True)}


def load(name: str) -> dict[str, Any]:
    return json.loads((FOLDER / f"{name}.json").read_text())


def save(name: str, recording: dict[str, Any]) -> None:
    FOLDER.mkdir(exist_ok=True)
    (FOLDER / f"{name}.json").write_text(json.dumps(recording, indent=1, ensure_ascii=False) + "\n")
