"""Caches of sampled supervision: recoded or made by stage 1 they hold the same draws, and tools treat them as such."""

from pathlib import Path

import numpy as np
import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.schema import SCHEMA_VERSION
from eaglepipe.cache_tools.describe import describe_cache
from eaglepipe.cache_tools.peek import peek_rows
from eaglepipe.cache_tools.peek_texts import peek_cache
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.cache_tools.values.compare import diff_values
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, ConfigError
from eaglepipe.precompute.claims import Worker
from eaglepipe.precompute.stage import run_precompute
from eaglepipe.resources import schema_folder
from tests.cache.damage import read_everything
from tests.cache.derived import digests, few, make_cache, samples
from tests.tiny_project import TinyProject

DRAWN = {"cache.supervision": "sampled", "cache.draws": 6, "cache.draw_seed": 3}


@pytest.fixture(scope="module")
def sampled(project: TinyProject, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_cache(project, tmp_path_factory.mktemp("sampled"), **few(project), **DRAWN)


def test_cache_is_sound_and_tells_how_it_was_drawn(sampled: Path) -> None:
    assert verify_cache(sampled, full=True).ok
    read_everything(sampled)
    cache = Cache.open(sampled)
    assert cache.manifest.features == ("sampled_supervision",)
    info = describe_cache(sampled)
    assert (info["supervision"], info["draws"], info["draw_seed"]) == ("sampled", 6, 3)
    sample = cache.read(0)
    assert "tail_mass" not in sample.supervision and sample.supervision["num_entries"].max() == 6
    row = next(row for row in peek_rows(cache, sample, slice(None), top=3) if row.top1_in_draft_vocab)
    assert "some that are drawn" in peek_cache(sampled, "0", top=2, rows=None).text(colour=False)
    assert row.tail_mass is None and len(row.top) == 3 and row.top[0][0] == row.target_top1


@pytest.mark.parametrize("origin", ["full", "dense"])
def test_recoding_draws_as_stage_one_does(
    full_cache: Path, dense_cache: Path, sampled: Path, tmp_path: Path, origin: str
) -> None:
    source = full_cache if origin == "full" else dense_cache
    result = recode_cache(tmp_path / "out", source, Changes(supervision="sampled", draws=6, draw_seed=3))
    assert verify_cache(tmp_path / "out", full=True).ok
    assert set(result.errors["target_probs"]) == {"max", "mean", "relative_rms"}
    theirs, same, total = samples(sampled), 0, 0
    for name, found in samples(tmp_path / "out").items():
        counts, others = (sample.supervision["num_entries"] for sample in (found, theirs[name]))
        same += int((counts == others).sum())
        total += len(counts)
        if np.array_equal(counts, others):
            ids = [sample.supervision["target_ids"].astype(int) for sample in (found, theirs[name])]
            assert (ids[0] == ids[1]).mean() > 0.95, "rounding may decide about an entry"
        assert np.array_equal(found.aux_payload, theirs[name].aux_payload)
    assert same > 0.99 * total


def test_two_workers_draw_what_one_draws(project: TinyProject, sampled: Path, tmp_path: Path) -> None:
    recipe = project.recipe(**{"cache.root": str(tmp_path), **few(project), **DRAWN})
    for rank in (1, 0):
        result = run_precompute(recipe, worker=Worker(rank=rank, count=2), report=lambda _: None)
    assert result.complete and digests(Path(result.folder)) == digests(sampled)


def test_entries_are_carried_over_and_another_seed_draws_others(
    full_cache: Path, sampled: Path, tmp_path: Path
) -> None:
    recode_cache(tmp_path / "out", sampled, Changes(aux_codec="fp16"))
    assert verify_cache(tmp_path / "out", full=True).ok
    for name, sample in samples(sampled).items():
        found = samples(tmp_path / "out")[name].supervision
        assert all(np.array_equal(found[column], values) for column, values in sample.supervision.items())
    recode_cache(tmp_path / "other", full_cache, Changes(supervision="sampled", draws=6, draw_seed=4))
    one, other = (next(iter(samples(folder).values())).supervision for folder in (sampled, tmp_path / "other"))
    assert not np.array_equal(one["target_ids"], other["target_ids"])


def test_comparison_leaves_drawn_probabilities_out_unless_both_are(
    full_cache: Path, sampled: Path, tmp_path: Path
) -> None:
    report = diff_values(full_cache, sampled)
    assert report.probabilities is None and "right in the mean" in report.not_compared["target_probs"]
    recode_cache(tmp_path / "out", sampled, Changes(aux_codec="fp16"))
    again = diff_values(sampled, tmp_path / "out")
    assert again.probabilities is not None and again.probabilities["kl_max"] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (Changes(supervision="dense"), CacheError, "'sampled' cannot become 'dense'"),
        (Changes(supervision="sparse"), CacheError, "'sampled' cannot become 'sparse'"),
        (Changes(draft_size=90), CacheError, "only be computed from supervision 'hidden'"),
        (Changes(aux_codec="fp16", draws=4), ConfigError, "sampled already.*draws can be chosen"),
        (Changes(codec="fp32"), ConfigError, "entries of sampled supervision are fp16"),
    ],
)
def test_what_a_sampled_source_cannot_give_is_refused(
    sampled: Path, tmp_path: Path, changes: Changes, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        recode_cache(tmp_path / "out", sampled, changes)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (Changes(supervision="sampled", tolerance=0.1), "need supervision 'sparse': tolerance"),
        (Changes(supervision="sparse", draws=4, draw_seed=1), "need supervision 'sampled': draws and draw_seed"),
        (Changes(supervision="sampled", draws=1), "draws 1: "),
    ],
)
def test_settings_of_other_entries_are_refused(
    full_cache: Path, tmp_path: Path, changes: Changes, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        recode_cache(tmp_path / "out", full_cache, changes)


def test_sparse_entries_cannot_be_drawn_from(project: TinyProject, tmp_path: Path) -> None:
    sparse = make_cache(project, tmp_path, **few(project), **{"cache.supervision": "sparse"})
    with pytest.raises(CacheError, match="'sparse' cannot become 'sampled'"):
        recode_cache(tmp_path / "out", sparse, Changes(supervision="sampled"))


def test_a_recoded_cache_carries_the_schema_that_describes_it(tmp_path: Path) -> None:
    """Not that of its source, whose version may not know the new encoding."""
    folder = schema_folder(SCHEMA_VERSION)
    recode_cache(tmp_path / "out", folder / "examples" / "golden", Changes(supervision="sampled"))
    assert (tmp_path / "out" / "schema" / "shard.json").read_bytes() == (folder / "shard.json").read_bytes()
    assert (tmp_path / "out" / "schema" / "README.md").read_bytes() == (folder.parent / "README.md").read_bytes()
    assert verify_cache(tmp_path / "out", full=True).ok
