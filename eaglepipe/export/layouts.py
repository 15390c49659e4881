"""The layouts as data: how each engine wants a draft named and what it cannot serve. Facts, not opinions: each line
was read in a loader, and no loader says so when it is broken.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch

from eaglepipe.drafts.shape import DraftShape, Family
from eaglepipe.errors import DraftError
from eaglepipe.export.engines import Engine
from eaglepipe.export.trained import TrainedDraft


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How one engine wants a draft."""

    engine: Engine
    architectures: dict[Family, str]  # the families it serves
    first_layer: Literal["midlayer", "layers.0"] = "midlayer"  # of EAGLE-3; EAGLE-1 says layers.0 everywhere
    embeddings: Literal["always", "own", "other width"]  # when they are written; "own": unless they are the target's
    zero_fc_bias: bool = False  # EAGLE-1 gets an fc.bias even without having one
    trained_fc_bias: bool = False  # EAGLE-1 may have learned one
    attention_bias: bool = True
    norm_before_residual: bool = True
    peagle_norms: bool = True  # fc_norm and norm_output reach a P-EAGLE draft
    speculators_format: bool = False


_NATIVE: dict[Family, str] = {
    "eagle3": "LlamaForCausalLMEagle3",
    "peagle": "LlamaForCausalLMEagle3",
    "eagle1": "LlamaForCausalLM",
}

LAYOUTS: dict[Engine, Layout] = {
    "vllm": Layout(engine="vllm", architectures=_NATIVE, embeddings="own"),
    "sglang": Layout(
        engine="sglang",
        architectures={"eagle3": "LlamaForCausalLMEagle3", "eagle1": "LlamaForCausalLMEagle"},
        embeddings="other width",
        zero_fc_bias=True,
        trained_fc_bias=True,
        attention_bias=False,
        norm_before_residual=False,
    ),
    "speculators": Layout(
        engine="speculators",
        architectures={"eagle3": "Eagle3DraftModel", "peagle": "PEagleDraftModel"},
        first_layer="layers.0",
        embeddings="always",
        peagle_norms=False,
        speculators_format=True,
    ),
    "hf": Layout(
        engine="hf",
        architectures=_NATIVE,
        embeddings="always",
        zero_fc_bias=True,
        norm_before_residual=False,
    ),
}


def require_servable(draft: TrainedDraft, layout: Layout) -> None:
    """Refuse what the engine would serve wrongly without a word.

    Raises:
        DraftError: with every reason.
    """
    reasons = list(_reasons(draft, layout))
    if reasons:
        lines = "\n  ".join(reasons)
        raise DraftError(f"{draft.folder}: this draft cannot be served by {layout.engine}\n  {lines}")


def _reasons(draft: TrainedDraft, layout: Layout) -> Iterator[str]:
    shape, names = draft.shape, {"eagle3": "EAGLE-3", "peagle": "P-EAGLE", "eagle1": "EAGLE-1/2"}
    if shape.family not in layout.architectures:
        yield f"it has no {names[shape.family]} drafts"
        return
    if shape.family == "peagle" and draft.mask_token_id is None:
        yield "the draft's config has no mask_token_id, which P-EAGLE needs"
    if shape.family == "peagle" and not layout.peagle_norms and (shape.fc_norm or shape.norm_output):
        yield "it drops fc_norm and norm_output from P-EAGLE drafts; use --to vllm"
    if shape.family == "eagle1":
        yield from _eagle1_reasons(draft, layout)
    if shape.norm_before_residual and not layout.norm_before_residual:
        yield "it takes norm_before_residual for false"
    if shape.norm_before_fc and shape.fc_norm:
        yield "norm_before_fc and fc_norm exclude each other"
    if shape.attention_bias and not layout.attention_bias:
        yield "it has no biases in a draft's attention (attention_bias); use --to vllm"
    if shape.mlp_bias:
        yield "no engine is known to load biases of a draft's MLP (mlp_bias)"
    if layout.embeddings == "other width" and draft.embeddings_trained and _same_width(shape):
        yield "it always uses the target's embeddings, and this draft trained its own (draft.freeze_embeddings: false)"
    if layout.embeddings == "always" and "embed_tokens.weight" not in draft.tensors:
        yield "its layout holds the token embeddings, and this draft folder has none"


def _eagle1_reasons(draft: TrainedDraft, layout: Layout) -> Iterator[str]:
    if draft.shape.has_vocab_map:
        yield "EAGLE-1/2 drafts have the target's whole vocabulary"
    if not _same_width(draft.shape):
        yield "EAGLE-1/2 drafts have the target's hidden size"
    bias = draft.tensors.get("fc.bias")
    if bias is not None and bool(bias.any()) and not layout.trained_fc_bias:
        yield "vLLM drops the trained fc.bias without a word; use --to sglang"


def _same_width(shape: DraftShape) -> bool:
    return shape.hidden_size == shape.target_hidden_size


def layout_tensors(draft: TrainedDraft, layout: Layout, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """The tensors to write, under the engine's names; weights in `dtype`, vocabulary maps as they are."""
    kept = dict(draft.tensors)
    if not _writes_embeddings(draft, layout):
        kept.pop("embed_tokens.weight", None)
    if draft.shape.family == "eagle1":
        kept.pop("fc.bias", None)
        if layout.zero_fc_bias:
            kept["fc.bias"] = draft.tensors.get("fc.bias", torch.zeros(draft.shape.hidden_size))
    return {layout_name(name, draft.shape, layout): _stored(name, tensor, dtype) for name, tensor in kept.items()}


def _writes_embeddings(draft: TrainedDraft, layout: Layout) -> bool:
    if layout.embeddings == "always" or not _same_width(draft.shape):
        return True
    return layout.embeddings == "own" and draft.embeddings_trained is not False


def layout_name(name: str, shape: DraftShape, layout: Layout) -> str:
    """The engine's name of a canonical one."""
    if shape.family == "eagle1" or not name.startswith("layers.0."):
        return name
    return layout.first_layer + name.removeprefix("layers.0")


def _stored(name: str, tensor: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    if name in ("d2t", "t2d"):
        return tensor.to(torch.int64 if name == "d2t" else torch.bool).clone()
    return tensor.to(dtype, copy=True).contiguous()
