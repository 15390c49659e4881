"""Recoded to sparse supervision, a cache holds the entries that precomputing would have cut; from sparse, they stay."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.types import CachedSample
from eaglepipe.cache_tools.describe import describe_cache
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, ConfigError
from tests.cache.damage import read_everything
from tests.cache.derived import few, make_cache, rows_of, samples, sparse_rows_of
from tests.tiny_project import TinyProject


@pytest.fixture(scope="module")
def sparse(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The samples of `full_cache` with `sparse`, some rows cut by the tolerance and some by the cap."""
    cut = {"cache.supervision": "sparse", "cache.tolerance": 0.2, "cache.max_entries": 60}
    return make_cache(project, tmp_path_factory.mktemp("sparse"), **few(project), **cut)


def entries_of(sample: CachedSample) -> list[dict[int, float]]:
    return [dict(zip(ids.tolist(), probs.tolist(), strict=True)) for ids, probs, _ in sparse_rows_of(sample)]


def bucket_kl(exact: torch.Tensor, entries: dict[int, float]) -> float:
    """KL of two distributions over the kept entries and one bucket for all others, float64."""
    ids, kept = list(entries), torch.tensor(list(entries.values()), dtype=torch.float64)
    p = torch.cat([exact[ids], 1 - exact[ids].sum()[None]])
    q = torch.cat([kept, (1 - kept.sum()).clamp(min=2.0**-25)[None]])
    return float((torch.special.xlogy(p, p) - torch.special.xlogy(p, q)).sum())


@pytest.mark.parametrize("origin", ["full", "dense"])
def test_sparse_is_what_precomputing_would_have_cut(
    full_cache: Path, dense_cache: Path, sparse: Path, tmp_path: Path, origin: str
) -> None:
    source = full_cache if origin == "full" else dense_cache
    result = recode_cache(tmp_path / "out", source, Changes(supervision="sparse", tolerance=0.2, max_entries=60))
    assert verify_cache(tmp_path / "out", full=True).ok
    read_everything(tmp_path / "out")
    cache, theirs = Cache.open(tmp_path / "out"), samples(sparse)
    ids = cache.vocab.selected_token_ids.tolist()
    end = AutoTokenizer.from_pretrained(full_cache / "tokenizer").eos_token_id
    kl = []
    for name, found in samples(tmp_path / "out").items():
        exact = entries_of(theirs[name])
        following = found.input_ids[np.flatnonzero(found.supervised) + 1].tolist()
        for row, (ours, token) in enumerate(zip(entries_of(found), following, strict=True)):
            assert {ids.index(one) for one in (token, end) if one in ids} <= ours.keys()
            assert len(ours.keys() ^ exact[row].keys()) <= 2, "rounding may decide about the last entry"
            assert all(ours[one] == pytest.approx(exact[row][one], rel=3e-3) for one in ours.keys() & exact[row].keys())
            assert found.supervision["tail_mass"][row] == pytest.approx(1 - sum(ours.values()), abs=1e-6)
        assert np.array_equal(found.aux_payload, theirs[name].aux_payload)
        if origin == "dense":
            probs = rows_of(dense_cache)[name].double()
            kl += [bucket_kl(p / p.sum(), entries) for p, entries in zip(probs, entries_of(found), strict=True)]
    info = describe_cache(tmp_path / "out")
    assert (info["supervision"], info["tolerance"], info["max_entries"]) == ("sparse", 0.2, 60)
    assert 0.0 <= result.errors["target_probs"]["kl_mean"] < 1e-5
    if kl:
        assert result.errors["target_probs"]["kl_mean"] == pytest.approx(sum(kl) / len(kl), abs=1e-9)


def test_sparse_over_another_draft_vocabulary_indexes_the_new_one(full_cache: Path, tmp_path: Path) -> None:
    recode_cache(tmp_path / "dense", full_cache, Changes(supervision="dense", draft_size=90))
    recode_cache(
        tmp_path / "out", full_cache, Changes(supervision="sparse", draft_size=90, tolerance=0.0, max_entries=90)
    )
    for name, sample in samples(tmp_path / "out").items():
        exact = rows_of(tmp_path / "dense")[name]
        assert [len(entries) for entries in entries_of(sample)] == [90] * len(exact)
        found = torch.tensor([[entries[one] for one in range(90)] for entries in entries_of(sample)])
        assert torch.equal(found, exact)
        assert np.array_equal(sample.position_mask, samples(tmp_path / "dense")[name].position_mask)


def test_sparse_is_carried_over_when_the_aux_codec_changes(sparse: Path, tmp_path: Path) -> None:
    result = recode_cache(tmp_path / "out", sparse, Changes(aux_codec="fp16"))
    assert verify_cache(tmp_path / "out", full=True).ok
    for name, sample in samples(sparse).items():
        found = samples(tmp_path / "out")[name]
        assert np.array_equal(found.position_mask, sample.position_mask)
        for column in ("target_probs", "target_ids", "num_entries", "tail_mass"):
            assert np.array_equal(found.supervision[column], sample.supervision[column]), column
    assert result.errors["target_probs"]["kl_max"] == 0.0 < result.errors["aux_hidden_states"]["max"]
    info = describe_cache(tmp_path / "out")
    assert (info["aux_codec"], info["tolerance"], info["max_entries"]) == ("fp16", 0.2, 60)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (Changes(supervision="dense"), CacheError, "'sparse' cannot become 'dense'"),
        (Changes(supervision="hidden"), CacheError, "'sparse' cannot become 'hidden'"),
        (Changes(draft_size=90), CacheError, "only be computed from supervision 'hidden'"),
        (Changes(aux_codec="fp16", tolerance=0.5), ConfigError, "sparse already"),
        (Changes(codec="fp32"), ConfigError, "entries of sparse supervision are fp16"),
    ],
)
def test_what_a_sparse_source_cannot_give_is_refused(
    sparse: Path, tmp_path: Path, changes: Changes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        recode_cache(tmp_path / "out", sparse, changes)
    assert not (tmp_path / "out").exists()
