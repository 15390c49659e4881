"""States of every token of a transformers target, taken by hooks on its aux layers; the lm_head runs on demand.

Shapes: B rows, T padded length, A aux layers, Ht target hidden, V vocabulary, D draft vocabulary, N any rows.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from eaglepipe.errors import TargetError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.layers import find_decoder, find_layers, rope_kinds, validate_aux_layer_ids
from eaglepipe.target.load import LoadedTarget, load_target
from eaglepipe.target.loaded_head import (
    HeadedTarget,
    LoadedHead,
    config_fields,
    explained_forward,
    find_head,
    find_head_spec,
    probe_ids,
    probe_logits,
)
from eaglepipe.target.model import CapturedStates, TargetModel
from eaglepipe.target.pieces import check_pieces, read_pieces


class HFEagle3TargetModel(HeadedTarget):
    """A transformers causal LM as a source of aux states, last hidden states and logits.

    Boundary b is the output of decoder layer b-1 (`output_hidden_states[b]`); the last one, b = n, is taken before the
    final norm.
    """

    def __init__(self, target: LoadedTarget, aux_layer_ids: Sequence[int]) -> None:
        """Raises TargetError if the ids do not fit, or the architecture's logits cannot be reproduced."""
        self.target = target
        self.aux_layer_ids = validate_aux_layer_ids(aux_layer_ids, target.num_layers)
        expected = probe_logits(target)
        self._decoder = find_decoder(target.model)
        self._layers = find_layers(self._decoder, target.num_layers)
        module = find_head(target)
        self._pieces_checked = False
        self._rope_lengths = rope_kinds(target.text_config)
        spec = find_head_spec(target, module, self._probe_last_hidden(), expected)
        self._head = LoadedHead(target=target, decoder=self._decoder, module=module, spec=spec)

    @property
    def device(self) -> torch.device:
        """Device of the states."""
        return self.target.device

    def capture_tokens(self, sequences: Sequence[NDArray[np.int32]]) -> CapturedStates:
        """Run the decoder over sequences of token ids [T] in one padded forward; returns the states of their tokens."""
        input_ids, attention_mask = pad_sequences(sequences)
        states = self.capture(input_ids.to(self.device), attention_mask.to(self.device))
        rows = attention_mask.flatten().nonzero().flatten().to(self.device)
        return CapturedStates(
            aux=states.aux.flatten(0, 1).index_select(0, rows),
            last_hidden=states.last_hidden.flatten(0, 1).index_select(0, rows),
        )

    def capture_pieces(self, sequence: NDArray[np.int32], piece_tokens: int) -> Iterator[CapturedStates]:
        """Yield the states of so many tokens of a sequence [T] after the other, from forwards that share a cache.

        One forward for a sequence in which a rope depends on the length, and which has to see it whole.

        Raises:
            TargetError: as `capture`, or the target's forwards do not fit together.
        """
        if any(len(sequence) > limit for limit in self._rope_lengths.values()):
            yield self.capture_tokens([sequence])
            return
        if not self._pieces_checked:
            check_pieces(self)
            self._pieces_checked = True
        yield from read_pieces(self, torch.from_numpy(sequence.astype(np.int64)).to(self.device), piece_tokens)

    @torch.no_grad()
    def capture(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> CapturedStates:
        """Run the decoder over right-padded rows.

        No mask reaches the model: a token never attends to the right, so padding there cannot change a real row, and
        plain causal attention is the fastest kernel everywhere.

        Args:
            input_ids: [B, T]; padding is any valid id.
            attention_mask: [B, T], ones then zeros in every row.

        Raises:
            TargetError: rows too long for a rope whose frequencies depend on the rest of the batch.
        """
        assert input_ids.shape == attention_mask.shape
        assert bool((attention_mask[:, 1:] <= attention_mask[:, :-1]).all()), "rows are padded on the right"
        self._check_length(input_ids.shape[1])
        return self.run(input_ids, use_cache=False)

    @torch.no_grad()
    def run(self, input_ids: torch.Tensor, **inputs: Any) -> CapturedStates:
        """Run the decoder over `input_ids` [B, T] with other inputs of its forward (a cache, a mask, positions)."""
        taken: dict[int, torch.Tensor] = {}
        handles = [
            self._layers[boundary - 1].register_forward_hook(partial(_keep_output, taken, boundary))
            for boundary in self.aux_layer_ids
        ]
        try:
            output = self._decoder(input_ids=input_ids.to(self.target.device), **inputs)
        finally:
            for handle in handles:
                handle.remove()
        aux = torch.stack([taken[boundary] for boundary in self.aux_layer_ids], dim=2)
        return CapturedStates(aux=aux, last_hidden=output.last_hidden_state)

    def config_json(self) -> dict[str, Any]:
        """Return the fields of the target's config.json, its architectures named."""
        return config_fields(self.target)

    def _check_length(self, length: int) -> None:
        limit = self._rope_lengths.get("dynamic")
        if limit is not None and length > limit:
            raise TargetError(
                f"a row of {length} tokens: this target's dynamic rope changes beyond {limit} tokens with the rest of "
                f"the batch, so its states would not be reproducible; set data.max_length to {limit} or less"
            )

    def _probe_last_hidden(self) -> torch.Tensor:
        """Return the last hidden states of the probe [T, Ht], captured as those of any batch."""
        ids = probe_ids(self.target)
        with explained_forward(self.target):
            states = self.capture(ids, torch.ones_like(ids))
        expected = (*ids.shape, len(self.aux_layer_ids), self.hidden_size)
        if states.aux.shape != expected:
            name = type(self.target.model).__name__
            raise TargetError(f"{name}: aux states have shape {tuple(states.aux.shape)}, expected {expected}")
        return states.last_hidden[0]


def load_target_model(config: TargetConfig, aux_layer_ids: Sequence[int], device: str) -> TargetModel:
    """Load a target for capture at the given boundaries; raises as `load_target` and `HFEagle3TargetModel`."""
    return HFEagle3TargetModel(load_target(config, device), aux_layer_ids)


def pad_sequences(sequences: Sequence[NDArray[np.int32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int64 ids [B, T], padded on the right with 0, and the attention mask [B, T]."""
    rows = [torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences]
    masks = [torch.ones_like(row) for row in rows]
    return pad_sequence(rows, batch_first=True), pad_sequence(masks, batch_first=True)


def _keep_output(taken: dict[int, torch.Tensor], boundary: int, _layer: nn.Module, _args: Any, output: Any) -> None:
    taken[boundary] = output[0] if isinstance(output, tuple) else output
