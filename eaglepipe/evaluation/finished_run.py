"""A finished training run, opened to evaluate its draft: recipe, caches, draft, held-out samples."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedModel

from eaglepipe.cache.compare import target_weights
from eaglepipe.cache.storage import CacheShare, caches_of
from eaglepipe.errors import CacheError, CorruptError, EaglepipeError
from eaglepipe.files.digests import check_digests
from eaglepipe.files.tensors import load_tensors
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.training.data.aux_subset import choose_aux_layers
from eaglepipe.training.data.batch import Split, TrainingSource
from eaglepipe.training.data.order import choose_heldout, split_samples
from eaglepipe.training.data.source import open_caches
from eaglepipe.training.objectives.builders import build_draft
from eaglepipe.training.run.checkpoint import trained_cache


@dataclass(frozen=True, kw_only=True)
class FinishedRun:
    """A run folder of `eaglepipe train`, and the caches that it was trained from."""

    folder: Path
    recipe: Recipe
    source: TrainingSource
    draft: PreTrainedModel  # float32, on the CPU
    split: Split
    heldout: NDArray[np.int64]  # numbers of the held-out samples to read, ascending
    target_weights: str | None  # fingerprint of the target that the caches were made from; None if not recorded


def open_run(folder: Path, caches: Sequence[Path] | None = None, *, max_samples: int | None = None) -> FinishedRun:
    """Open a finished run; `caches`, and held-out samples to read at most, are as in its recipe if not given.

    Raises:
        EaglepipeError: no finished run there, or one that holds no sample out.
        CacheError: no such cache, one of `caches` that the draft does not fit, or, without them, not that of the run.
        CorruptError: a cache or the draft is damaged, or not what the run's recipe describes.
    """
    check_digests(folder / "draft")
    if not (folder / "recipe.yaml").is_file() or not (folder / "draft" / "model.safetensors").is_file():
        raise EaglepipeError(f"{folder}: no finished run; give the folder that `eaglepipe train` wrote its draft to")
    recipe = load_recipe(folder / "recipe.yaml")
    trained_from = trained_cache(folder / "checkpoints")
    shares = [CacheShare(folder=cache) for cache in caches or ()] or caches_of(recipe, identity=trained_from)
    source = choose_aux_layers(open_caches(shares), recipe.draft.aux_boundaries)
    if not caches and trained_from not in (None, source.identity):
        raise CacheError(
            f"{folder}: was trained from cache {trained_from}, and its recipe finds {source.identity} in "
            f"{', '.join(str(share.folder) for share in shares)}; name the caches to evaluate it on with --cache"
        )
    ids = source.index.sample_ids
    split = split_samples(ids, recipe.train.heldout_fraction)
    heldout = choose_heldout(ids, split, max_samples or recipe.train.eval_max_samples)
    if len(heldout) == 0:
        raise EaglepipeError(f"{folder}: the run holds no sample out; train it with a positive train.heldout_fraction")
    draft = _load_draft(folder / "draft" / "model.safetensors", recipe, source, CacheError if caches else CorruptError)
    return FinishedRun(
        folder=folder,
        recipe=recipe,
        source=source,
        draft=draft,
        split=split,
        heldout=heldout,
        target_weights=target_weights(shares[0].folder),
    )


def _load_draft(file: Path, recipe: Recipe, source: TrainingSource, misfit: type[EaglepipeError]) -> PreTrainedModel:
    draft = build_draft(source, recipe.train, recipe.draft)
    tensors, offsets = load_tensors(file), dict(draft.named_buffers()).get("d2t")
    if offsets is not None and "d2t" in tensors and not torch.equal(offsets, tensors["d2t"]):
        raise misfit(f"{file}: its draft ids stand for other tokens than those of the cache's draft vocabulary")
    try:
        draft.load_state_dict(tensors)
    except RuntimeError as error:
        detail = str(error).splitlines()[-1].strip()
        raise misfit(f"{file}: not the draft that the run's recipe and caches describe: {detail}") from None
    return draft.eval()
