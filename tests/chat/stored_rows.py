"""Rows of a file, written in any layout and read back as conversations, faults, a fingerprint or samples."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eaglepipe.chat.drops import DropLog
from eaglepipe.chat.faults import FaultyRow
from eaglepipe.chat.sources import Conversation, fingerprint_sources, iter_conversations
from eaglepipe.chat.tokens import TokenSample, iter_token_samples
from eaglepipe.recipe.config import SourceConfig
from tests.chat.tiny_chat import CHATML, data_config, dialogue, make_chat, make_tokenizer

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


def samples_of(path: Path, template: str | None = CHATML, **fields: Any) -> tuple[list[TokenSample], Counter[str]]:
    drops = DropLog()
    chat = None if template is None else make_chat(template, **fields)
    data = data_config(path, **fields)
    return list(iter_token_samples(iter_conversations(data.sources), chat, data, drops)), drops.counts


def pieces(*texts: str) -> list[int]:
    return [token for text in texts for token in make_tokenizer().encode(text, add_special_tokens=False)]


GOOD = json.dumps(ROWS[0]).encode()
