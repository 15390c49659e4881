from collections import Counter, defaultdict

import numpy as np
import pytest

from eaglepipe.cache.types import CachedSample
from eaglepipe.evaluation import bigram
from eaglepipe.evaluation.bigram import bigram_acceptance_length, bigram_table, chain_counts

VOCAB = 6


def make_sample(number: int) -> CachedSample:
    generator = np.random.default_rng(number)
    length = int(generator.integers(2, 30))
    supervised = generator.random(length) < 0.8
    supervised[-1] = False
    top1 = generator.integers(0, 2, length)
    empty = np.zeros((length, 0), np.uint8)
    return CachedSample(
        sample_id=str(number),
        source="random",
        input_ids=generator.integers(0, VOCAB, length).astype(np.int32),
        loss_mask=supervised,
        supervised=supervised,
        position_mask=supervised,
        target_top1=np.where(supervised, top1, -1).astype(np.int32),
        draft_mass=supervised.astype(np.float32),
        aux_payload=empty,
        aux_scales=None,
        supervision={},
    )


def plain_table(samples: list[CachedSample]) -> tuple[dict[int, int], int]:
    pairs: dict[int, Counter[int]] = defaultdict(Counter)
    overall: Counter[int] = Counter()
    for sample in samples:
        for row in np.flatnonzero(sample.supervised):
            pairs[int(sample.input_ids[row])][int(sample.input_ids[row + 1])] += 1
            overall[int(sample.input_ids[row + 1])] += 1
    likeliest = {token: min(after, key=lambda t: (-after[t], t)) for token, after in pairs.items()}
    return likeliest, min(overall, key=lambda t: (-overall[t], t))


def plain_length(train: list[CachedSample], heldout: list[CachedSample], ttt_steps: int) -> float:
    table, default = plain_table(train)
    hits, valid = [0] * ttt_steps, [0] * ttt_steps
    for sample in heldout:
        length = len(sample.input_ids)
        for slot in range(length):
            alive, accepted = True, True
            for step in range(ttt_steps):
                row = slot + 1 + step
                alive = alive and step < length - 1 - slot and bool(sample.supervised[row])
                accepted = (
                    accepted and alive and table.get(int(sample.input_ids[row]), default) == sample.target_top1[row]
                )
                valid[step] += alive
                hits[step] += accepted
    return 1 + sum(hit / max(1, count) for hit, count in zip(hits, valid, strict=True))


@pytest.mark.parametrize("merge_pairs", [1, 50, 2**22])
def test_length_equals_a_plain_count_slot_by_slot(merge_pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bigram, "MERGE_PAIRS", merge_pairs)
    samples = [make_sample(number) for number in range(40)]
    expected = plain_length(samples[:30], samples[30:], 7)
    length = bigram_acceptance_length(bigram_table(samples[:30]), samples[30:], 7)
    assert length == pytest.approx(expected, rel=1e-12)
    assert expected > 1.0


def test_an_unseen_token_gets_the_most_frequent_successor_of_all() -> None:
    table = bigram_table([make_sample(0)])
    _, default = plain_table([make_sample(0)])
    assert table[-1] == default


def test_no_supervision_at_all_proposes_nothing() -> None:
    table = bigram_table([])
    hits, valid = chain_counts(make_sample(1), table, 3)
    assert hits.tolist() == [0, 0, 0] and valid[0] > 0
