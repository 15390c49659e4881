"""The share of held-out targets that the draft vocabulary owes to held-out samples.

Stage 1 chooses the vocabulary from every sample of a cache, since the split into training and held-out samples is a
setting of stage 2.
"""

from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from eaglepipe.cache.types import CachedSample
from eaglepipe.vocab import DraftVocab


class VocabularyOrigin:
    """Marks the tokens of training samples, then counts held-out targets of which none has one, sample by sample."""

    def __init__(self, vocab: DraftVocab) -> None:
        self._selected: NDArray[np.bool_] = vocab.selected_token_mask.numpy()
        self._seen = np.zeros(vocab.target_size, np.bool_)
        self._num_targets = self._num_unseen = 0

    def training(self, samples: Iterable[CachedSample]) -> Iterator[CachedSample]:
        """Pass training samples on, their answers' tokens marked."""
        for sample in samples:
            self._seen[sample.input_ids[sample.loss_mask]] = True
            yield sample

    def heldout(self, samples: Iterable[CachedSample]) -> Iterator[CachedSample]:
        """Pass held-out samples on, their targets counted."""
        for sample in samples:
            targets = sample.target_top1[sample.supervised]
            self._num_targets += len(targets)
            self._num_unseen += int((self._selected & ~self._seen)[targets].sum())
            yield sample

    def unseen_share(self) -> float | None:
        """Return the share of held-out targets that are in the vocabulary and in no training answer; None if D = V."""
        if self._selected.all():
            return None
        return self._num_unseen / max(1, self._num_targets)
