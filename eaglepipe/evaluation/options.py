"""What `eaglepipe eval` measures a draft on."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.evaluation.drafting import TreeShape

Report = Callable[[str], None]

GREEDY = SamplingRule()
DEFAULT_DEPTH = 5


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """An engine that `eval` starts, and the folder that it serves."""

    python: Path | None = None  # interpreter that has vllm; default: this one
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the engine, as it names them
    draft: Path | None = None  # exported folder to judge; default: the run's draft, exported for the occasion
    lookup: bool = False  # whether to measure the engine's own prompt lookup beside it


@dataclass(frozen=True, kw_only=True)
class EndpointOptions:
    """A running server of target and draft."""

    url: str
    key_variable: str | None = None  # environment variable that holds the key


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of one evaluation; all that concern a target are read only if there is one."""

    caches: tuple[Path, ...] = ()  # default: as in the run's recipe
    num_samples: int | None = None  # held out, read from the cache; default: as in the run's recipe
    num_prompts: int = 64
    max_new_tokens: int = 128
    depths: tuple[int, ...] = ()  # of the drafted chains; default: `DEFAULT_DEPTH`, or all of a parallel draft's
    baselines: bool = True
    device: str = "auto"
    seed: int = 0
    target: Path | None = None  # to decode with; None: simulate from the cache alone
    prompts: tuple[Path, ...] = ()  # files of conversations, or names of sets that ship; default: held-out samples
    trees: tuple[TreeShape, ...] = ()
    rule: SamplingRule = GREEDY
    batch_size: int = 1
    ignore_end: bool = False
    engine: EngineOptions | None = None  # to serve target and draft in
    endpoint: EndpointOptions | None = None  # a running server
