"""The EAGLE-3 training step of the `speculators` package, on the batches and from the weights of the compact path."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from eaglepipe.bench.peers.batches import document_spans, last_hidden_states
from eaglepipe.bench.peers.set_ups import FastestSetUp
from eaglepipe.bench.peers.speculators_package import (
    MEAN_EPSILON,
    attentions,
    loss_implementation,
    row_layouts,
    speculators_config,
)
from eaglepipe.bench.step_paths import StepPath
from eaglepipe.bench.timing import Spent
from eaglepipe.training.data.batch import EncodedBatch


@dataclass(frozen=True, kw_only=True)
class _Call:
    """What one call of its model takes, and the target's summed entropy in the loss of each step, float64 [K]."""

    arguments: dict[str, torch.Tensor]
    entropies: torch.Tensor


class SpeculatorsEagle3:
    """Its model with the draft's own weights, head trained; of all set-ups that fit the device, the fastest.

    A call takes a packed row, without padding, or one document alone.
    """

    def __init__(self, path: StepPath) -> None:
        self._path, self._device = path, path.setup.device
        models = {attention: self._model(attention) for attention in attentions(self._device)}
        calls = {rows: self._calls(apart=apart) for rows, apart in row_layouts(self._device).items()}
        self._passes = FastestSetUp(models, calls, self._step, self._device)

    @property
    def note(self) -> str:
        """How it runs."""
        losses = loss_implementation(self._device)
        return f"speculators: {self._passes.description}, {losses} losses, lm_head trained as ours"

    def run_all(self) -> tuple[Spent, torch.Tensor]:
        """Run one pass; return what it took and each step's summed loss, float64 [K], as soft cross-entropy."""
        return self._passes.run_all()

    def _step(self, model: Any, call: _Call) -> torch.Tensor:
        from speculators.losses import resolve_loss_config

        setup, mask = self._path.setup, call.arguments["loss_mask"]
        steps = setup.preset.ttt_steps
        with torch.autocast(self._device.type, setup.dtype, enabled=setup.dtype != torch.float32):
            _, loss, metrics = model(
                **call.arguments,
                ttt_steps=steps,
                loss_config=resolve_loss_config("kl_div", loss_implementation(self._device)),
            )
        loss.backward()
        divergences = [metrics[f"loss_{k}_sum"].double() * (mask[:, k:].sum() + MEAN_EPSILON) for k in range(steps)]
        return torch.stack(divergences).cpu() + call.entropies

    def _model(self, attention: str) -> Any:
        from speculators.models.eagle3 import Eagle3DraftModel, Eagle3SpeculatorConfig
        from transformers import LlamaConfig

        draft: Any = self._path.module.draft_model
        layer = LlamaConfig(**draft.config.to_dict())
        layer._attn_implementation = attention
        config = Eagle3SpeculatorConfig(
            transformer_layer_config=layer,
            draft_vocab_size=draft.config.draft_vocab_size,
            norm_before_residual=draft.config.norm_before_residual,
            eagle_aux_hidden_state_layer_ids=list(draft.config.eagle_aux_hidden_state_layer_ids),
            speculators_config=speculators_config("eagle3", self._path.setup.preset.ttt_steps),
        )
        model = Eagle3DraftModel(config)
        weights = {name.removeprefix("model."): tensor for name, tensor in draft.state_dict().items()}
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and set(missing) <= {
            "verifier_lm_head.weight",
            "verifier_norm.weight",
        }
        model.lm_head.weight.requires_grad_(True)
        model.verifier_norm = torch.nn.Identity()  # a cache holds states behind it
        with torch.no_grad():
            model.verifier_lm_head.weight.copy_(self._path.setup.cache.start_tensors()["lm_head.weight"])
        return model.to(self._device).train()

    def _calls(self, apart: bool) -> list[_Call]:
        return [call for batch in self._path.batches for call in self._calls_of(batch, apart)]

    def _calls_of(self, batch: EncodedBatch, apart: bool) -> Iterator[_Call]:
        packed = batch.packed
        inputs = self._path.decode(batch)
        assert isinstance(inputs.target_probs, torch.Tensor)
        last_hidden = last_hidden_states(self._path.setup.cache.spec, batch, packed.position_mask)
        entropies = torch.zeros(packed.shape, dtype=torch.float64, device=self._device)
        entropies[packed.position_mask] = torch.special.entr(inputs.target_probs).sum(-1).double()
        steps = torch.arange(self._path.setup.preset.ttt_steps, device=self._device)
        for row, span, documents in document_spans(batch, apart):
            positions = packed.position_ids[row, span]
            arguments = {
                "hidden_states": inputs.aux[row, span][None],
                "input_ids": packed.input_ids[row, span][None],
                "document_ids": documents.to(self._device)[None],
                "loss_mask": packed.position_mask[row, span][None],
                "position_ids": positions[None] + 1,
                "verifier_last_hidden_states": last_hidden[row, span][None],
            }
            counted = (positions >= steps[:, None]) * entropies[row, span]
            yield _Call(arguments=arguments, entropies=counted.sum(-1).cpu())
