"""Rows of files come in order, with their places in every error; the fingerprint follows what they say, not where."""

import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pytest

from eaglepipe.chat.readers import hub_rows
from eaglepipe.chat.sources import is_hub_id, iter_conversations, source_name
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import SourceConfig
from tests.chat.stored_rows import GOOD, ROWS, fingerprint, read, write_as
from tests.chat.tiny_chat import dialogue

Write = Callable[..., Path]


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
    path = write_as(tmp_path / kind, [{"messages": dialogue("x" * 4000, f"{n}")} for n in range(1000)])
    tracemalloc.start()
    assert sum(1 for _ in iter_conversations([SourceConfig(path=str(path))])) == 1000
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 2.5e6
