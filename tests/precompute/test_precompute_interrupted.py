"""Stage 1 killed, stopped, out of disk, doubled or torn: run again, it leaves the bytes of a run that nothing met."""

import os
import resource
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from eaglepipe.cache.manifest import PLAN_NAME
from eaglepipe.cache.sidecar import Sidecar
from eaglepipe.cache.writer import ShardWriter
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError
from eaglepipe.files.leftovers import leftovers
from eaglepipe.precompute import shard_run, stage
from eaglepipe.precompute.stage import run_precompute
from tests.cache.damage import rewrite
from tests.processes import Done, run_eaglepipe, start_eaglepipe
from tests.stage_one import quiet, shard_bytes
from tests.tiny_project import TinyProject


def precompute(project: TinyProject, root: Path, *, before: Callable[[], object]) -> Done:
    return run_eaglepipe("precompute", project.recipe_file, f"cache.root={root}", before=before)


def signal_at_second_shard(number: signal.Signals) -> None:
    """Send this process a signal when it is about to publish its second shard."""
    finish, done = ShardWriter.finish, []

    def counted(self: ShardWriter) -> Sidecar:
        done.append(self)
        if len(done) == 2:
            os.kill(os.getpid(), number)
        return finish(self)

    ShardWriter.finish = counted  # type: ignore[method-assign]


def limit_file_size_after_fixed_files() -> None:
    """Let this process write no file beyond 200 kB, as if the disk were full, once the shards begin."""
    publish = shard_run.publish_fixed_files

    def then_limited(*arguments: object) -> None:
        publish(*arguments)  # type: ignore[arg-type]
        resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    stage.publish_fixed_files = then_limited  # type: ignore[assignment]


def test_killed_run_keeps_its_published_shards_and_resumes_to_the_same_bytes(
    project: TinyProject, tmp_path: Path, sealed_cache: Path
) -> None:
    killed = precompute(project, tmp_path, before=partial(signal_at_second_shard, signal.SIGKILL))
    assert killed.returncode == -signal.SIGKILL
    folder = next(tmp_path.iterdir())
    assert len(list((folder / "shards").glob("*.json"))) == 1
    assert leftovers(folder)
    result = run_precompute(project.recipe(**{"cache.root": tmp_path}), report=quiet)
    assert result.shards_written == result.shards - 1
    assert {n: b for n, b in shard_bytes(folder).items() if not n.startswith(".")} == shard_bytes(sealed_cache)
    assert verify_cache(folder, full=True).ok


def test_terminated_run_exits_75_and_resumes(project: TinyProject, tmp_path: Path, sealed_cache: Path) -> None:
    stopped = precompute(project, tmp_path, before=partial(signal_at_second_shard, signal.SIGTERM))
    assert stopped.returncode == 75, stopped.stderr
    assert "stopped by SIGTERM" in stopped.stderr and "Traceback" not in stopped.stderr
    folder = next(tmp_path.iterdir())
    assert not leftovers(folder)
    run_precompute(project.recipe(**{"cache.root": tmp_path}), report=quiet)
    assert shard_bytes(folder) == shard_bytes(sealed_cache)


def test_file_size_limit_is_one_line_with_exit_code_4_and_leaves_no_half_file(
    project: TinyProject, tmp_path: Path
) -> None:
    full = precompute(project, tmp_path, before=limit_file_size_after_fixed_files)
    assert full.returncode == 4, full.stderr
    assert "file size limit (200,000 bytes)" in full.stderr and "Traceback" not in full.stderr
    folder = next(tmp_path.iterdir())
    assert not list((folder / "shards").iterdir())


def test_two_runs_at_once_on_one_folder_lose_and_double_nothing(
    project: TinyProject, tmp_path: Path, sealed_cache: Path
) -> None:
    both = [start_eaglepipe("precompute", project.recipe_file, f"cache.root={tmp_path}") for _ in range(2)]
    assert [process.wait().returncode for process in both] == [0, 0]
    folder = next(tmp_path.iterdir())
    assert shard_bytes(folder) == shard_bytes(sealed_cache)
    assert verify_cache(folder, full=True).ok


def test_shard_whose_sidecar_was_lost_in_a_power_cut_is_redone(
    project: TinyProject, tmp_path: Path, sealed_cache: Path
) -> None:
    folder = Path(shutil.copytree(sealed_cache, tmp_path / sealed_cache.name))
    (folder / "manifest.json").unlink()
    (folder / "shards" / "00001.json").unlink()
    (folder / "shards" / "00001.arrow").write_bytes(b"torn")
    result = run_precompute(project.recipe(**{"cache.root": tmp_path}), report=quiet)
    assert result.shards_written == 1
    assert shard_bytes(folder) == shard_bytes(sealed_cache)


def test_plan_of_another_recipe_in_the_folder_is_refused_field_by_field(
    project: TinyProject, tmp_path: Path, sealed_cache: Path
) -> None:
    folder = Path(shutil.copytree(sealed_cache, tmp_path / sealed_cache.name))
    (folder / "manifest.json").unlink()

    def older(plan: dict[str, object]) -> None:
        plan["identity"] = "0" * 32
        plan["identity_fields"]["data"]["max_length"] = 128  # type: ignore[index]

    rewrite(folder / PLAN_NAME, older)
    with pytest.raises(CacheError, match=r"data\.max_length: 128 -> 256"):
        run_precompute(project.recipe(**{"cache.root": tmp_path}), report=quiet)
