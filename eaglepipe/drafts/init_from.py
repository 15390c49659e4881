"""The other way round: training starts from a published draft, in any layout."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from eaglepipe.drafts.aux_ids import to_boundaries
from eaglepipe.drafts.folder import DraftFolder, draft_weight_files, read_draft_folder
from eaglepipe.drafts.reading import Ids, read_aux, read_rope, read_shape
from eaglepipe.drafts.shape import DraftShape, canonical_name, canonical_tensors
from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.files.hashing import hash_file, hash_json
from eaglepipe.vocab import DraftVocab

SETTINGS = {
    "num_layers": "num_hidden_layers",
    "hidden_size": "hidden_size",
    "intermediate_size": "intermediate_size",
    "num_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "attention_bias": "attention_bias",
    "fc_norm": "fc_norm",
    "norm_output": "norm_output",
}
"""What of a shape a recipe's `draft` section sets, and under which name."""
_MAPS = ("d2t", "t2d")


def start_digest(folder: Path) -> str:
    """Of the bytes of a published draft's weights: what a run that started from it must agree with when it resumes."""
    return hash_json([hash_file(path) for path in draft_weight_files(folder)])


def published_vocab(folder: Path, counts: torch.Tensor) -> DraftVocab:
    """The vocabulary of a published draft, for a cache whose tokens were counted, int64 [V].

    Raises:
        DraftError: its map is missing, does not lead to ascending ids, or is for another target vocabulary.
    """
    stored = read_draft_folder(folder)
    tensors = canonical_tensors(stored.tensors)
    shape = read_shape(stored.config, tensors)
    if shape.vocab_size != len(counts):
        raise DraftError(f"{folder}: for a target of {shape.vocab_size:,} tokens, the cache's has {len(counts):,}")
    ids = _vocab(folder, shape, tensors)
    mask = torch.zeros(shape.vocab_size, dtype=torch.bool).index_fill(0, ids, True)
    return DraftVocab(selected_token_ids=ids, selected_token_mask=mask, counts=counts)


@torch.no_grad()
def start_from(draft: PreTrainedModel, folder: Path) -> tuple[str, ...]:
    """Give a freshly built draft the weights of a published one; what that one lacks stays as it was built.

    Returns: what a user should know of the difference, a line each.

    Raises:
        DraftError: it is another kind of draft, or of another shape, vocabulary or target layers; each is named.
        CorruptError: a file is damaged, or a weight is not finite.
    """
    stored = read_draft_folder(folder)
    tensors = canonical_tensors(stored.tensors)
    shape = read_shape(stored.config, tensors)
    own = {canonical_name(name): tensor for name, tensor in draft.state_dict().items()}
    built = read_shape(draft.config.to_dict(), own)
    _check_kind(folder, shape, built)
    _check_settings(folder, shape, built)
    _check_vocab(folder, shape, built, tensors, own)
    _check_layers(folder, stored, draft.config)
    _check_tensors(folder, shape, tensors, own)
    taken = [name for name in own if name in tensors and name not in _MAPS]
    for name in taken:
        own[name].copy_(tensors[name])
    return tuple(_notes(folder, stored, draft.config.to_dict(), own, taken))


def _check_kind(folder: Path, shape: DraftShape, built: DraftShape) -> None:
    if (shape.family == "eagle1") != (built.family == "eagle1"):
        raise DraftError(f"{folder}: an {shape.family} draft cannot start an {built.family} one")
    for name in ("norm_before_fc", "norm_before_residual"):
        if getattr(shape, name):
            raise DraftError(f"{folder}: it has {name}, which drafts here do not have")
    for name in ("vocab_size", "target_hidden_size", "num_aux"):
        if getattr(shape, name) != getattr(built, name):
            raise DraftError(f"{folder}: its {name} is {getattr(shape, name)}, here it is {getattr(built, name)}")


def _check_settings(folder: Path, shape: DraftShape, built: DraftShape) -> None:
    differing = [name for name in SETTINGS if getattr(shape, name) != getattr(built, name)]
    if differing:
        wanted = " ".join(f"draft.{SETTINGS[name]}={_yaml(getattr(shape, name))}" for name in differing)
        raise DraftError(f"{folder}: a draft of another shape than the recipe's; start from it with {wanted}")


def _yaml(value: int | bool) -> str:
    return str(value).lower()


def _check_vocab(
    folder: Path,
    shape: DraftShape,
    built: DraftShape,
    tensors: Mapping[str, torch.Tensor],
    own: Mapping[str, torch.Tensor],
) -> None:
    if shape.family == "eagle1":
        return
    published, cached = _vocab(folder, shape, tensors), _vocab(folder, built, own)
    if torch.equal(published, cached):
        return
    if len(published) != len(cached):
        what = f"{len(published):,} tokens, the cache's {len(cached):,}"
    else:
        shared = int(torch.isin(published, cached).sum())
        what = f"{len(published) - shared:,} tokens of {len(published):,} that the cache's has not"
    raise DraftError(
        f"{folder}: its draft vocabulary has {what}, and they must match; "
        f"`eaglepipe cache recode NEW CACHE --vocab-from {folder}` makes such a cache of one with `hidden` supervision"
    )


def _vocab(folder: Path, shape: DraftShape, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor:
    ids = torch.arange(shape.draft_vocab_size)
    if not shape.has_vocab_map:
        return ids
    offsets = tensors.get("d2t")
    if offsets is None or offsets.shape != ids.shape or offsets.is_floating_point():
        raise DraftError(f"{folder}: no d2t with the offsets of {len(ids):,} draft ids to target ids")
    ids = ids + offsets.long()
    ascending = bool((ids[1:] > ids[:-1]).all())
    if not ascending or int(ids[0]) < 0 or int(ids[-1]) >= shape.vocab_size:
        raise DraftError(f"{folder}: its d2t does not lead to ascending target ids; see `eaglepipe export --check`")
    return ids


def _check_layers(folder: Path, stored: DraftFolder, config: Any) -> None:
    """Ids without a second spelling may be boundaries or layer outputs; either reading that fits the cache is right."""
    built = tuple(getattr(config, "eagle_aux_hidden_state_layer_ids", None) or ())
    if not built:
        return
    spelling = read_aux(stored.config)
    readings: list[Ids] = []
    if spelling.top:
        readings.append(spelling.top)
    if spelling.eagle:
        readings += [to_boundaries(spelling.eagle), *([] if spelling.top else [spelling.eagle])]
    if not readings and config.eagle_aux_layers_are_default:
        return
    if built not in readings:
        named = " or ".join(str(list(ids)) for ids in readings) or "the default layers"
        raise DraftError(
            f"{folder}: it reads target layers {named}, here boundaries {list(built)} are read; draft.aux_layer_ids "
            "chooses among those that the cache keeps"
        )


def _check_tensors(
    folder: Path, shape: DraftShape, tensors: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]
) -> None:
    faults = [
        f"{name} is {tuple(tensors[name].shape)}, here {tuple(own[name].shape)}"
        for name in own
        if name in tensors and name not in _MAPS and tensors[name].shape != own[name].shape
    ]
    faults += [f"missing {name}" for name in own if name not in tensors and not _may_lack(name, shape)]
    faults += [f"unknown {name}" for name in tensors if name not in own and not _may_have(name, tensors[name])]
    if faults:
        raise DraftError(f"{folder}: its tensors do not fit\n  " + "\n  ".join(sorted(faults)))
    for name in own:
        if name in tensors and not bool(torch.isfinite(tensors[name]).all()):
            raise CorruptError(f"{folder}: {name} holds NaN or infinite values")


def _may_lack(name: str, shape: DraftShape) -> bool:
    shares_head = name == "lm_head.weight" and not shape.has_vocab_map
    return shares_head or name in ("embed_tokens.weight", "mask_hidden", *_MAPS)


def _may_have(name: str, tensor: torch.Tensor) -> bool:
    is_second_name = name.startswith("layers.") and name.endswith(".hidden_norm.weight")
    return is_second_name or name in _MAPS or (name == "fc.bias" and not bool(tensor.any()))


def _notes(
    folder: Path,
    stored: DraftFolder,
    config: Mapping[str, Any],
    own: Mapping[str, torch.Tensor],
    taken: list[str],
) -> Iterator[str]:
    left = [name for name in own if name not in taken and name not in _MAPS]
    rest = f"; {', '.join(left)} as built here" if left else ""
    yield f"{folder}: starting from its {len(taken)} tensors{rest}"
    published, built = read_rope(stored.config), read_rope(config)
    theta = 10000.0 if published is None else published["rope_theta"]
    if built is not None and theta != built["rope_theta"]:
        yield f"{folder}: published with rope theta {theta:g}; this draft has the target's, {built['rope_theta']:g}"
