"""A Hub on this machine: HTTP over a real socket, with one model or dataset, and answers that fail as a test asks."""

import hashlib
import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

SHA = "a" * 40
Answer = Callable[["Handler", bytes], None]


@dataclass(kw_only=True)
class LocalHub:
    """The files of one repository, the answers that replace the right ones, and the requests that came."""

    name: str
    files: dict[str, bytes]
    faults: list[tuple[str, Answer, float]] = field(default_factory=list)  # part of "METHOD path", answer, how often
    requests: list[str] = field(default_factory=list)
    endpoint: str = ""

    def fail(self, part: str, answer: Answer, times: float = float("inf")) -> None:
        """Replace the answers to the next `times` requests that contain `part`."""
        self.faults.append((part, answer, times))

    def fault_for(self, request: str) -> Answer | None:
        self.requests.append(request)
        for number, (part, answer, times) in enumerate(self.faults):
            if part in request and times > 0:
                self.faults[number] = (part, answer, times - 1)
                return answer
        return None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def handle_any(self) -> None:
        path = unquote(urlsplit(self.path).path)
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        body, headers = self._right_answer(path)
        self.right_headers = headers
        fault = self.hub.fault_for(f"{self.command} {path}")
        if fault is not None:
            fault(self, body)
        elif body == b"" and headers.get("X-Error-Code"):
            self.answer(404, b"", headers)
        else:
            self.answer(200, body, headers)

    do_GET = do_HEAD = do_POST = handle_any  # noqa: N815

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        if status == 200 and start:
            status, headers = 206, {**(headers or {}), "Content-Range": f"bytes {start}-{len(body) - 1}/{len(body)}"}
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body[start:])

    def _right_answer(self, path: str) -> tuple[bytes, dict[str, str]]:
        hub = self.hub
        if path.startswith("/elsewhere/"):
            return hub.files[path.removeprefix("/elsewhere/")], {}
        if f"{hub.name}/resolve/" in path:
            return self._file(*path.partition("/resolve/")[2].split("/", 1))
        if f"{hub.name}/tree/" in path or f"{hub.name}/paths-info/" in path:
            listed = [
                {"type": "file", "path": file, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                for file, content in hub.files.items()
            ]
            return json.dumps(listed).encode(), {"Content-Type": "application/json"}
        if path.endswith((f"/{hub.name}", f"/{hub.name}/revision/main", f"/{hub.name}/revision/{SHA}")):
            siblings = [{"rfilename": file} for file in hub.files]
            described = {"id": hub.name, "sha": SHA, "siblings": siblings, "private": False, "tags": [], "downloads": 0}
            return json.dumps(described).encode(), {"Content-Type": "application/json"}
        code = "RevisionNotFound" if f"{hub.name}/revision/" in path else "RepoNotFound"
        return b"", {"X-Error-Code": code}

    def _file(self, revision: str, file: str) -> tuple[bytes, dict[str, str]]:
        content = self.hub.files.get(file)
        if revision not in ("main", SHA) or content is None:
            code = "RevisionNotFound" if revision not in ("main", SHA) else "EntryNotFound"
            return b"", {"X-Error-Code": code, "X-Repo-Commit": SHA}
        return content, {"X-Repo-Commit": SHA, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}

    def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002


@contextmanager
def serve(name: str, files: dict[str, bytes]) -> Iterator[LocalHub]:
    """Serve a repository until the block ends."""
    hub = LocalHub(name=name, files=files)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"hub": hub}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # clients that hang up are part of the tests
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def folder_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def status(code: int, **headers: str) -> Answer:
    """An answer without content; underscores in the names of headers stand for hyphens."""
    return lambda handler, _: handler.answer(
        code, b"", {name.replace("_", "-"): text for name, text in headers.items()}
    )


def cut(share: float) -> Answer:
    """The right headers, a part of the body, and the end of the connection."""

    def answer(handler: Handler, body: bytes) -> None:
        _begin(handler, len(body))
        handler.wfile.write(body[: int(len(body) * share)])
        handler.close_connection = True

    return answer


def reset(handler: Handler, _: bytes) -> None:
    """The connection is reset before any answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True
    handler.rfile.close()  # which holds the connection open, too
    handler.connection.close()


def silent(seconds: float) -> Answer:
    """No answer for a while, and then none."""

    def answer(handler: Handler, _: bytes) -> None:
        time.sleep(seconds)
        handler.close_connection = True

    return answer


def trickle(pause_s: float) -> Answer:
    """The body a byte at a time."""

    def answer(handler: Handler, body: bytes) -> None:
        _begin(handler, len(body))
        for byte in body:
            handler.wfile.write(bytes([byte]))
            handler.wfile.flush()
            time.sleep(pause_s)

    return answer


def shorter(share: float) -> Answer:
    """A part of the body, under headers that say that it is the whole."""
    return lambda handler, body: handler.answer(200, body[: int(len(body) * share)], handler.right_headers)


def slow_headers(pause_s: float) -> Answer:
    """An answer whose headers come a byte at a time."""

    def answer(handler: Handler, _: bytes) -> None:
        for byte in b"HTTP/1.1 200 OK\r\n" + b"X-Filler: filler\r\n" * 100:
            handler.wfile.write(bytes([byte]))
            time.sleep(pause_s)

    return answer


def elsewhere(handler: Handler, body: bytes) -> None:
    """The address of the file on another host, with a signature in it."""
    file = handler.path.rpartition("/")[2]
    port = urlsplit(handler.hub.endpoint).port
    headers = {"Location": f"http://localhost:{port}/elsewhere/{file}?signature=hf_secret"}
    headers |= {"X-Linked-Size": str(len(body)), "X-Linked-ETag": handler.right_headers["ETag"]}
    handler.answer(302, b"", {**handler.right_headers, **headers})


def _begin(handler: Handler, length: int) -> None:
    handler.send_response(200)
    for name, value in {**handler.right_headers, "Content-Length": str(length)}.items():
        handler.send_header(name, value)
    handler.end_headers()
