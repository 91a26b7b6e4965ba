"""What sets one OpenAI-compatible server apart from another: a few flags, chosen by URL and model.

The defaults give the most conservative body. Sources: the quirk table of PROVIDERS.md and the issues
named here, November 2026.

Layer: providers; imports the value base alone.
"""

from __future__ import annotations

from typing import Literal, NamedTuple
from urllib.parse import urlsplit

from palaver.providers.messages import Value


class Profile(Value):
    """How to speak to one server. Every flag can be overridden: `profile.model_copy(update={...})`."""

    max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """OpenAI's reasoning models take the new name alone; DeepSeek silently ignores it."""
    content_beside_calls: Literal["null", "empty", "absent"] = "null"
    """What `content` is in a message of tool calls without text (vercel/ai#13505)."""
    tool_call_id_pattern: str = r".{1,64}"
    """Ids that match it whole are sent as they are, others rewritten. OpenAI takes 64 characters."""
    user_may_follow_tool: bool = True
    """False puts a short assistant message between a tool's result and the user (opencode#7488)."""
    images_in_tool_results: bool = False
    """False shows them in a user message after the results (agenthub#209)."""
    replay_reasoning: bool = True
    """Whether reasoning goes back, in the field it came in, to the server it came from."""
    parallel_tool_calls: bool = False
    """Whether the field `parallel_tool_calls` may be sent."""
    forced_tool_choice: bool = True
    """Whether a call may be demanded; False asks for it with "auto", which the model may ignore."""
    plain_schemas: bool = False
    """Whether tool schemas lose $ref, additionalProperties and the like (pydantic-ai#10243)."""
    output_schema: Literal["never", "without_tools", "always"] = "never"
    """Whether an answer may be held to a JSON schema (`response_format`). Many servers take one, but then
    refuse tools (llama.cpp, Gemini) or never let the model call them (vllm#39929). vLLM and SGLang, whose
    URLs say nothing, take "without_tools"."""
    limits_in_output_schema: bool = False
    """Whether that schema may bound numbers and the length of lists; else the model is told in words."""
    tells_output_schema: bool = False
    """Whether the server shows that schema to its model; False adds it to the system prompt. Unseen it
    only forbids: a model that is not told what a field means guesses (docs.fireworks.ai)."""
    stream_usage: bool = False
    """Whether `stream_options` may be sent, which asks for the usage of a stream (opencode#27672)."""
    effort_with_tools: Literal["none"] | None = None
    """`reasoning_effort` that a request with tools needs; None sends none."""


class Service(NamedTuple):
    """A known server: its name for people, its base URL, and the variable that holds its key."""

    name: str
    base_url: str
    key_variable: str
    profile: Profile


_OPENAI = Profile(
    max_tokens_field="max_completion_tokens",
    stream_usage=True,
    parallel_tool_calls=True,
    # Its chat completions neither give nor take reasoning.
    replay_reasoning=False,
    output_schema="always",
    limits_in_output_schema=True,
    tells_output_schema=True,
)
_MISTRAL = Profile(
    tool_call_id_pattern=r"[A-Za-z0-9]{9}",  # opencode#1680
    user_may_follow_tool=False,
    parallel_tool_calls=True,
    replay_reasoning=False,  # "Extra inputs are not permitted" (charmbracelet/crush#1590)
    output_schema="without_tools",
)
_CONSTRAINS = Profile(output_schema="without_tools")
"""Holds any model's answer to a schema by sampling only what fits."""

SERVICES: tuple[Service, ...] = (
    Service("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", _OPENAI),
    Service(
        "gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        "GEMINI_API_KEY",
        # "Function calling with a response mime type: 'application/json' is unsupported"
        # (googleapis/python-genai#867)
        Profile(plain_schemas=True, output_schema="without_tools", tells_output_schema=True),
    ),
    Service("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY", _CONSTRAINS),
    Service("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", _CONSTRAINS),
    Service("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", Profile()),
    Service("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY", _MISTRAL),
    # "property 'reasoning_content' is unsupported" (janhq/jan#8136)
    Service("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY", Profile(replay_reasoning=False)),
    Service(
        "openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", Profile(parallel_tool_calls=True)
    ),
)
"""Base URLs and variables as the vendors' documentation has them, November 2026."""

_HOSTS = {str(urlsplit(service.base_url).hostname): service for service in SERVICES}

_NEED_NO_EFFORT = ("gpt-5.5", "gpt-5.6", "gpt-6")
"""OpenAI's models that refuse tools in chat completions unless `reasoning_effort` is "none", even when
the field is left out (BerriAI/litellm#34569, September 2026); with effort they take tools through the
Responses API alone. Of those before, gpt-5.4 takes tools as long as the field is absent."""

_NO_OUTPUT_SCHEMA = ("gpt-3.5", "gpt-4-", "gpt-4o-2024-05-13", "chatgpt-4o", "o1-mini", "o1-preview")
"""OpenAI's models older than structured outputs, which came with gpt-4o-2024-08-06; and gpt-4 itself."""

_MISTRAL_MODELS = ("mistral", "ministral", "devstral", "codestral", "magistral", "mixtral", "pixtral")


def service_at(base_url: str) -> Service | None:
    """The known service at a base URL, told by its host; None for any other server."""
    return _HOSTS.get((urlsplit(base_url).hostname or "").lower())


def server_name(base_url: str) -> str:
    """What to call the server: the service's name, or its host and port."""
    service = service_at(base_url)
    parts = urlsplit(base_url)
    host = parts.hostname or base_url
    return service.name if service else f"{host}:{parts.port}" if parts.port else host


def profile_for(base_url: str, model: str) -> Profile:
    """The flags for a model at a base URL; the defaults for a server that is not known."""
    service = service_at(base_url)
    profile = service.profile if service else Profile()
    family = model.lower().rsplit("/", 1)[-1]
    if service is not None and service.name == "openai":
        if family.startswith(_NEED_NO_EFFORT):
            return profile.model_copy(update={"effort_with_tools": "none"})
        if family == "gpt-4" or family.startswith(_NO_OUTPUT_SCHEMA):
            return profile.model_copy(update={"output_schema": "never"})
        if family.startswith("ft:"):
            return profile.model_copy(update={"limits_in_output_schema": False})
    if family.startswith(_MISTRAL_MODELS):
        # Its chat templates check ids and turns wherever it is served (vllm, llama.cpp).
        return profile.model_copy(
            update={"tool_call_id_pattern": _MISTRAL.tool_call_id_pattern, "user_may_follow_tool": False}
        )
    return profile


def llama_cpp_profile(base_url: str, model: str) -> Profile:
    """The flags for llama.cpp's own server, which makes a grammar of a schema, but not beside tools."""
    return profile_for(base_url, model).model_copy(
        update={"output_schema": "without_tools", "limits_in_output_schema": True, "stream_usage": True}
    )
