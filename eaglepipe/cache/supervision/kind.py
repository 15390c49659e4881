"""The kinds of supervision by name. A kind knows its columns: how they are encoded, decoded and converted."""

from eaglepipe.cache.supervision.dense import DenseSupervision
from eaglepipe.cache.supervision.hidden import HiddenSupervision
from eaglepipe.cache.supervision.sparse import SPARSE_CODEC, SparseSupervision
from eaglepipe.errors import CacheError
from eaglepipe.recipe.config import CacheConfig

SupervisionKind = DenseSupervision | SparseSupervision | HiddenSupervision
"""`column` has the rows, which are distributions if `stores_probabilities`, else last hidden states; `settings` are
those of a recipe's `cache` section that decide them besides the codec; `convertible_to` needs no target."""

KINDS: dict[str, type[SupervisionKind]] = {
    kind.name: kind for kind in (DenseSupervision, SparseSupervision, HiddenSupervision)
}


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
