"""Opens the draft to be exported, with the record of its run if there is one, or a draft folder alone in any layout."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from eaglepipe.cache.manifest import Manifest
from eaglepipe.cache.opening import load_manifest
from eaglepipe.cache.storage import caches_of
from eaglepipe.drafts.aux_ids import boundaries_of
from eaglepipe.drafts.block_config import read_boundaries
from eaglepipe.drafts.config_types import config_faults
from eaglepipe.drafts.folder import StoredDraft, read_draft_folder
from eaglepipe.drafts.reading import Ids, layer_config, read_aux, read_mask_token, read_rope
from eaglepipe.drafts.shape import DraftShape, tensor_faults, tensor_shapes
from eaglepipe.errors import DraftError, EaglepipeError
from eaglepipe.export.block_engines import BlockDraft
from eaglepipe.export.run_figures import read_figures
from eaglepipe.export.target_facts import TargetFacts, read_target_facts, target_embeddings
from eaglepipe.families import default_boundaries
from eaglepipe.files.digests import check_digests
from eaglepipe.files.json_object import read_json_object, text_config
from eaglepipe.files.tensors import CONFIG_FILE
from eaglepipe.recipe.load import load_recipe
from eaglepipe.recipe.tree import Recipe
from eaglepipe.training.run.checkpoint import trained_cache

RECIPE_FILE, TRAIN_FILE, EVAL_FILE = "recipe.yaml", "train.json", "eval.json"
TARGET_CONFIG_FILE = "target_config.json"
_TARGET_FIELDS = ("architectures", "model_type", "num_hidden_layers")
REQUIRED = ("rms_norm_eps", "max_position_embeddings")
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
    recipe: Recipe | None  # of its run, as is the rest; None or empty if it is gone
    train: dict[str, Any]
    evaluation: dict[str, Any]
    cache: Manifest | None  # the first that it was trained from

    @property
    def block_draft(self) -> BlockDraft | None:
        """What rules about block drafts are about, None of other families."""
        if self.shape.block is None:
            return None
        return BlockDraft(
            shape=self.shape,
            block=self.shape.block,
            boundaries=self.boundaries,
            mask_token_id=self.mask_token_id,
            target_depth=self.target.depth,
            target_type=self.target.model_type,
            rope=self.rope,
        )


def open_trained(folder: Path, target_folder: Path | None = None) -> TrainedDraft:
    """Open a run folder (with `draft/` inside) or a draft folder, and check that the draft is whole.

    The target's folder adds facts about it, and its token embeddings if the draft folder has none.

    Raises:
        DraftError: there is no draft, no engine serves its family, tensors are missing or misshapen, or its aux layers
            are ambiguous.
        CorruptError: a file is damaged.
    """
    draft_folder = folder if (folder / CONFIG_FILE).is_file() else folder / "draft"
    config_file = draft_folder / CONFIG_FILE
    if not config_file.is_file():
        for published in (folder, draft_folder):
            check_digests(published)  # names a config that was there
        raise DraftError(f"{folder}: neither a run folder with a finished draft/ nor a draft folder")
    draft = read_draft_folder(draft_folder)
    run = draft_folder.parent if draft_folder.name == "draft" else draft_folder
    recipe = load_recipe(run / RECIPE_FILE) if (run / RECIPE_FILE).is_file() else None
    cache, target_config = _read_cache(run, recipe)
    shape = draft.shape if recipe is None else replace(draft.shape, family=recipe.train.family)
    if not shape.family.engine_architectures:
        raise DraftError(f"{draft_folder}: no engine is known to serve {shape.family.draft_label} drafts")
    optional = OPTIONAL if shape.block is None or shape.has_vocab_map else {*OPTIONAL, "lm_head.weight"}
    if faults := sorted(tensor_faults(draft.tensors, tensor_shapes(shape), optional=optional)):
        raise DraftError(f"{draft_folder}: not a draft that can be exported\n  " + "\n  ".join(faults))
    if (rope := read_rope(draft.config)) is None:
        raise DraftError(f"{config_file}: no rope_theta; add the one that the draft was trained with")
    if absent := [name for name in REQUIRED if layer_config(draft.config).get(name) is None]:
        raise DraftError(f"{config_file}: no {' and no '.join(absent)}; add what the draft was trained with")
    target = _target_facts(draft.config, recipe, target_config)
    tensors, embeddings_trained = draft.tensors, _embeddings_trained(draft, recipe)
    if target_folder is not None:
        target = target.joined(read_target_facts(target_folder))
        if not shape.has_own_width and (shape.block is None or "embed_tokens.weight" in tensors):
            theirs = target_embeddings(target_folder, shape.vocab_size, shape.hidden_size)
            ours = tensors.setdefault("embed_tokens.weight", theirs)
            if embeddings_trained is None:
                embeddings_trained = not torch.equal(ours.to(theirs.dtype), theirs)
    boundaries = None
    if shape.block is not None:
        boundaries = read_boundaries(draft.config) or (None if cache is None else tuple(cache.spec.aux_layer_ids))
    elif shape.family.reads_aux:
        boundaries = _boundaries(config_file, draft.config, cache, target, has_run=recipe is not None)
    return TrainedDraft(
        folder=draft_folder,
        shape=shape,
        tensors=tensors,
        config=dict(layer_config(draft.config)),
        rope=rope,
        boundaries=boundaries,
        mask_token_id=read_mask_token(draft.config),
        embeddings_trained=embeddings_trained,
        target=target,
        recipe=recipe,
        train=read_figures(run / TRAIN_FILE),
        evaluation=_read_if_there(run / EVAL_FILE),
        cache=cache,
    )


def _read_cache(run: Path, recipe: Recipe | None) -> tuple[Manifest | None, dict[str, Any]]:
    """Return manifest and target config of a run's first cache, which may be gone."""
    if recipe is None:
        return None, {}
    try:
        folder = caches_of(recipe, identity=trained_cache(run / "checkpoints"))[0].folder
        target = text_config(_read_if_there(folder / TARGET_CONFIG_FILE))
        is_damaged = any(config_faults({name: target.get(name) for name in _TARGET_FIELDS}))
        return load_manifest(folder), {} if is_damaged else target
    except EaglepipeError:
        return None, {}


def _read_if_there(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _target_facts(config: dict[str, Any], recipe: Recipe | None, target: dict[str, Any]) -> TargetFacts:
    verifier = (config.get("speculators_config") or {}).get("verifier") or {}
    depths = ((config, "target_num_hidden_layers"), (target, "num_hidden_layers"), (config, "num_target_layers"))
    is_for_gpt_oss = any("GptOss" in str(name) for name in config.get("architectures") or ())  # a class of their own
    return TargetFacts(
        name=verifier.get("name_or_path") if recipe is None else recipe.target.path,
        architectures=tuple(target.get("architectures") or verifier.get("architectures") or ()),
        model_type="gpt_oss" if is_for_gpt_oss else target.get("model_type"),
        depth=next((level[name] for level, name in depths if level.get(name)), None),
    )


def _boundaries(
    file: Path, config: dict[str, Any], cache: Manifest | None, target: TargetFacts, *, has_run: bool
) -> Ids | None:
    """Return custom boundaries, None for the default ones; without the target's depth, ids count as custom."""
    top, nested = read_aux(config)
    ids = top or (None if cache is None else tuple(cache.spec.aux_layer_ids)) or boundaries_of(config, target.depth)
    if ids is None and nested is not None:
        raise DraftError(
            f"{file}: eagle_config names aux layers {list(nested)}, which may be boundaries or "
            "layer outputs; add eagle_aux_hidden_state_layer_ids with the boundaries at the top level"
        )
    if ids is None and has_run:
        raise DraftError(
            f"{file}: it does not name the aux layers, and the run's cache, which names them, is not found; "
            "set EAGLEPIPE_CACHE_ROOT, or add eagle_aux_hidden_state_layer_ids (boundaries) to it"
        )
    return None if target.depth is not None and ids == default_boundaries(target.depth) else ids


def _embeddings_trained(draft: StoredDraft, recipe: Recipe | None) -> bool | None:
    if "embed_tokens.weight" not in draft.tensors:
        return False
    if draft.shape.has_own_width:
        return True
    if recipe is not None:
        return not recipe.draft.freeze_embeddings
    recorded = draft.config.get("embed_requires_grad")
    return recorded if isinstance(recorded, bool) else None
