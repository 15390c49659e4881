"""States of every token of a transformers target, taken by hooks on its aux layers; the lm_head runs on demand.

Shapes: B rows, T padded length, A aux layers, Ht target hidden, V vocabulary, D draft vocabulary, N any rows.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.utils.rnn import pad_sequence

from eaglepipe.errors import TargetError
from eaglepipe.recipe.config import TargetConfig
from eaglepipe.target.layers import (
    final_norm_weight,
    find_decoder,
    find_layers,
    head_spec_candidates,
    rope_kinds,
    validate_aux_layer_ids,
)
from eaglepipe.target.load import LoadedTarget, load_target
from eaglepipe.target.model import CapturedStates, TargetModel
from eaglepipe.target_head import HeadSpec
from eaglepipe.vocab import DraftVocab

_PROBE_LENGTH = 4


class HFEagle3TargetModel:
    """A transformers causal LM as a source of aux states, last hidden states and logits.

    Boundary b is the output of decoder layer b-1 (`output_hidden_states[b]`); the last one, b = n, is taken before the
    final norm.
    """

    def __init__(self, target: LoadedTarget, aux_layer_ids: Sequence[int]) -> None:
        """Raises TargetError if the ids do not fit, or the architecture's logits cannot be reproduced."""
        self.target = target
        self.aux_layer_ids = validate_aux_layer_ids(aux_layer_ids, target.num_layers)
        expected = _probe_logits(target)
        self._decoder = find_decoder(target.model)
        self._layers = find_layers(self._decoder, target.num_layers)
        self._head = _find_head(target)
        self._rope_lengths = rope_kinds(target.text_config)
        self._spec = self._probe_head_spec(expected)

    @property
    def hidden_size(self) -> int:
        """Ht."""
        return int(self.target.text_config.hidden_size)

    @property
    def device(self) -> torch.device:
        """Device of the states."""
        return self.target.device

    @property
    def architectures(self) -> list[str]:
        """Names by which a draft is chosen."""
        return self.target.architectures

    def capture_tokens(self, sequences: Sequence[NDArray[np.int32]]) -> CapturedStates:
        """Run the decoder over sequences of token ids [T] in one padded forward; returns the states of their tokens."""
        input_ids, attention_mask = pad_sequences(sequences)
        states = self.capture(input_ids.to(self.device), attention_mask.to(self.device))
        rows = attention_mask.flatten().nonzero().flatten().to(self.device)
        return CapturedStates(
            aux=states.aux.flatten(0, 1).index_select(0, rows),
            last_hidden=states.last_hidden.flatten(0, 1).index_select(0, rows),
        )

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

    @torch.no_grad()
    def head_logits(self, last_hidden: torch.Tensor) -> torch.Tensor:
        """Return the target's logits, float32 [N, V], of last hidden states [N, Ht]."""
        return self._spec.apply(self._head(last_hidden))

    def head_spec(self) -> HeadSpec:
        """Return the scale and soft cap that turn raw head outputs into logits."""
        return self._spec

    def draft_start_tensors(self, vocab: DraftVocab, *, full_head: bool) -> dict[str, torch.Tensor]:
        """Return the tensors that a draft starts from, on the CPU in the target's dtype.

        `embed_tokens.weight` [V, Ht], `lm_head.weight` [D, Ht] and `lm_head.bias` [D] (rows of the draft vocabulary),
        `lm_head_full.weight` [V, Ht] and `lm_head_full.bias` [V] with `full_head`, `norm.weight` [Ht].
        """
        embeddings = self.target.model.get_input_embeddings().weight
        tensors = {
            "embed_tokens.weight": embeddings[: self.target.vocab_size],
            "norm.weight": final_norm_weight(self._decoder, self.hidden_size).to(self.target.dtype),
        }
        for name in ("weight", "bias"):
            parameter = getattr(self._head, name, None)
            if parameter is None:
                continue
            tensors[f"lm_head.{name}"] = parameter[vocab.selected_token_ids.to(parameter.device)]
            if full_head:
                tensors[f"lm_head_full.{name}"] = parameter
        return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}

    def config_json(self) -> dict[str, Any]:
        """Return the fields of the target's config.json, its architectures named."""
        fields: dict[str, Any] = self.target.model.config.to_dict()
        fields.pop("_name_or_path", None)
        return {**fields, "architectures": self.architectures}

    def _check_length(self, length: int) -> None:
        limit = self._rope_lengths.get("dynamic")
        if limit is not None and length > limit:
            raise TargetError(
                f"a row of {length} tokens: this target's dynamic rope changes beyond {limit} tokens with the rest of "
                f"the batch, so its states would not be reproducible; set data.max_length to {limit} or less"
            )

    @torch.no_grad()
    def _probe_head_spec(self, expected: torch.Tensor) -> HeadSpec:
        """Return the first candidate with which capture and head give the logits of the whole model's own forward."""
        name = type(self.target.model).__name__
        ids = _probe_ids(self.target)
        with _explained(name):
            states = self.capture(ids, torch.ones_like(ids))
        expected_shape = (1, _PROBE_LENGTH, len(self.aux_layer_ids), self.hidden_size)
        if states.aux.shape != expected_shape:
            raise TargetError(f"{name}: aux states have shape {tuple(states.aux.shape)}, expected {expected_shape}")
        raw = self._head(states.last_hidden[0])
        dtype = self.target.dtype
        tolerance = 1e-4 if dtype == torch.float32 else 16 * torch.finfo(dtype).eps
        allowed = tolerance * max(1.0, float(expected.abs().max()))
        candidates = head_spec_candidates(self.target.text_config)
        errors = [float((spec.apply(raw) - expected).abs().max()) for spec in candidates]
        for spec, error in zip(candidates, errors, strict=True):
            if not error > allowed:  # a NaN passes, since it is refused sample by sample
                return spec
        raise TargetError(
            f"{name}: its logits are not lm_head(last hidden state) with any scaling that its config names (they "
            f"differ by {min(errors):.3g}); this architecture cannot be captured faithfully"
        )


def load_target_model(config: TargetConfig, aux_layer_ids: Sequence[int], device: str) -> TargetModel:
    """Load a target for capture at the given boundaries; raises as `load_target` and `HFEagle3TargetModel`."""
    return HFEagle3TargetModel(load_target(config, device), aux_layer_ids)


@torch.no_grad()
def _probe_logits(target: LoadedTarget) -> torch.Tensor:
    """Return the whole model's own logits of the probe, float32 [T, V].

    This is the first forward of a target: compressed-tensors replaces the compressed weights by usable ones in a hook
    that only the whole model calls.
    """
    with _explained(type(target.model).__name__):
        logits: torch.Tensor = target.model(input_ids=_probe_ids(target), use_cache=False).logits
    return logits[0].float()


def _probe_ids(target: LoadedTarget) -> torch.Tensor:
    return torch.arange(_PROBE_LENGTH, device=target.device)[None] % target.vocab_size


@contextmanager
def _explained(name: str) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, TypeError, AttributeError) as failure:
        raise TargetError(f"{name}: its own forward fails: {str(failure)[:300]}") from failure


def pad_sequences(sequences: Sequence[NDArray[np.int32]]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return int64 ids [B, T], padded on the right with 0, and the attention mask [B, T]."""
    rows = [torch.from_numpy(sequence.astype(np.int64)) for sequence in sequences]
    masks = [torch.ones_like(row) for row in rows]
    return pad_sequence(rows, batch_first=True), pad_sequence(masks, batch_first=True)


def _keep_output(taken: dict[int, torch.Tensor], boundary: int, _layer: nn.Module, _args: Any, output: Any) -> None:
    taken[boundary] = output[0] if isinstance(output, tuple) else output


def _find_head(target: LoadedTarget) -> nn.Module:
    head, name = target.model.get_output_embeddings(), type(target.model).__name__
    if head is None or not isinstance(head.weight, torch.Tensor):
        raise TargetError(f"{name}: it has no lm_head")
    if head.weight.shape[0] != target.vocab_size:
        raise TargetError(
            f"{name}: its lm_head has {head.weight.shape[0]} rows, its config a vocabulary of {target.vocab_size}"
        )
    return head
