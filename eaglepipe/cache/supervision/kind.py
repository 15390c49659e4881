"""The kinds of supervision by name. A kind knows its columns: how they are encoded, decoded and converted."""

from typing import Protocol

import torch

from eaglepipe.cache.codecs.catalog import RowCodec
from eaglepipe.cache.supervision.columns import Columns
from eaglepipe.cache.supervision.dense import DenseSupervision
from eaglepipe.cache.supervision.hidden import HiddenSupervision
from eaglepipe.cache.supervision.sparse import SPARSE_CODEC, SparseRows, SparseRule, SparseSupervision
from eaglepipe.errors import CacheError
from eaglepipe.recipe.config import CacheConfig
from eaglepipe.target_head import TargetHead


class SupervisionKind(Protocol):
    """Supervision of N rows in the encoding of one cache; D draft vocabulary, Ht the target's hidden size."""

    @property
    def name(self) -> str:
        """The name in recipes and manifests."""

    @property
    def column(self) -> str:
        """The column of the rows themselves; a kind may have others beside it."""

    @property
    def codec(self) -> RowCodec:
        """The codec of `column`."""

    @property
    def shape(self) -> list[int | str]:
        """The shape of a row of `column`, as the schema file has it."""

    @property
    def stores_probabilities(self) -> bool:
        """Whether rows are distributions [N, D]; otherwise they are last hidden states [N, Ht]."""

    @property
    def convertible_to(self) -> tuple[str, ...]:
        """Kinds that a stored row can be turned into without the target."""

    @property
    def settings(self) -> tuple[str, ...]:
        """Settings of a recipe's `cache` section that decide the rows, besides the codec."""

    def encode(self, rows: torch.Tensor, forced: torch.Tensor, rule: SparseRule) -> Columns:
        """Encode rows; `forced`, int64 [N, F], are the indices that a cut by `rule` must keep."""

    def finite_rows(self, columns: Columns) -> torch.Tensor:
        """Return which encoded rows are finite, bool [N]."""

    def decode(self, columns: Columns, head: TargetHead | None) -> torch.Tensor | SparseRows:
        """Return the target's distribution, float32 [N, D] or sparse; `head` serves hidden supervision."""


KINDS = {kind.name: kind for kind in (DenseSupervision, SparseSupervision, HiddenSupervision)}


def make_kind(name: str, codec: str, *, hidden_size: int, draft_vocab_size: int) -> SupervisionKind:
    """Return the kind of that name.

    Raises:
        CacheError: unknown kind, or a codec that does not fit it.
    """
    if name not in KINDS:
        raise CacheError(f"unknown supervision {name!r}; this version reads {', '.join(KINDS)}")
    return KINDS[name].of(codec, hidden_size=hidden_size, draft_vocab_size=draft_vocab_size)


def stored_codec(settings: CacheConfig) -> str:
    """Return the name of the codec of the supervision rows that a recipe asks for."""
    setting = KINDS[settings.supervision].codec_setting
    return SPARSE_CODEC if setting is None else str(getattr(settings, setting))
