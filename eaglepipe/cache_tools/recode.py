"""Recoding of a cache into another encoding or draft vocabulary, without the target.

The errors of the change are measured sample by sample and stored in the new cache as `recode.json`.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from eaglepipe.cache.consistency import START_FILE, VOCAB_FILE
from eaglepipe.cache.manifest import CHECKSUM_KEY, PLAN_NAME, REPORT_FILE, Manifest
from eaglepipe.cache.opening import load_plan
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.schema import ShardSpec, schema_files, token_cost
from eaglepipe.cache.sidecar import REFUSALS
from eaglepipe.cache.storage import WORK_FOLDER
from eaglepipe.cache.supervision.kind import ENTRY_SETTINGS, KINDS, EntryRule, entry_rule, stored_codec
from eaglepipe.cache.supervision.sampled import SampledSupervision
from eaglepipe.cache.supervision.sparse import SPARSE_CODEC, SparseRule
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.derive import (
    Derivation,
    ShardOrigin,
    check_free_for,
    copied_files,
    derived_plan,
    existing_manifest,
    result_json,
    shard_origins,
    write_derived,
)
from eaglepipe.cache_tools.deviation import RecodeSums
from eaglepipe.cache_tools.recode_vocab import end_of_turn, new_vocab, vocab_files
from eaglepipe.cache_tools.reencode import Reencoder
from eaglepipe.errors import CacheError, ConfigError, CorruptError
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.json_object import read_json_object
from eaglepipe.files.publish import json_bytes, publish_bytes
from eaglepipe.recipe.config import CacheConfig
from eaglepipe.tables import field_table
from eaglepipe.vocab import DraftVocab


@dataclass(frozen=True, kw_only=True)
class Changes:
    """The changes of a recode; None keeps the source's setting."""

    aux_codec: str | None = None
    supervision: str | None = None
    codec: str | None = None  # of the supervision rows
    draft_size: int | None = None
    vocab_from: Path | None = None  # a cache or published draft whose vocabulary is taken over
    tolerance: float | None = None  # with supervision that becomes sparse; None: a recipe's default
    max_entries: int | None = None
    draws: int | None = None  # with supervision that becomes sampled, as the seed
    draw_seed: int | None = None


@dataclass(frozen=True, kw_only=True)
class RecodeResult:
    """The new cache, and the errors of the change."""

    cache: dict[str, Any]
    errors: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return {**self.cache, "errors": self.errors}

    def table(self) -> str:
        """Return the cost of a token, and a line of errors for each column that was recoded."""
        errors = {
            column: ", ".join(f"{name} {value:.4g}" for name, value in figures.items())
            for column, figures in self.errors.items()
        }
        cost = f"{self.cache['folder']}: complete, {self.cache['bytes_per_token']:,.1f} bytes a token"
        return "\n".join([cost, *([field_table(errors)] if errors else [])])


def recode_cache(folder: Path, source: Path, changes: Changes) -> RecodeResult:
    """Make `folder` from `source` with some changes; run again, it resumes.

    Raises:
        ConfigError: nothing to change, or a codec that does not fit.
        CacheError: the source lacks data that the change needs, or `folder` is taken.
        CorruptError: the source is damaged.
    """
    check_free_for(folder, [source])
    cache = Cache.open(source)
    _check_cut(cache, changes)
    vocab = new_vocab(cache, draft_size=changes.draft_size, vocab_from=changes.vocab_from)
    spec = _new_spec(cache, changes, vocab)
    if spec == cache.spec and vocab is None:
        raise ConfigError(f"nothing to change: {source} is encoded like that already")
    rule = _entry_rule(cache, changes, spec)
    derivation = _plan(folder, cache, spec, vocab, rule)
    if (done := existing_manifest(folder, derivation.plan)) is not None:
        return _result(folder, done)
    tensors = cache.start_tensors()
    if isinstance(rule, SparseRule):
        rule = replace(rule, end_of_turn=end_of_turn(cache))
    reencoder = Reencoder(cache, spec, tensors, vocab=vocab, rule=rule)
    if vocab is not None:
        derivation = replace(derivation, files={**derivation.files, **vocab_files(vocab, tensors)})
    del tensors
    manifest = write_derived(
        derivation,
        lambda origin, shard: _convert(reencoder, origin, _sums_file(folder, shard)),
        verb="recode",
        report=lambda: _report(
            folder, derivation.plan.shards, spec.kind.column, has_divergence=not _is_drawn(cache, spec)
        ),
        is_reported=lambda shard: _read_sums(_sums_file(folder, shard)) is not None,
    )
    return _result(folder, manifest)


def _convert(reencoder: Reencoder, origin: ShardOrigin, sums_file: Path) -> Iterator[CachedSample | tuple[str, str]]:
    total = RecodeSums()
    for number in origin.samples:
        sample = origin.cache.read(number)
        converted, sums = reencoder.convert(sample)
        if converted is None:
            yield sample.sample_id, "codec of the new encoding overflows"
        else:
            total += sums
            yield converted
    measured = asdict(total)
    publish_bytes(sums_file, json_bytes({**measured, CHECKSUM_KEY: hash_json(measured)}), tidy=False)


def _sums_file(folder: Path, shard: int) -> Path:
    return folder / WORK_FOLDER / "deviations" / f"{shard:05d}.json"


def _read_sums(file: Path) -> RecodeSums | None:
    """Return the errors of a shard; None if they are not published, or damaged."""
    try:
        sums = read_json_object(file)
    except CorruptError:
        return None
    return RecodeSums.from_json(sums) if sums.pop(CHECKSUM_KEY, None) == hash_json(sums) else None


def _is_drawn(cache: Cache, spec: ShardSpec) -> bool:
    """Whether supervision becomes sampled."""
    return isinstance(spec.kind, SampledSupervision) and not cache.spec.kind.settings


def _report(folder: Path, num_shards: int, column: str, *, has_divergence: bool) -> bytes:
    sums = [_read_sums(_sums_file(folder, shard)) for shard in range(num_shards)]
    total = sum((one for one in sums if one is not None), RecodeSums())
    return json_bytes(total.report(column, has_divergence=has_divergence))


def _result(folder: Path, manifest: Manifest) -> RecodeResult:
    return RecodeResult(cache=result_json(folder, manifest), errors=read_json_object(folder / REPORT_FILE))


def _plan(folder: Path, cache: Cache, spec: ShardSpec, vocab: DraftVocab | None, rule: EntryRule | None) -> Derivation:
    source = load_plan(cache.folder)
    fields, declared = source.identity_fields, source.declared
    cut = {} if rule is None else {name: getattr(rule, name) for name in spec.kind.settings}
    encodings = {name: getattr(spec, name) for name in ("supervision", "aux_codec", "supervision_codec")} | cut
    size = {"draft_size": spec.draft_vocab_size}
    declared_cache = {"supervision": spec.supervision, "aux_codec": spec.aux_codec, **cut}
    if (setting := KINDS[spec.supervision].codec_setting) is not None:
        declared_cache[setting] = spec.supervision_codec
    new_ids = {} if vocab is None else {"draft_vocabulary": hash_json(vocab.selected_token_ids.tolist())}
    origins = tuple(shard_origins(cache))
    manifest = cache.manifest
    if not all(isinstance(named.get(name), dict) for named in (fields, declared) for name in ("vocab", "cache")):
        raise CorruptError(f"{cache.folder / PLAN_NAME}: does not name the settings of a cache")
    sections, declared_sections = (_surviving(plan_fields["cache"], spec) for plan_fields in (fields, declared))
    plan = derived_plan(
        folder,
        cache,
        fields={**fields, "vocab": {**fields["vocab"], **size}, "cache": {**sections, **encodings}},
        declared={**declared, "vocab": {**declared["vocab"], **size}, "cache": {**declared_sections, **declared_cache}},
        origin={"recoded": cache.identity, "to": {**encodings, **new_ids}},
        origins=origins,
        drops={reason: count for reason, count in manifest.drops.items() if reason not in REFUSALS},
    )
    return Derivation(
        folder=folder,
        plan=plan,
        spec=spec,
        max_length=cache.max_length,
        origins=origins,
        files={
            **copied_files(cache, without=[REPORT_FILE, *([VOCAB_FILE, START_FILE] if vocab is not None else [])]),
            **schema_files(),  # an older one may not describe the new encoding
        },
        estimated_bytes=_estimated_bytes(manifest, spec, rule),
    )


def _surviving(cache: dict[str, Any], spec: ShardSpec) -> dict[str, Any]:
    """The section without settings that only hidden supervision has."""
    return cache if spec.last_hidden == "all" else {name: cache[name] for name in cache if name != "last_hidden"}


def _estimated_bytes(manifest: Manifest, spec: ShardSpec, rule: EntryRule | None) -> int:
    """Bytes of the shards; an upper bound if supervision becomes sparse or sampled."""
    entries = 0.0 if rule is None else float(rule.max_entries)
    new, old = (
        token_cost(
            one,
            supervised_share=manifest.supervised_tokens / max(1, manifest.tokens),
            tokens_per_sample=manifest.tokens / max(1, manifest.samples),
            entries=entries,
        ).total
        for one in (spec, manifest.shard_spec())
    )
    if spec.kind.settings and rule is None:  # entries are carried over
        return int(sum(shard.bytes for shard in manifest.shards) + (new - old) * manifest.tokens)
    return int(new * manifest.tokens)


def _new_spec(cache: Cache, changes: Changes, vocab: DraftVocab | None) -> ShardSpec:
    old = cache.spec
    supervision = changes.supervision or old.supervision
    if supervision not in (possible := old.kind.convertible_to):
        raise CacheError(
            f"{cache.folder}: supervision {old.supervision!r} cannot become {supervision!r}, only "
            f"{' or '.join(map(repr, possible))}; data that is not stored has to be computed by the target"
        )
    if vocab is not None and old.kind.stores_probabilities:
        raise CacheError(
            f"{cache.folder}: another draft vocabulary can only be computed from supervision 'hidden', and this cache "
            f"stores {old.supervision!r}; precompute with cache.supervision=hidden and cache.full_head=true"
        )
    codec = changes.codec or (old.supervision_codec if supervision == old.supervision else None)
    settings = _checked_codecs(changes.aux_codec or old.aux_codec, supervision, codec)
    return replace(
        old,
        supervision=supervision,
        aux_codec=settings.aux_codec,
        supervision_codec=stored_codec(settings),
        draft_vocab_size=old.draft_vocab_size if vocab is None else vocab.size,
        last_hidden=old.last_hidden if supervision == "hidden" else "supervised",
    )


def _checked_codecs(aux_codec: str, supervision: str, codec: str | None) -> CacheConfig:
    """The codecs as a recipe's `cache` section names them, which knows those that fit."""
    settings = {"supervision": supervision, "aux_codec": aux_codec}
    codec_setting = KINDS[supervision].codec_setting
    if codec is not None and codec_setting is not None:
        settings[codec_setting] = codec
    elif codec not in (None, SPARSE_CODEC):
        raise ConfigError(f"codec {codec!r}: entries of {supervision} supervision are {SPARSE_CODEC}")
    return _checked(settings)


def _check_cut(cache: Cache, changes: Changes) -> None:
    """Refuse options of entries if none are chosen, or if they are of the other kind of entries."""
    given = {name for name in ENTRY_SETTINGS if getattr(changes, name) is not None}
    if not given:
        return
    if cache.spec.kind.settings:
        raise ConfigError(
            f"{cache.folder}: its supervision is {cache.spec.supervision} already and is carried over as it is; "
            f"{_listed(given)} can be chosen if 'hidden' or 'dense' becomes 'sparse' or 'sampled'"
        )
    of_kind = KINDS[changes.supervision].settings if changes.supervision in KINDS else ()
    if unused := given - {*of_kind}:
        kinds = {name for name, kind in KINDS.items() if unused & {*kind.settings}}
        wanted = " or ".join(map(repr, sorted(kinds)))
        raise ConfigError(f"changes that need supervision {wanted}: {_listed(unused)}")


def _listed(names: set[str]) -> str:
    return " and ".join(name for name in ENTRY_SETTINGS if name in names)


def _entry_rule(cache: Cache, changes: Changes, spec: ShardSpec) -> EntryRule | None:
    """The choice of entries, if supervision becomes sparse or sampled."""
    if not spec.kind.settings or cache.spec.kind.settings:
        return None
    options = {name: getattr(changes, name) for name in spec.kind.settings if getattr(changes, name) is not None}
    return entry_rule(_checked({"supervision": spec.supervision, **options}))


def _checked(settings: dict[str, Any]) -> CacheConfig:
    try:
        return CacheConfig.model_validate(settings)
    except ValidationError as error:
        lines = [f"{item['loc'][0]} {item['input']!r}: {item['msg']}" for item in error.errors(include_url=False)]
        raise ConfigError("; ".join(lines)) from None
