"""Caches of others under the same root: whatever they hold, they are listed, and stop no command."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eaglepipe.cache.storage import FoundCache, list_caches, scan_caches
from eaglepipe.cache_tools.describe import describe_root
from eaglepipe.errors import EaglepipeError, ResourceError
from tests.cache.damage import rewrite
from tests.processes import run_eaglepipe
from tests.system_faults import FAILING_FILE, no_more_files, obey_permissions
from tests.tiny_project import TinyProject

LONG = "x" * 5000


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value}
    return value


def plan_text(**changes: Any) -> Callable[[Path], None]:
    """Write a plan with other values, its checksum right if it can have one."""

    def write(folder: Path) -> None:
        rewrite(folder / "plan.json", lambda plan: plan.update(changes))
        (folder / "manifest.json").unlink()

    return write


def raw(name: str, content: bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content) and None


def link(name: str, to: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).symlink_to(to)

    return make


def sparse(name: str, num_bytes: int) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, num_bytes)


def of_manifest(change: Callable[[dict[str, Any]], None]) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder / "manifest.json", change)


def pipe(folder: Path) -> None:
    (folder / "plan.json").unlink()
    os.mkfifo(folder / "plan.json")


UNREADABLE: dict[str, Callable[[Path], None]] = {
    "infinity": raw("plan.json", b'{"schema_version": 1, "samples": 1e999}'),
    "nan": raw("manifest.json", b'{"schema_version": NaN}'),
    "half a surrogate pair": raw("plan.json", b'{"schema_version": 1, "name": "\\ud800"}'),
    "half a surrogate pair as key": raw("manifest.json", b'{"schema_version": 1, "\\udcff": 1}'),
    "nested 10,000 deep": raw("plan.json", b'{"a":' * 10_000 + b"1" + b"}" * 10_000),
    "lists 100,000 deep": raw("plan.json", b'{"a":' + b"[" * 100_000 + b"]" * 100_000 + b"}"),
    "nested 500 deep": plan_text(declared=nested(500)),
    "nested 100 deep": plan_text(declared=nested(100)),
    "another schema version": plan_text(schema_version=2),
    "schema version as text": plan_text(schema_version="1"),
    "schema version true": plan_text(schema_version=True),
    "wrong types": plan_text(shards="7", name=None),
    "a number of 400 digits": plan_text(samples=10**400),
    "a million million shards": plan_text(shards=10**12),
    "settings of no cache": plan_text(identity_fields={}),
    "settings that are texts": plan_text(identity_fields={"cache": "x", "vocab": []}, declared={"target": 7}),
    "sources that are numbers": plan_text(declared={"data": {"sources": [1, 2]}}),
    "features that are a number": of_manifest(lambda manifest: manifest.update(features=7)),
    "features that are objects": of_manifest(lambda manifest: manifest.update(features=[{}])),
    "unknown supervision": of_manifest(lambda manifest: manifest["spec"].update(supervision="x")),
    "counts of 400 digits": of_manifest(lambda manifest: manifest.update(bytes=10**400)),
    "a list": raw("plan.json", b"[]"),
    "empty": raw("plan.json", b""),
    "invalid UTF-8": raw("plan.json", b'{"name": "\xff\xfe"}'),
    "binary": raw("manifest.json", bytes(range(256))),
    "300 MB": sparse("plan.json", 300_000_000),
    "a loop": link("plan.json", "plan.json"),
    "a loop as manifest": link("manifest.json", "manifest.json"),
    "a link that leads nowhere": link("plan.json", "nowhere"),
    "a link to a folder": link("plan.json", "."),
    "a device": link("plan.json", "/dev/zero"),
    "a disk that fails": link("manifest.json", FAILING_FILE),
    "a pipe": pipe,
    "without permission": lambda folder: folder.chmod(0),
    "a plan without permission": lambda folder: (folder / "plan.json").chmod(0),
}
"""Each is done to a copy of the documents of a complete cache."""

READABLE: dict[str, Callable[[Path], None]] = {
    "a path of 5,000 characters": plan_text(declared={"target": {"path": LONG}, "data": {"sources": []}}),
    "escapes of a terminal": plan_text(declared={"target": {"path": "\x1b[2J\nowned\x07"}}),
    "a name of 5,000 characters": plan_text(name=LONG),
}


@pytest.fixture(scope="module")
def root(sealed_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with one good cache and every bad neighbour, read-only for tests."""
    root = tmp_path_factory.mktemp("shared")
    shutil.copytree(sealed_cache, root / sealed_cache.name)
    for number, (name, damage) in enumerate({**UNREADABLE, **READABLE}.items()):
        folder = root / f"tiny-{number:02d} {name}"
        folder.mkdir()
        for document in ("plan.json", "manifest.json"):
            shutil.copy(sealed_cache / document, folder)
        damage(folder)
    (root / "nowhere").symlink_to("gone")
    (root / "circle").symlink_to("circle")
    for name in (b"name \xff\xfe", b"\x1b[2J escape"):
        folder = Path(os.fsdecode(os.fsencode(root) + b"/" + name))
        folder.mkdir()
        (folder / "plan.json").write_text("{")
    (root / "notes.txt").write_text("no cache")
    (root / "empty folder").mkdir()
    os.mkfifo(root / "a pipe")
    return root


def test_every_bad_neighbour_is_listed_as_unreadable_and_the_others_as_they_are(root: Path, sealed_cache: Path) -> None:
    listed = run_eaglepipe("cache", "ls", root, "--json", before=obey_permissions)
    assert listed.returncode == 0, listed.stderr
    by_name = {info["folder"].rpartition("/")[2]: info for info in json.loads(listed.stdout)}
    unreadable = {name for name, info in by_name.items() if "error" in info}
    assert unreadable == {
        *(f"tiny-{number:02d} {name}" for number, name in enumerate(UNREADABLE)),
        *("nowhere", "circle", "name \udcff\udcfe", "\x1b[2J escape"),
    }
    assert len(by_name) == len(unreadable) + len(READABLE) + 1
    assert by_name[sealed_cache.name]["complete"] is True


def test_the_table_has_one_printable_line_a_cache(root: Path) -> None:
    listed = run_eaglepipe("cache", "ls", root, before=obey_permissions)
    assert listed.returncode == 0, listed.stderr
    lines = listed.stdout.splitlines()
    assert len(lines) == 1 + len(UNREADABLE) + len(READABLE) + 1 + 4
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("words", [["cache", "path"], ["train", "--dry-run"], ["precompute"], ["estimate"]])
def test_no_neighbour_stops_a_command(root: Path, project: TinyProject, sealed_cache: Path, words: list[str]) -> None:
    command = [*words, str(project.recipe_file), f"cache.root={root}"]
    if words[0] == "train":
        command.append(f"train.output_dir={root.parent / 'run'}")
    done = run_eaglepipe(*command, before=obey_permissions)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    if words[0] in ("cache", "precompute"):
        assert str(root / sealed_cache.name) in done.stdout


def test_a_new_cache_is_begun_beside_bad_neighbours(root: Path, project: TinyProject) -> None:
    command = ["precompute", str(project.recipe_file), f"cache.root={root}", "data.max_length=64", "--dry-run"]
    done = run_eaglepipe(*command, before=obey_permissions)
    assert done.returncode == 0, done.stderr
    begun = next(found for found in list_caches(root) if found.plan.declared.get("data", {}).get("max_length") == 64)
    shutil.rmtree(begun.folder)


def test_a_folder_named_in_no_utf_8_is_printed_as_it_is_named(project: TinyProject, root: Path, tmp_path: Path) -> None:
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9"))
    good = next(found.folder for found in list_caches(root) if found.manifest is not None)
    shutil.copytree(good, folder / good.name)
    listed = json.loads(run_eaglepipe("cache", "ls", folder, "--json").stdout)
    assert listed[0]["complete"] is True and os.fsencode(listed[0]["folder"]) == os.fsencode(folder / good.name)
    assert run_eaglepipe("cache", "info", folder / good.name).returncode == 0
    moved = run_eaglepipe("cache", "path", project.recipe_file, EAGLEPIPE_CACHE_ROOT=str(folder))
    assert moved.returncode in (0, 2) and "Traceback" not in moved.stderr


def test_the_reason_names_the_cause(root: Path) -> None:
    reasons = {info["name"].partition(" ")[2]: info["error"] for info in describe_root(root) if "error" in info}
    assert "a link that leads nowhere" in next(i["error"] for i in describe_root(root) if i["name"] == "nowhere")
    assert "input/output error" in reasons["a disk that fails"]
    assert "not a file" in reasons["a pipe"] and "not a file" in reasons["a device"]
    assert "schema version 2" in reasons["another schema version"]
    assert "300,000,000 bytes is no plan.json" in reasons["300 MB"]


def test_what_is_no_fault_of_a_neighbour_is_not_laid_at_its_door(root: Path, tmp_path: Path) -> None:
    scan = scan_caches(root)
    found = next(cache for cache in scan if isinstance(cache, FoundCache))
    assert found.folder.is_dir()
    with no_more_files(), pytest.raises(ResourceError, match="too many open files"):
        list(scan_caches(root))
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    assert list(scan_caches(loop)) == []
    with pytest.raises(EaglepipeError, match="name too long"):
        list(scan_caches(tmp_path / LONG))
