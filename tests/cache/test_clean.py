"""`cache clean` removes what writers left, and nothing else."""

from pathlib import Path

import pytest

from eaglepipe.cache.clean import clean_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import EaglepipeError


def test_leftovers_of_a_complete_cache_go_and_it_stays_sound(cache_copy: Path) -> None:
    left = [cache_copy / "shards" / ".00000.arrow.ab.tmp", cache_copy / "work"]
    left[0].write_bytes(b"half")
    (left[1] / "claims").mkdir(parents=True)
    assert sorted(clean_cache(cache_copy, dry_run=True)) == sorted(left) and all(path.exists() for path in left)
    assert sorted(clean_cache(cache_copy)) == sorted(left) and not any(path.exists() for path in left)
    report = verify_cache(cache_copy, full=True)
    assert report.ok and not report.notes


def test_a_link_is_removed_and_not_followed(cache_copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").touch()
    (cache_copy / "work").symlink_to(outside, target_is_directory=True)
    assert clean_cache(cache_copy) == [cache_copy / "work"]
    assert (outside / "file").exists() and not (cache_copy / "work").exists()


def test_what_is_no_cache_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "work").mkdir()
    with pytest.raises(EaglepipeError, match="not a cache"):
        clean_cache(tmp_path)
    assert (tmp_path / "work").exists()
