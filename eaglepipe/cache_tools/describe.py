"""Descriptions of caches for `cache info` and `cache ls`."""

from pathlib import Path
from typing import Any

from eaglepipe.cache.identity import check_plan
from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, Manifest, Plan
from eaglepipe.cache.opening import load_manifest, load_plan
from eaglepipe.cache.published import missing_shards, published_sidecars
from eaglepipe.cache.storage import FoundCache, UnreadableCache, scan_caches
from eaglepipe.cache.supervision.kind import ENTRY_SETTINGS
from eaglepipe.errors import CorruptError, EaglepipeError, ResourceError
from eaglepipe.files.system_errors import explained_read_errors
from eaglepipe.tables import Justify, text_table


def describe_cache(folder: Path) -> dict[str, Any]:
    """Return counts, cost and identity of a complete cache, or how far an incomplete one is.

    Raises:
        CacheError: there is no cache.
        CorruptError: its plan or manifest is damaged, or was changed.
    """
    plan = load_plan(folder)
    check_plan(folder, plan)
    manifest = load_manifest(folder) if (folder / MANIFEST_NAME).exists() else None
    try:
        with explained_read_errors(folder):
            return _describe(folder, plan, manifest)
    except (AttributeError, KeyError, TypeError) as error:
        raise CorruptError(f"{folder / PLAN_NAME}: does not name the settings of a cache ({error!r})") from None


def _describe(folder: Path, plan: Plan, manifest: Manifest | None) -> dict[str, Any]:
    counts = plan if manifest is None else manifest
    declared, cut = plan.declared, plan.identity_fields["cache"]
    return {
        "folder": str(folder),
        "name": counts.name,
        "complete": manifest is not None,
        **{name: getattr(counts, name) for name in ("samples", "tokens", "supervised_tokens")},
        **_size(folder, plan, manifest),
        "identity": counts.identity,
        **(_planned_spec(plan) if manifest is None else _written_spec(manifest)),
        **{name: cut[name] for name in ENTRY_SETTINGS if name in cut},
        "drops": dict(counts.drops),
        "target": declared.get("target", {}).get("path"),
        **_imported(plan),
        "sources": [source["path"] for source in declared.get("data", {}).get("sources", ())],
        "schema_version": counts.schema_version,
        **({} if manifest is None else {"created_by": manifest.created_by}),
    }


def _imported(plan: Plan) -> dict[str, Any]:
    """Return the tool whose states the cache holds; nothing for those of a forward."""
    tool = plan.identity_fields.get("data", {}).get("imported")
    return {} if tool is None else {"imported_from": tool}


def _size(folder: Path, plan: Plan, manifest: Manifest | None) -> dict[str, Any]:
    if manifest is not None:
        per_token = round(manifest.bytes_per_token, 3)
        return {"shards": len(manifest.shards), "bytes": manifest.bytes, "bytes_per_token": per_token}
    return {
        "shards": plan.shards,
        "missing_shards": missing_shards(folder, plan),
        "bytes": sum(sidecar.shard.bytes for sidecar in published_sidecars(folder, plan)),
        "bytes_per_token": None,
    }


def _written_spec(manifest: Manifest) -> dict[str, Any]:
    spec = manifest.spec
    names = ("draft_vocab_size", "vocab_size", "hidden_size", "max_length", "supervision", "aux_codec")
    return {
        "aux_layer_ids": list(spec.aux_layer_ids),
        **{name: getattr(spec, name) for name in (*names, "supervision_codec")},
        "last_hidden": manifest.shard_spec().last_hidden,
    }


def _planned_spec(plan: Plan) -> dict[str, Any]:
    cache = plan.identity_fields["cache"]
    return {
        "aux_layer_ids": cache["aux_layer_ids"],
        "draft_vocab_size": plan.identity_fields["vocab"]["draft_size"],
        **{name: cache[name] for name in ("supervision", "aux_codec", "supervision_codec")},
        "last_hidden": cache.get("last_hidden", "supervised"),
    }


def describe_root(root: Path) -> list[dict[str, Any]]:
    """Return `describe_cache` of every cache below a root, by name; of an unreadable one, its `error`."""
    return [_describe_found(cache) for cache in scan_caches(root)]


def _describe_found(cache: FoundCache | UnreadableCache) -> dict[str, Any]:
    if isinstance(cache, FoundCache):
        try:
            return describe_cache(cache.folder)
        except ResourceError:
            raise
        except EaglepipeError as error:
            cache = UnreadableCache(folder=cache.folder, reason=str(error))
    return {"folder": str(cache.folder), "name": cache.folder.name, "complete": False, "error": cache.reason}


def root_table(described: list[dict[str, Any]], root: Path) -> str:
    """Return one line a cache."""
    if not described:
        return f"no caches in {root}"
    numbers: dict[str, Justify] = dict.fromkeys(("state", "samples", "tokens", "GB", "B/token"), "right")
    return text_table({"cache": "left", **numbers, "target": "left"}, map(_root_row, described))


def _root_row(info: dict[str, Any]) -> tuple[str, ...]:
    name = Path(info["folder"]).name
    if "error" in info:
        return (name, "unreadable", "", "", "", "", info["error"].partition("\n")[0])
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
