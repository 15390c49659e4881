"""Rows of files come in order, with their places in every error; the fingerprint follows what they say, not where."""

import json
import re
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eaglepipe.chat.faults import FaultyRow
from eaglepipe.chat.readers import hub_rows
from eaglepipe.chat.sources import Conversation, fingerprint_sources, is_hub_id, iter_conversations, source_name
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import SourceConfig
from tests.chat.tiny_chat import dialogue

Write = Callable[..., Path]
ROWS = [{"id": f"row-{n}", "messages": dialogue(f"question {n}\n", f"é {n}")} for n in range(7)]


def read(path: Path, **fields: Any) -> list[Conversation]:
    rows = list(iter_conversations([SourceConfig(path=str(path), **fields)]))
    return [row for row in rows if isinstance(row, Conversation)]


def faults(path: Path) -> list[FaultyRow]:
    return [row for row in iter_conversations([SourceConfig(path=str(path))]) if isinstance(row, FaultyRow)]


def fingerprint(path: Path, **fields: Any) -> str:
    return fingerprint_sources([SourceConfig(path=str(path), **fields)]).hexdigest()


def write_as(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if compression := {".gz": "gzip", ".zst": "zstd"}.get(path.suffix):
        plain = write_as(path.with_suffix(""), rows)
        path.write_bytes(pa.Codec(compression).compress(plain.read_bytes(), asbytes=True))
        plain.unlink()
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".arrow":
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(path), "wb") as sink:
            opener = pa.ipc.new_stream if path.stem.endswith("stream") else pa.ipc.new_file
            with opener(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=3)
    elif path.name.startswith("array"):
        path.write_text(json.dumps(rows, indent=1, ensure_ascii=False), encoding="utf-8")
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


KINDS = [
    "a.jsonl",
    "a.ndjson",
    "array.json",
    "lines.json",
    "a.parquet",
    "file.arrow",
    "stream.arrow",
    "a.jsonl.gz",
    "a.jsonl.zst",
]


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_file_gives_the_same_rows(tmp_path: Path, kind: str) -> None:
    path = write_as(tmp_path / kind, ROWS)
    conversations = read(path, name="s")
    assert [item.sample_id for item in conversations] == [f"s:row-{n}" for n in range(7)]
    assert [list(item.messages or ()) for item in conversations] == [row["messages"] for row in ROWS]
    assert fingerprint(path, name="s") == fingerprint(write_as(tmp_path / "b" / "other.jsonl", ROWS), name="s")


def test_folder_is_read_in_sorted_order_and_counts_as_one_source(tmp_path: Path) -> None:
    folder = tmp_path / "corpus"
    write_as(folder / "b.parquet", ROWS[3:5])
    write_as(folder / "a.jsonl", ROWS[:3])
    write_as(folder / "c.json", ROWS[5:])
    (folder / "notes.md").write_text("not data")
    assert [item.sample_id for item in read(folder)] == [f"corpus:row-{n}" for n in range(7)]
    assert fingerprint(folder, name="s") == fingerprint(write_as(tmp_path / "one.jsonl", ROWS), name="s")


def test_folder_with_files_named_by_split_gives_that_split(tmp_path: Path) -> None:
    write_as(tmp_path / "train-00000-of-00001.parquet", ROWS[:2])
    write_as(tmp_path / "test-00000-of-00001.parquet", ROWS[2:3])
    assert len(read(tmp_path)) == 2
    assert len(read(tmp_path, split="test")) == 1
    with pytest.raises(DataError, match="no files of split 'dev'; there are test, train"):
        read(tmp_path, split="dev")


def test_dataset_saved_to_disk_is_a_folder_of_rows(tmp_path: Path) -> None:
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(tmp_path / "plain")
    datasets.DatasetDict(train=dataset, test=dataset.select([0])).save_to_disk(tmp_path / "split")
    assert len(read(tmp_path / "plain")) == len(read(tmp_path / "split")) == 7
    assert len(read(tmp_path / "split", split="test")) == 1


def test_hub_reader_gives_rows_of_its_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    write_as(tmp_path / "repo" / "train.parquet", ROWS)
    write_as(tmp_path / "repo" / "test.parquet", ROWS[:2])
    rows = list(hub_rows(SourceConfig(path=str(tmp_path / "repo"), split="train[2:4]")))
    assert [row["id"] for _, row in rows] == ["row-2", "row-3"]
    assert rows[1][0].endswith("[train[2:4]] row 2")


def test_unreachable_hub_dataset_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(DataError, match="nobody-here/no-such-data"):
        list(iter_conversations([SourceConfig(path="nobody-here/no-such-data")]))


def test_only_owner_and_name_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    assert is_hub_id("HuggingFaceH4/ultrachat_200k")
    for path in ("data/x.jsonl", "gone/x.jsonl", "gone/x.csv", "data/chats", "./a/b", "/a/b", "a/b/c", "chats", "~/x"):
        assert not is_hub_id(path), path
        with pytest.raises(DataError, match=path):
            list(iter_conversations([SourceConfig(path=path)]))


def test_name_is_the_stem_the_folder_or_the_datasets_name(tmp_path: Path) -> None:
    names = {
        "x/chats.jsonl": "chats",
        "x/chats.jsonl.gz": "chats",
        "x/corpus/*/a-*.jsonl": "corpus",
        "owner/corpus-v1.5": "corpus-v1.5",
        str(tmp_path) + "/": tmp_path.name,
    }
    for path, name in names.items():
        assert source_name(SourceConfig(path=path)) == name
    assert source_name(SourceConfig(path="x/chats.jsonl", name="mine")) == "mine"


GOOD = json.dumps(ROWS[0]).encode()


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


def test_unknown_kinds_and_empty_folders_are_named(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"x\.csv: not one of \.jsonl"):
        read(tmp_path / "x.csv")
    with pytest.raises(DataError, match=r"no file ending in \.jsonl"):
        read(tmp_path)


def test_row_limit_counts_each_source_alone(tmp_path: Path) -> None:
    a, b = write_as(tmp_path / "a.jsonl", ROWS), write_as(tmp_path / "b.jsonl", ROWS)
    sources = [SourceConfig(path=str(a), max_samples=2), SourceConfig(path=str(b), max_samples=3)]
    assert [item.source for item in iter_conversations(sources)] == ["a", "a", "b", "b", "b"]


@pytest.mark.parametrize(
    ("weight", "taken"), [(1.0, [0, 1, 2, 3, 4, 5, 6]), (0.5, [0, 2, 4, 6]), (0.3, [0, 3, 6]), (0.001, [0])]
)
def test_weight_is_the_share_of_rows_evenly_spread(tmp_path: Path, weight: float, taken: list[int]) -> None:
    path = write_as(tmp_path / "a.jsonl", ROWS)
    assert [item.sample_id for item in read(path, weight=weight)] == [f"a:row-{n}" for n in taken]
    assert [item.sample_id for item in read(path, weight=weight, max_samples=2)] == [f"a:row-{n}" for n in taken[:2]]
    alone = write_as(tmp_path / "alone" / "a.jsonl", [ROWS[n] for n in taken])
    assert fingerprint(path, weight=weight) == fingerprint(alone)


@pytest.mark.parametrize(("num_rows", "weight"), [(10, 0.1), (30, 0.7), (1000, 0.3), (1000, 0.57), (999, 0.9)])
def test_weight_takes_exactly_its_share(tmp_path: Path, num_rows: int, weight: float) -> None:
    path = write_as(tmp_path / "a.jsonl", [{"messages": []}] * num_rows)
    expected = -(-num_rows * round(weight * 100) // 100)
    assert len(list(iter_conversations([SourceConfig(path=str(path), weight=weight)]))) == expected


def test_a_limit_stops_before_a_later_bad_line(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(GOOD + b"\nbroken\n")
    assert len(read(path, max_samples=1)) == 1


def test_fingerprint_ignores_the_path_and_columns_without_content(tmp_path: Path) -> None:
    noted = [{**row, "score": n} for n, row in enumerate(ROWS)]
    paths = [write_as(tmp_path / "x" / "rows.jsonl", ROWS), write_as(tmp_path / "y" / "rows.jsonl", noted)]
    assert fingerprint(paths[0]) == fingerprint(paths[1])


@pytest.mark.parametrize(
    "changed",
    [
        ROWS[:-1],
        [*ROWS[1:], ROWS[0]],
        [{**ROWS[0], "id": "other"}, *ROWS[1:]],
        [{**ROWS[0], "tools": [{"type": "function"}]}, *ROWS[1:]],
        [{**ROWS[0], "messages": dialogue("question 0\n", "é  0")}, *ROWS[1:]],
        [{"id": "row-0", "prompt": "question 0\n", "completion": "é 0"}, *ROWS[1:]],
    ],
)
def test_fingerprint_follows_content_order_and_ids(tmp_path: Path, changed: list[dict[str, Any]]) -> None:
    paths = [write_as(tmp_path / "x" / "rows.jsonl", ROWS), write_as(tmp_path / "y" / "rows.jsonl", changed)]
    assert fingerprint(paths[0]) != fingerprint(paths[1])


def test_fingerprint_follows_the_layout_when_it_changes_rows(tmp_path: Path) -> None:
    both = [{**row, "conversations": [{"from": "human", "value": "hi"}]} for row in ROWS]
    path = write_as(tmp_path / "rows.jsonl", both)
    assert fingerprint(path) == fingerprint(path, format="messages") != fingerprint(path, format="sharegpt")


def test_rows_without_an_id_are_named_by_content(tmp_path: Path) -> None:
    rows = [{"messages": row["messages"]} for row in ROWS]
    first, again = read(write_as(tmp_path / "a.jsonl", rows)), read(write_as(tmp_path / "b.jsonl", rows), name="a")
    ids = [item.sample_id for item in first]
    assert ids == [item.sample_id for item in again]
    assert len(set(ids)) == len(ids)
    assert all(sample_id.startswith("a:") and len(sample_id) == 18 for sample_id in ids)


@pytest.mark.parametrize("kind", [kind for kind in KINDS if not kind.endswith(".json")])
def test_only_a_small_part_of_a_file_is_held(tmp_path: Path, kind: str) -> None:
    path = write_as(tmp_path / kind, [{"messages": dialogue("x" * 4000, f"{n}")} for n in range(2000)])
    tracemalloc.start()
    assert sum(1 for _ in iter_conversations([SourceConfig(path=str(path))])) == 2000
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2.5e6
