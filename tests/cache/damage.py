"""Ways to damage a cache, by accident or with checksums that agree, and to read it as training does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from eaglepipe.cache.reader import Cache
from eaglepipe.cache.samples.index_file import INDEX_FILE
from eaglepipe.files.hashing import hash_file, hash_json
from eaglepipe.files.publish import publish_json


def read_everything(folder: Path) -> None:
    """What training does: open, start tensors, every sample."""
    cache = Cache.open(folder)
    cache.start_tensors()
    for sample in range(cache.num_samples):
        cache.read(sample)


def flip(path: Path, position: int, bit: int = 0) -> None:
    data = bytearray(path.read_bytes())
    data[position % len(data)] ^= 1 << bit
    path.write_bytes(data)


def rewrite(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change a document and give it a valid checksum of itself again: a lie, not an accident."""
    document = json.loads(path.read_text())
    document.pop("xxh3_128")
    change(document)
    publish_json(path, {**document, "xxh3_128": hash_json(document)})


def declare_current_state(folder: Path, *, sidecars_only: bool = False) -> None:
    """Make manifest and sidecars agree with the files as they are now, so that only their content can be judged.

    The index, which is bound to the sidecars and may be absent, goes.
    """

    def entry(old: dict[str, Any]) -> dict[str, Any]:
        path = folder / old["path"]
        return {**old, "bytes": path.stat().st_size, "xxh3_128": hash_file(path)}

    def update(manifest: dict[str, Any]) -> None:
        if not sidecars_only:
            manifest["files"] = [entry(file) for file in manifest["files"]]
            manifest["shards"] = [entry(shard) for shard in manifest["shards"]]
            manifest["bytes"] = sum(shard["bytes"] for shard in manifest["shards"])
            for shard, sidecar in zip(manifest["shards"], manifest["sidecars"], strict=True):
                rewrite(folder / sidecar["path"], lambda s, shard=shard: s.update(shard=shard))
        manifest["sidecars"] = [entry(sidecar) for sidecar in manifest["sidecars"]]

    rewrite(folder / "manifest.json", update)
    (folder / INDEX_FILE).unlink(missing_ok=True)
