"""A running server of target and draft, vLLM or SGLang: its model, its answers to token ids, and its counters."""

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

from eaglepipe.errors import ConfigError, EaglepipeError, UnreachableError, first_line

_SECONDS = 600  # for one answer
_SETTLE_SECONDS = 5.0  # that counters may lag behind the answers
_SAMPLE = re.compile(r"^(?P<name>[a-zA-Z_:][\w:]*)(?:\{(?P<labels>.*)\})? (?P<value>\S+)")
_POSITION = re.compile(r'position="(\d+)"')

Counters = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class ServerAnswer:
    """Token ids of an answer, and SGLang's own count of its rounds."""

    token_ids: tuple[int, ...]
    rounds: int | None = None


@dataclass(frozen=True, kw_only=True)
class Server:
    """Address and kind of a server that answers."""

    url: str  # without /v1
    engine: str  # vLLM or SGLang, with its version if it tells it
    model: str  # name under which it serves the target
    served_path: str | None  # what it loaded under that name, if it tells it
    key: str | None

    @property
    def is_sglang(self) -> bool:
        return self.engine.startswith("SGLang")

    def answer(self, prompts: Sequence[Sequence[int]], sampling: Mapping[str, Any], at_once: int) -> list[ServerAnswer]:
        """Answer prompts of token ids, some at once.

        Raises:
            UnreachableError: the server does not answer.
            EaglepipeError: it refuses a request, or gives no token ids.
        """
        with ThreadPoolExecutor(at_once) as pool:
            return list(pool.map(partial(self._answer, sampling), prompts))

    def counters(self) -> dict[str, float]:
        """Return the samples of /metrics by name, summed over labels; those by position as `name[position]`.

        Raises:
            EaglepipeError: it exposes none.
        """
        text = _request(f"{self.url}/metrics", self.key).decode(errors="replace")
        return parse_metrics(text)

    def settled_counters(self, before: Counters, tokens: int) -> dict[str, float]:
        """Return the counters once they hold `tokens` more generated tokens than before, or stop to grow."""
        until = time.monotonic() + _SETTLE_SECONDS
        while True:
            counters = self.counters()
            if generated(counters) - generated(before) >= tokens or time.monotonic() > until:
                return counters
            time.sleep(0.1)

    def _answer(self, sampling: Mapping[str, Any], prompt: Sequence[int]) -> ServerAnswer:
        ids = list(map(int, prompt))
        if self.is_sglang:
            names = {"max_tokens": "max_new_tokens"}
            own = {names.get(name, name): value for name, value in sampling.items()}
            generate: dict[str, Any] = {"input_ids": ids, "sampling_params": own}
            answer = json.loads(_request(f"{self.url}/generate", self.key, generate))
            meta = answer.get("meta_info") or {}
            if not isinstance(answer.get("output_ids"), list):
                raise EaglepipeError(f"{self.url}: SGLang returns no output_ids; a newer version does")
            return ServerAnswer(token_ids=tuple(answer["output_ids"]), rounds=meta.get("spec_verify_ct"))
        body: dict[str, Any] = {"model": self.model, "prompt": ids, **sampling, "return_token_ids": True}
        (choice,) = json.loads(_request(f"{self.url}/v1/completions", self.key, body))["choices"]
        if not isinstance(choice.get("token_ids"), list):
            raise EaglepipeError(f"{self.url}: the server returns no token_ids, which vLLM does since 0.10.2")
        return ServerAnswer(token_ids=tuple(choice["token_ids"]))


def open_server(url: str, key_variable: str | None) -> Server:
    """Ask a server what it is and what it serves.

    Raises:
        ConfigError: the address or the key's variable is none.
        UnreachableError: the server does not answer.
        EaglepipeError: it refuses, or is neither vLLM nor SGLang with metrics.
    """
    if not re.match(r"https?://[^/]+", url):
        raise ConfigError(f"--endpoint {url}: not an address such as http://localhost:8000")
    key = None if key_variable is None else os.environ.get(key_variable)
    if key_variable is not None and not key:
        raise ConfigError(f"--endpoint-key-env {key_variable}: no such variable in the environment, or it is empty")
    base = url.rstrip("/").removesuffix("/v1")
    try:
        model = json.loads(_request(f"{base}/v1/models", key))["data"][0]
        name = str(model["id"])
    except (ValueError, KeyError, IndexError, TypeError):
        raise EaglepipeError(f"{base}/v1/models: not the answer of an OpenAI-compatible server") from None
    try:
        metrics = parse_metrics(_request(f"{base}/metrics", key).decode(errors="replace"))
    except EaglepipeError as error:
        hint = "SGLang exposes metrics if started with --enable-metrics"
        raise type(error)(f"{error}; acceptance is read from /metrics ({hint})") from None
    kinds = {"vLLM": "vllm:", "SGLang": "sglang:"}
    engine = next((kind for kind, prefix in kinds.items() if any(n.startswith(prefix) for n in metrics)), None)
    if engine is None:
        raise EaglepipeError(f"{base}/metrics: neither vLLM's counters nor SGLang's")
    return Server(url=base, engine=engine, model=name, served_path=model.get("root"), key=key)


def parse_metrics(text: str) -> dict[str, float]:
    """Parse the text format of Prometheus: samples by name without `_total`, summed over all labels but `position`."""
    found: dict[str, float] = {}
    for line in text.splitlines():
        if line.startswith("#") or (match := _SAMPLE.match(line)) is None:
            continue
        position = _POSITION.search(match["labels"] or "")
        name = match["name"].removesuffix("_total") + (f"[{position[1]}]" if position else "")
        try:
            found[name] = found.get(name, 0.0) + float(match["value"])
        except ValueError:
            continue
    return found


def generated(counters: Counters) -> int:
    """Return the tokens that a server has generated since it started."""
    return int(counters.get("vllm:generation_tokens", counters.get("sglang:generation_tokens", 0)))


def _request(url: str, key: str | None, body: Any = None) -> bytes:
    headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {key}"} if key else {})}
    request = urllib.request.Request(url, None if body is None else json.dumps(body).encode(), headers)
    try:
        with urllib.request.urlopen(request, timeout=_SECONDS) as response:
            return bytes(response.read())
    except urllib.error.HTTPError as error:
        detail = error.read(400).decode(errors="replace").strip()
        message = f"{url}: the server answers {error.code} {error.reason} {detail}"
        if error.code in (401, 403):
            message += "; name the variable that holds the key with --endpoint-key-env"
        raise (UnreachableError if error.code >= 500 else EaglepipeError)(message) from None
    except (OSError, ValueError) as error:
        raise UnreachableError(f"{url}: no answer ({first_line(error)}); is the server running?") from None
