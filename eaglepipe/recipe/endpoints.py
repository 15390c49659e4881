"""Settings of servers that speak OpenAI's protocol; keys never stand in a recipe, only their variables' names."""

import re
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator

_ROUTES = ("/chat/completions", "/completions", "/models")
_OWN_FIELDS = frozenset(
    (
        *("model", "prompt", "messages", "tools", "n", "stream", "max_tokens", "temperature", "top_p", "seed"),
        *("stop", "stop_token_ids", "echo", "return_token_ids", "logprobs"),
    )
)
SECRET_FIELDS = ("endpoint", "api_key_env")
"""Fields in which somebody may write a key by mistake: errors never repeat their values."""


class EndpointConfig(BaseModel):
    """One server, and its share of the work."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str = Field(description="of a server, such as http://host:8000, or up to its version, such as .../v1")
    weight: Annotated[int, Field(gt=0, le=1000, strict=True)] = Field(1, description="share of the requests")

    @field_validator("url")
    @classmethod
    def _is_a_server(cls, url: str) -> str:
        try:
            parts = urlsplit(url.strip())
            _ = parts.port
        except ValueError:
            raise ValueError("is no URL; write http://host:port") from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is no URL of a server; write http://host:port or https://host")
        if "@" in parts.netloc:
            raise ValueError("holds a name or password; put the key into a variable and name it in api_key_env")
        if parts.query or parts.fragment:
            raise ValueError("holds more than host and path")
        path = parts.path.rstrip("/")
        for route in _ROUTES:
            path = path.removesuffix(route)
        return f"{parts.scheme}://{parts.netloc}{path or '/v1'}"


def _as_list(value: Any) -> Any:
    """Take one URL, one section or a list of both."""
    entries = value if isinstance(value, list | tuple) else [value]
    listed = [{"url": entry} if isinstance(entry, str) else entry for entry in entries]
    return None if value is None else listed


def _variable_name(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(r"[A-Z_][A-Z0-9_]*", value):
        raise ValueError("is the name of an environment variable, in capitals, never the key itself")
    return value


def _request(value: Any) -> Any:
    if isinstance(value, dict) and (own := sorted(_OWN_FIELDS & value.keys())):
        raise ValueError(f"may not hold {', '.join(own)}, which other settings decide")
    return value


Endpoints = Annotated[tuple[EndpointConfig, ...], Field(min_length=1), BeforeValidator(_as_list)]
VariableName = Annotated[str, BeforeValidator(_variable_name)]
RequestFields = Annotated[dict[str, Any], BeforeValidator(_request)]
