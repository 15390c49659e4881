"""A folder with digests is the one that was published, or each file that differs is named."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from eaglepipe.errors import CorruptError, EaglepipeError
from eaglepipe.files.digests import DIGESTS_FILE, check_digests, publish_digests, read_digests
from eaglepipe.files.hashing import hash_file, hash_json
from eaglepipe.files.publish import publish_bytes, publish_json
from eaglepipe.files.tensors import publish_tensors


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    digests = {
        "weights.safetensors": publish_tensors(tmp_path / "weights.safetensors", {"a": torch.arange(9.0)}),
        "config.json": publish_json(tmp_path / "config.json", {"é": 1}),
        "card.md": publish_bytes(tmp_path / "card.md", b"card\n"),
    }
    publish_digests(tmp_path, digests)
    check_digests(tmp_path)
    return tmp_path


def rewritten(folder: Path, change: Callable[[dict[str, object]], object]) -> None:
    """Change the document and give it the checksum that fits."""
    path = folder / DIGESTS_FILE
    fields = json.loads(path.read_text())
    del fields["xxh3_128"]
    change(fields)
    path.write_text(json.dumps({**fields, "xxh3_128": hash_json(fields)}))


def test_digests_are_of_the_bytes_that_were_written(folder: Path) -> None:
    digests = read_digests(folder)
    assert digests is not None and digests.keys() == {"weights.safetensors", "config.json", "card.md"}
    for name, digest in digests.items():
        assert digest.bytes == (folder / name).stat().st_size and digest.xxh3_128 == hash_file(folder / name)


def test_every_differing_file_is_named_in_one_line_with_a_way_on(folder: Path) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "card.md").unlink()
    data = bytearray((folder / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (folder / "weights.safetensors").write_bytes(data)
    with pytest.raises(CorruptError) as caught:
        check_digests(folder)
    message = str(caught.value)
    assert "\n" not in message and f"delete {folder / DIGESTS_FILE}" in message
    assert "config.json (2 bytes, published with" in message and "card.md (lost)" in message
    assert "weights.safetensors (its bytes do not match their checksum)" in message
    (folder / DIGESTS_FILE).unlink()
    check_digests(folder)


def test_files_that_are_not_listed_are_no_concern(folder: Path) -> None:
    (folder / "LICENSE").write_text("MIT")
    (folder / "more").mkdir()
    check_digests(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff", b"{}", b'{"version": 1, "files": {}}', b"[" * 100_000, b'{"xxh3_128": 1e999}'],
)
def test_a_document_of_any_other_content_is_damage(folder: Path, content: bytes) -> None:
    (folder / DIGESTS_FILE).write_bytes(content)
    with pytest.raises(CorruptError, match=DIGESTS_FILE) as caught:
        check_digests(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "files",
    [
        None,
        ["config.json"],
        {"../x": {"bytes": 1, "xxh3_128": "0" * 32}},
        {"config.json": 3},
        {"config.json": {"bytes": True, "xxh3_128": "0" * 32}},
        {"config.json": {"bytes": 1, "xxh3_128": "0" * 31}},
    ],
)
def test_entries_of_other_types_or_outside_the_folder_are_damage(folder: Path, files: object) -> None:
    rewritten(folder, lambda fields: fields.update(files=files))
    with pytest.raises(CorruptError, match=DIGESTS_FILE):
        check_digests(folder)


def test_a_document_that_is_no_file_is_never_waited_for(folder: Path) -> None:
    (folder / DIGESTS_FILE).unlink()
    os.mkfifo(folder / DIGESTS_FILE)
    with pytest.raises(CorruptError, match="not a document"):
        check_digests(folder)


def test_a_document_of_a_later_version_is_no_damage(folder: Path) -> None:
    rewritten(folder, lambda fields: fields.update(version=2))
    with pytest.raises(EaglepipeError, match="version 2") as caught:
        check_digests(folder)
    assert caught.value.exit_code == 2
