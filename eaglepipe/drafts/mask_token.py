"""The token id that stands for unknown tokens: one that no conversation holds, kept for a run's lifetime."""

from pathlib import Path
from typing import Any

import numpy as np

from eaglepipe.drafts.reading import read_mask_token
from eaglepipe.errors import DraftError, EaglepipeError
from eaglepipe.families import PEAGLE
from eaglepipe.files.json_object import read_json_object, text_config
from eaglepipe.recipe.block_settings import DflashDraftConfig
from eaglepipe.recipe.family_settings import PeagleDraftConfig
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.training.data.batch import TrainingSource
from eaglepipe.training.run.checkpoint import checkpoint_folders

_READ_TOKENS = 2**15  # of samples spread over the cache; assistant tokens are counted in all of it


def with_mask_token(recipe: Recipe, source: TrainingSource, run_folder: Path) -> Recipe:
    """Return the recipe with its mask token: its own, that of the run or draft it goes on from, else an unused one.

    Raises:
        DraftError: every id is used, and the target names no pad token; or a block draft is given a used one.
    """
    draft = recipe.draft
    if not isinstance(draft, PeagleDraftConfig | DflashDraftConfig):
        return recipe
    token = draft.mask_token_id
    if token is None:
        token = _token_of_run(run_folder) if _has_begun(run_folder) else _token_of_init(draft.init)
        if token is None and (isinstance(draft, DflashDraftConfig) or not _has_begun(run_folder)):
            token = unused_token(source, recipe.train.family.label)
    if isinstance(draft, DflashDraftConfig) and token is not None:
        _check_unused(token, source)
    return recipe.model_copy(update={"draft": draft.model_copy(update={"mask_token_id": token})})


def _has_begun(run_folder: Path) -> bool:
    return bool(checkpoint_folders(run_folder / "checkpoints")) and (run_folder / "recipe.yaml").is_file()


def _token_of_run(run_folder: Path) -> int | None:
    stored = load_recipe(run_folder / "recipe.yaml").draft
    return stored.mask_token_id if isinstance(stored, PeagleDraftConfig | DflashDraftConfig) else None


def _check_unused(token: int, source: TrainingSource) -> None:
    """Refuse a token that means something already: where it is context, its embedding is a token's.

    Raises:
        DraftError: naming the token.
    """
    vocab_size = int(text_config(source.target_config)["vocab_size"])
    if token >= vocab_size:
        raise DraftError(f"mask token {token} is outside the target's vocabulary of {vocab_size} ids")
    if _used_tokens(source, vocab_size)[token]:
        raise DraftError(
            f"mask token {token} is a token of this corpus, so a block could not tell it from a token to guess; set "
            "draft.mask_token_id to an id that no conversation holds, or remove it to have one chosen"
        )


def unused_token(source: TrainingSource, label: str = PEAGLE.label) -> int:
    """Return the target's pad token if the corpus does not use it, else the highest unused id.

    Reserved ids are the highest in most vocabularies. bos and eos are never chosen; pad is if every id is used.

    Raises:
        DraftError: there is none.
    """
    config = text_config(source.target_config)
    vocab_size = int(config["vocab_size"])
    used = _used_tokens(source, vocab_size)
    pad = config.get("pad_token_id")
    pad = pad if isinstance(pad, int) and 0 <= pad < vocab_size else None
    if pad is not None and not used[pad]:
        return pad
    for name in ("bos_token_id", "eos_token_id"):
        used[[token for token in _listed(config.get(name)) if 0 <= token < vocab_size]] = True
    unused = np.flatnonzero(~used)
    if len(unused):
        return int(unused[-1])
    if pad is not None:
        return pad
    raise DraftError(
        f"{label} without mask token: the corpus uses every token id, and the target's config has no pad_token_id; set "
        "draft.mask_token_id to an id that is rare"
    )


def _used_tokens(source: TrainingSource, vocab_size: int) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Return the mask [V] of ids among the assistant's tokens, or in samples spread over the cache."""
    used = source.vocab.counts.numpy() > 0
    lengths = source.index.num_tokens
    count = max(1, min(len(lengths), int(_READ_TOKENS / max(1.0, float(lengths.mean())))))
    for sample in np.unique(np.linspace(0, len(lengths) - 1, count).astype(np.int64)):
        used[source.read(int(sample)).input_ids] = True
    assert used.shape == (vocab_size,)
    return used


def _listed(value: Any) -> list[int]:
    values = value if isinstance(value, list) else [value]
    return [token for token in values if isinstance(token, int)]


def _token_of_init(init: str | None) -> int | None:
    if init is None:
        return None
    try:
        return read_mask_token(read_json_object(Path(init).expanduser() / "config.json"))
    except EaglepipeError:
        return None
