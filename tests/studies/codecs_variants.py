"""The encodings that `study codecs` compares, each made from the exact cache without the target."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.recipe.config import PROFILES
from eaglepipe.training.data.source import JoinedCaches


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One line of the table."""

    name: str
    changes: Changes | None  # None: the exact cache itself
    renormalised: bool = False  # the kept entries alone, scaled to sum to 1, instead of a bucket for the others

    @property
    def cache_name(self) -> str:
        """Variants that differ in what training makes of the stored entries share a cache."""
        return self.name.removesuffix(RENORMALISED)

    def described(self) -> dict[str, Any]:
        """JSON of all that decides the figures; the name does not."""
        changes = None if self.changes is None else {k: v for k, v in asdict(self.changes).items() if v is not None}
        return {"changes": changes, "renormalised": self.renormalised}


EXACT = "exact"
RENORMALISED = ", renormalised"


def _profile(name: str) -> Variant:
    preset = dict(PROFILES[name])
    codec = preset.pop("hidden_codec", None)
    return Variant(name=name, changes=Changes(**preset, codec=codec))


def _sparse(tolerance: float, max_entries: int) -> Variant:
    name = f"sparse {tolerance:g}/{max_entries}" if tolerance else f"sparse top {max_entries}"
    return Variant(name=name, changes=Changes(supervision="sparse", tolerance=tolerance, max_entries=max_entries))


def _sampled(draws: int) -> Variant:
    return Variant(name=f"sampled {draws}", changes=Changes(supervision="sampled", draws=draws))


def _both_ways(variant: Variant) -> tuple[Variant, Variant]:
    return variant, Variant(name=variant.name + RENORMALISED, changes=variant.changes, renormalised=True)


VARIANTS: tuple[Variant, ...] = (
    Variant(name=EXACT, changes=None),
    _profile("compact"),
    _profile("lean"),
    _profile("tiny"),
    Variant(name="aux fp8", changes=Changes(aux_codec="fp8")),
    Variant(name="aux int8", changes=Changes(aux_codec="int8")),
    Variant(name="aux int4", changes=Changes(aux_codec="int4")),
    *(Variant(name=f"aux {codec}", changes=Changes(aux_codec=codec)) for codec in ("rot2", "rot3", "rot4")),
    *(
        Variant(name=f"hidden {codec}", changes=Changes(supervision="hidden", codec=codec))
        for codec in ("int8", "rot4", "rot5", "rot6")
    ),
    Variant(name="aux rot3, hidden rot6", changes=Changes(aux_codec="rot3", supervision="hidden", codec="rot6")),
    Variant(name="dense fp16", changes=Changes(supervision="dense")),
    _sparse(0.01, 256),
    *_both_ways(_sparse(0.0, 8)),
    _sampled(8),
    _sampled(16),
)
"""Sparse ones are named by tolerance and most entries, 0 keeping as many as may be; sampled ones by most entries."""


def make_cache(variant: Variant, exact: Path, caches: Path) -> Path:
    """The variant's cache, made where it is missing or unfinished."""
    if variant.changes is None:
        return exact
    folder = caches / "".join(c if c.isalnum() or c == "." else "-" for c in variant.cache_name)
    recode_cache(folder, exact, variant.changes)
    return folder


class PairedSource(JoinedCaches):
    """A variant's cache under the exact cache's identity, which decides the order of samples: paired comparisons."""

    def __init__(self, cache: Cache, *, identity: str, renormalised: bool) -> None:
        super().__init__([cache])
        self.__dict__["identity"] = identity
        self._renormalised = renormalised

    def read(self, i: int, /) -> CachedSample:
        sample = super().read(i)
        return renormalise(sample) if self._renormalised else sample


def renormalise(sample: CachedSample) -> CachedSample:
    """Sparse supervision without its tail: what each row keeps, divided by its sum."""
    columns = sample.supervision
    probs = np.ascontiguousarray(columns["target_probs"]).view(np.float16)[:, 0].astype(np.float64)
    counts = columns["num_entries"]
    rows = np.repeat(np.arange(len(counts)), counts)
    sums = np.bincount(rows, weights=probs, minlength=len(counts))
    scaled = (probs / sums[rows]).astype(np.float16)[:, None].view(np.uint8)
    tail = np.zeros_like(columns["tail_mass"])
    return replace(sample, supervision={**columns, "target_probs": scaled, "tail_mass": tail})


def one_of_each_cache(variants: Iterable[Variant]) -> list[Variant]:
    """A variant for every cache that has to be made."""
    return list({variant.cache_name: variant for variant in variants}.values())
