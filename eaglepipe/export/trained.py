"""Opens the draft to be exported: that of a run folder, or a draft folder alone in any layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.drafts.folder import CONFIG_FILE, StoredDraft, read_draft_folder
from eaglepipe.drafts.reading import Ids, layer_config, read_aux, read_mask_token, read_rope
from eaglepipe.drafts.shape import DraftShape, tensor_faults, tensor_shapes
from eaglepipe.eagle.aux_layers import default_boundaries
from eaglepipe.errors import DraftError
from eaglepipe.export.record import RunRecord, read_record
from eaglepipe.export.target_facts import TargetFacts

OPTIONAL = {"embed_tokens.weight", "fc.bias"}


@dataclass(frozen=True, kw_only=True)
class TrainedDraft:
    """A draft apart from any layout."""

    folder: Path
    shape: DraftShape
    tensors: dict[str, torch.Tensor]  # by canonical name
    config: dict[str, Any]  # the level that holds the sizes
    rope: dict[str, Any]
    boundaries: Ids | None  # None: the default ones
    mask_token_id: int | None
    embeddings_trained: bool | None  # None: not known
    target: TargetFacts
    record: RunRecord


def open_trained(folder: Path) -> TrainedDraft:
    """Open a run folder (with `draft/` inside) or a draft folder, and check that the draft is whole.

    Raises:
        DraftError: there is no draft, tensors are missing or misshapen, or its aux layers are ambiguous.
        CorruptError: a file is damaged.
    """
    draft_folder = folder if (folder / CONFIG_FILE).is_file() else folder / "draft"
    config_file = draft_folder / CONFIG_FILE
    if not config_file.is_file():
        raise DraftError(f"{folder}: neither a run folder with a finished draft/ nor a draft folder")
    draft = read_draft_folder(draft_folder)
    record = read_record(draft_folder.parent if draft_folder.name == "draft" else draft_folder)
    if faults := sorted(tensor_faults(draft.tensors, tensor_shapes(draft.shape), optional=OPTIONAL)):
        raise DraftError(f"{draft_folder}: not a draft that can be exported\n  " + "\n  ".join(faults))
    rope = read_rope(draft.config)
    if rope is None:
        raise DraftError(f"{config_file}: no rope_theta; add the one that the draft was trained with")
    target = _target_facts(draft.config, record)
    return TrainedDraft(
        folder=draft_folder,
        shape=draft.shape,
        tensors=draft.tensors,
        config=dict(layer_config(draft.config)),
        rope=rope,
        boundaries=_boundaries(config_file, draft, record, target) if draft.shape.family.reads_aux else None,
        mask_token_id=read_mask_token(draft.config),
        embeddings_trained=_embeddings_trained(draft, record),
        target=target,
        record=record,
    )


def _target_facts(config: dict[str, Any], record: RunRecord) -> TargetFacts:
    target = record.target_config
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    is_for_gpt_oss = any("GptOss" in str(name) for name in config.get("architectures") or ())  # a class of their own
    return TargetFacts(
        name=verifier.get("name_or_path") if record.recipe is None else record.recipe.target.path,
        architectures=tuple(target.get("architectures") or verifier.get("architectures") or ()),
        model_type="gpt_oss" if is_for_gpt_oss else target.get("model_type"),
        depth=config.get("target_num_hidden_layers") or target.get("num_hidden_layers"),
    )


def _boundaries(config_file: Path, draft: StoredDraft, record: RunRecord, target: TargetFacts) -> Ids | None:
    """Return custom boundaries, None for the default ones; without the target's depth, ids count as custom."""
    spelling = read_aux(draft.config)
    ids = spelling.top or (None if record.cache is None else tuple(record.cache.spec.aux_layer_ids))
    if ids is None and spelling.nested is not None:
        raise DraftError(
            f"{config_file}: eagle_config names aux layers {list(spelling.nested)}, which may be boundaries or "
            "layer outputs; add eagle_aux_hidden_state_layer_ids with the boundaries at the top level"
        )
    if ids is None and record.recipe is not None:
        raise DraftError(
            f"{config_file}: it does not name the aux layers, and the run's cache, which names them, is not found; "
            "set EAGLEPIPE_CACHE_ROOT, or add eagle_aux_hidden_state_layer_ids (boundaries) to it"
        )
    is_default = target.depth is not None and ids == default_boundaries(target.depth)
    return None if is_default else ids


def _embeddings_trained(draft: StoredDraft, record: RunRecord) -> bool | None:
    if "embed_tokens.weight" not in draft.tensors:
        return False
    if draft.shape.has_own_width:
        return True
    return None if record.recipe is None else not record.recipe.draft.freeze_embeddings
