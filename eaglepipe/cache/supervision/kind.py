"""The kinds of supervision by name. A kind knows its columns: how they are encoded, decoded and converted."""

from eaglepipe.cache.supervision.dense import DenseSupervision
from eaglepipe.cache.supervision.hidden import HiddenSupervision
from eaglepipe.cache.supervision.sampled import SampledRule, SampledSupervision
from eaglepipe.cache.supervision.sparse import SPARSE_CODEC, SparseRule, SparseSupervision
from eaglepipe.errors import CacheError
from eaglepipe.recipe.config import CacheConfig

SupervisionKind = DenseSupervision | SparseSupervision | SampledSupervision | HiddenSupervision
"""`column` has the rows, which are distributions if `stores_probabilities`, else last hidden states; `settings` are
those of a recipe's `cache` section that decide them besides the codec; `convertible_to` needs no target."""

KINDS: dict[str, type[SupervisionKind]] = {
    kind.name: kind for kind in (DenseSupervision, SparseSupervision, SampledSupervision, HiddenSupervision)
}

ENTRY_SETTINGS = tuple(name for kind in KINDS.values() for name in kind.settings)
"""Settings of all kinds by which entries are chosen."""
EntryRule = SparseRule | SampledRule
"""How a row of probabilities becomes the entries that are stored."""


def make_kind(name: str, codec: str, *, hidden_size: int, draft_vocab_size: int) -> SupervisionKind:
    """Return the kind of that name.

    Raises:
        CacheError: unknown kind, or a codec that does not fit it.
    """
    if name not in KINDS:
        raise CacheError(f"unknown supervision {name!r}; this version reads {', '.join(KINDS)}")
    return KINDS[name].of(codec, hidden_size=hidden_size, draft_vocab_size=draft_vocab_size)


def rule_type(supervision: str) -> type[EntryRule]:
    """Return the class of the rule of a kind; supervision without entries ignores its own."""
    return SampledRule if supervision == SampledSupervision.name else SparseRule


def entry_rule(settings: CacheConfig, *, end_of_turn: int | None = None) -> EntryRule:
    """Return the rule that a recipe asks for."""
    if settings.supervision == SampledSupervision.name:
        return SampledRule(draws=settings.draws, draw_seed=settings.draw_seed)
    return SparseRule(tolerance=settings.tolerance, max_entries=settings.max_entries, end_of_turn=end_of_turn)


def stored_codec(settings: CacheConfig) -> str:
    """Return the name of the codec of the supervision rows that a recipe asks for."""
    setting = KINDS[settings.supervision].codec_setting
    return SPARSE_CODEC if setting is None else str(getattr(settings, setting))
