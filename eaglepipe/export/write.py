"""Writes a draft as one engine loads it: weights, config and card, checked first and then visible at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.drafts.folder import CONFIG_FILE, WEIGHTS_FILE, read_draft_folder
from eaglepipe.errors import DraftError
from eaglepipe.export.card import model_card
from eaglepipe.export.check.check import TargetSizes, check_folder
from eaglepipe.export.check.findings import Finding
from eaglepipe.export.engine_config import engine_config, public_name
from eaglepipe.export.engines import Engine
from eaglepipe.export.layouts import LAYOUTS, layout_tensors, require_servable
from eaglepipe.export.trained import TrainedDraft, open_trained
from eaglepipe.files.publish import publish_bytes, publish_json, published_folder
from eaglepipe.files.tensors import publish_tensors

CARD_FILE = "README.md"
FILES = (WEIGHTS_FILE, CONFIG_FILE, CARD_FILE)
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
DEFAULT_DTYPE = "bfloat16"


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """What was written."""

    folder: Path
    engine: Engine
    dtype: str
    tensors: int
    bytes: int
    warnings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "engine": self.engine,
            "dtype": self.dtype,
            "tensors": self.tensors,
            "bytes": self.bytes,
            "warnings": [f"{finding.name}: {finding.message}" for finding in self.warnings],
        }


def export_draft(
    source: Path,
    engine: Engine,
    *,
    out: Path | None = None,
    dtype: str = DEFAULT_DTYPE,
    target_name: str | None = None,
) -> ExportResult:
    """Export the draft of a run folder, or a draft folder, for one engine.

    Args:
        out: the folder to write; by default `export/<engine>` in the run folder, `<draft>-<engine>` beside a draft.
        dtype: of the stored weights; training keeps float32 masters.
        target_name: the target's name on the Hub, where the run only knows a local path.

    Raises:
        DraftError: there is no whole draft, the engine cannot serve it, or `out` holds something else.
        CorruptError: a file of the draft is damaged.
    """
    if dtype not in DTYPES:
        raise DraftError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    draft, layout = open_trained(source), LAYOUTS[engine]
    require_servable(draft, layout)
    out = out or default_folder(source, draft, engine)
    _require_replaceable(out)
    name = target_name or public_name(draft.target.name) or "target"
    config = engine_config(draft, layout, dtype=dtype, target_name=name, draft_tokens=_draft_tokens(draft))
    tensors = layout_tensors(draft, layout, DTYPES[dtype])
    with published_folder(out) as folder:
        publish_tensors(folder / WEIGHTS_FILE, tensors)
        publish_json(folder / CONFIG_FILE, config)
        publish_bytes(folder / CARD_FILE, model_card(draft, engine, dtype=dtype, target_name=name).encode())
        warnings = _own_check(folder, draft, engine)
    return ExportResult(
        folder=out,
        engine=engine,
        dtype=dtype,
        tensors=len(tensors),
        bytes=(out / WEIGHTS_FILE).stat().st_size,
        warnings=warnings,
    )


def default_folder(source: Path, draft: TrainedDraft, engine: Engine) -> Path:
    """Inside the run; beside a draft folder that is given alone."""
    if draft.folder == source:
        return source.with_name(f"{source.resolve().name}-{engine}")
    return source / "export" / engine


def _draft_tokens(draft: TrainedDraft) -> int:
    """What a server drafts at once by default: the training's depth, at most 5."""
    recipe = draft.record.recipe
    if recipe is None:
        return 5
    return min(5, recipe.train.depths)


def _own_check(folder: Path, draft: TrainedDraft, engine: Engine) -> tuple[Finding, ...]:
    """What is published passes the check that strangers' folders must pass; a failure is our mistake or a bad weight.

    Custom layers may look like another convention's, which a check without the run has to suspect.
    """
    target = TargetSizes(depth=draft.target.depth, model_type=draft.target.model_type)
    report = check_folder(read_draft_folder(folder), engine, target)
    known = [finding for finding in report.findings if not finding.is_suspicion]
    faults = [finding for finding in known if finding.severity == "error"]
    if faults:
        raise DraftError(f"{draft.folder}: nothing is exported\n  " + "\n  ".join(fault.line() for fault in faults))
    return tuple(known)


def _require_replaceable(out: Path) -> None:
    if not out.exists():
        return
    strange = sorted({path.name for path in out.iterdir()} - set(FILES)) if out.is_dir() else [out.name]
    if strange:
        raise DraftError(
            f"{out}: holds {', '.join(strange[:5])}, which is no earlier export; give --out another folder"
        )
