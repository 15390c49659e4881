"""A recoded cache whose files change before its manifest is written is finished with the bytes of a sound one."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from eaglepipe.cache_tools import derive
from eaglepipe.cache_tools.recode import Changes, recode_cache
from eaglepipe.errors import StoppedError
from tests.cache.damage import flip
from tests.stage_one import contents

CHANGES = Changes(aux_codec="int4", supervision="sparse")


@pytest.fixture(scope="module")
def unsealed(sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unsealed") / "recoded"

    def stop(*_: object, **__: object) -> None:
        raise StoppedError("stopped before the manifest")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(StoppedError):
        patch.setattr(derive, "seal_cache", stop)
        recode_cache(folder, sealed_cache, CHANGES)
    return folder


@pytest.fixture(scope="module")
def sealed(unsealed: Path, sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("sealed") / "recoded"
    recode_cache(folder, sealed_cache, CHANGES)
    return contents(folder)


def lose(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flip_middle(path: Path) -> None:
    flip(path, path.stat().st_size // 2, 3)


def lead_out(path: Path) -> None:
    path.rename(path.parents[2] / path.name)
    path.symlink_to(path.parents[2] / path.name)


DAMAGE: dict[str, dict[str, Callable[[Path], None]]] = {
    "shards": {"shards/00000.arrow": flip_middle, "shards/00001.arrow": empty, "shards/00002.json": flip_middle},
    "work": {
        "work/deviations/00001.json": flip_middle,
        "work/deviations/00002.json": lose,
        "shards/00000.arrow": lead_out,
    },
    "files": {"plan.json": flip_middle, "vocab.safetensors": lose, "recode.json": flip_middle},
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_rerun_makes_damaged_files_again(
    unsealed: Path, sealed: dict[str, bytes], sealed_cache: Path, tmp_path: Path, kind: str
) -> None:
    folder = Path(shutil.copytree(unsealed, tmp_path / "recoded"))
    for name, damage in DAMAGE[kind].items():
        damage(folder / name)
    recode_cache(folder, sealed_cache, CHANGES)
    assert contents(folder) == sealed


def test_shard_that_changes_while_it_is_sealed_is_made_again_once(
    unsealed: Path, sealed: dict[str, bytes], sealed_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(unsealed, tmp_path / "recoded"))
    seal, calls = derive.seal_cache, []

    def flip_then_seal(*args: object, **kwargs: object) -> object:
        calls.append(args)
        if len(calls) == 1:
            flip_middle(folder / "shards" / "00001.arrow")
        return seal(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(derive, "seal_cache", flip_then_seal)
    recode_cache(folder, sealed_cache, CHANGES)
    assert len(calls) == 2 and contents(folder) == sealed
