"""Rows that are larger than any conversation, which are faulty and take no memory; and long ones, read in part."""

import gzip
import io
import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eaglepipe.chat import tokenizer as tokenizers
from eaglepipe.chat.faults import FaultyRow, RowError
from eaglepipe.chat.readers import file_rows
from eaglepipe.chat.reading import documents, lines
from eaglepipe.chat.reading.documents import document_values
from eaglepipe.chat.reading.lines import ROW_BYTES
from eaglepipe.chat.sources import iter_conversations
from eaglepipe.errors import DataError
from eaglepipe.recipe.config import SourceConfig
from tests.chat.tiny_chat import CHATML, CHATML_MARKED, conversation, dialogue, make_chat

SMALL = {"prompt": "hello", "completion": "fine"}


def row(characters: int) -> dict[str, str]:
    return {"prompt": "hello", "completion": "word " * (characters // 5)}


def jsonl(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(entry) + "\n" for entry in rows))
    return path


def gz(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_bytes(gzip.compress(jsonl(path, rows).read_bytes(), 1))
    return path


def array(path: Path, rows: list[dict[str, str]]) -> Path:
    path.write_text(json.dumps(rows, indent=1))
    return path


def parquet(path: Path, rows: list[dict[str, str]]) -> Path:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return path


def arrow(path: Path, rows: list[dict[str, str]]) -> Path:
    table = pa.Table.from_pylist(rows)
    with pa.ipc.new_file(path, table.schema) as file:
        file.write_table(table)
    return path


WRITERS: dict[str, Callable[[Path, list[dict[str, str]]], Path]] = {
    "a.jsonl": jsonl,
    "a.jsonl.gz": gz,
    "a.json": array,
    "a.parquet": parquet,
    "a.arrow": arrow,
}


@pytest.mark.parametrize("name", WRITERS)
def test_a_row_that_is_too_large_is_faulty_and_the_rows_beside_it_are_read(name: str, tmp_path: Path) -> None:
    path = WRITERS[name](tmp_path / name, [SMALL, row(ROW_BYTES + 2**16), SMALL])
    first, large, last = (entry for _, entry in file_rows(path))
    assert first == last == SMALL
    assert isinstance(large, RowError)
    assert large.reason == "too_large"
    assert "16 MiB" in str(large)


def test_a_line_of_100_mb_takes_the_memory_of_a_row(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    with path.open("wb") as file:
        file.write(json.dumps(SMALL).encode() + b'\n{"prompt": "')
        for _ in range(100):
            file.write(b"x" * 10**6)
        file.write(b'", "completion": "y"}\n' + json.dumps(SMALL).encode())
    tracemalloc.start()
    rows = [entry for _, entry in file_rows(path)]
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert [isinstance(entry, RowError) for entry in rows] == [False, True, False]
    assert peak < 3 * ROW_BYTES


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "_SKIPPED_BYTES", 2**20)
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"prompt": "' + b"\0" * (ROW_BYTES + 2**22), 1))
    with pytest.raises(DataError, match=r"a\.jsonl\.gz: a line of more than"):
        list(file_rows(path))


@pytest.mark.parametrize("count", [5000, 100_000])
def test_a_row_of_too_many_messages_is_faulty(count: int, tmp_path: Path) -> None:
    messages = [{"role": ("user", "assistant")[n % 2], "content": "a"} for n in range(count)]
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"messages": messages}) + "\n" + json.dumps(SMALL))
    faulty, sound = iter_conversations([SourceConfig(path=str(path))])
    assert isinstance(faulty, FaultyRow)
    assert (faulty.reason, isinstance(sound, FaultyRow)) == ("too_large", False)


@pytest.mark.parametrize("depth", [50, 200, 400, 900, 100_000])
@pytest.mark.parametrize(
    "text",
    [
        '{"messages": %s}',
        '{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "x": %s}]}',
        '{"prompt": "a", "completion": "b", "tools": [{"type": "function", "function": {"name": "f", "x": %s}}]}',
        '{"id": %s, "prompt": "a", "completion": "b"}',
        '{"input_ids": %s, "loss_mask": [1]}',
    ],
)
def test_a_deeply_nested_row_is_read_or_faulty(text: str, depth: int, tmp_path: Path) -> None:
    nested = text.replace("%s", "[" * depth + "]" * depth)
    path = tmp_path / "a.jsonl"
    path.write_text(f"{nested}\n{json.dumps(SMALL)}\n")
    chat = make_chat(CHATML)
    rows = list(iter_conversations([SourceConfig(path=str(path))]))
    assert len(rows) == 2
    chat.encode_batch([entry for entry in rows if not isinstance(entry, FaultyRow) and entry.messages is not None])


@pytest.mark.parametrize("chunk", [1, 2, 7, 100])
@pytest.mark.parametrize(
    "text",
    [
        "",
        "  ",
        "[]",
        "[ ]\n",
        '[{"a": [1, 2.5e3]}, {}]',
        '{"a": "\\u00e9[]{},"}\n\n{"b": -1}',
        '{"a":1}{"b":2}',
        "[true,null]",
    ],
)
def test_documents_are_read_as_json_reads_them(text: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_CHUNK_CHARACTERS", chunk)
    expected: list[Any] = []
    if text.lstrip().startswith("["):
        expected = json.loads(text)
    else:
        decoder, rest = json.JSONDecoder(), text.strip()
        while rest:
            value, end = decoder.raw_decode(rest)
            expected.append(value)
            rest = rest[end:].lstrip()
    assert [value for value, _ in document_values(io.StringIO(text))] == expected


@pytest.mark.parametrize("chunk", [1, 5, 1000])
@pytest.mark.parametrize(
    "text", ["[1,\n2,]", "[1\n 2]", '[{"a":\n}]', '[1]\n\n{"b": 2}', '["abc', "[1,", "[", '{"a": tru', "[1}"]
)
def test_the_line_of_a_mistake_is_that_which_json_names(text: str, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(documents, "_CHUNK_CHARACTERS", chunk)
    with pytest.raises(json.JSONDecodeError) as expected:
        json.loads(text)
    with pytest.raises(documents.DocumentError, match=f"^{expected.value.lineno}: not JSON"):
        list(document_values(io.StringIO(text)))


@pytest.mark.parametrize("limit", [5, 20, 60])
@pytest.mark.parametrize("template", [CHATML, CHATML_MARKED])
def test_a_long_text_tokenised_in_part_gives_the_same_first_tokens(
    template: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = make_chat(template)
    rows = [
        conversation(dialogue("hello", "fine old willow " * 200, "more", "end")),
        conversation(dialogue("hello " * 300, "fine")),
        conversation(dialogue(*("short", "words") * 40)),
        conversation(dialogue("hello", "fine")),
    ]
    whole = chat.encode_batch(rows)
    monkeypatch.setattr(tokenizers, "_START_CHARACTERS", 100)
    monkeypatch.setattr(tokenizers, "_CHARACTERS_OF_A_TOKEN", 12)
    part = chat.encode_batch(rows, limit)
    for (all_ids, all_turns), (ids, turns) in zip(whole, part, strict=True):
        np.testing.assert_array_equal(ids[:limit], all_ids[:limit])
        np.testing.assert_array_equal(turns[:limit], all_turns[:limit])
        assert (len(ids) > limit) == (len(all_ids) > limit)
    assert any(len(ids) < len(all_ids) for (all_ids, _), (ids, _) in zip(whole, part, strict=True))
