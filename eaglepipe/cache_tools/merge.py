"""Merging of complete caches of one target into one, sample by sample, without the target.

Shards are written anew, since each carries the identity of its cache; the bytes and digests of samples stay.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save

from eaglepipe.cache.compare import check_same_target
from eaglepipe.cache.consistency import VOCAB_FILE
from eaglepipe.cache.manifest import DROPS_FILE, REPORT_FILE, Manifest
from eaglepipe.cache.opening import load_plan
from eaglepipe.cache.reader import Cache
from eaglepipe.cache.sidecar import REFUSALS
from eaglepipe.cache.supervision.kind import ENTRY_SETTINGS
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.derive import (
    Derivation,
    ShardOrigin,
    check_free_for,
    copied_files,
    derived_plan,
    shard_origins,
    write_derived,
)
from eaglepipe.errors import CacheError, printable
from eaglepipe.vocab import vocab_tensors


def merge_caches(folder: Path, parts: Sequence[Path]) -> Manifest:
    """Make one complete cache of several, in their order; run again, it resumes.

    A sample id that several parts hold is taken from the first of them and counted as `duplicate`, provided that it
    has the same tokens and mask; the same id with other content is refused, since one of them would be lost.

    Raises:
        CacheError: fewer than two parts, one twice, or parts that differ in target, tokenizer, layers, vocabulary or
            encodings, the field named; `folder` is taken.
        CorruptError: a part is damaged.
    """
    if len(parts) < 2:
        raise CacheError("a merge takes two caches or more")
    check_free_for(folder, parts)
    caches = [Cache.open(part) for part in parts]
    _check_parts(caches)
    origins, duplicates = _without_duplicates(caches)
    fields, declared = _joined_fields(caches)
    first = caches[0]
    plan = derived_plan(
        folder,
        first,
        fields=fields,
        declared=declared,
        origin={"merged": [cache.identity for cache in caches]},
        origins=origins,
        drops=_joined_drops(caches, len(duplicates)),
    )
    derivation = Derivation(
        folder=folder,
        plan=plan,
        spec=first.spec,
        max_length=max(cache.max_length for cache in caches),
        origins=tuple(origins),
        files={
            **copied_files(first, without=[REPORT_FILE, DROPS_FILE]),
            VOCAB_FILE: _joined_vocab(caches, duplicates),
            **_joined_lists(caches),
        },
        estimated_bytes=sum(cache.manifest.bytes for cache in caches),
    )
    return write_derived(derivation, _unchanged, verb="merge")


def _unchanged(origin: ShardOrigin, _: int) -> Iterator[CachedSample]:
    return (origin.cache.read(sample) for sample in origin.samples)


def _check_parts(caches: Sequence[Cache]) -> None:
    for number, cache in enumerate(caches):
        for before in caches[:number]:
            if before.identity == cache.identity:
                raise CacheError(f"{before.folder} and {cache.folder} are the same cache ({cache.identity})")
        if number:
            check_same_target(caches[0], cache, advice="they cannot be merged")
            _check_same_rule(caches[0], cache)


def _check_same_rule(first: Cache, other: Cache) -> None:
    """A cache has one rule for all entries of its supervision."""
    mine, others = (load_plan(cache.folder).identity_fields["cache"] for cache in (first, other))
    for name in ENTRY_SETTINGS:
        if mine.get(name) != others.get(name):
            raise CacheError(
                f"{first.folder} and {other.folder} differ in {name} ({mine.get(name)!r} and {others.get(name)!r}); "
                "they cannot be merged, but train.caches takes both"
            )


def _without_duplicates(caches: Sequence[Cache]) -> tuple[list[ShardOrigin], list[CachedSample]]:
    """The shards without samples that an earlier one has, and those samples."""
    owners: dict[str, tuple[Cache, int]] = {}
    origins: list[ShardOrigin] = []
    duplicates: list[CachedSample] = []
    for cache in caches:
        for origin in shard_origins(cache):
            new = tuple(sample for sample in origin.samples if _is_new(owners, cache, sample))
            duplicates += [cache.read(sample) for sample in sorted({*origin.samples} - {*new})]
            if new or origin.refused:
                origins.append(replace(origin, samples=new))
    return origins, duplicates


def _is_new(owners: dict[str, tuple[Cache, int]], cache: Cache, sample: int) -> bool:
    sample_id = cache.index.sample_ids[sample]
    owner, number = owners.setdefault(sample_id, (cache, sample))
    if (owner, number) == (cache, sample):
        return True
    a, b = owner.read(number), cache.read(sample)
    if not all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("input_ids", "loss_mask", "supervised")):
        raise CacheError(
            f"sample {printable(sample_id)!r} is one text in {owner.folder} and another in {cache.folder}; they cannot "
            "be merged without losing one: give the sources different names (data.sources.N.name), or train from both "
            "with train.caches"
        )
    return False


def _joined_fields(caches: Sequence[Cache]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The first part's identity fields and declared sections, with a list for data in which the parts differ."""
    plans = [load_plan(cache.folder) for cache in caches]
    fields, declared = [plan.identity_fields for plan in plans], [plan.declared for plan in plans]
    names = dict.fromkeys(name for part in fields for name in part["data"])
    data = {name: _one_or_all([part["data"].get(name) for part in fields]) for name in names}
    sources = [source for part in declared for source in part["data"]["sources"]]
    return {**fields[0], "data": data}, {**declared[0], "data": {**declared[0]["data"], "sources": sources}}


def _one_or_all(values: list[Any]) -> Any:
    return values[0] if all(value == values[0] for value in values) else values


def _joined_vocab(caches: Sequence[Cache], duplicates: Sequence[CachedSample]) -> bytes:
    """The common draft vocabulary, with counts over the samples of the merged cache."""
    counts = torch.stack([cache.vocab.counts for cache in caches]).sum(dim=0)
    for sample in duplicates:
        counts -= torch.from_numpy(np.bincount(sample.input_ids[sample.loss_mask], minlength=len(counts)))
    return save(vocab_tensors(replace(caches[0].vocab, counts=counts.clamp(min=0))))


def _joined_lists(caches: Sequence[Cache]) -> dict[str, bytes]:
    """Return the rows that the parts left out, one after the other, if they list any."""
    lists = [cache.folder / DROPS_FILE for cache in caches]
    joined = b"".join(path.read_bytes() for path in lists if path.exists())
    return {DROPS_FILE: joined} if joined else {}


def _joined_drops(caches: Sequence[Cache], duplicates: int) -> Counter[str]:
    """Drops without refused samples, which the sidecars count."""
    drops: Counter[str] = Counter(duplicate=duplicates)
    for cache in caches:
        drops.update({reason: count for reason, count in cache.manifest.drops.items() if reason not in REFUSALS})
    return drops
