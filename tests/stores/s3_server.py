"""A real S3 server on this machine, and a proxy before it that makes the faults of a network and of a store."""

import http.client
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal

from moto.server import ThreadedMotoServer

Fault = Literal["500", "503", "late 500", "silence", "short body", "reset", "cut upload"]
FAULTS: tuple[Fault, ...] = ("500", "503", "late 500", "silence", "short body", "reset", "cut upload")
"""`late 500`: the request is carried out, and its answer lost. `cut upload`: the connection goes half-way through."""
SILENCE_SECONDS = 4.0
SECRET = "not-to-be-seen-secret"


@dataclass(frozen=True, kw_only=True)
class Request:
    method: str
    path: str  # with its query
    range: str | None = None

    @property
    def is_shard(self) -> bool:
        return self.path.partition("?")[0].endswith(".arrow")


@dataclass(kw_only=True)
class S3Server:
    """The server as its clients see it: through the proxy; `choose` gives the fault of a request."""

    port: int
    target: tuple[str, int]
    choose: Callable[[Request], Fault | None] = lambda _: None
    before: Callable[[Request], object] = lambda _: None
    requests: list[tuple[float, Request]] = field(default_factory=list)
    injected: list[tuple[Fault, Request]] = field(default_factory=list)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def variables(self) -> dict[str, str]:
        """The environment of its clients."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "user",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def direct(self, method: str, path: str, body: bytes = b"") -> tuple[int, bytes]:
        """Ask the server itself, past the proxy."""
        connection = http.client.HTTPConnection(*self.target, timeout=30)
        connection.request(method, path, body=body, headers={"Authorization": _AUTHORIZATION})
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        return answer.status, data

    def objects(self, bucket: str, prefix: str = "") -> dict[str, bytes]:
        """All objects of a bucket, by key below the prefix."""
        from xml.etree import ElementTree

        space = "{http://s3.amazonaws.com/doc/2006-03-01/}"
        status, listing = self.direct("GET", f"/{bucket}?list-type=2&max-keys=1000&prefix={prefix}")
        assert status == 200, listing
        keys = [node.findtext(f"{space}Key", "") for node in ElementTree.fromstring(listing).iter(f"{space}Contents")]
        return {key.removeprefix(prefix): self.direct("GET", f"/{bucket}/{key}")[1] for key in keys}


_AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=user/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"


@contextmanager
def s3_server(*buckets: str) -> Iterator[S3Server]:
    """Run a server with empty buckets."""
    import logging

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    moto = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    moto.start()
    proxy = ThreadingHTTPServer(("127.0.0.1", 0), _Proxy)
    proxy.daemon_threads = True
    server = S3Server(port=proxy.server_address[1], target=moto.get_host_and_port())
    proxy.s3 = server  # type: ignore[attr-defined]
    thread = threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        for bucket in buckets:
            status, answer = server.direct("PUT", f"/{bucket}")
            assert status == 200, answer
        yield server
    finally:
        proxy.shutdown()
        proxy.server_close()
        moto.stop()


class _Proxy(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def _handle(self) -> None:
        server: S3Server = self.server.s3  # type: ignore[attr-defined]
        request = Request(method=self.command, path=self.path, range=self.headers.get("Range"))
        server.requests.append((time.monotonic(), request))
        server.before(request)
        fault = server.choose(request)
        if fault is not None:
            server.injected.append((fault, request))
        size = int(self.headers.get("Content-Length") or 0)
        if fault == "cut upload" and size:
            self.rfile.read(size // 2)
            return self._reset()
        body = self.rfile.read(size)
        if fault in ("reset", "cut upload"):
            return self._reset()
        if fault == "silence":
            time.sleep(SILENCE_SECONDS)
            return self._reset()
        if fault in ("500", "503"):
            return self._fail(int(fault))
        status, headers, data = _forward(server.target, self.command, self.path, dict(self.headers.items()), body)
        if fault == "late 500":
            return self._fail(500)
        self._answer(status, headers, data, cut=fault == "short body")
        return None

    def __getattr__(self, name: str) -> Any:
        if name.startswith("do_"):
            return self._handle
        raise AttributeError(name)

    def _answer(self, status: int, headers: list[tuple[str, str]], data: bytes, *, cut: bool) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in ("transfer-encoding", "connection", "content-length"):
                self.send_header(name, value)
        length = {name.lower(): value for name, value in headers}.get("content-length", len(data))
        self.send_header("Content-Length", str(length if self.command == "HEAD" else len(data)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True

    def _fail(self, status: int) -> None:
        data = b"<?xml version='1.0'?><Error><Code>InternalError</Code><Message>made by a test</Message></Error>"
        self._answer(status, [("Content-Type", "application/xml")], data, cut=False)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()
        self.close_connection = True

    def finish(self) -> None:
        with suppress(OSError, ValueError):
            super().finish()

    def log_message(self, *_: Any) -> None: ...


def _forward(
    target: tuple[str, int], method: str, path: str, headers: dict[str, str], body: bytes
) -> tuple[int, list[tuple[str, str]], bytes]:
    connection = http.client.HTTPConnection(*target, timeout=60)
    kept = {name: value for name, value in headers.items() if name.lower() not in ("expect", "connection")}
    connection.request(method, path, body=body or None, headers=kept)
    answer = connection.getresponse()
    result = answer.status, answer.getheaders(), answer.read()
    connection.close()
    return result


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """Set variables of this process while the block runs."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
