"""Adapters that lie in a target's folder.

transformers applies one by itself if `peft` is installed and ignores it otherwise, so such a folder names two models.
"""

import json
from pathlib import Path

from eaglepipe.errors import TargetError

ADAPTER_CONFIG = "adapter_config.json"


def check_no_adapter(folder: Path, path: str) -> None:
    """Check that a target's folder, written `path` in the recipe, holds no adapter.

    Raises:
        TargetError: it does; names the base model and the commands that merge the adapter into it.
    """
    adapters = [*sorted(folder.glob(ADAPTER_CONFIG)), *sorted(folder.glob("adapter_model*"))]
    if not adapters:
        return
    if (folder / "config.json").is_file():
        subject, base = f"{path}: an adapter ({adapters[0].name}) lies beside the weights", path
        remedy = "Move its files (adapter_*) elsewhere if the target is the model without it; otherwise merge it"
    else:
        subject, base = f"{path}: an adapter and not a model", _base_model(folder) or "BASE"
        remedy = f"Merge it into its base model ({base})"
    raise TargetError(
        f"{subject}, and whether it counts would depend on the installed packages. {remedy} once and name the merged "
        f"folder: AutoPeftModelForCausalLM.from_pretrained({path!r}).merge_and_unload().save_pretrained('merged') "
        f"(package peft), then AutoTokenizer.from_pretrained({base!r}).save_pretrained('merged')"
    )


def _base_model(folder: Path) -> str | None:
    try:
        name = json.loads((folder / ADAPTER_CONFIG).read_text(encoding="utf-8"))["base_model_name_or_path"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    return name if isinstance(name, str) else None
