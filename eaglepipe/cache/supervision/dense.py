"""Dense supervision: the target's whole distribution over the draft vocabulary.

Shapes: N rows, D draft vocabulary.
"""

import torch

from eaglepipe.cache.codecs.catalog import RowCodec, make_codec
from eaglepipe.cache.supervision.columns import Columns, RowSupervision
from eaglepipe.errors import CacheError
from eaglepipe.target_head import TargetHead

PROBABILITY_CODECS = ("fp16", "fp32")


class DenseSupervision(RowSupervision):
    """Rows of D probabilities."""

    name = "dense"
    column = "target_probs"
    stores_probabilities = True
    convertible_to = ("dense", "sparse", "sampled")
    codec_setting = "probs_codec"

    @classmethod
    def of(cls, codec: str, *, hidden_size: int, draft_vocab_size: int) -> "DenseSupervision":
        """Raises CacheError if the codec is not one of probabilities."""
        return cls(codec=probability_codec(codec, draft_vocab_size))

    def decode(self, columns: Columns, head: TargetHead | None) -> torch.Tensor:
        """Return the target's distribution as stored, float32 [N, D]."""
        return self.decode_rows(columns).float()

    def distribution(self, rows: torch.Tensor, head: TargetHead | None) -> torch.Tensor:
        """Scale stored rows so that they sum to 1, float32 [N, D]."""
        wide = rows.float()
        return wide / wide.sum(dim=-1, keepdim=True)


def probability_codec(name: str, width: int) -> RowCodec:
    """Return the codec of rows of `width` probabilities.

    Raises:
        CacheError: a codec that is not one of probabilities.
    """
    if name not in PROBABILITY_CODECS:
        raise CacheError(f"probabilities are not stored as {name!r}, only as {list(PROBABILITY_CODECS)}")
    return make_codec(name, (width,))
