"""The check of a server before it is given work: the model that it serves, its tokenizer, and the dialect it speaks."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from eaglepipe.errors import ConfigError, printable
from eaglepipe.generation.answering import Prompt
from eaglepipe.generation.endpoint.dialects import CHAT, CHAT_IDS, TEXT, TOKENS, Speech
from eaglepipe.generation.endpoint.failures import PassingError, RefusedError
from eaglepipe.generation.endpoint.pool import Server
from eaglepipe.generation.endpoint.transport import Transport

_PROBE = "The capital of France is"
_PROBE_TOKENS = 4


@dataclass(frozen=True, kw_only=True)
class Checker:
    """The target that servers must serve: by the name in `regenerate.model`, else by that of its path."""

    transport: Transport
    speech: Speech
    path: str
    model: str | None

    async def check(self, server: Server) -> None:
        """Complete what is known of a server.

        Raises:
            ConfigError: it serves another model, has another tokenizer, or takes no prompts.
            PassingError: it does not answer now.
        """
        server.model, server.max_length = await self._model(server.url)
        server.dialect = await self._dialect(server)

    async def _model(self, url: str) -> tuple[str, int | None]:
        try:
            document = await self.transport.get(f"{url}/models")
        except RefusedError as error:
            if self.model is not None:
                return self.model, None
            raise ConfigError(
                f"{url}/models: {error}; if the server has no list of models, name its model in regenerate.model"
            ) from None
        entries = document.get("data")
        if not isinstance(entries, list):
            raise PassingError("a list of models without data")
        models = [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), str)]
        found = next((entry for entry in models if self._is_target(entry)), None)
        if found is None:
            served = printable(", ".join(repr(entry["id"]) for entry in models[:8])) or "no model"
            wanted = f"regenerate.model is {self.model!r}" if self.model else f"the target is {self.path!r}"
            advice = "" if self.model else "; if it is the same model, name it in regenerate.model"
            raise ConfigError(f"regenerate.endpoint {url} serves {served}, and {wanted}{advice}")
        length = found.get("max_model_len")
        return found["id"], length if type(length) is int and length > 0 else None

    def _is_target(self, entry: dict[str, Any]) -> bool:
        if self.model is not None:
            return bool(entry["id"] == self.model)
        own = _names(self.path)
        return any(own & _names(name) for name in (entry["id"], entry.get("root")) if isinstance(name, str) and name)

    async def _dialect(self, server: Server) -> str:
        ids = self.speech.chat.token_ids(_PROBE)
        prompt = Prompt(token_ids=ids, text=_PROBE, messages=({"role": "user", "content": _PROBE},))
        try:
            body = self.speech.body(TOKENS, server.model, prompt, max_tokens=_PROBE_TOKENS)
            document = await self.transport.post(f"{server.url}/completions", body)
        except RefusedError:
            pass
        except PassingError as error:
            if error.reason not in ("HTTP 404", "HTTP 501"):
                raise
        else:
            if (dialect := self._spoken(server, prompt, document)) is not None:
                return dialect
        return await self._chat_dialect(server, prompt)

    def _spoken(self, server: Server, prompt: Prompt, document: dict[str, Any]) -> str | None:
        """Return the dialect of a reply to token ids; None if the server did not read them as such."""
        choices = document.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None
        if choice is None:
            raise PassingError("an answer without choices")
        ids, text, usage = choice.get("token_ids"), choice.get("text"), document.get("usage")
        read = choice.get("prompt_token_ids")
        number = usage.get("prompt_tokens") if isinstance(usage, dict) else None
        if isinstance(read, list) and read != prompt.token_ids.tolist():
            return None
        if not isinstance(ids, list):
            return TEXT if number in (None, len(prompt.token_ids)) else None
        if isinstance(text, str) and all(type(token) is int for token in ids):
            try:
                self.speech.read(TOKENS, prompt, document)
            except PassingError as error:
                if not any(self._fits(ids[:end], text) for end in (len(ids), len(ids) - 1)):
                    known = [token for token in ids if 0 <= token < self.speech.vocab_size]
                    raise ConfigError(
                        f"regenerate.endpoint {server.url}: its tokenizer is not the target's: it calls the token ids "
                        f"{ids[:8]} {printable(text[:60])!r}, the target's tokenizer "
                        f"{printable(self.speech.decode(known)[:60])!r}"
                    ) from error
        return TOKENS

    def _fits(self, ids: list[int], text: str) -> bool:
        inside = all(0 <= token < self.speech.vocab_size for token in ids)
        return inside and "".join(self.speech.decode(ids).split()) == "".join(text.split())

    async def _chat_dialect(self, server: Server, prompt: Prompt) -> str:
        for dialect in (CHAT_IDS, CHAT):
            body = self.speech.body(dialect, server.model, prompt, max_tokens=_PROBE_TOKENS)
            try:
                document = await self.transport.post(f"{server.url}/chat/completions", body)
            except RefusedError as error:
                if dialect == CHAT:
                    raise ConfigError(f"regenerate.endpoint {server.url} takes no prompt: {error}") from None
                continue
            choices = document.get("choices")
            first = choices[0] if isinstance(choices, list) and choices else None
            if dialect == CHAT_IDS and isinstance(first, dict) and isinstance(first.get("token_ids"), list):
                return CHAT_IDS
        return CHAT


def _names(path: str) -> set[str]:
    """Return the names by which one may mean a model: its path or id in full, and the last part of it."""
    local = Path(path).expanduser()
    full = {path, str(local.resolve())} if local.exists() else {path}
    return {name.rstrip("/").lower() for name in full} | {path.rstrip("/").rpartition("/")[2].lower()}
