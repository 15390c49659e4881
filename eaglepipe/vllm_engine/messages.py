"""What an engine is asked and answers; plain values that both processes know without vLLM."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EngineSampling:
    """How one request is continued; it ends at `stop_token_ids` and at nothing else that the model has."""

    max_tokens: int
    temperature: float = 0.0  # 0: greedy
    top_p: float = 1.0
    seed: int | None = None  # of this request alone
    stop_token_ids: tuple[int, ...] = ()
    read_stop: bool = False  # let the target read the token that stopped it, so that it has states, and take one more
    kv_transfer_params: Mapping[str, Any] = field(default_factory=dict)  # for the engine's connector


@dataclass(frozen=True, kw_only=True)
class EngineAnswer:
    """The end of a request: the tokens that the engine sampled, that which stopped it included."""

    request_id: str
    token_ids: tuple[int, ...]
    stop_reason: str  # `stop`: one of the stop tokens; `length`: max_tokens or the engine's length


@dataclass(frozen=True, kw_only=True)
class EngineSetup:
    """All that the engine's process needs to start."""

    arguments: dict[str, Any]  # of vLLM's EngineArgs
    given: tuple[str, ...] = ()  # those among them that the recipe names


@dataclass(frozen=True, kw_only=True)
class EngineFailure:
    """Why the engine, or one call of it, came to nothing."""

    kind: str  # `argument`, `memory` or `engine`
    reason: str


def stops_at(token_ids: Sequence[int], stop_token_ids: Collection[int]) -> int | None:
    """Return the place of the first stop token, None if there is none."""
    return next((place for place, token in enumerate(token_ids) if token in stop_token_ids), None)
