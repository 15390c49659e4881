"""A server on loopback that answers by OpenAI's protocol, deterministically, and fails as it is told."""

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Fault = Callable[["Handler", bytes], bool]  # whether it has dealt with the request


@dataclass
class Served:
    """A server's model and habits, and what it was asked."""

    tokenizer: Any
    model: str
    letters: list[int]
    end: int
    token_ids: bool = True
    completions: bool = True
    max_model_len: int | None = None
    key: str | None = None
    reply_delay_s: float = 0.0
    fault: Fault | None = None  # of every request for an answer
    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def answer(self, prompt: list[int], body: dict[str, Any]) -> list[int]:
        """Letters that follow from prompt, seed and temperature alone, and an end."""
        seed = hashlib.sha256(repr((prompt, body.get("seed"), body.get("temperature"))).encode()).digest()
        return [*(self.letters[byte % len(self.letters)] for byte in seed[: 3 + seed[-1] % 9]), self.end]


class Handler(BaseHTTPRequestHandler):
    served: Served
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        entry: dict[str, Any] = {"id": self.served.model, "object": "model", "max_model_len": self.served.max_model_len}
        if self._allowed():
            self.reply(200, json.dumps({"object": "list", "data": [entry]}).encode())

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        served = self.served
        if not self._allowed():
            return
        if self.path == "/v1/completions" and served.completions:
            prompt = body["prompt"]
        elif self.path == "/v1/chat/completions":
            ids = served.tokenizer.apply_chat_template(body["messages"], add_generation_prompt=True, return_dict=True)
            prompt = list(ids["input_ids"])
        else:
            self.reply(404, b'{"error": {"message": "no such route"}}')
            return
        if body["max_tokens"] > 8:
            served.bodies.append(body)
        limit = served.max_model_len
        if limit is not None and len(prompt) + body["max_tokens"] > limit:
            self.reply(400, b'{"error": {"message": "This model\'s maximum context length is exceeded"}}')
            return
        ids = served.answer(prompt, body)
        finish = "stop"
        if len(ids) > body["max_tokens"]:
            ids, finish = ids[: body["max_tokens"]], "length"
        text = served.tokenizer.decode(ids[:-1] if finish == "stop" else ids)
        choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
        choice |= {"text": text} if "prompt" in body else {"message": {"role": "assistant", "content": text}}
        if served.token_ids and body.get("return_token_ids"):
            choice |= {"token_ids": ids, "prompt_token_ids": prompt}
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(ids)}
        payload = json.dumps({"model": served.model, "choices": [choice], "usage": usage}).encode()
        served.counts["answers"] += 1
        if body["max_tokens"] > 8 and served.fault is not None and served.fault(self, payload):
            return
        time.sleep(served.reply_delay_s)
        self.reply(200, payload)

    def reply(self, status: int, payload: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("content-length", str(len(payload)))
        self.end_headers()
        self.wfile.write(payload)

    def hang_up(self, payload: bytes = b"", *, announced: int = 0) -> None:
        """Close the connection after part of an answer, or none."""
        if announced:
            self.send_response(200)
            self.send_header("content-length", str(announced))
            self.end_headers()
            self.wfile.write(payload)
        self.close_connection = True
        self.connection.close()

    def _allowed(self) -> bool:
        key = self.served.key
        if key is None or self.headers.get("authorization") == f"Bearer {key}":
            return True
        given = self.headers.get("authorization", "")
        self.reply(401, json.dumps({"error": {"message": f"incorrect key: {given}"}}).encode())
        return False

    def log_message(self, *_: Any) -> None:
        pass


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, *_: Any) -> None:
        """Say nothing about connections that were closed on purpose."""


@contextmanager
def running(served: Served) -> Iterator[Served]:
    """Serve on a free port of loopback while the block runs."""
    server = _Server(("127.0.0.1", 0), type("OwnHandler", (Handler,), {"served": served}))
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
