"""Hidden supervision: the input of the target's lm_head, from which the distribution over any vocabulary follows.

Shapes: N rows, Ht the target's hidden size, D draft vocabulary.
"""

import torch

from eaglepipe.cache.codecs.catalog import inline_codec
from eaglepipe.cache.supervision.columns import Columns, RowSupervision
from eaglepipe.target_head import TargetHead


class HiddenSupervision(RowSupervision):
    """Rows of Ht numbers, after the target's final norm."""

    name = "hidden"
    column = "last_hidden_states"
    stores_probabilities = False
    convertible_to = ("hidden", "dense", "sparse", "sampled")
    codec_setting = "hidden_codec"

    @classmethod
    def of(cls, codec: str, *, hidden_size: int, draft_vocab_size: int) -> "HiddenSupervision":
        """Raises CacheError if the codec is unknown."""
        return cls(codec=inline_codec(codec, (hidden_size,)))

    def decode(self, columns: Columns, head: TargetHead | None) -> torch.Tensor:
        """Return the target's distribution over the head's rows, float32 [N, D]."""
        return self.distribution(self.decode_rows(columns), head)

    def distribution(self, rows: torch.Tensor, head: TargetHead | None) -> torch.Tensor:
        """Last hidden states -> the target's distribution over the head's rows, float32 [N, D]."""
        assert head is not None, "hidden supervision is decoded with the target's head"
        return head.probabilities(rows)
