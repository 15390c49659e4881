"""The documents of a cache, changed and given a checksum of themselves again, so that only their content is judged."""

import json
import random
from pathlib import Path
from typing import Any

from eaglepipe.files.hashing import hash_file, hash_json
from tests.fuzz.base import KINDS, Base
from tests.fuzz.subjects.cache_commands import cache_commands
from tests.fuzz.values import json_text, mutate, mutate_bytes

_PLAIN = ("head.json", "target_config.json", "tokenizer/tokenizer_config.json", "drops.jsonl", "schema/shard.json")


def make(rng: random.Random, base: Base, folder: Path) -> list[list[str]]:
    kind = rng.choice(tuple(KINDS))
    cache = base.copy(base.cache(kind), folder / "caches" / base.cache(kind).name)
    choice = rng.random()
    if choice < 0.4:
        change_document(cache / "manifest.json", rng)
    elif choice < 0.6:
        change_document(cache / "plan.json", rng)
        declare(cache)
    elif choice < 0.8:
        change_document(rng.choice(sorted(cache.glob("shards/*.json"))), rng)
        declare(cache)
    else:
        path = cache / rng.choice(_PLAIN)
        if path.exists():
            path.write_bytes(mutate_bytes(path.read_bytes(), rng) if rng.random() < 0.3 else _changed(path, rng))
            declare(cache)
    return cache_commands(rng, base, folder, cache, kind)


def change_document(path: Path, rng: random.Random) -> None:
    """Change a document of a cache and give it a checksum that agrees."""
    document = json.loads(path.read_text())
    document.pop("xxh3_128")
    write_document(path, mutate(document, rng))


def write_document(path: Path, document: Any) -> None:
    """Write a document with the checksum that it has by its own bytes, whatever it holds."""
    text = json_text(document)
    try:
        read_back = json.loads(text)
        document = {**read_back, "xxh3_128": hash_json(read_back)} if isinstance(read_back, dict) else read_back
        text = json_text(document)
    except (ValueError, RecursionError, TypeError):
        pass  # nothing has a checksum then
    path.write_text(text, errors="surrogatepass")


def declare(cache: Path) -> None:
    """Make the manifest, if it can be read, declare the fixed files and sidecars as they are now."""
    manifest = json.loads((cache / "manifest.json").read_text())
    manifest.pop("xxh3_128")
    for entry in (*manifest["files"], *manifest["sidecars"], *manifest["shards"]):
        path = cache / entry["path"]
        if path.is_file():
            entry.update(bytes=path.stat().st_size, xxh3_128=hash_file(path))
    manifest["bytes"] = sum(entry["bytes"] for entry in manifest["shards"])
    write_document(cache / "manifest.json", manifest)


def _changed(path: Path, rng: random.Random) -> bytes:
    text = path.read_text()
    if path.suffix != ".jsonl":
        return json_text(mutate(json.loads(text), rng)).encode("utf-8", "surrogatepass")
    lines = [json_text(mutate(json.loads(line), rng)) for line in text.splitlines()]
    return "\n".join(lines).encode("utf-8", "surrogatepass")
