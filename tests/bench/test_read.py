import json
from pathlib import Path

import pytest

from eaglepipe.bench.made_cache import chat_lengths, make_turns, write_made_cache
from eaglepipe.bench.read import ReadReport, measure_read
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.chat.tokens import supervised_tokens
from eaglepipe.errors import ConfigError
from eaglepipe.recipe.config import CacheConfig
from tests.bench.tiny_bench import SHAPE


@pytest.fixture(scope="module")
def report() -> ReadReport:
    return measure_read(shape=SHAPE, num_samples=12, rounds=2)


def test_report_has_its_keys_and_ratios_of_its_times(report: ReadReport) -> None:
    fields = json.loads(json.dumps(report.to_json()))
    assert fields["ratio_to_raw"] == pytest.approx(fields["raw_seconds"] / fields["seconds"])
    assert fields["first_touch_ratio_to_raw"] == pytest.approx(fields["raw_seconds"] / fields["first_touch_seconds"])
    assert fields["bytes_per_s"] / fields["raw_bytes_per_s"] == pytest.approx(fields["ratio_to_raw"])
    assert min(fields[key] for key in ("ratio_to_raw", "first_touch_ratio_to_raw", "num_bytes", "tokens")) > 0


def test_table_fits_a_screen(report: ReadReport) -> None:
    lines = report.table().splitlines()
    assert len(lines) <= 24 and max(map(len, lines)) <= 100


def test_given_cache_is_read_and_left_as_it_was(tmp_path: Path) -> None:
    write_made_cache(tmp_path, SHAPE, (9, 30, 17), assistant_share=0.55)
    report = measure_read(tmp_path, rounds=1)
    assert (report.samples, report.tokens) == (3, 56)
    assert verify_cache(tmp_path, full=True).ok


@pytest.mark.parametrize("profile", ["lean", "tiny"])
def test_cache_of_a_profile_is_made_in_its_encodings(tmp_path: Path, profile: str) -> None:
    settings = CacheConfig(profile=profile)  # type: ignore[arg-type]
    cache = write_made_cache(tmp_path, SHAPE, (9, 17), assistant_share=0.55, settings=settings)
    assert (cache.spec.supervision, cache.spec.aux_codec) == (settings.supervision, settings.aux_codec)
    assert verify_cache(tmp_path, full=True).ok
    assert measure_read(tmp_path, rounds=1).tokens == 26


def test_profile_that_is_none_or_of_no_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there are exact, compact, lean, tiny"):
        measure_read(profile="small")
    with pytest.raises(ConfigError, match="leave it out"):
        measure_read(tmp_path, profile="lean")


def test_made_cache_of_several_shards_is_complete_and_in_order(tmp_path: Path) -> None:
    lengths = (40, 41, 42, 43, 44)
    cache = write_made_cache(tmp_path, SHAPE, lengths, assistant_share=1.0, shard_bytes=8000)
    assert len(cache.manifest.shards) > 1
    assert cache.index.num_tokens.tolist() == list(lengths)
    assert verify_cache(tmp_path, full=True).ok


def test_lengths_keep_the_median_that_is_asked_for_and_the_cap() -> None:
    lengths = sorted(chat_lengths(201, median=180, spread=0.8, longest=1024))
    assert lengths[100] == 180 and lengths[-1] == 1024
    assert chat_lengths(201, median=180, spread=0.8, longest=1024, seed=1) != tuple(lengths)


@pytest.mark.parametrize("share", [0.55, 1.0])
def test_turns_supervise_about_the_share_that_is_asked_for(share: float) -> None:
    turns = make_turns(1000, share)
    assert abs((turns > 0).mean() - share) < 0.01
    assert abs(supervised_tokens(turns).mean() - share) < 0.01
