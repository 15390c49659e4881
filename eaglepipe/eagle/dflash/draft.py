"""The DFlash draft: a block of masked tokens behind an anchor, guessed in one forward over the target's states."""

from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel, Qwen3Config

from eaglepipe.eagle.dflash.config import block_windows
from eaglepipe.eagle.dflash.layers import DFlashDecoderLayer
from eaglepipe.eagle.dflash.visibility import BlockVisibility
from eaglepipe.eagle.layers.blocks import Eagle3LlamaRMSNorm
from eaglepipe.eagle.layers.rope import Eagle3LlamaRotaryEmbedding
from eaglepipe.eagle.layers.target_rows import TargetEmbeddingsMixin, copy_rows
from eaglepipe.eagle.layers.vocab_maps import fill_vocab_maps
from eaglepipe.errors import DraftError


class DFlashDraftModel(TargetEmbeddingsMixin, PreTrainedModel):
    """Qwen3-style block draft; `config` as `dflash_config_from_target` makes it.

    Symbols: V target vocabulary, D draft vocabulary, H hidden, A aux layers, Ht target hidden; N blocks of W slots, C
    context slots. Embeddings and `lm_head` are the target's and never trained.
    Buffers, only when D < V: `d2t` int64 [D], target id minus draft id; `t2d` bool [V], True for draft tokens.
    """

    config_class = Qwen3Config
    base_model_prefix = ""
    supports_gradient_checkpointing = True
    _no_split_modules = ("DFlashDecoderLayer",)

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        hidden, eps = config.hidden_size, config.rms_norm_eps
        self.embed_tokens = nn.Embedding(config.vocab_size, hidden)
        self.fc = nn.Linear(config.num_aux_hidden_states * config.target_hidden_size, hidden, bias=False)
        self.hidden_norm = Eagle3LlamaRMSNorm(hidden, eps)
        self.layers = nn.ModuleList(DFlashDecoderLayer(config) for _ in range(config.num_hidden_layers))
        self.norm = Eagle3LlamaRMSNorm(hidden, eps)
        self.rotary_emb = Eagle3LlamaRotaryEmbedding(config)
        self.lm_head = nn.Linear(hidden, config.draft_vocab_size, bias=False)
        if config.draft_vocab_size < config.vocab_size:
            self.register_buffer("d2t", torch.zeros(config.draft_vocab_size, dtype=torch.int64))
            self.register_buffer("t2d", torch.zeros(config.vocab_size, dtype=torch.bool))
        self.gradient_checkpointing = False
        self.post_init()
        self.lm_head.weight.requires_grad_(False)
        self.freeze_embeddings()

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def project_hidden_states(self, aux_hidden_states: torch.Tensor) -> torch.Tensor:
        """Project aux states [..., A·Ht] to the context [..., H] that every layer reads."""
        width = self.fc.in_features
        if aux_hidden_states.shape[-1] != width:
            raise DraftError(
                f"aux_hidden_states end in {aux_hidden_states.shape[-1]} values a token; this draft takes {width}"
            )
        if not torch.is_autocast_enabled(aux_hidden_states.device.type):
            aux_hidden_states = aux_hidden_states.to(self.fc.weight.dtype)
        projected: torch.Tensor = self.hidden_norm(self.fc(aux_hidden_states))
        return projected

    def forward(
        self,
        block_ids: torch.Tensor,
        block_positions: torch.Tensor,
        context: torch.Tensor,
        context_positions: torch.Tensor,
        visibility: BlockVisibility,
        *,
        rows: torch.Tensor | None = None,
        longest: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Run blocks through all layers.

        Args:
            block_ids: int64 [N, W], the anchor's token, then the mask token.
            block_positions: int64 [N, W], rotary positions.
            context: [C, H], from `project_hidden_states`.
            context_positions: int64 [C].
            visibility: of the N blocks, before a layer's window.
            rows: int64 [R], host, ascending: the block slots, of N·W, whose states are returned; the others skip the
                last layer's queries and MLP. None: all.
            longest: as rotary embeddings take it; by default, the largest position plus one.

        Returns: [R, H], after the final norm: what `compute_logits` takes.
        """
        longest = block_positions.max() + 1 if longest is None else longest
        rotary, context_rotary = (
            tuple(table[None, None] for table in self.rotary_emb(positions, longest=longest))
            for positions in (block_positions.flatten(), context_positions)
        )
        states = self.embed_tokens(block_ids.flatten()).to(context.dtype)[None]
        windows = block_windows(self.config)
        views = {window: self._view(visibility, window) for window in set(windows)}
        last = len(self.layers) - 1
        for index, (layer, window) in enumerate(zip(self.layers, windows, strict=True)):
            view = views[window].of_queries(rows) if rows is not None and index == last else views[window]
            arguments = (states, context[None], rotary, context_rotary, view)
            if self.gradient_checkpointing and self.training:
                states = checkpoint(layer, *arguments, use_reentrant=False)
            else:
                states = layer(*arguments)
        normed: torch.Tensor = self.norm(states[0])
        return normed

    def _view(self, visibility: BlockVisibility, window: int | None) -> BlockVisibility:
        """A window makes its layer's blocks causal, as in the engines, unless the config says otherwise."""
        causal = window is not None and not self.config.sliding_window_non_causal
        return visibility.of_layer(window, causal=causal)

    def compute_logits(self, states: torch.Tensor) -> torch.Tensor:
        """Return the logits over the draft vocabulary [..., D] of states that `forward` returned."""
        logits: torch.Tensor = self.lm_head(states)
        return logits

    @torch.no_grad()
    def copy_lm_head_from_target(self, rows: torch.Tensor) -> None:
        """Take the target's head rows of the draft vocabulary, [D, H] in ascending target id.

        Raises:
            DraftError: when the shapes differ.
        """
        copy_rows(self.lm_head.weight, rows, "lm_head rows", "a block draft has the target's hidden size")

    @torch.no_grad()
    def set_vocab_mapping(self, selected_token_ids: torch.Tensor) -> None:
        """Fill `d2t` and `t2d` from the draft vocabulary's target ids, int64 [D], ascending.

        Raises:
            DraftError: for ids that are not D ascending ones below V.
        """
        fill_vocab_maps(self, selected_token_ids)
