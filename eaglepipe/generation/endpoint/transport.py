"""One request to a server and its answer as JSON, or the failure by its kind."""

import email.utils
import json
import math
import time
from typing import Any

from eaglepipe.errors import EaglepipeError, UnreachableError, first_line, printable
from eaglepipe.generation.endpoint.failures import PassingError, RefusedError
from eaglepipe.hub.client import httpx

_PASSING = {404, 408, 409, 425, 429}
_SHOWN_CHARACTERS = 300
_CONNECT_SECONDS = 10.0


class Transport:
    """A client of some servers with one key, which no message shows."""

    def __init__(self, *, key: str | None, connections: int, timeout_s: float, key_source: str = "") -> None:
        self._key, self._key_source = key, key_source
        self._client = httpx.AsyncClient(
            headers={} if key is None else {"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(timeout_s, connect=min(timeout_s, _CONNECT_SECONDS), pool=None),
            limits=httpx.Limits(max_connections=connections, max_keepalive_connections=connections),
        )

    async def close(self) -> None:
        await self._client.aclose()

    async def get(self, url: str) -> dict[str, Any]:
        """Return the JSON object at a URL; raises as `post`."""
        return await self._request("GET", url, None)

    async def post(self, url: str, body: dict[str, Any]) -> dict[str, Any]:
        """Send JSON and return the JSON object that comes back.

        Raises:
            PassingError: another attempt may succeed.
            RefusedError: another one would not.
            EaglepipeError: the key is refused.
        """
        return await self._request("POST", url, body)

    async def _request(self, method: str, url: str, body: dict[str, Any] | None) -> dict[str, Any]:
        try:
            response = await self._client.request(method, url, json=body)
        except httpx.TimeoutException:
            raise PassingError("no answer in time") from None
        except httpx.TransportError as error:
            raise PassingError(self.shown(first_line(error))) from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise PassingError(self.shown(first_line(error))) from None
        status = int(response.status_code)
        if status in (401, 403):
            named = f"the key in {self._key_source}" if self._key else "a request without a key; name its variable"
            raise EaglepipeError(
                f"{url}: HTTP {status}: refuses {named} (regenerate.api_key_env): {self._message(response)}"
            )
        if 300 <= status < 400:
            raise EaglepipeError(f"{url}: HTTP {status}: redirects; give the address that it redirects to")
        if status >= 500 or (status in _PASSING and not (status == 404 and method == "GET")):
            raise PassingError(f"HTTP {status}", _retry_after(response))
        if status != 200:
            raise RefusedError(status, self._message(response))
        try:
            value = json.loads(response.content)
        except (ValueError, RecursionError):
            raise PassingError("an answer that is no JSON") from None
        if not isinstance(value, dict):
            raise PassingError("an answer that is no JSON object")
        return value

    def shown(self, text: str) -> str:
        """Return a server's text as it may be shown: short, on one line and without the key."""
        text = text.replace(self._key, "***") if self._key else text
        return printable(" ".join(text.split()))[:_SHOWN_CHARACTERS]

    def _message(self, response: Any) -> str:
        text = response.content[:10_000].decode(errors="replace")
        try:
            document = json.loads(text)
            error = document.get("error", document)
            text = str(error.get("message", text) if isinstance(error, dict) else error)
        except (ValueError, AttributeError, RecursionError):
            pass
        return self.shown(text)


def _retry_after(response: Any) -> float | None:
    """Return the seconds that the server asks to wait, by number or date."""
    text = response.headers.get("retry-after")
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
        except (TypeError, ValueError):
            return None
    return None if math.isnan(seconds) else min(max(seconds, 0.0), 600.0)


def unreachable(reasons: str) -> UnreachableError:
    """Return the error of servers that do not answer."""
    return UnreachableError(f"regenerate.endpoint: {reasons}. It may work later: run the same command again")
