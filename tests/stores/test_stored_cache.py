"""A cache in a real S3 server on this machine: the bytes and losses of a local one, within a bound, through faults."""

import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.remote.pull import opened_location
from eaglepipe.cache.storage import caches_of
from eaglepipe.cache_tools.copy import copy_cache
from eaglepipe.cache_tools.verify import verify_cache
from eaglepipe.errors import CacheError, CorruptError, ResourceError, UnreachableError
from eaglepipe.stores.local import ROOT_VARIABLE
from eaglepipe.stores.room import BYTES_VARIABLE
from tests.processes import Child, start_eaglepipe
from tests.stage_one import contents
from tests.stores.s3_server import SECRET, Request, S3Server, environment, s3_server
from tests.tiny_project import TinyProject

BUCKET = "bucket"
PATIENCE = "EAGLEPIPE_STORE_PATIENCE_S"


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server(BUCKET) as running:
        yield running


@pytest.fixture(autouse=True)
def _client(server: S3Server, tmp_path: Path) -> Iterator[None]:
    """Copies of its own for each test, and a server without faults."""
    server.choose, server.before = lambda _: None, lambda _: None
    server.requests.clear()
    server.injected.clear()
    mine = {ROOT_VARIABLE: str(tmp_path / "copies"), PATIENCE: "20"}
    with environment({**server.variables(), **mine}):
        yield


@pytest.fixture(scope="module")
def stored(server: S3Server, sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of the sealed cache in the store."""
    url = f"s3://{BUCKET}/shared/{sealed_cache.name}"
    with environment({**server.variables(), ROOT_VARIABLE: str(tmp_path_factory.mktemp("writer"))}):
        copy_cache(sealed_cache, opened_location(url))
    return url


def local_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def samples(cache: Cache) -> list[bytes]:
    return [cache.read(number).input_ids.tobytes() for number in range(cache.num_samples)]


def largest_shard(folder: Path) -> int:
    return max(path.stat().st_size for path in (folder / "shards").glob("*.arrow"))


def bound(folder: Path) -> int:
    """Room for the small files, and for one shard of the largest size and a little more."""
    shards = sum(path.stat().st_size for path in (folder / "shards").glob("*.arrow"))
    return local_bytes(folder) - shards + int(1.2 * largest_shard(folder))


def test_a_copy_in_the_store_has_the_bytes_of_the_cache(server: S3Server, stored: str, sealed_cache: Path) -> None:
    assert server.objects(BUCKET, f"shared/{sealed_cache.name}/") == contents(sealed_cache)
    last = [request.path for _, request in server.requests if request.method == "PUT"][-1:]
    assert not last or last[0].endswith("manifest.json")


def test_a_reader_has_every_sample_and_never_more_on_disk_than_the_bound(
    stored: str, sealed_cache: Path, tmp_path: Path
) -> None:
    copies, most = tmp_path / "copies", bound(sealed_cache)
    with environment({BYTES_VARIABLE: str(most)}):
        cache = Cache.open(opened_location(stored))
        local = Cache.open(sealed_cache)
        peak = 0
        for number in random.Random(0).sample(range(local.num_samples), local.num_samples):
            assert cache.read(number).input_ids.tobytes() == local.read(number).input_ids.tobytes()
            peak = max(peak, local_bytes(copies))
    assert largest_shard(sealed_cache) < peak <= most
    with environment({BYTES_VARIABLE: str(most // 2)}), pytest.raises(ResourceError, match=r"cache\.local_bytes"):
        samples(Cache.open(opened_location(stored)))


def test_faults_that_pass_are_waited_out(server: S3Server, stored: str, sealed_cache: Path) -> None:
    left = ["500", "short body", "reset", "503", "late 500", "short body"]
    server.choose = lambda request: left.pop() if left and request.method == "GET" else None  # type: ignore[return-value]
    assert samples(Cache.open(opened_location(stored))) == samples(Cache.open(sealed_cache))
    assert len(server.injected) == 6


def test_a_store_that_stays_silent_or_refuses_is_one_error_without_secrets(
    server: S3Server, stored: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = opened_location(stored)
    server.choose = lambda request: "500" if request.is_shard else None
    with environment({PATIENCE: "0.5"}), pytest.raises(UnreachableError, match="run the same command again") as error:
        samples(Cache.open(folder))
    assert stored in str(error.value)
    assert not list(folder.rglob("*.arrow"))
    server.choose = lambda _: None
    with pytest.raises(CacheError, match="no such bucket"):
        copy_cache(folder, opened_location("s3://other-bucket/cache"))
    output = capsys.readouterr()
    assert SECRET not in str(error.value) + output.out + output.err


def test_damage_in_the_store_is_found_and_damage_of_a_copy_is_mended(
    server: S3Server, stored: str, sealed_cache: Path, tmp_path: Path
) -> None:
    folder = opened_location(stored)
    expected = samples(Cache.open(sealed_cache))
    assert samples(Cache.open(folder)) == expected
    for copy in folder.rglob("*.arrow"):
        data = bytearray(copy.read_bytes())
        data[len(data) // 2] ^= 1
        copy.write_bytes(data)
    assert samples(Cache.open(folder)) == expected
    key = f"shared/{sealed_cache.name}/shards/00000.arrow"
    sound = server.objects(BUCKET)[key]
    server.direct("PUT", f"/{BUCKET}/{key}", sound[:-100] + bytes(100))
    try:
        assert not verify_cache(folder, full=True).ok
        with environment({ROOT_VARIABLE: str(tmp_path / "others")}), pytest.raises(CorruptError, match="checksum"):
            samples(Cache.open(opened_location(stored)))
        assert copy_cache(sealed_cache, opened_location(stored)).copied == 1
        assert verify_cache(folder, full=True).ok
    finally:
        server.direct("PUT", f"/{BUCKET}/{key}", sound)


def test_a_cache_made_in_the_store_by_a_killed_and_a_second_writer_is_that_of_a_disk(
    server: S3Server, project: TinyProject, sealed_cache: Path, tmp_path: Path
) -> None:
    """The first writer is killed in the middle of an upload; the second has nothing of it on its disk."""
    root = f"s3://{BUCKET}/made"
    process: list[Child] = []

    def kill_at_second_shard(request: Request) -> None:
        if request.method == "PUT" and request.path.endswith("00001.arrow"):
            process[0].send_signal(signal.SIGKILL)

    server.before = kill_at_second_shard
    server.choose = lambda request: "cut upload" if request.path.endswith("00001.arrow") else None
    process.append(start_eaglepipe("precompute", project.recipe_file, f"cache.root={root}"))
    assert process[0].wait().returncode == -signal.SIGKILL
    server.before, server.choose = lambda _: None, lambda _: None
    begun = server.objects(BUCKET, f"made/{sealed_cache.name}/")
    assert sorted(begun) == ["plan.json", "shards/00000.arrow", "shards/00000.json"]

    from eaglepipe.precompute.stage import run_precompute

    server.requests.clear()
    with environment({ROOT_VARIABLE: str(tmp_path / "second")}):
        result = run_precompute(project.recipe(**{"cache.root": root}), report=lambda _: None)
    assert server.objects(BUCKET, f"made/{sealed_cache.name}/") == contents(sealed_cache)
    assert result.shards_written == result.shards - 1
    assert not any(request.path.endswith("00000.arrow") for _, request in server.requests if request.method == "PUT")
    assert caches_of(project.recipe(**{"cache.root": root}))[0].folder.name == sealed_cache.name
