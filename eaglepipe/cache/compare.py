"""Differences of two caches, field by field, and whether a draft can learn from both."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from eaglepipe.cache.consistency import START_FILE, TARGET_CONFIG_FILE, VOCAB_FILE
from eaglepipe.cache.identity import check_plan
from eaglepipe.cache.manifest import DROPS_FILE, MANIFEST_NAME, PLAN_NAME, REPORT_FILE, Manifest, Plan
from eaglepipe.cache.opening import load_manifest, load_plan
from eaglepipe.cache.published import missing_shards
from eaglepipe.cache.reader import Cache
from eaglepipe.errors import CacheError, printable
from eaglepipe.files.hashing import hash_json
from eaglepipe.files.json_object import differing_leaves

# The identity's fields that two caches of one target and one tokenizer share, wherever these were read from.
_TARGET_FIELDS = (("target", "weights"), ("target", "config"), ("target", "dtype"), ("data", "tokenizer"))


@dataclass(frozen=True, kw_only=True)
class CacheDiff:
    """Differences of two caches; `contents` may differ with one identity if devices computed other bits."""

    a: str
    b: str
    identity: tuple[dict[str, Any], ...]  # field, a, b of each leaf that differs
    contents: tuple[dict[str, Any], ...]

    @property
    def equal(self) -> bool:
        return not self.identity and not self.contents

    def to_json(self) -> dict[str, Any]:
        return {"equal": self.equal, **asdict(self)}

    def table(self) -> str:
        """Return one line a difference, those of the identity first."""
        lines = [
            f"{part}  " + printable("{field}: {a!r} -> {b!r}".format(**difference))
            for part, differences in (("identity", self.identity), ("contents", self.contents))
            for difference in differences
        ]
        return "\n".join(lines) if lines else f"{self.a} and {self.b}: the same identity and the same contents"


def diff_caches(a: Path, b: Path) -> CacheDiff:
    """Compare two caches, complete or not, by the digests of their shards.

    Raises:
        CacheError: one of them is no cache.
        CorruptError: a plan or a manifest is damaged.
    """
    plans = [load_plan(folder) for folder in (a, b)]
    for folder, plan in zip((a, b), plans, strict=True):
        check_plan(folder, plan)
    return CacheDiff(
        a=str(a),
        b=str(b),
        identity=_differences(*(plan.identity_fields for plan in plans)),
        contents=_differences(*(_contents(folder, plan) for folder, plan in zip((a, b), plans, strict=True))),
    )


def _differences(a: dict[str, Any], b: dict[str, Any]) -> tuple[dict[str, Any], ...]:
    return tuple({"field": field, "a": old, "b": new} for field, old, new in differing_leaves(a, b))


def target_weights(folder: Path) -> str | None:
    """Return the fingerprint of the weights that a cache was computed with; None if its plan has none."""
    weights = load_plan(folder).identity_fields.get("target", {}).get("weights")
    return weights if isinstance(weights, str) else None


def _contents(folder: Path, plan: Plan) -> dict[str, Any]:
    """Counts, and digests of the rest, without plan and drops, which name paths of the machine it was made on."""
    if (folder / MANIFEST_NAME).exists():
        return _manifest_contents(load_manifest(folder))
    return {
        "complete": False,
        "missing_shards": missing_shards(folder, plan),
        "num_shards": plan.shards,
        **{name: getattr(plan, name) for name in ("samples", "tokens", "supervised_tokens", "drops")},
    }


def _manifest_contents(manifest: Manifest) -> dict[str, Any]:
    files = {entry.path: entry.xxh3_128 for entry in manifest.files if entry.path not in (PLAN_NAME, DROPS_FILE)}
    return {
        "complete": True,
        "num_shards": len(manifest.shards),
        **{name: getattr(manifest, name) for name in ("samples", "tokens", "supervised_tokens", "bytes", "drops")},
        "spec": manifest.spec.model_dump(mode="json"),
        "files": files,
        "shards": hash_json([shard.xxh3_128 for shard in manifest.shards]),
    }


def check_same_target(first: Cache, other: Cache, *, advice: str) -> None:
    """Refuse two caches that one draft could not learn from together: target, tokenizer, layers, vocabulary, encodings.

    Raises:
        CacheError: naming the first field that differs, and ending with `advice`.
    """
    if difference := _first_difference(first, other):
        raise CacheError(f"{first.folder} and {other.folder} differ in {printable(difference)}; {advice}")


def _first_difference(first: Cache, other: Cache) -> str | None:
    mine, others = (load_plan(cache.folder).identity_fields for cache in (first, other))
    for section, name in _TARGET_FIELDS:
        if mine.get(section, {}).get(name) != others.get(section, {}).get(name):
            return f"{section}.{name}{_config_hint(first, other) if name == 'config' else ''}"
    ids, other_ids = set(first.vocab.selected_token_ids.tolist()), set(other.vocab.selected_token_ids.tolist())
    if ids != other_ids:
        return f"draft vocabulary ({len(ids)} and {len(other_ids)} tokens, {len(ids & other_ids)} in common)"
    for field, old, new in differing_leaves(
        {**asdict(first.spec), **asdict(first.head)}, {**asdict(other.spec), **asdict(other.head)}
    ):
        return f"{field} ({old!r} and {new!r})"
    files, other_files = (_reading_files(cache.manifest) for cache in (first, other))
    return next((name for name, _, _ in differing_leaves(files, other_files)), None)


def _reading_files(manifest: Manifest) -> dict[str, str]:
    """Digests of the files that decide how a cache's bytes are read, except those compared by their content."""
    compared = (PLAN_NAME, DROPS_FILE, VOCAB_FILE, START_FILE, TARGET_CONFIG_FILE, REPORT_FILE)
    return {
        entry.path: entry.xxh3_128 for entry in manifest.files if "/" not in entry.path and entry.path not in compared
    }


def _config_hint(first: Cache, other: Cache) -> str:
    names = [field for field, _, _ in differing_leaves(first.target_config, other.target_config)]
    return f" ({', '.join(names[:4])})" if names else ""
