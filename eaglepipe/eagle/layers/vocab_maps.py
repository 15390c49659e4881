"""The map between draft ids and target ids, as buffers of a draft."""

from typing import Any

import torch

from eaglepipe.errors import DraftError


@torch.no_grad()
def fill_vocab_maps(draft: Any, selected_token_ids: torch.Tensor) -> None:
    """Fill a draft's `d2t` and `t2d`, which it has if D < V, from the draft vocabulary's target ids, int64 [D].

    Raises:
        DraftError: for ids that are repeated, unsorted, out of range or not D of them.
    """
    ids = selected_token_ids.long()
    draft_size, vocab_size = draft.config.draft_vocab_size, draft.config.vocab_size
    ascending = bool((ids[1:] > ids[:-1]).all())
    if ids.shape != (draft_size,) or not ascending or bool((ids < 0).any()) or bool((ids >= vocab_size).any()):
        raise DraftError(
            f"a draft vocabulary of {draft_size} takes as many ascending target ids below {vocab_size}; "
            f"these {tuple(ids.shape)} ids are not"
        )
    if draft_size < vocab_size:
        draft.d2t.copy_(ids.to(draft.d2t.device) - torch.arange(draft_size, device=draft.d2t.device))
        draft.t2d.zero_()[ids.to(draft.t2d.device)] = True
