"""Initialises a draft before training from a published one, in any layout."""

import json
from collections.abc import Iterator
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import torch
from transformers import PreTrainedModel

from eaglepipe.drafts.aux_ids import to_boundaries
from eaglepipe.drafts.block_config import block_differences, read_boundaries
from eaglepipe.drafts.block_shape import HEADS
from eaglepipe.drafts.folder import StoredDraft, draft_weight_files, read_draft_folder
from eaglepipe.drafts.published_vocab import selected_token_ids
from eaglepipe.drafts.reading import AUX_IDS, Ids, read_aux, read_rope
from eaglepipe.drafts.rope import rope_differences
from eaglepipe.drafts.shape import DraftShape, tensor_faults
from eaglepipe.errors import CorruptError, DraftError
from eaglepipe.files.hashing import hash_file, hash_json

SETTINGS = (
    "num_hidden_layers", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim",
    "attention_bias", "fc_norm", "norm_output", "norm_before_fc", "norm_before_residual", "qk_norm", "sliding_window",
    "full_attention_layers",
)  # fmt: skip
"""Fields of a shape that a recipe's `draft` section sets."""
LEFT_OUT = ("input_norm", "final_norm")
"""Norms that no engine serves, so that a draft is initialised without them unless the recipe keeps them."""
OWN_OF_FAMILY = (
    "sample_from_anchor", "markov_rank", "markov_head_type", "enable_confidence_head", "confidence_head_with_markov",
)  # fmt: skip
"""Settings of a block draft that its family decides."""
_VOCAB_MAPS = {"d2t", "t2d"}


def init_digest(folder: Path) -> str:
    """Return the digest of a published draft's weights: a run initialised from it resumes with the same ones only."""
    return hash_json([hash_file(path) for path in draft_weight_files(folder)])


@torch.no_grad()
def init_from(draft: PreTrainedModel, folder: Path) -> tuple[str, ...]:
    """Copy a published draft's weights into a freshly built one, and return notes on the differences, a line each.

    Tensors that the published draft lacks stay as they were built.

    Raises:
        DraftError: it is another kind of draft, or of another shape, vocabulary or target layers; each is named.
        CorruptError: a file is damaged, or a weight is not finite.
    """
    published = read_draft_folder(folder)
    built = StoredDraft(config=draft.config.to_dict(), raw_tensors=draft.state_dict())
    _check_shape(folder, published.shape, built.shape)
    if built.shape.family.has_draft_vocab:
        _check_vocab(folder, published, built)
    _check_layers(folder, published, built)
    _check_tensors(folder, published, built)
    copied = [name for name in built.tensors if name in published.tensors and name not in _VOCAB_MAPS]
    for name in copied:
        built.tensors[name].copy_(published.tensors[name])
    return tuple(_notes(folder, published, built, copied))


def _check_shape(folder: Path, published: DraftShape, built: DraftShape) -> None:
    one, other = published.family, built.family
    if (one.reads_aux, one.drafts_blocks) != (other.reads_aux, other.drafts_blocks):
        first, second = (
            f"{'an' if label[0] in 'AEIO' else 'a'} {label}" for label in (one.draft_label, other.draft_label)
        )
        raise DraftError(f"{folder}: {first} draft cannot initialise {second} draft")
    for name in ("vocab_size", "target_hidden_size", "num_aux", "hidden_act"):
        theirs, ours = getattr(published, name), getattr(built, name)
        if theirs != ours:
            raise DraftError(f"{folder}: its {name} is {theirs}, this draft's is {ours}")
    theirs, ours = _settings(published), _settings(built)
    if one != other:  # what a slot guesses, and heads that one of them lacks, are trained anew
        theirs = {name: value for name, value in theirs.items() if name not in OWN_OF_FAMILY}
    differing = [name for name in theirs if theirs[name] != ours.get(name)]
    differing += [name for name in LEFT_OUT if getattr(built, name) and not getattr(published, name)]
    known = resolve_name(built.family.recipe).model_fields["draft"].annotation.model_fields
    strays = [name for name in differing if name not in known]
    if strays := strays + [name for name in differing if theirs.get(name) == "rnn"]:  # of a Markov head
        label = built.family.draft_label
        raise DraftError(f"{folder}: its {strays[0]} is {theirs[strays[0]]}, which no {label} draft here has")
    if differing:
        values = {**theirs, **{name: getattr(published, name) for name in LEFT_OUT}}
        overrides = " ".join(f"draft.{name}={json.dumps(values[name])}" for name in differing)
        raise DraftError(f"{folder}: a draft of another shape than the recipe's; initialise from it with {overrides}")


def _settings(shape: DraftShape) -> dict[str, Any]:
    """Return the settings that decide a shape."""
    settings = {name: getattr(shape, name) for name in SETTINGS}
    if shape.block is None:
        return settings
    own = shape.block.settings
    if not shape.windows:
        del own["sliding_window_non_causal"]
    if not shape.block.markov_rank:
        del own["markov_head_type"]
    if not shape.block.confidence_head:
        del own["confidence_head_with_markov"]
    return {**settings, **own}


def _check_vocab(folder: Path, published: StoredDraft, built: StoredDraft) -> None:
    theirs, ours = selected_token_ids(folder, published), selected_token_ids(folder, built)
    if torch.equal(theirs, ours):
        return
    if len(theirs) != len(ours):
        difference = f"{len(theirs):,} tokens, the cache's {len(ours):,}"
    else:
        num_foreign = len(theirs) - int(torch.isin(theirs, ours).sum())
        difference = f"{num_foreign:,} tokens of {len(theirs):,} that are not in the cache's"
    raise DraftError(
        f"{folder}: its draft vocabulary has {difference}, and they must match; "
        f"`eaglepipe cache recode NEW CACHE --vocab-from {folder}` makes such a cache of one with `hidden` supervision"
    )


def _check_layers(folder: Path, published: StoredDraft, built: StoredDraft) -> None:
    """Ids without a second spelling may be boundaries or layer outputs; either reading that fits the cache is right."""
    boundaries = tuple(built.config.get(AUX_IDS) or ())
    if not boundaries:
        return
    top, nested = read_aux(published.config)
    if published.shape.block is not None:  # whose ids have one meaning
        top, nested = read_boundaries(published.config), None
    readings: list[Ids] = [top] if top else []
    if nested:
        readings += [to_boundaries(nested), *([] if top else [nested])]
    if not readings and built.config["eagle_aux_layers_are_default"]:
        return
    if boundaries not in readings:
        named = " or ".join(str(list(ids)) for ids in readings) or "the default layers"
        raise DraftError(
            f"{folder}: it reads target layers {named}, this draft boundaries {list(boundaries)}; "
            "draft.aux_layer_ids chooses among those that the cache keeps"
        )


def _check_tensors(folder: Path, published: StoredDraft, built: StoredDraft) -> None:
    expected = {name: tuple(tensor.shape) for name, tensor in built.tensors.items() if name not in _VOCAB_MAPS}
    optional = {"embed_tokens.weight", "mask_hidden"}
    if not published.shape.has_vocab_map:  # servers then share the target's head
        optional.add("lm_head.weight")
    if published.shape.family != built.shape.family:  # a head that the other family adds is trained from its start
        optional |= {name for name in expected if name.startswith(HEADS)}
    stored = published.tensors
    tensors = {name: stored[name] for name in stored if name in expected or not _is_redundant(name, stored[name])}
    if faults := sorted(tensor_faults(tensors, expected, optional=optional)):
        raise DraftError(f"{folder}: its tensors do not fit\n  " + "\n  ".join(faults))
    for name in expected:
        if name in tensors and not bool(torch.isfinite(tensors[name]).all()):
            raise CorruptError(f"{folder}: {name} holds NaN or infinite values")


LEFT_OUT_TENSORS = {"layers.0.input_layernorm.weight", "norm.weight"}


def _is_redundant(name: str, tensor: torch.Tensor) -> bool:
    is_second_name = name.startswith("layers.") and name.endswith(".hidden_norm.weight")
    return (
        is_second_name
        or name in _VOCAB_MAPS
        or name in LEFT_OUT_TENSORS
        or (name == "fc.bias" and not bool(tensor.any()))
    )


def _notes(folder: Path, published: StoredDraft, built: StoredDraft, copied: list[str]) -> Iterator[str]:
    left = [name for name in built.tensors if name not in copied and name not in _VOCAB_MAPS]
    rest = f"; {', '.join(left)} as newly built" if left else ""
    yield f"{folder}: initialised from its {len(copied)} tensors{rest}"
    if dropped := [name for name in LEFT_OUT if getattr(published.shape, name) and not getattr(built.shape, name)]:
        keep = " ".join(f"draft.{name}=true" for name in dropped)
        names = " and ".join(dropped)
        yield f"{folder}: left out its {names}, which no engine serves and training makes up for; keep with {keep}"
    yield from (f"{folder}: published with {text}" for text in block_differences(published.config, built.config))
    for difference in rope_differences(read_rope(published.config), read_rope(built.config)):
        yield f"{folder}: published with {difference}"
