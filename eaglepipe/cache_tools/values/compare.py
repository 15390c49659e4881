"""Deviations, column by column, between two caches of the same samples."""

from pathlib import Path

from eaglepipe.cache.opening import load_plan
from eaglepipe.cache.reader import Cache
from eaglepipe.cache_tools.values.comparison import Comparison
from eaglepipe.cache_tools.values.matching import match_samples
from eaglepipe.cache_tools.values.report import ValuesDiff
from eaglepipe.errors import CacheError
from eaglepipe.progress import ProgressLine


def diff_values(a: Path, b: Path, *, tolerance: float | None = None) -> ValuesDiff:
    """Compare the samples that two complete caches share by id, a bounded number of rows at a time.

    Args:
        tolerance: the largest deviation that is within bounds; None judges none.

    Raises:
        CacheError: one is no complete cache, or they are of other corpora, tokenizers or targets of another size.
        CorruptError: a cache is damaged.
    """
    first, second = Cache.open(a), Cache.open(b)
    _check_comparable(first, second)
    matches = match_samples(first.index.sample_ids, second.index.sample_ids)
    if not matches.count:
        raise CacheError(
            f"{a} and {b} share no sample (their {first.num_samples} and {second.num_samples} ids have none in "
            "common); values are compared between caches of one corpus"
        )
    comparison = Comparison(first, second)
    with ProgressLine("compare", total=matches.count, unit="sample") as progress:
        for mine, others in matches.pairs():
            comparison.add(first.read(mine), second.read(others))
            progress.update(1)
    if not comparison.compared:
        raise CacheError(
            f"{a} and {b}: all {matches.count} samples that they share by id have other tokens; they were made with "
            "another chat template, tokenizer or length"
        )
    probabilities, draft_mass = comparison.probabilities, comparison.draft_mass
    specs = (first.spec, second.spec)
    return ValuesDiff(
        a=str(a),
        b=str(b),
        samples=matches.count,
        only_a=matches.only_a,
        only_b=matches.only_b,
        only=matches.examples,
        encodings=tuple(f"aux {spec.aux_codec}, {spec.supervision} {spec.supervision_codec}" for spec in specs),
        states={name: sums.report() for name, sums in comparison.states.items()},
        probabilities=probabilities.report() if probabilities.rows else None,
        draft_mass=draft_mass.report() if draft_mass.rows else None,
        equal={name: sums.report() for name, sums in comparison.equal.items()},
        places=tuple(comparison.places),
        not_compared=comparison.not_compared,
        tolerance=tolerance,
    )


def _check_comparable(a: Cache, b: Cache) -> None:
    for name, mine, others in (
        ("hidden size", a.spec.hidden_size, b.spec.hidden_size),
        ("vocabulary", a.vocab.target_size, b.vocab.target_size),
    ):
        if mine != others:
            raise CacheError(f"{a.folder} and {b.folder} are of different targets: {name} {mine} and {others}")
    tokenizers = [load_plan(cache.folder).identity_fields.get("data", {}).get("tokenizer") for cache in (a, b)]
    if None not in tokenizers and tokenizers[0] != tokenizers[1]:
        raise CacheError(f"{a.folder} and {b.folder} were made with different tokenizers, so their tokens differ")
