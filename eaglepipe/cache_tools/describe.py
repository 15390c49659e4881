"""What a cache is, in the words of `cache info` and `cache ls`."""

from pathlib import Path
from typing import Any

from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, Manifest, Plan, load_document
from eaglepipe.cache.reader import load_manifest, missing_shards
from eaglepipe.cache.storage import list_caches, unreadable_caches
from eaglepipe.errors import CacheError
from eaglepipe.tables import text_table


def describe_cache(folder: Path) -> dict[str, Any]:
    """Counts, cost and identity of a complete cache, or how far an incomplete one is.

    Raises:
        CacheError: there is no cache.
        CorruptError: its plan or manifest is damaged.
    """
    if not (folder / MANIFEST_NAME).exists() and not (folder / PLAN_NAME).exists():
        raise CacheError(f"{folder}: not a cache (neither {MANIFEST_NAME} nor {PLAN_NAME})")
    plan = load_document(folder / PLAN_NAME, Plan)
    if (folder / MANIFEST_NAME).exists():
        return _complete(folder, load_manifest(folder), plan)
    return _incomplete(folder, plan)


def _complete(folder: Path, manifest: Manifest, plan: Plan) -> dict[str, Any]:
    spec = manifest.spec
    return {
        "folder": str(folder),
        "name": manifest.name,
        "complete": True,
        "samples": manifest.samples,
        "tokens": manifest.tokens,
        "supervised_tokens": manifest.supervised_tokens,
        "shards": len(manifest.shards),
        "bytes": manifest.bytes,
        "bytes_per_token": round(manifest.bytes_per_token, 3),
        "identity": manifest.identity,
        "aux_layer_ids": list(spec.aux_layer_ids),
        "draft_vocab_size": spec.draft_vocab_size,
        "vocab_size": spec.vocab_size,
        "hidden_size": spec.hidden_size,
        "max_length": spec.max_length,
        "supervision": spec.supervision,
        "aux_codec": spec.aux_codec,
        "supervision_codec": spec.supervision_codec,
        "last_hidden": manifest.shard_spec().last_hidden,
        **_sparse_rule(plan),
        "drops": dict(manifest.drops),
        **_made_from(plan),
        "schema_version": manifest.schema_version,
        "created_by": manifest.created_by,
    }


def _incomplete(folder: Path, plan: Plan) -> dict[str, Any]:
    missing = missing_shards(folder, plan)
    written = sum(path.stat().st_size for path in (folder / "shards").glob("*.arrow"))
    cache = plan.identity_fields["cache"]
    return {
        "folder": str(folder),
        "name": plan.name,
        "complete": False,
        "samples": plan.samples,
        "tokens": plan.tokens,
        "supervised_tokens": plan.supervised_tokens,
        "shards": plan.shards,
        "missing_shards": missing,
        "bytes": written,
        "bytes_per_token": None,
        "identity": plan.identity,
        "aux_layer_ids": cache["aux_layer_ids"],
        "draft_vocab_size": plan.identity_fields["vocab"]["draft_size"],
        "supervision": cache["supervision"],
        "aux_codec": cache["aux_codec"],
        "supervision_codec": cache["supervision_codec"],
        "last_hidden": cache.get("last_hidden", "supervised"),
        **_sparse_rule(plan),
        "drops": dict(plan.drops),
        **_made_from(plan),
        "schema_version": plan.schema_version,
    }


def _made_from(plan: Plan) -> dict[str, Any]:
    """Target and sources in the recipe's words, as far as the plan has any."""
    declared = plan.declared
    sources = declared.get("data", {}).get("sources", ())
    return {"target": declared.get("target", {}).get("path"), "sources": [source["path"] for source in sources]}


def _sparse_rule(plan: Plan) -> dict[str, Any]:
    """How sparse supervision was cut; nothing with another kind."""
    cache = plan.identity_fields["cache"]
    return {name: cache[name] for name in ("tolerance", "max_entries") if name in cache}


def describe_root(root: Path) -> list[dict[str, Any]]:
    """`describe_cache` of every cache below a root; of an unreadable one, its `error`."""
    readable = [describe_cache(found.folder) for found in list_caches(root)]
    broken = [
        {"folder": str(folder), "name": folder.name, "complete": False, "error": error}
        for folder, error in unreadable_caches(root)
    ]
    return sorted(readable + broken, key=lambda info: Path(info["folder"]).name)


def root_table(described: list[dict[str, Any]], root: Path) -> str:
    """One line a cache."""
    if not described:
        return f"no caches in {root}"
    return text_table(
        {
            "cache": "left",
            "state": "right",
            "samples": "right",
            "tokens": "right",
            "GB": "right",
            "B/token": "right",
            "target": "left",
        },
        map(_root_row, described),
    )


def _root_row(info: dict[str, Any]) -> tuple[str, ...]:
    name = Path(info["folder"]).name
    if "error" in info:
        return (name, "unreadable", "", "", "", "", info["error"])
    finished = info["shards"] - len(info.get("missing_shards", ()))
    return (
        name,
        "complete" if info["complete"] else f"{finished}/{info['shards']} shards",
        f"{info['samples']:,}",
        f"{info['tokens']:,}",
        f"{info['bytes'] / 1e9:.3f}",
        f"{info['bytes_per_token']:,.0f}" if info["complete"] else "-",
        str(info["target"]),
    )
