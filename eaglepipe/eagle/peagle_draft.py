"""Parallel drafting (P-EAGLE) for the EAGLE-3 draft, as mixins that its classes opt into by inheritance.

All depths lie in one flattened sequence and attend in one pass under a visibility mask; nothing here imports the hosts.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import TorchDynamoException
from torch.nn.attention.flex_attention import BlockMask, create_mask, flex_attention
from torch.utils.checkpoint import checkpoint

from eaglepipe.eagle.layers.rope import apply_rotary
from eaglepipe.eagle.layers.windows import layer_windows
from eaglepipe.eagle.peagle_attention import DenseChunk, PeagleMask, dense_attention, peagle_mask
from eaglepipe.errors import DraftError

logger = logging.getLogger(__name__)

_peagle_flex_attention_compile_failed = False
"""Set when a compilation failed once in this process; the eager kernel is used from then on."""

_COMPILED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)
_MIN_COMPILED_HEAD_DIM = 16


def _peagle_compile_supported(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> bool:
    """Return whether Inductor's flex-attention lowering supports these tensors: CUDA, one dtype, heads of 16 up."""
    tensors = (q, k, v)
    on_cuda = all(tensor.is_cuda for tensor in tensors)
    one_dtype = q.dtype in _COMPILED_DTYPES and q.dtype == k.dtype == v.dtype
    return on_cuda and one_dtype and all(tensor.shape[-1] >= _MIN_COMPILED_HEAD_DIM for tensor in tensors)


@cache
def _peagle_flex_attention_compiled() -> Callable[..., torch.Tensor]:
    """Return flex_attention as Inductor compiles it when first called; only a process that needs it imports that."""
    return torch.compile(flex_attention, mode="max-autotune-no-cudagraphs", dynamic=True)


def _peagle_flex_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, block_mask: PeagleMask | BlockMask, scale: float
) -> torch.Tensor:
    """Run the P-EAGLE flex attention, compiling only when Inductor supports it; on a CPU, the dense attention.

    Args:
        q: [1, h, Q, d]; k, v: [1, kv, N, d].

    Returns: [1, h, Q, d].
    """
    if q.device.type == "cpu":
        return dense_attention(q, k, v, _dense_chunks(block_mask, q.shape[2], k.shape[2]), scale)
    mask = block_mask.block_mask if isinstance(block_mask, PeagleMask) else block_mask
    return flex_attention_where_it_compiles(q, k, v, mask, scale)


def flex_attention_where_it_compiles(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: BlockMask, scale: float
) -> torch.Tensor:
    """Run flex_attention, compiled if Inductor supports it: [1, h, Q, d] and [1, kv, N, d] twice -> [1, h, Q, d]."""
    global _peagle_flex_attention_compile_failed  # noqa: PLW0603 - one warning and one fallback a process
    grouped = q.shape[1] != k.shape[1]
    if not _peagle_flex_attention_compile_failed and _peagle_compile_supported(q, k, v):
        try:
            return _peagle_flex_attention_compiled()(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)
        except TorchDynamoException as error:
            _peagle_flex_attention_compile_failed = True
            logger.warning("flex_attention does not compile here (%s); running it eagerly from now on", error)
    return flex_attention(q, k, v, block_mask=mask, scale=scale, enable_gqa=grouped)


def _dense_chunks(block_mask: PeagleMask | BlockMask, num_queries: int, num_keys: int) -> tuple[DenseChunk, ...]:
    if isinstance(block_mask, PeagleMask):
        return block_mask.chunks
    visible = create_mask(block_mask.mask_mod, None, None, num_queries, num_keys, device="cpu")[0, 0]
    blind = ~visible.any(1, keepdim=True)
    whole = slice(0, num_queries)
    return (DenseChunk(queries=whole, keys=torch.arange(num_keys), visible=visible | blind, blind=blind),)


class _PeagleAttentionMixin:
    """P-EAGLE single parallel-group attention for `Eagle3LlamaAttention`."""

    v_proj: nn.Linear
    o_proj: nn.Linear
    rotary_emb: Any
    scale: float
    _heads: Callable[[torch.Tensor], torch.Tensor]
    _queries: Callable[[torch.Tensor], torch.Tensor]
    _keys: Callable[[torch.Tensor], torch.Tensor]

    def forward_peagle(
        self,
        combined_states: torch.Tensor,
        position_ids: torch.Tensor,
        block_mask: PeagleMask | BlockMask,
    ) -> torch.Tensor:
        """P-EAGLE single parallel-group attention: one pass over all depths, no step offset and no cache.

        Args:
            combined_states: [1, N, input_size].
            position_ids: int64 [1, N], anchor + depth in the document.
            block_mask: visibility of the N elements to the Q that are queries.

        Returns: [1, Q, H].
        """
        longest, rows = getattr(block_mask, "longest", None), getattr(block_mask, "query_rows", None)
        cos, sin = (table[:, None] for table in self.rotary_emb(position_ids, longest=longest))
        key = apply_rotary(self._keys(combined_states), cos, sin)
        value = self._heads(self.v_proj(combined_states))
        if rows is not None:
            combined_states, cos, sin = combined_states[:, rows], cos[:, :, rows], sin[:, :, rows]
        query = apply_rotary(self._queries(combined_states), cos, sin)
        attended = _peagle_flex_attention(query, key, value, block_mask, self.scale)
        output: torch.Tensor = self.o_proj(attended.transpose(1, 2).flatten(2))
        return output


class _PeagleDecoderLayerMixin:
    """P-EAGLE forward for the fused first layer `Eagle3LlamaDecoderLayer`."""

    input_layernorm: nn.Module
    hidden_norm: nn.Module
    post_attention_layernorm: nn.Module
    self_attn: Any
    mlp: nn.Module
    norm_before_residual: bool

    def forward_peagle(
        self,
        input_embeds: torch.Tensor,
        hidden_states: torch.Tensor,
        position_ids: torch.Tensor,
        block_mask: PeagleMask | BlockMask,
    ) -> torch.Tensor:
        """`forward` with `self_attn.forward_peagle`: embeddings and states [1, N, H] -> [1, Q, H]."""
        embeds, states = self.input_layernorm(input_embeds), self.hidden_norm(hidden_states)
        combined = torch.cat((embeds.to(states.dtype), states), dim=-1)
        attended = self.self_attn.forward_peagle(combined, position_ids, block_mask)
        residual = states if self.norm_before_residual else hidden_states
        return _after_attention(self, residual, attended, getattr(block_mask, "query_rows", None))


class _PeagleVanillaLayerMixin:
    """P-EAGLE forward for the vanilla deep layer `Eagle3LlamaPeagleLayer`."""

    input_layernorm: nn.Module
    post_attention_layernorm: nn.Module
    self_attn: Any
    mlp: nn.Module

    def forward_peagle(
        self, hidden_states: torch.Tensor, position_ids: torch.Tensor, block_mask: PeagleMask | BlockMask
    ) -> torch.Tensor:
        """A pre-norm Llama layer under the mask: states [1, N, H] -> [1, Q, H]."""
        normed = self.input_layernorm(hidden_states)
        attended = self.self_attn.forward_peagle(normed, position_ids, block_mask)
        return _after_attention(self, hidden_states, attended, getattr(block_mask, "query_rows", None))


def _after_attention(
    layer: Any, hidden_states: torch.Tensor, attended: torch.Tensor, rows: torch.Tensor | None = None
) -> torch.Tensor:
    """Finish a pre-norm layer: residual of the states (of `rows` alone), then the MLP with its own."""
    states = (hidden_states if rows is None else hidden_states[:, rows]) + attended
    output: torch.Tensor = states + layer.mlp(layer.post_attention_layernorm(states))
    return output


def _windowed(block_mask: PeagleMask | BlockMask, window: int | None) -> PeagleMask | BlockMask:
    """Return the mask of a layer with a window.

    Raises:
        DraftError: for a `BlockMask`, whose elements are not known here.
    """
    if window is None:
        return block_mask
    if isinstance(block_mask, BlockMask):
        raise DraftError("a draft with sliding windows takes a PeagleMask, from which each layer makes its own")
    return block_mask.in_window(window)


class _PeagleDraftMixin:
    """P-EAGLE draft-model methods for `LlamaEagle3DraftModel`."""

    config: Any
    model: Any
    training: bool
    gradient_checkpointing: bool
    mask_hidden: nn.Parameter
    project_hidden_states: Callable[[torch.Tensor], torch.Tensor]

    def _init_peagle_parameters(self, config: Any) -> None:
        """Register `mask_hidden` [1, 1, A·Ht], which stands in for the aux states at depths of 1 and more.

        It lies before `fc` (and `fc_norm`), so that it is projected like aux states; vLLM's parallel drafting loads it
        under this name and shape.
        """
        width = config.num_aux_hidden_states * config.target_hidden_size
        self.mask_hidden = nn.Parameter(torch.empty(1, 1, width).normal_(std=config.initializer_range))

    def masked_projected_hidden(self) -> torch.Tensor:
        """Project `mask_hidden` as aux states are: [1, H].

        Raises:
            DraftError: the draft was built without `parallel_drafting`.
        """
        if not getattr(self.config, "parallel_drafting", False):
            raise DraftError("this draft has no mask_hidden; build it with parallel_drafting")
        return self.project_hidden_states(self.mask_hidden).flatten(0, 1)

    def build_peagle_block_mask(
        self, anchor_pos: torch.Tensor, depth: torch.Tensor, lengths: torch.Tensor, total_seq_len: int
    ) -> BlockMask:
        """Construct the COD `flex_attention` block mask for one sequence; `forward_peagle` takes it on a CPU as well.

        Args: those of `create_peagle_mask_mod`. Keep each document's elements together, in ascending order of
            documents, chains together: blocks are then sparse.
        """
        return peagle_mask(anchor_pos, depth, lengths, total_seq_len).block_mask

    def _run_draft_layer(
        self, layer_fn: Callable[..., Any], args: Sequence[Any] = (), kwargs: Mapping[str, Any] = {}
    ) -> Any:
        """Run one layer; in training with `gradient_checkpointing`, its activations are computed again in the backward.

        Non-reentrant, since the mask is no tensor.
        """
        if self.gradient_checkpointing and self.training:
            return checkpoint(layer_fn, *args, use_reentrant=False, **kwargs)
        return layer_fn(*args, **kwargs)

    def forward_peagle(
        self,
        sampled_input_ids: torch.Tensor,
        sampled_projected_hidden: torch.Tensor,
        position_ids: torch.Tensor,
        block_mask: PeagleMask | BlockMask,
        *,
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run all depths in one pass.

        Args:
            sampled_input_ids: int64 [1, N], the tokens at depth 0 and `mask_token_id` below.
            sampled_projected_hidden: [1, N, H], projected aux states at depth 0 and `masked_projected_hidden` below.
            position_ids: int64 [1, N], anchor + depth.
            block_mask: from `build_peagle_block_mask`, or a `PeagleMask`.
            rows: int64 [Q], elements whose states are returned; under a `PeagleMask` the others skip the last layer's
                queries and MLP.

        Returns: [1, N, H] or [1, Q, H], what `compute_logits` takes; after the final norm if `config.norm_output`.
        """
        states = sampled_projected_hidden
        inputs: tuple[torch.Tensor, ...] = (self.model.embed_tokens(sampled_input_ids).to(states.dtype),)
        windows = layer_windows(self.config)
        masks = {window: _windowed(block_mask, window) for window in set(windows)}
        last = len(self.model.layers) - 1
        for index, (layer, window) in enumerate(zip(self.model.layers, windows, strict=True)):
            mask = masks[window]
            if rows is not None and index == last and isinstance(mask, PeagleMask):
                mask, rows = mask.of_queries(rows), None
            states = self._run_draft_layer(layer.forward_peagle, (*inputs, states, position_ids, mask))
            inputs = ()
        states = states if rows is None else states[:, rows]
        output: torch.Tensor = self.model.norm(states) if self.config.norm_output else states
        return output
