"""Private memory of a conversation less that of a bare actor (10 MB or less)."""

from __future__ import annotations

import http.server
import json
import statistics
import threading
from typing import Any, cast

import psutil
import ray
from report import Bare, report, say_ok

from palaver.actors import Convo
from palaver.actors.cluster import cluster
from palaver.providers.openai import OpenAI
from palaver.providers.prices import Price
from palaver.providers.scripted import Scripted

COUNT = 5
SETTLED_S = 2.0


def private_mb(actor: Any) -> float:
    """Memory of the actor's process that it shares with no other, read from outside."""
    pid: int = ray.get(actor.__ray_call__.remote(lambda _: __import__("os").getpid()))
    full = psutil.Process(pid).memory_full_info()
    return full.uss / 1e6


def median_mb(actors: list[Any]) -> float:
    """The median over some actors, once what they do in the background at first is done."""
    threading.Event().wait(SETTLED_S)
    return statistics.median(private_mb(each) for each in actors)


class Answers(http.server.BaseHTTPRequestHandler):
    """A chat completions endpoint with one answer."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        """Answer."""
        self.rfile.read(int(self.headers["content-length"]))
        body = json.dumps(
            {
                "id": "1",
                "model": "m",
                "choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": "ok"}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1},
            }
        ).encode()
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""


def main() -> None:
    """Print the memory of bare actors and of conversations: started, and after a run over HTTP."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    free = Price.free()
    with cluster(num_cpus=2, log_to_driver=False):
        bare = [cast("Any", Bare).remote() for _ in range(COUNT)]
        scripted = [Convo.remote(Scripted(say_ok)) for _ in range(COUNT)]
        over_http = [Convo.remote(OpenAI("m", base_url=url, api_key="x", price=free)) for _ in range(COUNT)]
        ray.get([each.ping.remote() for each in bare])
        ray.get([each.run.remote("hi") for each in scripted])
        ray.get([each.id.remote() for each in over_http])
        bare_mb, scripted_mb, started_mb = median_mb(bare), median_mb(scripted), median_mb(over_http)
        ray.get([each.run.remote("hi") for each in over_http])
        http_mb = median_mb(over_http)
    server.shutdown()
    report(
        "memory",
        ratio=scripted_mb / bare_mb,
        target="10 MB more or less",
        bare_actor_mb=bare_mb,
        started_more_mb=started_mb - bare_mb,
        after_a_scripted_run_more_mb=scripted_mb - bare_mb,
        after_a_run_over_http_more_mb=http_mb - bare_mb,
    )


if __name__ == "__main__":
    main()
