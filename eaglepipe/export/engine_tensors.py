"""Selects and renames the tensors of a draft for one engine, and refuses drafts that it would serve wrongly."""

from collections.abc import Iterator

import torch

from eaglepipe.drafts.aux_ids import sglang_fault
from eaglepipe.drafts.shape import DraftShape
from eaglepipe.errors import DraftError
from eaglepipe.export.block_engines import block_faults
from eaglepipe.export.layouts import Layout
from eaglepipe.export.trained import TrainedDraft


def require_servable(draft: TrainedDraft, layout: Layout) -> None:
    """Refuse a draft that the engine would silently serve wrongly.

    Raises:
        DraftError: with every reason.
    """
    if reasons := list(_reasons(draft, layout)):
        raise DraftError(f"{draft.folder}: this draft cannot be served by {layout.engine}: {'; '.join(reasons)}")


def _reasons(draft: TrainedDraft, layout: Layout) -> Iterator[str]:
    family = draft.shape.family
    if layout.engine not in family.engine_architectures:
        yield f"it has no {family.draft_label} drafts"
        return
    if (block := draft.block_draft) is not None:
        yield from (f"{name}: {reason}" for name, reason in block_faults(block, layout.engine))
        return
    yield from _family_reasons(draft, layout)
    yield from _norm_reasons(draft.shape, layout)
    yield from _layer_reasons(draft.shape, layout)
    if layout.reads_nested_ids == "outputs" and "sglang" in family.engine_architectures and family.reads_aux:
        yield from _aux_reasons(draft)
    yield from _embedding_reasons(draft, layout)


def _family_reasons(draft: TrainedDraft, layout: Layout) -> Iterator[str]:
    shape, family = draft.shape, draft.shape.family
    if family.has_mask_token and draft.mask_token_id is None:
        yield f"the draft's config has no mask_token_id, which {family.draft_label} needs"
    if family.has_mask_token and not layout.serves_parallel_norms and (shape.fc_norm or shape.norm_output):
        yield f"it drops fc_norm and norm_output from {family.draft_label} drafts; use --to vllm"
    if not family.has_draft_vocab and shape.has_vocab_map:
        yield f"{family.draft_label} drafts have the target's whole vocabulary"
    if not family.reads_aux and shape.has_own_width:
        yield f"{family.draft_label} drafts have the target's hidden size"
    if "fc.bias" in draft.tensors and bool(draft.tensors["fc.bias"].any()) and not layout.has_fc_bias:
        yield "vLLM silently drops the trained fc.bias; use --to sglang"


def _norm_reasons(shape: DraftShape, layout: Layout) -> Iterator[str]:
    reader = _reader(layout)
    if shape.norm_before_residual and not layout.serves_norm_before_residual:
        yield f"{reader} takes norm_before_residual for false; use --to vllm or speculators"
    if shape.norm_before_fc and shape.fc_norm:
        yield "norm_before_fc and fc_norm exclude each other"
    if shape.qk_norm and not layout.serves_qk_norm:
        yield f"{reader} has no norms of query and key heads (q_norm, k_norm); use --to vllm or speculators"
    if norms := [name for name in ("input_norm", "final_norm") if getattr(shape, name)]:
        yield (
            f"no engine has the {' and '.join(norms)} of this {shape.family.draft_label} draft "
            "(layers.0.input_layernorm, norm), and without them its features are others; train on without them, by "
            "draft.init with train.objective=eagle1"
        )


def _layer_reasons(shape: DraftShape, layout: Layout) -> Iterator[str]:
    reader = _reader(layout)
    if shape.windows and not layout.serves_sliding_window:
        window = shape.sliding_window
        yield f"{reader} ignores the draft's sliding_window of {window}; use --to vllm or speculators"
    if shape.windows and shape.full_attention_layers and not layout.serves_mixed_windows:
        yield "vLLM serves no draft whose layers differ in their sliding_window; use --to speculators to go on training"
    if shape.has_own_width and not layout.serves_other_width:
        widths = f"hidden size {shape.hidden_size} for a target of {shape.target_hidden_size}"
        yield f"speculators loads no draft of {widths}; use --to vllm"
    if shape.attention_bias and not layout.serves_attention_bias:
        yield f"{reader} has no biases in a draft's attention (attention_bias); use --to vllm"
    if shape.attention_bias and shape.qk_norm:
        yield "vLLM drops o_proj.bias of layers with q_norm and k_norm"
    if shape.hidden_act != "silu":
        yield f"engines' drafts have silu, not {shape.hidden_act} (hidden_act)"
    if shape.mlp_bias:
        yield "no engine is known to load biases of a draft's MLP (mlp_bias)"


def _aux_reasons(draft: TrainedDraft) -> Iterator[str]:
    if draft.shape.fc_inputs == draft.shape.hidden_size:
        num_layers = "one aux layer" if draft.shape.num_aux == 1 else f"{draft.shape.num_aux} aux layers"
        yield f"SGLang skips fc and fc_norm with {num_layers} that together have the draft's width; use --to vllm"
    target = draft.target
    if draft.boundaries and (fault := sglang_fault(draft.boundaries, depth=target.depth, model_type=target.model_type)):
        yield f"{fault}; use --to vllm"


def _embedding_reasons(draft: TrainedDraft, layout: Layout) -> Iterator[str]:
    if layout.embeddings == "other width" and draft.embeddings_trained and not draft.shape.has_own_width:
        yield "it always uses the target's embeddings, and this draft trained its own (draft.freeze_embeddings: false)"
    if layout.embeddings == "always" and "embed_tokens.weight" not in draft.tensors:
        yield "its layout holds the token embeddings, and this draft folder has none; give the target's as --target"


def _reader(layout: Layout) -> str:
    """Return the engine that a portable layout cannot do without."""
    return "it" if layout.engine == "sglang" else "SGLang"


def engine_tensors(draft: TrainedDraft, layout: Layout, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return the tensors to write, under the engine's names: weights in `dtype`, d2t in int64 and t2d in bool."""
    if draft.shape.block is not None:
        return _to_dtypes(_block_tensors(draft, layout), dtype)
    tensors = dict(draft.tensors)
    has_own_embeddings = layout.embeddings == "own" and draft.embeddings_trained is not False
    if not (layout.embeddings == "always" or draft.shape.has_own_width or has_own_embeddings):
        tensors.pop("embed_tokens.weight", None)
    first_layer = "layers.0"
    if draft.shape.family.reads_aux:
        first_layer = layout.first_layer
    else:
        bias = tensors.pop("fc.bias", torch.zeros(draft.shape.hidden_size))
        tensors |= {"fc.bias": bias} if layout.writes_fc_bias else {}
    renamed = {name.replace("layers.0.", f"{first_layer}."): tensor for name, tensor in tensors.items()}
    return _to_dtypes(renamed, dtype)


def _block_tensors(draft: TrainedDraft, layout: Layout) -> dict[str, torch.Tensor]:
    """Leave out the target's own embeddings and, of the whole vocabulary, head, which every engine shares.

    Those of a draft folder whose training is not known may be its own, and vLLM takes them then.
    """
    shared = {"embed_tokens.weight"} if draft.shape.has_vocab_map else {"embed_tokens.weight", "lm_head.weight"}
    if layout.embeddings == "own" and draft.recipe is None:
        shared = set() if draft.embeddings_trained is not False else {"embed_tokens.weight"}
    return {name: tensor for name, tensor in draft.tensors.items() if name not in shared}


def _to_dtypes(tensors: dict[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    dtypes = {"d2t": torch.int64, "t2d": torch.bool}
    return {name: tensor.to(dtypes.get(name, dtype), copy=True).contiguous() for name, tensor in tensors.items()}
