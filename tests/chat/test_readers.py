"""Files that cannot be read and rows that are none, by place and reason; and what changes nothing about either."""

import re
from pathlib import Path

import pytest

from eaglepipe.chat.sources import fingerprint_sources
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import SourceConfig
from tests.chat.stored_rows import GOOD, ROWS, faults, fingerprint, read, write_as


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ([GOOD, b"{"], r":2: not JSON: Expecting property name"),
        ([GOOD, b"", b"{]"], r":3: not JSON"),
        ([b"[1]"], r":1: each row is a JSON object, this is a list"),
        ([GOOD, GOOD[:-9]], r":2: not JSON"),
        ([GOOD + GOOD], r":1: not JSON: Extra data"),
        ([GOOD, b'{"messages": [{"role": "user", "content": "\xff"}]}'], r":2: not UTF-8"),
        ([b'{"messages": [{"role": "user", "content": "\\ud83d"}]}'], r":1: half a surrogate pair \(U\+D83D\)"),
        ([b'{"id": "\\udc00", "messages": []}'], r":1: half a surrogate pair"),
        ([GOOD, b'{"messages": [{"role": "wizard", "content": ""}]}'], r":2: message 1 has the unknown role"),
        ([b'{"a": ' + b"[" * 100_000], r":1: not JSON"),
        ([b'{"a": ' + b"9" * 5000 + b"}"], r":1: not JSON"),
        ([GOOD, b"\x00"], r":2: not JSON"),
    ],
)
def test_bad_line_is_named_by_file_and_line(tmp_path: Path, lines: list[bytes], said: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_bytes(b"\n".join([*lines, GOOD]) + b"\n")
    (fault,) = faults(path)
    assert re.match(re.escape(str(path)) + said, fault.detail)
    assert fault.detail.startswith(fault.where)
    assert len(read(path)) == sum(line == GOOD for line in lines) + 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[{"a": 1},\n{"b": }]', ":2: not JSON: Expecting value"),
        ('[{"a": 1}\n{"b": 1}]', ":2: not JSON: Expecting ',' delimiter"),
        ('[{"a": 1},\n]', ": not JSON"),
        ('[{"a": 1}', ":1: not JSON: Expecting ',' delimiter"),
        ('[{"a": 1}]\n[]', ":2: not JSON: Extra data"),
        ('{"a": 1}\n\n{"b": ]}', ":3: not JSON: Expecting value"),
        ('{"a": "x', ":1: not JSON: Unterminated string"),
    ],
)
def test_bad_json_is_named_by_file_and_line(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text.replace('"a": 1', '"messages": []'))
    with pytest.raises(DataError, match=r"^" + str(path)) as error:
        read(path)
    assert said in str(error.value)


@pytest.mark.parametrize(("text", "kind"), [('[{"messages": []}, "x"]', "str"), ('{"messages": []}\n7', "int")])
def test_json_value_that_is_no_object_is_one_faulty_row(tmp_path: Path, text: str, kind: str) -> None:
    path = tmp_path / "bad.json"
    path.write_text(text)
    (fault,) = faults(path)
    assert fault.detail == f"{path} row 2: each row is a JSON object, this is a {kind}"
    assert len(read(path)) == 1


def test_faulty_rows_are_no_part_of_the_fingerprint(tmp_path: Path) -> None:
    plain = write_as(tmp_path / "plain" / "rows.jsonl", ROWS)
    odd = tmp_path / "rows.jsonl"
    odd.write_bytes(b"{broken\n" + plain.read_bytes() + b"[]\n")
    assert fingerprint(odd) == fingerprint(plain)
    moved = tmp_path / "moved" / "rows.jsonl"
    moved.parent.mkdir()
    moved.write_bytes(plain.read_bytes() + b"{broken\n[]\n")
    digests = {fingerprint_sources([SourceConfig(path=str(path))]).row_digest() for path in (plain, odd, moved)}
    assert len(digests) == 3


def test_bytes_that_are_no_parquet_or_arrow_are_named(tmp_path: Path) -> None:
    for name in ("x.parquet", "x.arrow"):
        (tmp_path / name).write_bytes(b"nothing of the kind")
        with pytest.raises(DataError, match=name):
            read(tmp_path / name)


@pytest.mark.parametrize("name", ["x.jsonl.gz", "x.jsonl.zst", "x.json.gz"])
def test_damaged_archive_is_one_error_that_names_it(tmp_path: Path, name: str) -> None:
    path = write_as(tmp_path / name, ROWS)
    whole = path.read_bytes()
    assert len(read(path)) == len(ROWS)
    for damaged in (whole[:-9], whole[:20], whole[:60] + b"zzzz" + whole[64:], b"nothing of the kind"):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"^" + re.escape(str(path))):
            read(path)


def test_first_bytes_decide_the_compression(tmp_path: Path) -> None:
    packed = write_as(tmp_path / "packed" / "rows.jsonl.gz", ROWS)
    (tmp_path / "rows.jsonl").write_bytes(packed.read_bytes() * 2)  # as `cat` joins archives
    assert len(read(tmp_path / "rows.jsonl")) == 2 * len(ROWS)
    (tmp_path / "rows.jsonl.gz").write_bytes(write_as(tmp_path / "b.jsonl", ROWS).read_bytes())
    assert fingerprint(tmp_path / "rows.jsonl.gz") == fingerprint(packed)


@pytest.mark.parametrize("name", ["train.parquet", "rows.jsonl", "rows.jsonl.gz"])
def test_pointer_of_git_lfs_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 5\n")
    with pytest.raises(DataError, match=rf"{name}: the pointer of a file in Git LFS, not the file"):
        read(tmp_path)


def test_byte_order_mark_crlf_and_blank_lines_change_nothing(tmp_path: Path) -> None:
    plain = write_as(tmp_path / "plain" / "rows.jsonl", ROWS)
    marked = tmp_path / "rows.jsonl"
    marked.write_bytes(b"\xef\xbb\xbf" + plain.read_bytes().replace(b"\n", b"\r\n") + b"\r\n  \n")
    assert fingerprint(marked) == fingerprint(plain)
    array = write_as(tmp_path / "array.json", ROWS)
    array.write_bytes(b"\xef\xbb\xbf" + array.read_bytes().replace(b"\n", b"\r\n"))
    assert fingerprint(array, name="s") == fingerprint(plain, name="s")


@pytest.mark.parametrize("name", ["e.jsonl", "e.json"])
@pytest.mark.parametrize("content", ["", "\n\n"])
def test_source_without_rows_is_an_error(tmp_path: Path, name: str, content: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match="no rows"):
        read(tmp_path / name)
