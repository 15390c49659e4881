"""The vocabulary of a published draft: target ids in ascending order, stored as their offsets from the draft ids."""

from pathlib import Path

import torch

from eaglepipe.drafts.folder import StoredDraft, read_draft_folder
from eaglepipe.drafts.shape import MAP_DTYPES
from eaglepipe.errors import DraftError
from eaglepipe.vocab import DraftVocab


def published_vocab(folder: Path, counts: torch.Tensor) -> DraftVocab:
    """Return the vocabulary of a published draft for a cache with these token counts, int64 [V].

    Raises:
        DraftError: its map is missing, does not lead to ascending ids, or is for another target vocabulary.
    """
    draft = read_draft_folder(folder)
    vocab_size = draft.shape.vocab_size
    if vocab_size != len(counts):
        raise DraftError(f"{folder}: for a target of {vocab_size:,} tokens, but the cache's has {len(counts):,}")
    ids = selected_token_ids(folder, draft)
    mask = torch.zeros(vocab_size, dtype=torch.bool).index_fill(0, ids, True)
    return DraftVocab(selected_token_ids=ids, selected_token_mask=mask, counts=counts)


def selected_token_ids(folder: Path, draft: StoredDraft) -> torch.Tensor:
    """Return the target ids of a draft's vocabulary, int64 [D].

    Raises:
        DraftError: its map is missing or does not lead to ascending ids; the message names `folder`.
    """
    size = draft.shape.draft_vocab_size
    if not draft.shape.has_vocab_map:
        return torch.arange(size)
    offsets = draft.tensors.get("d2t")
    if offsets is None or tuple(offsets.shape) != (size,) or offsets.dtype not in MAP_DTYPES["d2t"]:
        raise DraftError(f"{folder}: no d2t with the offsets of {size:,} draft ids to target ids")
    ids = torch.arange(size) + offsets.long()
    is_ascending = bool((ids[1:] > ids[:-1]).all())
    if not is_ascending or int(ids[0]) < 0 or int(ids[-1]) >= draft.shape.vocab_size:
        raise DraftError(f"{folder}: its d2t does not lead to ascending target ids; see `eaglepipe export --check`")
    return ids
