"""The EAGLE-3 Llama draft: projects the target's aux states, then drafts recurrently through one fused layer.

State names are the interchange names (`model.fc`, `model.layers.0.self_attn.q_proj`, `lm_head`, `d2t`, `t2d`, ...).
"""

from typing import Any

import torch
from torch import nn
from transformers import LlamaConfig, PreTrainedModel

from eaglepipe.eagle.completed_config import completed_eagle3_config, has_option
from eaglepipe.eagle.layers.blocks import (
    Eagle3LlamaAttention,
    Eagle3LlamaDecoderLayer,
    Eagle3LlamaMLP,
    Eagle3LlamaPeagleLayer,
    Eagle3LlamaRMSNorm,
)
from eaglepipe.eagle.layers.rope import Eagle3LlamaRotaryEmbedding
from eaglepipe.eagle.layers.target_rows import TargetEmbeddingsMixin, copy_rows
from eaglepipe.eagle.layers.vocab_maps import fill_vocab_maps
from eaglepipe.eagle.layers.windows import in_window, layer_windows
from eaglepipe.eagle.peagle_draft import _PeagleDraftMixin
from eaglepipe.eagle.unroll.attention.plain import causal_mask, slot_positions
from eaglepipe.errors import DraftError

__all__ = [
    "Eagle3LlamaAttention",
    "Eagle3LlamaDecoderLayer",
    "Eagle3LlamaMLP",
    "Eagle3LlamaModel",
    "Eagle3LlamaPeagleLayer",
    "Eagle3LlamaRMSNorm",
    "LlamaEagle3DraftModel",
]


class Eagle3LlamaModel(nn.Module):
    """The draft without its lm_head and vocabulary map."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        aux_size, num_aux = config.target_hidden_size, config.num_aux_hidden_states
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.fc = nn.Linear(num_aux * aux_size, config.hidden_size, bias=False)
        if has_option(config, "norm_before_fc"):
            self.input_norm = Eagle3LlamaRMSNorm(num_aux * aux_size, config.rms_norm_eps)
        if config.fc_norm:
            self.fc_norm = nn.ModuleList(Eagle3LlamaRMSNorm(aux_size, config.rms_norm_eps) for _ in range(num_aux))
        deeper = (Eagle3LlamaPeagleLayer(config) for _ in range(config.num_hidden_layers - 1))
        self.layers = nn.ModuleList([Eagle3LlamaDecoderLayer(config), *deeper])
        self.norm = Eagle3LlamaRMSNorm(config.hidden_size, config.rms_norm_eps)
        self.rotary_emb = Eagle3LlamaRotaryEmbedding(config)
        self.gradient_checkpointing = False


class LlamaEagle3DraftModel(_PeagleDraftMixin, TargetEmbeddingsMixin, PreTrainedModel):
    """Llama-style EAGLE-3 draft; `config` as `draft_config_from_target` makes it, or any dense Llama-like one.

    Symbols: V target vocabulary, D draft vocabulary, H draft hidden, A aux layers, Ht target hidden.
    Buffers, only when D < V: `d2t` int64 [D], target id minus draft id; `t2d` bool [V], True for draft tokens.
    `mask_hidden` [1, 1, A·Ht] only when `config.parallel_drafting`.
    """

    config_class = LlamaConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ("Eagle3LlamaDecoderLayer", "Eagle3LlamaPeagleLayer")

    def __init__(self, config: Any) -> None:
        config = completed_eagle3_config(config)
        super().__init__(config)
        self.model = Eagle3LlamaModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.draft_vocab_size, bias=False)
        if config.draft_vocab_size < config.vocab_size:
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        if getattr(config, "parallel_drafting", False):
            self._init_peagle_parameters(config)
        self.post_init()

    @property
    def gradient_checkpointing(self) -> bool:
        """Whether layers compute their activations again in the backward while training; may be set."""
        return self.model.gradient_checkpointing

    @gradient_checkpointing.setter
    def gradient_checkpointing(self, enabled: bool) -> None:
        self.model.gradient_checkpointing = enabled

    def forward(  # noqa: PLR0917 - the established signature
        self,
        input_ids: torch.Tensor,
        hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        cache_hidden: list[list[torch.Tensor]] | None = None,
        seq_lens: torch.Tensor | None = None,
        *,
        projected_hidden_states: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run one TTT step.

        Args:
            input_ids: int64 [B, T], target ids of this step.
            hidden_states: [B, T, H]: `project_hidden_states` at step 0, then the state that the step before returned.
            attention_mask: [B, T], 1 for real tokens, right padded; or bool [B, 1, T, T], True where readable.
            position_ids: int64 [B, T] of step 0; the step is added here.
            cache_hidden: two lists for each layer, its keys and its values of the earlier steps; this step's are
                appended, and the lists of further layers at step 0 to `[[], []]`. None: a single step 0.
            seq_lens: int64 [B, max_docs], lengths of packed documents.
            projected_hidden_states: another name of `hidden_states`.

        Returns: the state to carry, [B, T, H], after the final norm if `config.norm_output`.

        Raises:
            DraftError: `hidden_states` by neither name, or by both.
        """
        if (hidden_states is None) == (projected_hidden_states is None):
            raise DraftError("give the carried state once, as hidden_states or as projected_hidden_states")
        hidden_states = projected_hidden_states if hidden_states is None else hidden_states
        assert hidden_states is not None
        batch, num_slots = input_ids.shape
        cache = [] if cache_hidden is None else cache_hidden
        cache.extend([] for _ in range(2 * len(self.model.layers) - len(cache)))
        if attention_mask is None or attention_mask.dim() != 4:
            attention_mask = causal_mask(attention_mask, seq_lens, batch, num_slots, input_ids.device)
        positions = slot_positions(input_ids, position_ids, seq_lens)
        cos, sin = self.model.rotary_emb(positions + len(cache[0]), longest=positions.max() + 1)
        rotary = (cos[:, None], sin[:, None])
        embeds = self.model.embed_tokens(input_ids).to(hidden_states.dtype)
        windows = layer_windows(self.config)
        masks = {window: in_window(attention_mask, window) for window in set(windows)}
        for index, (layer, window) in enumerate(zip(self.model.layers, windows, strict=True)):
            keys, values = cache[2 * index], cache[2 * index + 1]
            inputs = (embeds, hidden_states) if index == 0 else (hidden_states,)
            arguments = (*inputs, tuple(keys), tuple(values), masks[window], rotary)
            hidden_states, key, value = self._run_draft_layer(layer, arguments)
            keys.append(key)
            values.append(value)
        return self.model.norm(hidden_states) if self.config.norm_output else hidden_states

    def project_hidden_states(self, aux_hidden_states: torch.Tensor) -> torch.Tensor:
        """Project aux states [..., A·Ht] or [..., A, Ht] to [..., H].

        With `norm_before_fc` they are normed as a whole first, with `fc_norm` each layer's alone.
        """
        width, num_aux = self.config.target_hidden_size, self.config.num_aux_hidden_states
        if aux_hidden_states.shape[-1] == width and aux_hidden_states.shape[-2] == num_aux > 1:
            aux_hidden_states = aux_hidden_states.flatten(-2)
        if aux_hidden_states.shape[-1] != num_aux * width:
            raise DraftError(
                f"aux_hidden_states end in {aux_hidden_states.shape[-1]} values a token; this draft takes "
                f"{num_aux} layers of {width}"
            )
        if not torch.is_autocast_enabled(aux_hidden_states.device.type):
            aux_hidden_states = aux_hidden_states.to(self.model.fc.weight.dtype)
        if has_option(self.config, "norm_before_fc"):
            aux_hidden_states = self.model.input_norm(aux_hidden_states)
        if self.config.fc_norm:
            chunks = aux_hidden_states.unflatten(-1, (num_aux, width)).unbind(-2)
            aux_hidden_states = torch.cat([norm(c) for norm, c in zip(self.model.fc_norm, chunks, strict=True)], dim=-1)
        return self.model.fc(aux_hidden_states)

    def head_input(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the input of the lm_head, [..., H]: the carried state, normed unless it is carried normed."""
        return hidden_states if self.config.norm_output else self.model.norm(hidden_states)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the logits over the draft vocabulary [..., D] of a carried state [..., H]."""
        return self.lm_head(self.head_input(hidden_states))

    @torch.no_grad()
    def copy_lm_head_from_target(self, rows: torch.Tensor) -> None:
        """Start the lm_head from the target's rows of the draft vocabulary, [D, H] in ascending target id.

        Raises:
            DraftError: when the shapes differ.
        """
        copy_rows(self.lm_head.weight, rows, "lm_head rows", "set draft.lm_head_init to random")

    @torch.no_grad()
    def set_vocab_mapping(self, selected_token_ids: torch.Tensor) -> None:
        """Fill `d2t` and `t2d` from the draft vocabulary's target ids, int64 [D], ascending.

        Raises:
            DraftError: for ids that are repeated, unsorted, out of range or not D of them.
        """
        fill_vocab_maps(self, selected_token_ids)
