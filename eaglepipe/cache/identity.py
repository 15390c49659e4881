"""Agreement of a cache's documents and its folder on one identity: files of two caches are never read as one."""

import re
from pathlib import Path

from eaglepipe.cache.manifest import MANIFEST_NAME, PLAN_NAME, Manifest, Plan, repair_advice
from eaglepipe.errors import CacheError, CorruptError
from eaglepipe.files.hashing import hash_json

IDENTITY_PREFIX = 12
DERIVED_KEY = "derived"
"""Entry of a plan's identity fields if the cache was made from others: their identities and the change."""
_NAMED_BY_IDENTITY = re.compile(rf".*-([0-9a-f]{{{IDENTITY_PREFIX}}})", re.DOTALL)


def cache_folder_name(name: str, identity: str) -> str:
    """Return the name of a cache's folder under its root."""
    return f"{name}-{identity[:IDENTITY_PREFIX]}"


def check_plan(folder: Path, plan: Plan) -> None:
    """Compare a plan's identity with the fields that it is the hash of.

    Raises:
        CorruptError: the plan was changed after it was published.
    """
    if (actual := hash_json(plan.identity_fields)) != plan.identity:
        raise CorruptError(
            f"{folder / PLAN_NAME}: its identity is {plan.identity}, and its identity_fields are those of {actual}: "
            f"it was changed after it was published; {repair_advice(folder)}"
        )


def check_manifest(folder: Path, plan: Plan, manifest: Manifest) -> None:
    """Compare the identities of a manifest and of the plan beside it.

    Raises:
        CacheError: one of the two was copied from another cache; names both identities.
    """
    if manifest.identity != plan.identity:
        raise CacheError(
            f"{folder}: {MANIFEST_NAME} is of cache {manifest.identity}, {PLAN_NAME} of cache {plan.identity}: files "
            "of two caches are mixed in it; move the folder away, and copy or compute the cache anew"
        )


def check_folder_name(folder: Path, plan: Plan) -> None:
    """Compare the identity in a folder's name with the plan's, if it is named as stage 1 names its folders.

    Caches made from others have the names that their users chose.

    Raises:
        CacheError: another cache was put under this name; names both identities.
    """
    named = _NAMED_BY_IDENTITY.fullmatch(folder.name)
    if named is None or DERIVED_KEY in plan.identity_fields or plan.identity.startswith(named[1]):
        return
    raise CacheError(
        f"{folder}: named after cache {named[1]}…, and holds cache {plan.identity} of recipe {plan.name!r}; move it "
        f"away or rename it to {cache_folder_name(plan.name, plan.identity)}"
    )
