"""An OpenAI-compatible server for tests: it answers as it is told to, and remembers what it was asked."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any]  # status; a document, or bytes that are sent as they are


@dataclass
class Stub:
    """``reply(body, number)`` is what the request ``number`` (from 0) gets."""

    port: int = 0
    delay: float = 0.0
    reply: Callable[[dict[str, Any], int], Reply] | None = None
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_once: int = 0  # the most requests that were here at the same time
    here: int = 0
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    @property
    def prompts(self) -> list[str]:
        return [prompt_of(body) for body in self.bodies]


def prompt_of(body: dict[str, Any]) -> str:
    return body["messages"][-1]["content"] if "messages" in body else body["prompt"]


def completion(text: str | None, *, chat: bool = True, finish: str = "stop", logprobs: Any = None, **more: Any) -> Any:
    """A whole answer as servers write it."""
    said = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
    return {
        "id": "1",
        "object": "chat.completion" if chat else "text_completion",
        "created": 1,
        "model": "served-model",
        "choices": [{"index": 0, "finish_reason": finish, "logprobs": logprobs, **said}],
        "usage": {"prompt_tokens": 10, "completion_tokens": 5, "total_tokens": 15},
        **more,
    }


def usual(body: dict[str, Any]) -> Any:
    return completion(f"answer to {prompt_of(body)}", chat="messages" in body)


@contextmanager
def serving() -> Iterator[Stub]:
    stub = Stub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # else each answer waits 40 ms for an acknowledgement

        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with stub.lock:
                number = len(stub.bodies)
                stub.bodies.append(body)
                stub.headers.append({name.lower(): value for name, value in self.headers.items()})
                stub.paths.append(self.path)
                stub.here += 1
                stub.at_once = max(stub.at_once, stub.here)
            time.sleep(stub.delay)
            status, document = stub.reply(body, number) if stub.reply else (200, usual(body))
            data = document if isinstance(document, bytes) else json.dumps(document).encode()
            with stub.lock:
                stub.here -= 1
            try:
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.send_header("retry-after-ms", "5")
                self.end_headers()
                self.wfile.write(data)
            except OSError:
                self.close_connection = True  # whoever asked is gone

        def log_message(self, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    stub.port = server.server_address[1]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        server.shutdown()
        server.server_close()
