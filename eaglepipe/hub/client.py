"""The HTTP client of huggingface_hub, with attempts of our own around each request.

The library repeats some requests and not others, waits as long as a server asks for, and resumes a download that is cut
again and again without end; an error of ours ends all of that, since it catches none of them.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from importlib import import_module
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from huggingface_hub import constants, set_client_factory
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils._http import default_client_factory, parse_ratelimit_headers

from eaglepipe.errors import first_line
from eaglepipe.hub.attempts import Attempts, Refusal

# the package differs between the versions of huggingface_hub
httpx: Any = import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])

PASSING_ERRORS = (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError, httpx.ProxyError)
_PASSING_STATUS = {408, 425, 429}


@contextmanager
def counted_attempts(attempts: Attempts) -> Iterator[None]:
    """Send every request of huggingface_hub, from any thread, through `attempts` while the block runs."""
    set_client_factory(partial(_client, attempts))
    try:
        yield
    finally:
        set_client_factory(default_client_factory)


def _client(attempts: Attempts) -> Any:
    client: Any = default_client_factory()
    client.send = partial(_send, attempts, {}, client, client.send)
    return client


def _send(
    attempts: Attempts, names: dict[str, str], client: Any, plain: Callable[..., Any], request: Any, **options: Any
) -> Any:
    if not _is_of_hub(request.url, names):
        _limit_time(request, attempts.patience_s)
        return plain(request, **options)
    file, repeatable = _file_name(request.url, names), isinstance(request.stream, httpx.ByteStream)
    while True:
        if (time_left := attempts.time_left(file)) == 0:
            attempts.overdue(file)
        attempts.raise_if_given_up()
        _limit_time(request, time_left)
        begun = time.monotonic()
        try:
            with _ended_in_time(attempts, file, client, time_left) if repeatable else nullcontext():
                response = plain(request, **options)
        except PASSING_ERRORS as error:
            attempts.raise_if_given_up()
            if not repeatable:
                raise
            attempts.failed(file, _reason(error), begun=begun)
            continue
        if response.status_code < 500 and response.status_code not in _PASSING_STATUS:
            if "location" in response.headers:
                names[urljoin(str(response.url), response.headers["location"])] = file
            return _taken(attempts, file, response, begun, streamed=bool(options.get("stream")))
        wait_s = _asked_wait(response)
        response.close()
        if not repeatable and (wait_s is None or wait_s < attempts.patience_s):
            return response
        attempts.failed(file, f"{response.status_code} {response.reason_phrase}".strip(), begun=begun, wait_s=wait_s)


@contextmanager
def _ended_in_time(attempts: Attempts, file: str, client: Any, time_left: float) -> Iterator[None]:
    """Close all connections if the block outlasts the patience: each byte that comes restarts the library's clock."""

    def end() -> None:
        attempts.overdue(file)
        client.close()

    timer = threading.Timer(time_left, end)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _taken(attempts: Attempts, file: str, response: Any, begun: float, *, streamed: bool) -> Any:
    if response.status_code >= 400:
        code, message = (response.headers.get(f"X-Error-{part}", "") for part in ("Code", "Message"))
        attempts.refusals.append(Refusal(status=response.status_code, code=code, file=file, message=message))
    elif streamed:
        response.stream = _CountedBody(attempts, file, response, begun)
    else:
        attempts.succeeded(file)
    return response


class _CountedBody(httpx.SyncByteStream):
    """The body of a download; each failure is counted, and raised as the one that the library resumes after."""

    def __init__(self, attempts: Attempts, file: str, response: Any, begun: float) -> None:
        self._attempts, self._file, self._body, self._begun = attempts, file, response.stream, begun
        self._offset = _first_byte(response)

    def __iter__(self) -> Iterator[bytes]:
        try:
            for chunk in self._body:
                self._offset += len(chunk)
                self._attempts.received(self._file, self._offset, begun=self._begun)
                yield chunk
        except PASSING_ERRORS as error:
            self._attempts.failed(self._file, _reason(error), begun=self._begun)
            raise httpx.RemoteProtocolError(_reason(error)) from error

    def close(self) -> None:
        self._body.close()


def _is_of_hub(url: Any, names: dict[str, str]) -> bool:
    """Return whether a request is for the Hub itself; without answers from elsewhere, `datasets` goes on."""
    endpoint = httpx.URL(constants.ENDPOINT)
    return str(url) in names or (url.host, url.port) == (endpoint.host, endpoint.port)


def _file_name(url: Any, names: dict[str, str]) -> str:
    """Return the name of a file, never its whole address, which may hold a signature or a password.

    `names` has those of files that the Hub sends from elsewhere, by address.
    """
    if (name := names.get(str(url))) is not None:
        return name
    path = unquote(urlsplit(str(url)).path)
    if "/resolve/" in path:
        return path.partition("/resolve/")[2].partition("/")[2]
    if path.startswith("/api/"):
        return "list of files" if "/tree/" in path or "/paths-info/" in path else "description of the repository"
    return path.rpartition("/")[2]


def _limit_time(request: Any, time_left: float) -> None:
    """Let no single attempt use up the patience, nor any wait for ever, as some requests of the library would."""
    reading = request.method in ("GET", "HEAD")
    longest = max(time_left / 2 if reading else time_left, 0.01)
    times = request.extensions.get("timeout", {})
    usual = constants.HF_HUB_DOWNLOAD_TIMEOUT if reading else longest  # a commit takes longer
    limited = {kind: min(times.get(kind) or usual, longest) for kind in _TIMES}
    request.extensions = {**request.extensions, "timeout": limited}


_TIMES = ("connect", "read", "write", "pool")


def _reason(error: Exception) -> str:
    if isinstance(error, httpx.TimeoutException):
        return "no answer in time"
    return first_line(error).rstrip(".")


def _asked_wait(response: Any) -> float | None:
    limit = parse_ratelimit_headers(response.headers) if response.status_code == 429 else None
    if limit is not None and limit.remaining == 0:
        return float(limit.reset_in_seconds)
    text = response.headers.get("retry-after", "").strip()
    if text.isdigit():
        return float(text)
    try:
        return max((parsedate_to_datetime(text) - datetime.now(UTC)).total_seconds(), 0.0)
    except (ValueError, TypeError):
        return None


def _first_byte(response: Any) -> int:
    start = response.headers.get("content-range", "").removeprefix("bytes ").partition("-")[0]
    return int(start) if response.status_code == 206 and start.isdigit() else 0
