"""Opens what is to be exported: a run folder, or a draft folder alone in any layout."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from eaglepipe.drafts.folder import CONFIG_FILE, read_draft_folder
from eaglepipe.drafts.reading import Ids, layer_config, read_aux, read_mask_token, read_rope, read_shape
from eaglepipe.drafts.shape import DraftShape, canonical_tensors, tensor_shapes
from eaglepipe.eagle.aux_layers import default_boundaries
from eaglepipe.errors import DraftError
from eaglepipe.export.record import RunRecord, read_record

OPTIONAL = {"embed_tokens.weight", "fc.bias"}


@dataclass(frozen=True, kw_only=True)
class TargetFacts:
    """What is known of the target; None where neither the draft's config nor the cache says it."""

    name: str | None
    depth: int | None
    model_type: str | None
    architectures: tuple[str, ...]


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

    @property
    def selected_token_ids(self) -> torch.Tensor:
        """Target ids of the draft vocabulary, int64 [D]."""
        ids = torch.arange(self.shape.draft_vocab_size)
        return ids + self.tensors["d2t"].long() if self.shape.has_vocab_map else ids


def open_trained(folder: Path) -> TrainedDraft:
    """Open a run folder (with `draft/` inside) or a draft folder, and check that the draft is whole.

    Raises:
        DraftError: there is no draft, tensors are missing or misshapen, or its aux layers cannot be told.
        CorruptError: a file is damaged.
    """
    is_run = not (folder / CONFIG_FILE).is_file()
    draft_folder = folder / "draft" if is_run else folder
    if not (draft_folder / CONFIG_FILE).is_file():
        raise DraftError(f"{folder}: neither a run folder with a finished draft/ nor a draft folder")
    stored = read_draft_folder(draft_folder)
    record = read_record(draft_folder.parent if draft_folder.name == "draft" else draft_folder)
    tensors = canonical_tensors(stored.tensors)
    shape = read_shape(stored.config, tensors)
    _check_whole(draft_folder, shape, tensors)
    rope = read_rope(stored.config)
    if rope is None:
        raise DraftError(f"{draft_folder / CONFIG_FILE}: no rope_theta; add the one that the draft was trained with")
    target = _target_facts(stored.config, record)
    return TrainedDraft(
        folder=draft_folder,
        shape=shape,
        tensors=tensors,
        config=dict(layer_config(stored.config)),
        rope=rope,
        boundaries=None if shape.family == "eagle1" else _boundaries(draft_folder, stored.config, record, target),
        mask_token_id=read_mask_token(stored.config),
        embeddings_trained=_embeddings_trained(shape, record, tensors),
        target=target,
        record=record,
    )


def _check_whole(folder: Path, shape: DraftShape, tensors: dict[str, torch.Tensor]) -> None:
    expected = tensor_shapes(shape)
    faults = [f"missing {name}" for name in expected.keys() - tensors.keys() - OPTIONAL]
    faults += [
        f"{name} is {tuple(tensors[name].shape)}, expected {size}"
        for name, size in expected.items()
        if name in tensors and tuple(tensors[name].shape) != size
    ]
    faults += [f"unknown {name}" for name in tensors.keys() - expected.keys()]
    if faults:
        raise DraftError(f"{folder}: not a draft that can be exported\n  " + "\n  ".join(sorted(faults)))


def _target_facts(config: dict[str, Any], record: RunRecord) -> TargetFacts:
    target = record.target_config
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    architectures = target.get("architectures") or verifier.get("architectures")
    return TargetFacts(
        name=verifier.get("name_or_path") if record.recipe is None else record.recipe.target.path,
        depth=config.get("target_num_hidden_layers") or target.get("num_hidden_layers"),
        model_type="gpt_oss" if _is_for_gpt_oss(config) else target.get("model_type"),
        architectures=tuple(architectures or ()),
    )


def _is_for_gpt_oss(config: dict[str, Any]) -> bool:
    """Drafts for gpt-oss are a class of their own here."""
    return any("GptOss" in str(name) for name in config.get("architectures") or ())


def _boundaries(folder: Path, config: dict[str, Any], record: RunRecord, target: TargetFacts) -> Ids | None:
    """The custom boundaries, None for the default ones; without the target's depth, ids are kept as they are."""
    spelling = read_aux(config)
    ids = spelling.top or (None if record.cache is None else record.cache.aux_layer_ids)
    if ids is None and spelling.eagle is not None:
        raise DraftError(
            f"{folder / CONFIG_FILE}: eagle_config names aux layers {list(spelling.eagle)}, which may be boundaries or "
            "layer outputs; say which by adding eagle_aux_hidden_state_layer_ids with the boundaries at the top level"
        )
    if ids is None and record.recipe is not None:
        raise DraftError(
            f"{folder / CONFIG_FILE}: it does not name the aux layers, and the run's cache, which does, is not found; "
            "set EAGLEPIPE_CACHE_ROOT, or add eagle_aux_hidden_state_layer_ids (boundaries) to it"
        )
    is_default = target.depth is not None and ids == default_boundaries(target.depth)
    return None if is_default else ids


def _embeddings_trained(shape: DraftShape, record: RunRecord, tensors: dict[str, torch.Tensor]) -> bool | None:
    if "embed_tokens.weight" not in tensors:
        return False
    if shape.hidden_size != shape.target_hidden_size:
        return True
    return None if record.recipe is None else not record.recipe.draft.freeze_embeddings
