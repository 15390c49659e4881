"""Writes a draft as one engine loads it: weights, config and card, checked before they become visible at once."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eaglepipe.drafts.folder import WEIGHTS_FILE
from eaglepipe.errors import DraftError
from eaglepipe.export.card import model_card
from eaglepipe.export.check.check import UNCAPTURED, check_draft
from eaglepipe.export.check.findings import Finding, warning
from eaglepipe.export.engine_config import engine_config
from eaglepipe.export.engine_tensors import engine_tensors, require_servable
from eaglepipe.export.layouts import LAYOUTS, Engine, Layout
from eaglepipe.export.target_facts import public_name
from eaglepipe.export.trained import TrainedDraft, open_trained
from eaglepipe.files.digests import DIGESTS_FILE, publish_digests
from eaglepipe.files.publish import publish_bytes, publish_json, published_folder
from eaglepipe.files.tensors import CONFIG_FILE, publish_tensors

CARD_FILE = "README.md"
FILES = {WEIGHTS_FILE, CONFIG_FILE, CARD_FILE, DIGESTS_FILE}
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}
MAX_DRAFT_TOKENS = 5
"""Tokens that a server drafts at once by default, unless the training was less deep."""


@dataclass(frozen=True, kw_only=True)
class ExportResult:
    """A written export."""

    folder: Path
    engine: Engine
    dtype: str
    tensors: int
    bytes: int
    warnings: tuple[Finding, ...]

    def to_json(self) -> dict[str, Any]:
        warnings = [f"{finding.name}: {finding.message}" for finding in self.warnings]
        return {**vars(self), "folder": str(self.folder), "warnings": warnings}


def export_draft(
    source: Path,
    engine: Engine,
    *,
    out: Path | None = None,
    dtype: str = "bfloat16",
    target_name: str | None = None,
    target: Path | None = None,
) -> ExportResult:
    """Export the draft of a run folder, or a draft folder, for one engine.

    Args:
        out: the folder to write; by default `export/<engine>` in the run folder, `<draft>-<engine>` beside a draft.
        dtype: of the stored weights; training keeps float32 masters.
        target_name: the target's name on the Hub, if the run only knows a local path.
        target: the target's folder, which gives what the draft's own lacks: token embeddings, the number of layers.

    Raises:
        DraftError: there is no whole draft, the engine cannot serve it, or `out` holds something else.
        CorruptError: a file of the draft is damaged.
    """
    if dtype not in DTYPES:
        raise DraftError(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    if target_name is not None and not target_name.isprintable():
        raise DraftError(f"{target_name!r} is not the name of a target; give its Hub id")
    draft, layout = open_trained(source, target), LAYOUTS[engine]
    require_servable(draft, layout)
    is_run = draft.folder != source
    out = out or (source / "export" / engine if is_run else source.with_name(f"{source.resolve().name}-{engine}"))
    _require_replaceable(out)
    name = target_name or public_name(draft.target.name) or "target"
    draft_tokens = min(MAX_DRAFT_TOKENS, MAX_DRAFT_TOKENS if draft.recipe is None else draft.recipe.train.depths)
    if draft.shape.block is not None:
        draft_tokens = draft.shape.block.num_guesses or draft_tokens
    config = engine_config(draft, layout, dtype=dtype, target_name=name, draft_tokens=draft_tokens)
    tensors = engine_tensors(draft, layout, DTYPES[dtype])
    with published_folder(out) as folder:
        card = str(model_card(draft, layout, dtype=dtype, target_name=name)).encode(errors="replace")
        digests = {
            WEIGHTS_FILE: publish_tensors(folder / WEIGHTS_FILE, tensors),
            CONFIG_FILE: publish_json(folder / CONFIG_FILE, config),
            CARD_FILE: publish_bytes(folder / CARD_FILE, card),
        }
        publish_digests(folder, digests)
        warnings = (*_lost(draft, layout), *_check_own(folder, draft, engine))
    return ExportResult(
        folder=out,
        engine=engine,
        dtype=dtype,
        tensors=len(tensors),
        bytes=(out / WEIGHTS_FILE).stat().st_size,
        warnings=warnings,
    )


def _lost(draft: TrainedDraft, layout: Layout) -> Iterator[Finding]:
    """Yield a warning on token embeddings that are left out and may have been trained."""
    if draft.shape.block is not None:
        yield from _lost_from_block(draft, layout)
        return
    is_left_out = layout.embeddings == "other width" and not draft.shape.has_own_width
    if is_left_out and draft.embeddings_trained is None:
        reason = f"left out: {layout.engine} takes the target's, and whether these were trained is not known"
        yield warning("embed_tokens.weight", f"{reason}; --target TARGET compares them", "unexpected")


def _lost_from_block(draft: TrainedDraft, layout: Layout) -> Iterator[Finding]:
    """Yield a warning on embeddings or a head that are left out and may not be the target's."""
    if draft.recipe is not None or layout.embeddings == "own":
        return
    for name in ("embed_tokens.weight", "lm_head.weight"):
        is_known = name.startswith("embed") and draft.embeddings_trained is False
        if name in draft.tensors and not is_known and not (draft.shape.has_vocab_map and name.startswith("lm_head")):
            reason = f"left out: {layout.engine} takes the target's, and whether this is the same is not known"
            yield warning(name, reason, "unexpected")


def _check_own(folder: Path, draft: TrainedDraft, engine: Engine) -> tuple[Finding, ...]:
    """Check the folder before it is published, as any other draft folder, and return the warnings.

    Custom layers may look like another convention's, which a check without the run has to suspect.
    """
    report = check_draft(folder, engine, draft.target)
    findings = tuple(
        replace(finding, severity="warning") if finding.name == UNCAPTURED else finding
        for finding in report.findings
        if not finding.is_suspicion
    )
    if faults := [finding.line() for finding in findings if finding.severity == "error"]:
        raise DraftError(f"{draft.folder}: nothing is exported\n  " + "\n  ".join(faults))
    return findings


def _require_replaceable(out: Path) -> None:
    foreign = [out.name] if out.exists() else []
    if out.is_dir():
        foreign = sorted({path.name for path in out.iterdir()} - FILES)
    if foreign:
        listed = ", ".join(foreign[:5])
        raise DraftError(f"{out}: holds {listed}, so it is not an earlier export; give --out another folder")
