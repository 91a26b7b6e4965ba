"""What sets one OpenAI-compatible server apart from another: a few flags, chosen by URL and model.

The defaults give the most conservative body. Sources: the quirk table of PROVIDERS.md and the issues
named here, November 2026.

Layer: providers; imports the value base and the errors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, NamedTuple
from urllib.parse import urlsplit

from palaver.providers.errors import ConfigurationError
from palaver.providers.messages import Value


class Profile(Value):
    """How to speak to one server. A user overrides single flags, `profile={"stream_usage": True}`, or all."""

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
    forced_choice: Literal["named", "any", "never"] = "any"
    """How a call may be demanded: of one tool by its name; as "required" alone, so that a demand of one tool
    is sent with no other (lmstudio-bug-tracker#670 refuses a name, llama.cpp#26535 passes over it); or not
    at all. A model may ignore it everywhere: who demands a call has to look whether one came."""
    plain_schemas: bool = False
    """Whether tool schemas lose $ref, additionalProperties and the like (pydantic-ai#10243)."""
    output_schema: Literal["never", "without_tools", "always"] = "never"
    """Whether an answer may be held to a JSON schema (`response_format`). Many servers take one, but then
    refuse tools (llama.cpp, Gemini) or never let the model call them (vllm#39929)."""
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
    forced_choice="named",
    stream_usage=True,
    parallel_tool_calls=True,
    # Its chat completions neither give nor take reasoning.
    replay_reasoning=False,
    output_schema="always",
    limits_in_output_schema=True,
    tells_output_schema=True,
)
_GEMINI = Profile(
    plain_schemas=True,
    stream_usage=True,  # public programs send it there; not seen in its documentation
    # "Function calling with a response mime type: 'application/json' is unsupported"
    # (googleapis/python-genai#867)
    output_schema="without_tools",
    tells_output_schema=True,
)
_TOGETHER = Profile(output_schema="without_tools")
_FIREWORKS = Profile(output_schema="without_tools", stream_usage=True)  # langchain#36977
_DEEPSEEK = Profile(
    # "Thinking mode does not support this tool_choice", and V4 thinks unless told (DeepSeek-V3#1376)
    forced_choice="never",
    stream_usage=True,  # a field of its clients (ds-api on docs.rs)
)
_MISTRAL = Profile(
    tool_call_id_pattern=r"[A-Za-z0-9]{9}",  # opencode#1680
    user_may_follow_tool=False,  # opencode#7488
    parallel_tool_calls=True,
    replay_reasoning=False,  # "Extra inputs are not permitted" (charmbracelet/crush#1590)
    output_schema="without_tools",
    # No stream_usage: 422 "extra_forbidden" (openai-agents-python#442)
)
_GROQ = Profile(
    # "property 'reasoning_content' is unsupported" (janhq/jan#8136, req_llm#772)
    replay_reasoning=False,
    stream_usage=True,  # celeste-python#351
    parallel_tool_calls=True,  # its API reference, as in clientai#8
)
_OPENROUTER = Profile(parallel_tool_calls=True, stream_usage=True)  # OpenRouterTeam/typescript-sdk
_XAI = Profile(stream_usage=True)  # litellm#17136
_SGLANG = Profile(forced_choice="named", output_schema="without_tools", stream_usage=True)
_VLLM = _SGLANG.model_copy(update={"parallel_tool_calls": True})  # its `maybe_filter_parallel_tool_calls`
"""Both sample only what fits a schema, by name too; which models heed it differs (vllm#50477)."""
_LLAMA_CPP = Profile(
    # It makes a grammar of a schema, but not beside tools.
    output_schema="without_tools",
    limits_in_output_schema=True,
    stream_usage=True,
)
_OLLAMA = Profile(output_schema="without_tools", stream_usage=True)
"""docs.ollama.com openai-compatibility. It takes `tool_choice` and passes over it (ollama#17921)."""
_LM_STUDIO = Profile(
    content_beside_calls="empty",  # null is refused (lmstudio-bug-tracker#261)
    output_schema="without_tools",
    stream_usage=True,  # taken without complaint (#261); older ones send no usage (#713)
)
_LITELLM = Profile(stream_usage=True)
"""It answers for `stream_options` itself (litellm#3490); other fields that a model lacks it refuses."""

SERVICES: tuple[Service, ...] = (
    Service("openai", "https://api.openai.com/v1", "OPENAI_API_KEY", _OPENAI),
    Service(
        "gemini",
        "https://generativelanguage.googleapis.com/v1beta/openai",
        "GEMINI_API_KEY",
        _GEMINI,
    ),
    Service("together", "https://api.together.xyz/v1", "TOGETHER_API_KEY", _TOGETHER),
    Service("fireworks", "https://api.fireworks.ai/inference/v1", "FIREWORKS_API_KEY", _FIREWORKS),
    Service("deepseek", "https://api.deepseek.com/v1", "DEEPSEEK_API_KEY", _DEEPSEEK),
    Service("mistral", "https://api.mistral.ai/v1", "MISTRAL_API_KEY", _MISTRAL),
    Service("groq", "https://api.groq.com/openai/v1", "GROQ_API_KEY", _GROQ),
    Service("openrouter", "https://openrouter.ai/api/v1", "OPENROUTER_API_KEY", _OPENROUTER),
    Service("xai", "https://api.x.ai/v1", "XAI_API_KEY", _XAI),
)
"""Base URLs and variables as the vendors' documentation has them, November 2026."""

SERVERS: Mapping[str, Profile] = {
    "vllm": _VLLM,
    "sglang": _SGLANG,
    "llama.cpp": _LLAMA_CPP,
    "ollama": _OLLAMA,
    "lm-studio": _LM_STUDIO,
    "litellm": _LITELLM,
    **{service.name: service.profile for service in SERVICES},
}
"""The flags of each kind of server, by the name that `server=` takes."""

_SERVER_BY_PORT = {11434: "ollama", 1234: "lm-studio"}
"""Ports that hardly anybody else listens on (docs.ollama.com, lmstudio.ai/docs). Those of vLLM (8000),
llama.cpp (8080), LiteLLM (4000) and SGLang (30000) tell nothing: they are anybody's."""

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


def profile_for(
    base_url: str, model: str, *, server: str | None = None, changes: Mapping[str, Any] | None = None
) -> Profile:
    """The flags for a model at a base URL; the defaults for a server that is not known.

    `server` is a name of `SERVERS`, for one whose URL does not tell what it is; None goes by the URL: its
    host, or the port where that is one's own (Ollama, LM Studio). `changes` are single flags that the user
    knows better. Raises ConfigurationError for a server or a flag that there is not.
    """
    profile = _of_model(_of_server(base_url, server), base_url, model)
    if not changes:
        return profile
    unknown = sorted(changes.keys() - Profile.model_fields.keys())
    if unknown:
        raise ConfigurationError(
            f"profile has no flag {unknown[0]!r}; flags: {', '.join(sorted(Profile.model_fields))}"
        )
    try:
        return Profile.model_validate({**profile.model_dump(), **changes})
    except ValueError as error:
        raise ConfigurationError(f"profile cannot be changed by {dict(changes)}: {error}") from error


def _of_server(base_url: str, server: str | None) -> Profile:
    if server is None:
        service = service_at(base_url)
        if service is not None:
            return service.profile
        parts = urlsplit(base_url)
        server = _SERVER_BY_PORT.get(parts.port or 0)
        return SERVERS[server] if server is not None else Profile()
    if server not in SERVERS:
        raise ConfigurationError(f"server {server!r} is not known; use one of {', '.join(sorted(SERVERS))}")
    return SERVERS[server]


def _of_model(profile: Profile, base_url: str, model: str) -> Profile:
    service = service_at(base_url)
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


def needs_responses(base_url: str, model: str) -> bool:
    """Whether a model takes tools together with reasoning through OpenAI's Responses API alone."""
    service = service_at(base_url)
    return service is not None and service.name == "openai" and model.startswith(_NEED_NO_EFFORT)
