"""Rows of conversations: shapes, roles, texts, sizes and files of every format."""

import gzip
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.fuzz.base import Base
from tests.fuzz.values import PICKLE, json_text, mutate, mutate_bytes

_TALK = [{"role": "user", "content": "What is 7?"}, {"role": "assistant", "content": "A number."}]
_CALL = {"type": "function", "function": {"name": "rain", "arguments": '{"city": "Oslo"}'}, "id": "c1"}
_TOOL = {"type": "function", "function": {"name": "rain", "parameters": {"type": "object", "properties": {}}}}
_ROWS: tuple[dict[str, Any], ...] = (
    {"id": "a", "messages": _TALK},
    {"messages": [{"role": "system", "content": "Be brief."}, *_TALK, *_TALK]},
    {"messages": [{**_TALK[0]}, {"role": "assistant", "content": [{"type": "text", "text": "A number."}]}]},
    {"messages": [_TALK[0], {"role": "assistant", "content": None, "tool_calls": [_CALL]}], "tools": [_TOOL]},
    {"messages": [_TALK[0], {"role": "assistant", "content": "x", "reasoning_content": "y"}]},
    {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    {"prompt": "What is 7?", "completion": "A number."},
    {"prompt": _TALK[:1], "completion": _TALK[1:]},
    {"instruction": "Add.", "input": "1 2", "output": "3"},
    {"input_ids": [1, 6, 7, 8, 9, 2], "loss_mask": [0, 0, 1, 1, 1, 1]},
    {"input_ids": [1, 6, 7, 8], "labels": [-100, -100, 7, 8]},
)


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    path = _write(rng, folder)
    source: dict[str, Any] = {"path": str(path)}
    if rng.random() < 0.3:
        source["format"] = rng.choice(("messages", "sharegpt", "prompt_completion", "tokenized"))
    data = {"sources": [source], "supervise": rng.choice(("all", "last")), "on_long": rng.choice(("truncate", "drop"))}
    recipe = base.write_recipe(folder / "recipe.yaml", data=data, cache={"root": str(folder / "caches")})
    commands = [["data", "preview", str(recipe)], ["precompute", "--dry-run", str(recipe)]]
    return [*commands, [rng.choice(("estimate", "precompute")), str(recipe)]]


def _write(rng: random.Random, folder: Path) -> Path:
    shape = rng.choice(_ROWS)
    rows = [shape, *(mutate(shape, rng) for _ in range(rng.choice((1, 3, 8)))), mutate(rng.choice(_ROWS), rng)]
    rows += [_odd(shape, rng)] if rng.random() < 0.2 else []
    suffix = rng.choice((".jsonl", ".jsonl", ".jsonl", ".json", ".jsonl.gz", ".parquet", ".arrow", ".ndjson", ".csv"))
    path = folder / f"rows{suffix}"
    data = _FORMATS.get(suffix, _lines)(rows)
    if rng.random() < 0.2:
        data = mutate_bytes(data, rng)
    path.write_bytes(data)
    return path


def _odd(row: dict[str, Any], rng: random.Random) -> Any:
    """A row that is too long, too deep, or of too many parts."""
    text = rng.choice(("x", " ", "\n", "é", "<|end|>", "<|assistant|>", "\u0301", "a b ")) * rng.choice((5000, 400_000))
    return rng.choice(
        (
            {"messages": [{"role": "user", "content": text}, _TALK[1]]},
            {"messages": [_TALK[0], {"role": "assistant", "content": text}]},
            {"messages": _TALK * rng.choice((500, 5000))},
            {"input_ids": [5] * 100_000, "loss_mask": [1] * 100_000},
            {**row, "id": text},
            {**row, **{f"key{number}": number for number in range(5000)}},
        )
    )


def _lines(rows: list[Any]) -> bytes:
    return "".join(json_text(row) + "\n" for row in rows).encode("utf-8", "surrogatepass")


def _array(rows: list[Any]) -> bytes:
    return json_text(rows).encode()


def _table(rows: list[Any]) -> pa.Table:
    """As a table if Arrow can hold the rows, else as a table of their JSON."""
    try:
        return pa.Table.from_pylist([row for row in rows if isinstance(row, dict)])
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        return pa.table({"messages": [json.dumps(row) for row in rows]})


def _parquet(rows: list[Any]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(_table(rows), sink)
    return sink.getvalue().to_pybytes()


def _arrow(rows: list[Any]) -> bytes:
    sink, table = pa.BufferOutputStream(), _table(rows)
    make_writer = pa.ipc.new_file if len(rows) % 2 else pa.ipc.new_stream
    with make_writer(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _gzip(rows: list[Any]) -> bytes:
    return gzip.compress(_lines(rows), mtime=0)


_FORMATS: dict[str, Callable[[list[Any]], bytes]] = {
    ".json": _array,
    ".jsonl.gz": _gzip,
    ".parquet": _parquet,
    ".arrow": _arrow,
    ".csv": lambda rows: PICKLE + _lines(rows),
}
