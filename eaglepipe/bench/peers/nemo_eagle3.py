"""The EAGLE-3 training step of NeMo Automodel, on the samples and from the weights of the compact path."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F

from eaglepipe.bench.peers.batches import DecodedBatch, decoded_layouts, shortest_packed_rows
from eaglepipe.bench.peers.set_ups import FastestSetUp
from eaglepipe.bench.step_paths import StepPath, packed_rows
from eaglepipe.bench.timing import Spent


class NemoEagle3:
    """Its draft and its trainer module, with the draft's own weights, rows packed and without padding.

    It takes probabilities, as from its cache; a pass makes them with the head's rows of the draft vocabulary.
    """

    def __init__(self, path: StepPath) -> None:
        self._path, self._device = path, path.setup.device
        self._head = path.setup.cache.start_tensors()["lm_head.weight"].float().to(self._device)
        layouts = {
            "packed rows": packed_rows(path.setup),
            "rows packed to the longest document": shortest_packed_rows(path.setup),
        }
        calls = decoded_layouts(path, layouts)
        self._passes = FastestSetUp({"eager": self._module()}, calls, self._step, self._device)

    @property
    def note(self) -> str:
        """How it runs."""
        losses = "Triton" if self._device.type == "cuda" else "plain"
        return f"nemo-automodel: {self._passes.description}, unpadded, {losses} losses, given probabilities"

    def run_all(self) -> tuple[Spent, torch.Tensor]:
        """Run one pass; return what it took and each step's summed loss, float64 [K]."""
        return self._passes.run_all()

    def _step(self, module: Any, batch: DecodedBatch) -> torch.Tensor:
        dtype, packed = self._path.setup.dtype, batch.packed
        autocast = torch.autocast(self._device.type, dtype, enabled=dtype != torch.float32)
        with _recorded_sums() as sums, autocast:
            with torch.no_grad():
                probs = F.linear(batch.last_hidden, self._head).float().softmax(dim=-1)
            metrics = module(
                input_ids=packed.input_ids,
                attention_mask=packed.attention_mask.long(),
                loss_mask=packed.loss_mask,
                aux_hidden_states=batch.aux,
                target_probs=probs,
                position_mask=packed.position_mask[..., None],
                position_ids=packed.position_ids,
                seq_lens=packed.seq_lens,
                doc_remaining=packed.doc_remaining,
            )
        metrics.loss.backward()
        return torch.stack(sums).cpu()

    def _module(self) -> Any:
        from nemo_automodel.components.speculative.eagle.core import Eagle3TrainerModule
        from nemo_automodel.components.speculative.eagle.draft_llama import LlamaEagle3DraftModel
        from transformers import LlamaConfig

        own: Any = self._path.module.draft_model
        draft = LlamaEagle3DraftModel(LlamaConfig(**own.config.to_dict()))
        draft.load_state_dict(own.state_dict())
        draft.freeze_embeddings()
        vocab = self._path.setup.cache.vocab
        module = Eagle3TrainerModule(
            draft,
            selected_token_ids=vocab.selected_token_ids,
            selected_token_mask=vocab.selected_token_mask,
            ttt_steps=self._path.setup.preset.ttt_steps,
        )
        return module.to(self._device).train()


@contextmanager
def _recorded_sums() -> Iterator[list[torch.Tensor]]:
    """Collect the summed loss of each TTT step, float64, of which its module returns a weighted mean."""
    from nemo_automodel.components.speculative.eagle import core

    own, sums = core.masked_soft_cross_entropy, []

    def recorded(*, position_mask: torch.Tensor, **inputs: torch.Tensor) -> torch.Tensor:
        mean: torch.Tensor = own(position_mask=position_mask, **inputs)
        sums.append(mean.detach().double() * position_mask.sum())
        return mean

    core.masked_soft_cross_entropy = recorded
    try:
        yield sums
    finally:
        core.masked_soft_cross_entropy = own
