"""Folders of caches, complete or begun: files removed, emptied, swapped, linked, or of another kind."""

import os
import random
import shutil
from pathlib import Path

from tests.fuzz.base import Base
from tests.fuzz.subjects.cache_commands import cache_commands
from tests.fuzz.values import PICKLE, mutate_bytes

_LINKED = ("/dev/null", "/etc/passwd", "nowhere", "..", "/proc/self/mem", "/dev/zero")
_EXTRA = ("extra.arrow", "00099.json", ".x.tmp2", "x\x1b[31m", "\udcff", "a" * 255)
_DOCUMENTS = ("{}", "[]", '{"schema_version": Infinity}', '{"a": "\\ud800"}', "[" * 50_000, "9" * 9000, "\x00")


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    is_begun = rng.random() < 0.4
    source = base.begun_cache() if is_begun else base.cache("hidden")
    cache = base.copy(source, folder / "caches" / source.name)
    files = sorted(path for path in cache.rglob("*") if path.is_file())
    for _ in range(rng.choice((1, 1, 2))):
        _damage(rng.choice(files), files, rng)
    if rng.random() < 0.15:
        _neighbour(cache, rng)
    if not is_begun:
        return cache_commands(rng, base, folder, cache, "hidden")
    recipe = str(base.write_recipe(folder / "recipe.yaml", cache={"root": str(cache.parent)}))
    commands = (
        ["precompute", recipe, "--seal"],
        ["precompute", recipe, "--dry-run"],
        ["precompute", recipe, "--workers", "1/2"],
        ["cache", "clean", str(cache)],
        ["cache", "repair", str(cache)],
        ["cache", "verify", str(cache)],
        ["cache", "info", str(cache)],
        ["cache", "ls", str(cache.parent)],
        ["train", "--dry-run", recipe],
    )
    return [rng.choice(commands), ["precompute", recipe], ["cache", "verify", "--full", str(cache)]]


def _damage(path: Path, files: list[Path], rng: random.Random) -> None:
    if not os.path.lexists(path):
        return
    other = rng.choice(files)
    kind = rng.randrange(11)
    if kind == 0:
        path.unlink()
    elif kind == 1:
        path.write_bytes(b"")
    elif kind in (2, 3):
        path.write_bytes(mutate_bytes(path.read_bytes(), rng) if path.is_file() else b"")
    elif kind == 4 and other.is_file() and path.is_file():
        path.write_bytes(other.read_bytes())
    elif kind == 5:
        path.unlink()
        path.mkdir()
    elif kind == 6:
        path.unlink()
        path.symlink_to(rng.choice((*_LINKED, path.name)))
    elif kind == 7:
        path.unlink()
        os.mkfifo(path)
    elif kind == 8:
        shutil.rmtree(path.parent)
        if rng.random() < 0.5:
            path.parent.write_bytes(b"")
    elif kind == 9:
        (path.parent / rng.choice(_EXTRA)).write_bytes(PICKLE)
    else:
        path.chmod(0)


def _neighbour(cache: Path, rng: random.Random) -> None:
    neighbour = cache.parent / rng.choice(("other", "tiny-000000000000", "x\x1b[31m", "\udcff", "é"))
    kind = rng.randrange(4)
    if kind == 0:
        neighbour.symlink_to(neighbour.name)
    elif kind == 1:
        neighbour.write_bytes(b"")
    else:
        neighbour.mkdir()
        (neighbour / rng.choice(("plan.json", "manifest.json"))).write_text(rng.choice(_DOCUMENTS))
