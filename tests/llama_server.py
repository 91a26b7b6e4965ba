"""llama.cpp's own server with the small model, which calls tools here: prints where it answers, and goes when
its standard input ends. A process of its own, since its log cannot be kept off the terminal.

The model is too small to call a tool by itself: its prompt shows it how.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import os
import secrets
import sys
import threading
from pathlib import Path
from typing import Any

from palaver.providers.local import WEIGHTS_MODEL, WEIGHTS_PACKAGE

TEMPLATE = r"""
{%- if tools -%}
<|im_start|>system
You call functions within <tool_call></tool_call>, and speak of what they gave. The functions:
{% for tool in tools %}{{ tool | tojson }}
{% endfor -%}
<|im_end|>
<|im_start|>user
The weather in Rome and in Paris?<|im_end|>
<|im_start|>assistant
<tool_call>
{"name": "weather", "arguments": {"place": "Rome"}}
</tool_call>
<tool_call>
{"name": "weather", "arguments": {"place": "Paris"}}
</tool_call><|im_end|>
{% endif -%}
{%- for message in messages -%}
    {%- if message.role == "tool" -%}
        {%- if loop.first or messages[loop.index0 - 1].role != "tool" -%}{{ "<|im_start|>user" }}{%- endif -%}
        {{ "\n<tool_response>\n" + message.content + "\n</tool_response>" }}
        {%- if loop.last or messages[loop.index0 + 1].role != "tool" -%}{{ "<|im_end|>\n" }}{%- endif -%}
    {%- elif message.role == "assistant" and message.tool_calls -%}
        {{- "<|im_start|>assistant" -}}
        {%- if message.content -%}{{ "\n" + message.content }}{%- endif -%}
        {%- for tool_call in message.tool_calls -%}
            {%- if tool_call.function is defined -%}{%- set tool_call = tool_call.function -%}{%- endif -%}
            {{- '\n<tool_call>\n{"name": "' + tool_call.name + '", "arguments": ' -}}
            {{- tool_call.arguments | tojson -}}
            {{- "}\n</tool_call>" -}}
        {%- endfor -%}
        {{- "<|im_end|>\n" -}}
    {%- else -%}
        {{- "<|im_start|>" + message.role + "\n" + message.content + "<|im_end|>\n" -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ "<|im_start|>assistant\n" }}{%- endif -%}
"""


def main() -> None:
    key = secrets.token_urlsafe(16)
    xllamacpp: Any = importlib.import_module("xllamacpp")  # untyped
    params = xllamacpp.CommonParams()
    package = importlib.util.find_spec(WEIGHTS_PACKAGE)
    assert package is not None
    assert package.origin is not None
    [weights] = Path(package.origin).parent.glob("*.gguf")
    params.model.path = str(weights)
    params.model_alias = {WEIGHTS_MODEL}
    params.hostnames = ["127.0.0.1"]
    params.port = 0
    params.api_keys = [key]
    params.n_parallel = 1
    params.n_ctx = 2_048
    params.sampling.temp = 0.0
    params.use_jinja = True
    params.chat_template = TEMPLATE
    params.verbosity = 2
    params.ui = False
    params.offline = True
    server = xllamacpp.Server(params)
    print(json.dumps({"url": server.listening_address, "key": key}), flush=True)
    done = threading.Event()
    threading.Thread(target=lambda: (sys.stdin.read(), done.set()), daemon=True).start()
    done.wait()
    os._exit(0)


if __name__ == "__main__":
    main()
