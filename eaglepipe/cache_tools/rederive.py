"""The command that makes a merged or recoded cache again."""

import shlex
from pathlib import Path

from eaglepipe.cache.identity import DERIVED_KEY, IDENTITY_PREFIX
from eaglepipe.cache.manifest import Plan
from eaglepipe.cache.storage import list_caches
from eaglepipe.cache.supervision.kind import ENTRY_SETTINGS, KINDS

_NEW_FOLDER = "NEW_FOLDER"


def command_of(folder: Path, plan: Plan) -> str:
    """Return the command; sources that are beside the cache are named by their folders, others by identity."""
    origin = plan.identity_fields[DERIVED_KEY]
    if "merged" in origin:
        parts = " ".join(_place(folder, identity) for identity in origin["merged"])
        return f"eaglepipe cache merge {_NEW_FOLDER} {parts}"
    changes = origin["to"]
    options = {"supervision": changes["supervision"], "aux-codec": changes["aux_codec"]}
    if KINDS[changes["supervision"]].codec_setting is not None:
        options["codec"] = changes["supervision_codec"]
    options |= {name.replace("_", "-"): changes[name] for name in ENTRY_SETTINGS if name in changes}
    if "draft_vocabulary" in changes:
        options["vocab-from"] = shlex.quote(str(folder))
    written = " ".join(f"--{name} {value}" for name, value in options.items())
    return f"eaglepipe cache recode {_NEW_FOLDER} {_place(folder, origin['recoded'])} {written}"


def _place(folder: Path, identity: str) -> str:
    for cache in list_caches(folder.resolve().parent):
        if cache.plan.identity == identity and cache.manifest is not None:
            return shlex.quote(str(cache.folder))
    return f"CACHE_{identity[:IDENTITY_PREFIX]}"
