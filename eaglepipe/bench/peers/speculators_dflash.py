"""The DFlash training step of the `speculators` package, on the batches, blocks and weights of our own."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from eaglepipe.bench.dflash.step import DflashStep
from eaglepipe.bench.peers.batches import document_spans, last_hidden_states
from eaglepipe.bench.peers.set_ups import FastestSetUp
from eaglepipe.bench.peers.speculators_package import (
    MEAN_EPSILON,
    attentions,
    loss_implementation,
    row_layouts,
    speculators_config,
)
from eaglepipe.bench.timing import Spent
from eaglepipe.training.data.batch import EncodedBatch


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What one call of its model takes, the anchors that it is given, and the guesses in its loss."""

    arguments: dict[str, torch.Tensor]
    anchors: torch.Tensor
    num_guesses: int


class SpeculatorsDflash:
    """Its model with the draft's own weights and blocks; of all set-ups that fit the device, the fastest."""

    def __init__(self, step: DflashStep) -> None:
        self._own, self._device = step, step.device
        models = {attention: self._model(attention) for attention in attentions(self._device)}
        calls = {rows: self._calls(apart=apart) for rows, apart in row_layouts(self._device).items()}
        self._passes = FastestSetUp(models, calls, self._step, self._device)

    @property
    def note(self) -> str:
        """How it runs."""
        losses = loss_implementation(self._device)
        return f"speculators: {self._passes.description}, {losses} losses, given the same blocks"

    def run_all(self) -> tuple[Spent, torch.Tensor]:
        """Run one pass; return what it took and the summed loss of all guesses, weighted by position, float64."""
        return self._passes.run_all()

    def _step(self, model: Any, call: _Call) -> torch.Tensor:
        from speculators.losses import resolve_loss_config

        own = self._own
        enabled = own.dtype != torch.float32
        with (
            _given(call.anchors),
            torch.autocast(self._device.type, own.dtype, enabled=enabled),
        ):
            _, loss, _ = model(
                **call.arguments,
                max_anchors=len(call.anchors),
                gamma=own.config.gamma,
                loss_config=resolve_loss_config("ce", loss_implementation(self._device)),
            )
        loss.backward()
        sums: torch.Tensor = loss.detach().double() * (call.num_guesses + MEAN_EPSILON)
        return sums

    def _model(self, attention: str) -> Any:
        from speculators.models.dflash import DFlashDraftModel, DFlashSpeculatorConfig
        from transformers import Qwen3Config

        draft = self._own.draft
        layer = Qwen3Config(**draft.config.to_dict())
        layer._attn_implementation = attention
        config = DFlashSpeculatorConfig(
            transformer_layer_config=layer,
            draft_vocab_size=draft.config.draft_vocab_size,
            block_size=draft.config.block_size,
            mask_token_id=draft.config.mask_token_id,
            aux_hidden_state_layer_ids=list(draft.config.eagle_aux_hidden_state_layer_ids),
            speculators_config=speculators_config("dflash", self._own.config.depths),
        )
        model = DFlashDraftModel(config)
        missing, unexpected = model.load_state_dict(draft.state_dict(), strict=False)
        assert not unexpected and set(missing) <= {
            "verifier_lm_head.weight",
            "verifier_norm.weight",
        }
        model.verifier_norm = torch.nn.Identity()  # a cache holds states behind it
        with torch.no_grad():
            model.verifier_lm_head.weight.copy_(draft.lm_head.weight)
        return model.to(self._device).train()

    def _calls(self, apart: bool) -> list[_Call]:
        return [call for batch in self._own.batches for call in self._calls_of(batch, apart)]

    def _calls_of(self, batch: EncodedBatch, apart: bool) -> Iterator[_Call]:
        """Yield rows of tokens, made longer by a block, because its blocks end with the row at the latest."""
        packed, size = batch.packed, self._own.config.block_size
        inputs, _ = self._own.inputs(batch)
        last_hidden = last_hidden_states(self._own.cache.spec, batch, packed.loss_mask)
        drawn, width = self._own.drawn(batch), packed.shape[1]
        for row, span, documents in document_spans(batch, apart):
            inside = (drawn.anchors >= row * width + span.start) & (drawn.anchors < row * width + span.stop)
            if not inside.any():
                continue
            arguments = {
                "hidden_states": _padded(inputs.aux_hidden_states[row, span], 0, size),
                "input_ids": _padded(packed.input_ids[row, span], 1, size),
                "loss_mask": _padded(packed.loss_mask[row, span].long(), 2, size),
                "verifier_last_hidden_states": _padded(last_hidden[row, span], 1, size),
                "document_ids": _padded(documents.to(self._device) + 1, 0, size) - 1,
                "position_ids": _padded(packed.position_ids[row, span], 0, size),
            }
            yield _Call(
                arguments=arguments,
                anchors=(drawn.anchors[inside] - row * width - span.start + 1).to(self._device),
                num_guesses=int(drawn.lengths[inside].sum()),
            )


def _padded(rows: torch.Tensor, shift: int, size: int) -> torch.Tensor:
    """Return [1, T + size, ...] with rows moved right by `shift`, zeros around them."""
    padded = rows.new_zeros(1, len(rows) + size, *rows.shape[1:])
    padded[0, shift : shift + len(rows)] = rows
    return padded


@contextmanager
def _given(anchors: torch.Tensor) -> Iterator[None]:
    """Make its models take these anchors instead of drawing some."""
    from speculators.models.dflash import core

    drawn = core.select_anchors
    core.select_anchors = lambda *_: (
        anchors,
        torch.ones_like(anchors, dtype=torch.bool),
    )
    try:
        yield
    finally:
        core.select_anchors = drawn
