"""How far a variant's supervision is from the exact one, on the held-out samples; two ways of counting the tail.

n supervised rows of a sample, D draft vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.supervision.distribution import TargetDistribution
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.deviation import Divergence
from eaglepipe.training.data.order import split_samples
from tests.studies.codecs_run import HELDOUT_FRACTION
from tests.studies.codecs_variants import Variant, renormalise


@dataclass(frozen=True, kw_only=True)
class SupervisionError:
    """Means over supervised tokens, in nats; of entries that were drawn there is no divergence."""

    kl: float | None  # over the draft vocabulary; a tail is spread evenly over the tokens without an entry
    kl_learned: float | None  # of what training uses: the tail as one more outcome, where there is one
    entries: float  # kept of a token; D where nothing is cut
    mass: float  # of the exact distribution that the kept entries have


def measure_supervision(variant: Variant, exact: Path, folder: Path) -> SupervisionError:
    """Compare a variant's supervision with that of the exact cache, in float64."""
    source, cache = Cache.open(exact), Cache.open(folder)
    exact_rows = TargetDistribution(source)
    rows = None if cache.spec.supervision in ("sparse", "sampled") else TargetDistribution(cache)
    is_drawn = cache.spec.supervision == "sampled"
    kl, learned, entries, mass = Divergence(), Divergence(), 0, 0.0
    for number in split_samples(source.index.sample_ids, HELDOUT_FRACTION).heldout.tolist():
        reference, sample = source.read(number), cache.read(number)
        every = np.arange(int(reference.supervised.sum()))
        wanted = exact_rows.of(reference, every).double()
        if rows is not None:
            kept = torch.ones_like(wanted, dtype=torch.bool)
            probs, tail = rows.of(sample, every).double(), torch.zeros(len(every), dtype=torch.float64)
        else:
            probs, kept, tail = _written_out(renormalise(sample) if variant.renormalised else sample, wanted.shape[1])
        others = (~kept).sum(dim=-1)
        spread = torch.where(kept, probs, (tail / others.clamp(min=1))[:, None])
        kl += Divergence.between(wanted, spread)
        learned += Divergence.between(_with_bucket(wanted, kept), torch.cat([probs, tail[:, None]], dim=1))
        entries += int(kept.sum())
        mass += float((wanted * kept).sum())
    return SupervisionError(
        kl=None if is_drawn else kl.report()["kl_mean"],
        kl_learned=None if is_drawn else learned.report()["kl_mean"],
        entries=entries / max(1, kl.rows),
        mass=mass / max(1, kl.rows),
    )


def _written_out(sample: CachedSample, draft_size: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sparse rows as probabilities float64 [n, D], the kept ones bool [n, D] and tails [n]."""
    columns = sample.supervision
    counts = columns["num_entries"]
    row_of = torch.from_numpy(np.repeat(np.arange(len(counts)), counts))
    ids = torch.from_numpy(columns["target_ids"].astype(np.int64))
    values = np.ascontiguousarray(columns["target_probs"]).view(np.float16)[:, 0].astype(np.float64)
    probs = torch.zeros(len(counts), draft_size, dtype=torch.float64)
    probs[row_of, ids] = torch.from_numpy(values)
    kept = torch.zeros_like(probs, dtype=torch.bool)
    kept[row_of, ids] = True
    tail = columns["tail_mass"].astype(np.float64) if "tail_mass" in columns else np.zeros(len(counts))
    return probs, kept, torch.from_numpy(tail)


def _with_bucket(wanted: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """[n, D + 1]: the kept entries, 0 elsewhere, and the mass of the others as one more outcome."""
    inside = wanted * kept
    return torch.cat([inside, (1.0 - inside.sum(dim=-1, keepdim=True)).clamp(min=0.0)], dim=1)
