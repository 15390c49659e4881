"""What `eaglepipe eval` measures a draft on."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from eaglepipe.decoding.verify import SamplingRule
from eaglepipe.evaluation.drafting import TreeShape

Report = Callable[[str], None]

GREEDY = SamplingRule()


@dataclass(frozen=True, kw_only=True)
class EvalOptions:
    """Options of one evaluation; all that concern a target are read only if there is one."""

    caches: tuple[Path, ...] = ()  # default: as in the run's recipe
    num_samples: int | None = None  # held out, read from the cache; default: as in the run's recipe
    num_prompts: int = 64
    max_new_tokens: int = 128
    depths: tuple[int, ...] = (5,)
    baselines: bool = True
    device: str = "auto"
    seed: int = 0
    target: Path | None = None  # to decode with; None: simulate from the cache alone
    prompts: Path | None = None  # conversations; default: the held-out samples
    trees: tuple[TreeShape, ...] = ()
    rule: SamplingRule = GREEDY
    batch_size: int = 1
    ignore_end: bool = False
